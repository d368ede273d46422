"""Networks with a multiplier for each parameter tensor (Zhu, Ni, Xu, Kong, Huang, Goldstein 2021, "GradInit: learning
to initialize neural networks for stable and efficient training", arXiv 2102.08098).

    y = (alpha*W) x + beta*b

GradInit learns alpha and beta, a number each, on the first batches, so that the loss falls most in one step of the
optimiser, and multiplies the initial weights by them. Here they stay parameters of the layer. The network is a VGG
without normalisation, which does not train from its ordinary initialisation when it is deep. As published: VGG-19 for
images of 32 x 32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.blocks import Head, he_normal
from reparam.models.registry import register

__all__ = ["GainedConv", "GradInitNet"]


class GainedConv(nn.Conv2d):
    """A 3x3 convolution with multipliers: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 3, padding=1)
        self.alpha, self.beta = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.alpha * self.weight, self.beta * self.bias, self.stride, self.padding)


@register(
    "gradinit_net",
    small={"stages": ((8, 2), (12, 2))},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class GradInitNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). stages: (channels, layers), with a max-pool behind each."""

    def __init__(
        self,
        stages: tuple[tuple[int, int], ...] = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 3
        for width, count in stages:
            for _ in range(count):
                layers += [GainedConv(c_in, width), nn.ReLU()]
                c_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x))
        return y
