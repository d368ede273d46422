"""Normalised activations (Yuan and Zhu 2022, "ANAct: adaptive normalization for activation functions").

    f^(x) = lambda*f(x),    lambda_b = E[f'(X)^2]^(-1/2)  or  lambda_f = E[f(X)^2]^(-1/2),    X ~ N(0, 1)

With lambda_b, and weights of variance 1/fan_in, the variance of gradients is the same in every layer; with lambda_f
that of activations. lambda is computed once and frozen.

The network is a ResNet with batch norm whose activations are normalised. As published: ResNet-50 for images of 32 x 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.blocks import gaussian_mean
from reparam.models.registry import register
from reparam.models.resnet import ResNet

__all__ = ["NormalisedActivation", "normalised_activation_net", "normaliser"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu}


def normaliser(function: Callable[[Tensor], Tensor], keep: str = "backward") -> float:
    """lambda_b (keep="backward") or lambda_f (keep="forward") of a pointwise function."""
    if keep == "forward":
        return 1 / math.sqrt(gaussian_mean(lambda x: function(x).square()))

    def squared_slope(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
        return slope.square()

    return 1 / math.sqrt(gaussian_mean(squared_slope))


class NormalisedActivation(nn.Module):
    """lambda*f(x), of any shape. Raises ValueError for an unknown function or for what is kept."""

    def __init__(self, function: str = "silu", keep: str = "backward") -> None:
        super().__init__()
        if function not in FUNCTIONS:
            raise ValueError(f"unknown activation '{function}'; choose from {', '.join(FUNCTIONS)}")
        if keep not in ("backward", "forward"):
            raise ValueError(f"'{keep}' cannot be kept; choose from backward, forward")
        self.function = FUNCTIONS[function]
        self.factor = normaliser(self.function, keep)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.function(x)


@register(
    "normalised_activation_net",
    small={"block": "basic", "layers": (1, 1), "width": 8},
    published={},
    small_input=(3, 16, 16),
    published_input=(3, 32, 32),
)
def normalised_activation_net(
    function: str = "silu",
    keep: str = "backward",
    block: str = "bottleneck",
    layers: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    num_classes: int = 100,
) -> ResNet:
    """A ResNet with normalised activations: images (N, 3, H, W) -> (N, num_classes)."""
    act = partial(NormalisedActivation, function, keep)
    return ResNet(block, layers, width, num_classes, stem="small", act=act)
