import torch
from loss import LOSSFUNC
from networks import BACKBONE

from detectors import DETECTOR

from .base_detector import AbstractDetector


@DETECTOR.register_module(module_name="xception")
class XceptionDetector(AbstractDetector):
    def __init__(self, config):
        super().__init__()
        self.backbone = self.build_backbone(config)
        self.loss_func = self.build_loss(config)

    def build_backbone(self, config):
        backbone = BACKBONE[config["backbone_name"]](config["backbone_config"])
        backbone.load_state_dict(torch.load(config["pretrained"]), strict=False)
        return backbone

    def build_loss(self, config):
        return LOSSFUNC[config["loss_func"]]()

    def features(self, data_dict):
        return self.backbone.features(data_dict["image"])

    def classifier(self, features):
        return self.backbone.classifier(features)

    def get_losses(self, data_dict, pred_dict):
        return {"overall": self.loss_func(pred_dict["cls"], data_dict["label"])}

    def get_train_metrics(self, data_dict, pred_dict):
        return {}
