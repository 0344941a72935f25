from loss import LOSSFUNC
from networks import BACKBONE  # noqa: F401  as the real one, which needs none
from torch import nn
from transformers import CLIPModel

from detectors import DETECTOR

from .base_detector import AbstractDetector


@DETECTOR.register_module(module_name="clip")
class CLIPDetector(AbstractDetector):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = self.build_backbone(config)
        self.head = nn.Linear(1024, 2)
        self.loss_func = self.build_loss(config)

    def build_backbone(self, config):
        return CLIPModel.from_pretrained("openai/clip-vit-large-patch14").vision_model  # a download

    def build_loss(self, config):
        return LOSSFUNC[config["loss_func"]]()

    def features(self, data_dict):
        return self.backbone(data_dict["image"])["pooler_output"]

    def classifier(self, features):
        return self.head(features)

    def get_losses(self, data_dict, pred_dict):
        return {"overall": self.loss_func(pred_dict["cls"], data_dict["label"])}

    def get_train_metrics(self, data_dict, pred_dict):
        return {}
