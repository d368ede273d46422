"""Proxy normalisation (Labatie, Masters, Eaton-Rosen, Luschi 2021, "Proxy-normalizing activations to match batch
normalization while removing batch dependence", arXiv 2106.03743).

    n = norm(x),    z = relu(gamma*n + beta),    Z = relu(gamma*Y + beta),    z~ = (z - E[Z])/sqrt(Var[Z] + eps)

norm: over channels and positions of one sample (a layer norm), or over groups of channels. Y ~ N(b, (1 + g)^2) is a
proxy of n for each channel, with parameters b and g that start at zero; its moments are means over 256 quantiles,
Y_i = b + (1 + g)*sqrt(2)*erfinv(2(i + 1/2)/256 - 1). They depend on parameters alone, so they are constants once the
network is trained. eps = 0.03.

The network has pre-activation bottlenecks (`preact_resnet.py`) in which each norm and ReLU is followed by proxy
normalisation. As published: 50 layers.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from reparam.models.blocks import Head, conv, he_normal, spread, stack
from reparam.models.registry import register

__all__ = ["Block", "ProxyNorm", "ProxyNormResNet"]

QUANTILES = 256


class ProxyNorm(nn.Module):
    """norm, gamma and beta, ReLU, proxy normalisation: (N, C, H, W) -> the same shape.

    groups: of channels that are normalised together; 1 is a layer norm. proxy: False leaves norm and ReLU alone.
    """

    def __init__(self, channels: int, groups: int = 1, eps: float = 0.03, proxy: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.proxy, self.eps = proxy, eps
        if proxy:
            self.shift, self.scale = nn.Parameter(torch.zeros(channels)), nn.Parameter(torch.zeros(channels))
            levels = 2 * (torch.arange(QUANTILES) + 0.5) / QUANTILES - 1
            self.register_buffer("quantiles", math.sqrt(2) * torch.erfinv(levels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm(x))
        if not self.proxy:
            return z
        y = self.shift.unsqueeze(1) + (1 + self.scale).unsqueeze(1) * self.get_buffer("quantiles")  # (C, 256)
        of_y = torch.relu(self.norm.weight.unsqueeze(1) * y + self.norm.bias.unsqueeze(1))
        variance, mean = torch.var_mean(of_y, dim=1, correction=0)
        return (z - mean.reshape(-1, 1, 1)) / torch.sqrt(variance + self.eps).reshape(-1, 1, 1)


class Block(nn.Module):
    """(N, c_in, H, W) -> (N, 4*width, H/stride, W/stride)."""

    def __init__(self, c_in: int, width: int, stride: int, groups: int, proxy: bool) -> None:
        super().__init__()
        out = 4 * width
        self.norm1, self.conv1 = ProxyNorm(c_in, groups, proxy=proxy), conv(c_in, width, 1)
        self.norm2, self.conv2 = ProxyNorm(width, groups, proxy=proxy), conv(width, width, 3, stride)
        self.norm3, self.conv3 = ProxyNorm(width, groups, proxy=proxy), conv(width, out, 1)
        self.shortcut = conv(c_in, out, 1, stride) if stride > 1 or c_in != out else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm1(x)
        y: Tensor = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(z)))))
        skip: Tensor = x if self.shortcut is None else self.shortcut(z)
        return y + skip


@register(
    "proxy_norm_resnet",
    small={"repeats": (2, 1), "width": 4, "stem": "small", "num_classes": 10},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 224, 224),
)
class ProxyNormResNet(nn.Module):
    """images (N, 3, H, W) -> (N, num_classes). stem: "large" for photographs, "small" for images of 32 x 32."""

    def __init__(
        self,
        repeats: tuple[int, ...] = (3, 4, 6, 3),
        width: int = 64,
        groups: int = 1,
        proxy: bool = True,
        stem: str = "large",
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        large = nn.Sequential(conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.stem = large if stem == "large" else conv(3, width)
        plan = spread(tuple(width << i for i in range(len(repeats))), repeats)
        self.blocks, c_in = stack(functools.partial(Block, groups=groups, proxy=proxy), width, plan, growth=4)
        self.norm = ProxyNorm(c_in, groups, proxy=proxy)
        self.head = Head(c_in, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.blocks(self.stem(x))))
        return y
