from metrics.registry import BACKBONE

from .resnet34 import ResNet34
from .xception import Xception
