"""Momentum residual networks (Sander, Ablin, Blondel, Peyre 2021, arXiv 2102.07870).

    v_{n+1} = g*v_n + (1 - g)*f_n(x_n),    x_{n+1} = x_n + v_{n+1},    v_0 = 0 at the start of a stage

The recurrence is that of `momentum.py`. f: 1x1, 3x3 and 1x1 convolutions, each behind a batch norm and a ReLU. The
first block of each stage changes the shape, and is an ordinary one with a strided 1x1 convolution as its shortcut. As
published: the blocks of ResNet-101, for images of 32 x 32.

By default activations are stored. With `reversible` they are reconstructed; each f then runs twice in a training step,
so that its batch norms take the statistics of a batch in twice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, conv, he_normal
from reparam.models.momentum import MomentumResidual
from reparam.models.registry import register

__all__ = ["MomentumResNet", "branch"]


def branch(c_in: int, width: int, stride: int = 1) -> nn.Sequential:
    """f: (N, c_in, H, W) -> (N, 4*width, H/stride, W/stride)."""
    layers: list[nn.Module] = []
    for layer, channels in ((conv(c_in, width, 1), c_in), (conv(width, width, 3, stride), width)):
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), layer]
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), conv(width, 4 * width, 1))


class Stage(nn.Module):
    """An ordinary block and `count` - 1 momentum blocks: (N, c_in, H, W) -> (N, 4*width, H/stride, W/stride)."""

    def __init__(self, c_in: int, width: int, stride: int, count: int, gamma: float, reversible: bool) -> None:
        super().__init__()
        self.enter, self.shortcut = branch(c_in, width, stride), conv(c_in, 4 * width, 1, stride)
        functions = [branch(4 * width, width) for _ in range(count - 1)]
        self.momentum = MomentumResidual(functions, gamma, reversible=reversible)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.momentum(self.enter(x) + self.shortcut(x))
        return y


@register(
    "momentum_resnet",
    small={"layers": (3, 3), "width": 4},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class MomentumResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). layers: blocks in each stage. gamma: g."""

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 23, 3),
        width: int = 64,
        gamma: float = 0.9,
        reversible: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.stem = conv(3, width)
        stages: list[nn.Module] = []
        c_in = width
        for i, count in enumerate(layers):
            stages.append(Stage(c_in, width << i, 2 if i else 1, count, gamma, reversible))
            c_in = 4 * (width << i)
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(c_in)
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.bn(self.stages(self.stem(x)))))
        return y
