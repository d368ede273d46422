"""ResNet with a batch norm on its input and small scales (Davis and Frank 2022, "Revisiting batch norm initialization",
arXiv 2110.13989).

    x -> bn_0(x) -> ResNet,    gamma = 0.1 at the start in every batch norm, 0.058 in bn_0, whose bias stays at zero

A small gamma lets the weights before it grow less at first. Its learning rate is a hundredth of the others', and
vectors are not decayed: `parameter_groups`. As published: ResNet-50.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reparam.models.registry import register
from reparam.models.resnet import ResNet

__all__ = ["InputBNResNet"]

GAMMA = 0.1
INPUT_FACTOR = 0.58  # bn_0 normalises images, whose statistics differ from those of activations


@register(
    "input_bn_resnet",
    small={"block": "basic", "layers": (1, 1), "width": 8, "num_classes": 10, "stem": "small"},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 224, 224),
)
class InputBNResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). The arguments are those of ResNet."""

    def __init__(self, **resnet: Any) -> None:
        super().__init__()
        self.input_bn = nn.BatchNorm2d(3)
        self.body = ResNet(**resnet)
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.constant_(norm.weight, GAMMA)
        nn.init.constant_(self.input_bn.weight, GAMMA * INPUT_FACTOR)
        self.input_bn.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.input_bn(x))
        return y

    def parameter_groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: gamma at rate/100, vectors without decay, everything else with both."""
        norms = [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        gammas = [norm.weight for norm in norms]
        own = {id(g) for g in gammas}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        vectors: list[torch.Tensor] = [p for p in rest if p.dim() == 1]
        return [
            {"params": [p for p in rest if p.dim() > 1], "lr": rate, "weight_decay": decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
            {"params": gammas, "lr": rate / 100, "weight_decay": 0.0},
        ]
