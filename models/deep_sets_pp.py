"""Deep Sets++ (Zhang, Tozzo, Higgins, Ranganath 2022, "Set norm and equivariant skip connections", arXiv 2206.11925).

    set norm:  SN(x)_mf = gamma_f*(x_mf - mean)/std + beta_f,    mean and std over all elements m and features f
    block:     y = x + fc2(relu(SN(fc1(relu(SN(x))))))
    network:   embed each element, blocks, mean over the set, linear layers

What a set norm removes of a set are two numbers; a layer norm removes two of each element. The path of the sums is
clean: nothing but sums is on it. As published: 25 blocks of 128 features, for clouds of points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.registry import register

__all__ = ["Block", "DeepSets", "SetNorm", "norm_layer"]


class SetNorm(nn.Module):
    """Sets (N, M, dim) -> the same shape."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:], eps=self.eps) * self.weight + self.bias


def norm_layer(kind: str, dim: int) -> nn.Module:
    """set, layer or none. Raises ValueError for another kind."""
    if kind not in ("set", "layer", "none"):
        raise ValueError(f"unknown norm '{kind}'; choose from set, layer, none")
    return SetNorm(dim) if kind == "set" else nn.LayerNorm(dim) if kind == "layer" else nn.Identity()


class Block(nn.Module):
    """(N, M, dim) -> (N, M, dim)."""

    def __init__(self, dim: int, norm: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_layer(norm, dim), norm_layer(norm, dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc1(torch.relu(self.norm1(x)))
        y = self.fc2(torch.relu(self.norm2(y)))
        return x + y


@register(
    "deep_sets_pp",
    small={"blocks": 2, "dim": 16, "outputs": 10},
    published={},
    small_input=(12, 3),
    published_input=(1024, 3),
)
class DeepSets(nn.Module):
    """sets (N, M, features) -> (N, outputs), whatever the order of the M elements. norm: set, layer or none."""

    def __init__(
        self, blocks: int = 25, dim: int = 128, features: int = 3, outputs: int = 40, norm: str = "set"
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.blocks = nn.Sequential(*(Block(dim, norm) for _ in range(blocks)))
        self.decode = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decode(self.blocks(self.embed(x)).mean(1))
        return y
