from metrics.registry import BACKBONE
from torch import nn


@BACKBONE.register_module(module_name="xception")
class Xception(nn.Module):
    """The names and the in-place operations of Xception, in small."""

    def __init__(self, config):
        super().__init__()
        self.conv1 = nn.Conv2d(config["inc"], 8, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv4 = nn.Conv2d(8, 16, 3, stride=2)
        self.bn4 = nn.BatchNorm2d(16)
        self.last_linear = nn.Linear(16, config["num_classes"])
        self.adjust_channel = nn.Conv2d(16, 4, 1)  # the last convolution by name, and it never runs

    def features(self, x):
        return self.bn4(self.conv4(self.relu(self.bn1(self.conv1(x)))))

    def classifier(self, features):
        return self.last_linear(self.relu(features).mean(dim=(2, 3)))
