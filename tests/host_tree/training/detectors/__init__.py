import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from metrics.registry import DETECTOR

from .clip_detector import CLIPDetector
from .effort_detector import EffortDetector
from .xception_detector import XceptionDetector
from .cuda_detector import CUDADetector
