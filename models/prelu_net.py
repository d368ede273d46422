"""Plain networks with PReLU (He, Zhang, Ren, Sun 2015, "Delving deep into rectifiers", arXiv 1502.01852).

    prelu(x) = max(0, x) + a*min(0, x), a for each channel, 0.25 at the start;    Var(w) = 2/((1 + a^2)*fan_in)

The variance keeps that of activations through any depth. The slopes are not decayed: `parameter_groups`. As published:
the 19 layers of model A, without its spatial pyramid (whose levels of max-pools are not a chain): the last feature map,
7 x 7, goes into the classifier as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reparam.models.blocks import conv, he_normal
from reparam.models.registry import register

__all__ = ["PReLUNet"]

SLOPE = 0.25


@register(
    "prelu_net",
    small={
        "stem": (8, 3, 1),
        "stages": ((8, 2), (12, 2)),
        "pool": 0,
        "hidden": (32,),
        "size": 16,
        "num_classes": 10,
    },
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 224, 224),
)
class PReLUNet(nn.Module):
    """images (N, 3, size, size) -> (N, num_classes).

    stem: channels, kernel and stride of the first convolution. pool: side of the max-pool behind it, with its stride;
    0 for none. stages: (channels, layers), with a max-pool between them. hidden: widths of the classifier.
    """

    def __init__(
        self,
        stem: tuple[int, int, int] = (96, 7, 2),
        pool: int = 3,
        stages: tuple[tuple[int, int], ...] = ((256, 5), (512, 5), (512, 5)),
        hidden: tuple[int, ...] = (4096, 4096),
        size: int = 224,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        channels, kernel, stride = stem
        layers: list[nn.Module] = [conv(3, channels, kernel, stride, bias=True), nn.PReLU(channels, SLOPE)]
        side = -(-size // stride)
        if pool:
            layers.append(nn.MaxPool2d(pool, pool))
            side //= pool
        for stage, (width, count) in enumerate(stages):
            if stage:
                layers.append(nn.MaxPool2d(2, 2))
                side //= 2
            for _ in range(count):
                layers += [conv(channels, width, bias=True), nn.PReLU(width, SLOPE)]
                channels = width
        self.features = nn.Sequential(*layers)
        dense: list[nn.Module] = []
        width = channels * side * side
        for wide in hidden:
            dense += [nn.Linear(width, wide), nn.PReLU(wide, SLOPE)]
            width = wide
        self.classifier = nn.Sequential(*dense, nn.Linear(width, num_classes))
        he_normal(self, SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return y

    def parameter_groups(self, decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser: the slopes without decay, everything else with it."""
        slopes = [m.weight for m in self.modules() if isinstance(m, nn.PReLU)]
        own = {id(s) for s in slopes}
        rest = [p for p in self.parameters() if id(p) not in own]
        return [{"params": rest, "weight_decay": decay}, {"params": slopes, "weight_decay": 0.0}]
