"""Residual networks with branches scaled by depth (Marion, Fermanian, Biau, Vert 2022, arXiv 2206.06929).

    h_0 = A x,    h_{k+1} = h_k + L^-beta * V_{k+1} relu(W_{k+1} h_k),    y = B h_L

Entries of V and W are uniform in +-sqrt(3/d), so of variance 1/d, and E|h_L|^2/|h_0|^2 = (1 + L^(-2 beta)/2)^L: it
explodes for beta < 1/2, tends to 1 for beta > 1/2 and to sqrt(e) at 1/2. That is for independent layers ("iid"). Where
weights are a smooth function of k/L, the critical value moves: to 1 for a Gaussian process with a squared-exponential
kernel ("rbf"), to 1 - H for increments of a fractional Brownian motion with Hurst index H ("fbm"). Each entry is then a
path of its own, with variance 1/d in every layer ("rbf") or at the end of the path ("fbm").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reparam.models.registry import register

__all__ = ["ScaledResNet", "paths"]


def paths(kind: str, layers: int, shape: tuple[int, ...], hurst: float = 0.7, length: float = 0.1) -> Tensor:
    """(layers, *shape): for each entry a path over the layers with variance 1. Raises ValueError for an unknown kind.

    kind: iid (uniform), rbf (kernel exp(-(s - t)^2/(2 length^2))), fbm (covariance (s^2H + t^2H - |s - t|^2H)/2).
    """
    if kind == "iid":
        return (2 * torch.rand(layers, *shape) - 1) * math.sqrt(3)
    t = torch.arange(1, layers + 1, dtype=torch.float64) / layers
    gap = (t.unsqueeze(0) - t.unsqueeze(1)).abs()
    if kind == "rbf":
        covariance = torch.exp(-gap.square() / (2 * length**2))
    elif kind == "fbm":
        power = t.pow(2 * hurst)
        covariance = (power.unsqueeze(0) + power.unsqueeze(1) - gap.pow(2 * hurst)) / 2
    else:
        raise ValueError(f"unknown initialisation '{kind}'; choose from iid, rbf, fbm")
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # a square root; small eigenvalues may come out negative
    noise = torch.randn(layers, math.prod(shape), dtype=torch.float64)
    made: Tensor = (root @ noise).to(torch.get_default_dtype()).unflatten(1, shape)
    return made


class Block(nn.Module):
    """(N, d) -> (N, d)."""

    def __init__(self, first: Tensor, second: Tensor, scale: float) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.scale = scale

    def forward(self, h: Tensor) -> Tensor:
        y = torch.relu(nn.functional.linear(h, self.first))
        return h + self.scale * nn.functional.linear(y, self.second)


@register(
    "scaled_resnet",
    small={"dim": 8, "layers": 10, "inputs": 16},
    published={},
    small_input=(16,),
    published_input=(64,),
)
class ScaledResNet(nn.Module):
    """features (N, inputs) -> (N, num_classes). init: iid, rbf or fbm."""

    def __init__(
        self,
        dim: int = 40,
        layers: int = 1000,
        beta: float = 0.5,
        init: str = "iid",
        inputs: int = 64,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        weights = paths(init, layers, (2, dim, dim)) / math.sqrt(dim)
        self.embed = nn.Linear(inputs, dim)
        self.blocks = nn.Sequential(*(Block(w[0].clone(), w[1].clone(), layers**-beta) for w in weights))
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classify(self.blocks(self.embed(x)))
        return y
