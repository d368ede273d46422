"""ResNet with stochastic depth (Huang, Sun, Liu, Sedra, Weinberger 2016, arXiv 1603.09382).

    training:    y = relu(b*f(x) + s(x)),   b ~ Bernoulli(1 - d_l)        d_l = (l/L)*d_L,  d_L = 0.5
    evaluation:  y = relu((1 - d_l)*f(x) + s(x))

One draw of b for the whole batch. f: 3x3 convolution, batch norm, relu, 3x3 convolution, batch norm. s: the identity,
or, where the shape changes, an average pool and channels of zeros. Depth 6n + 2 with 16, 32 and 64 channels. As
published: 1202 layers.

`rescale` names the other convention too: "test" is the one above; with "train" the branch is divided by 1 - d_l while
it is trained, and evaluated as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, PooledShortcut, conv_bn, he_normal, spread, stack, units
from reparam.models.registry import register

__all__ = ["Block", "StochasticDepthResNet"]


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, c_out, H/stride, W/stride). death: the chance that its branch is dropped."""

    def __init__(self, c_in: int, c_out: int, stride: int, death: float, rescale: str) -> None:
        super().__init__()
        self.first, self.second = conv_bn(c_in, c_out, 3, stride), conv_bn(c_out, c_out)
        self.shortcut = PooledShortcut(c_in, c_out, stride)
        self.survival, self.rescale = 1 - death, rescale

    def forward(self, x: Tensor) -> Tensor:
        skip: Tensor = self.shortcut(x)
        if self.training and torch.rand(()) >= self.survival:
            return torch.relu(skip)
        y: Tensor = self.second(torch.relu(self.first(x)))
        if self.training and self.rescale == "train":
            y = y / self.survival
        if not self.training and self.rescale == "test":
            y = y * self.survival
        return torch.relu(y + skip)


@register(
    "stochastic_depth_resnet",
    small={"depth": 20, "width": 4},
    published={"depth": 1202},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
class StochasticDepthResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). death: d_L, of the last block.

    Raises ValueError when depth is not 6n + 2, or for an unknown convention.
    """

    def __init__(
        self, depth: int = 1202, width: int = 16, death: float = 0.5, rescale: str = "test", num_classes: int = 10
    ) -> None:
        super().__init__()
        if rescale not in ("test", "train"):
            raise ValueError(f"unknown convention '{rescale}'; choose from test, train")
        n = units(depth, 6, 2)
        self.stem = conv_bn(3, width)
        deaths = (death * (i + 1) / (3 * n) for i in range(3 * n))

        def block(c_in: int, c_out: int, stride: int) -> Block:
            return Block(c_in, c_out, stride, next(deaths), rescale)

        self.blocks, c_in = stack(block, width, spread((width, 2 * width, 4 * width), (n, n, n)))
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(torch.relu(self.stem(x))))
        return y
