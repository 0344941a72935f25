"""The commands, the public names (`utils.gradcam`), and the library. Importing the library installs old paths."""

from . import gradcam_kit

__all__ = ["gradcam_kit"]
