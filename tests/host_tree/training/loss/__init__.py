from metrics.registry import LOSSFUNC

from .cross_entropy_loss import CrossEntropyLoss
