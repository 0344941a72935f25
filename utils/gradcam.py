"""The public face, in a host: `from utils.gradcam import explain`. See gradcam_kit/face.py."""

from utils.gradcam_kit.face import *  # noqa: F403
from utils.gradcam_kit.face import __all__ as __all__
