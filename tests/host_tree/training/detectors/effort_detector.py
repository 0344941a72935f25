import torch
from loss import LOSSFUNC
from torch import nn
from transformers import CLIPModel

from detectors import DETECTOR


@DETECTOR.register_module(module_name="effort")
class EffortDetector(nn.Module):
    def __init__(self, config=None):
        super().__init__()
        self.backbone = self.build_backbone(config)
        self.head = nn.Linear(1024, 2)
        self.loss_func = LOSSFUNC["cross_entropy"]()

    def build_backbone(self, config):
        tower = CLIPModel.from_pretrained("../a-folder-that-only-its-author-has").vision_model
        return apply_svd_residual_to_self_attn(tower, r=1023)

    def forward(self, data_dict, inference=False):
        features = self.features(data_dict)
        logits = self.head(features)
        return {"cls": logits, "prob": logits.softmax(dim=1)[:, 1], "feat": features}

    def features(self, data_dict):
        return self.backbone(data_dict["image"])["pooler_output"]


class FixedPlusResidual(nn.Module):
    """A linear layer whose weight is its first r singular components, fixed, plus the rest."""

    def __init__(self, linear, r):
        super().__init__()
        u, s, v = torch.linalg.svd(linear.weight.data, full_matrices=False)
        self.weight_main = nn.Parameter(u[:, :r] * s[:r] @ v[:r], requires_grad=False)
        self.bias = nn.Parameter(linear.bias.data.clone())
        self.U_residual, self.S_residual, self.V_residual = (
            nn.Parameter(part.clone()) for part in (u[:, r:], s[r:], v[r:])
        )
        self.S_r = nn.Parameter(s[:r].clone(), requires_grad=False)

    def forward(self, x):
        residual = self.U_residual * self.S_residual @ self.V_residual
        return nn.functional.linear(x, self.weight_main + residual, self.bias)


def apply_svd_residual_to_self_attn(model, r):
    for name, module in list(model.named_modules()):
        if name.endswith("self_attn"):
            for child, linear in list(module.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(module, child, FixedPlusResidual(linear, r))
    return model
