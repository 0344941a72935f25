"""The commands, the public face `utils.gradcam`, and the library behind them, whose import makes old paths known."""

from . import gradcam_kit

__all__ = ["gradcam_kit"]
