import a_package_that_nobody_has  # as torchvision where it is not installed
from metrics.registry import BACKBONE


@BACKBONE.register_module(module_name="resnet34")
class ResNet34:
    pass
