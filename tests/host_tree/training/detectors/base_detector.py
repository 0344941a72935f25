import abc

from torch import nn


class AbstractDetector(nn.Module, abc.ABC):
    @abc.abstractmethod
    def build_backbone(self, config): ...

    @abc.abstractmethod
    def build_loss(self, config): ...

    @abc.abstractmethod
    def features(self, data_dict): ...

    @abc.abstractmethod
    def classifier(self, features): ...

    @abc.abstractmethod
    def get_losses(self, data_dict, pred_dict): ...

    @abc.abstractmethod
    def get_train_metrics(self, data_dict, pred_dict): ...

    def forward(self, data_dict, inference=False):
        features = self.features(data_dict)
        logits = self.classifier(features)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": features}
