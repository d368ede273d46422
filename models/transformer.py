"""Transformer encoder with branches scaled by depth (Noci, Anagnostidis, Biggio, Orvieto, Singh, Lucchi 2022, "Signal
propagation in transformers", arXiv 2206.03126).

    Z = X + a1*attention(X),    Y = Z + a2*ff(Z),    a1 = a2 = 1/sqrt(L)
    attention(X) = softmax(Q K^T/sqrt(d/heads)) V W_O,    Q, K, V = X W_Q, X W_K, X W_V,    ff(Z) = act(Z W_1) W_2

Without the scale, tokens become alike with depth. With uniform attention, a linear ff that keeps norms, and n
orthonormal tokens, their cosine is (E - 1)/(n - 1 + E), E = (1 + a1^2)^L, which stays below (e - 1)/(n - 1 + e) for
a1 = 1/sqrt(L). `norm`: a layer norm before each branch ("pre"), behind each sum ("post"), or none. As published: the
encoder of six layers of the base transformer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models.registry import register

__all__ = ["Attention", "Block", "Transformer"]

ACTS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class Attention(nn.Module):
    """(N, n, dim) -> (N, n, dim). Raises ValueError when heads do not divide dim."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} features cannot be split into {heads} heads")
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """(N, n, dim) -> (N, n, dim). scale: a1 and a2."""

    def __init__(self, dim: int, heads: int, hidden: int, scale: float, norm: str, act: str) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = (nn.Identity() if norm == "none" else nn.LayerNorm(dim) for _ in range(2))
        self.scale, self.post, self.act = scale, norm == "post", ACTS[act]

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.post else self.norm1(x)
        x = x + self.attention(y) * self.scale
        x = self.norm1(x) if self.post else x
        y = x if self.post else self.norm2(x)
        x = x + self.second(self.act(self.first(y))) * self.scale
        return self.norm2(x) if self.post else x


@register(
    "transformer",
    small={"depth": 2, "dim": 16, "heads": 2, "hidden": 32, "tokens": 6, "features": 8},
    published={},
    small_input=(6, 8),
    published_input=(64, 512),
)
class Transformer(nn.Module):
    """sequences (N, tokens, features) -> (N, num_classes), from the mean of the tokens.

    scale: a1 and a2; by default 1/sqrt(depth). norm: pre, post or none. Raises ValueError for another.
    """

    def __init__(  # noqa: PLR0913  # the published sizes by name
        self,
        *,
        depth: int = 6,
        dim: int = 512,
        heads: int = 8,
        hidden: int = 2048,
        tokens: int = 64,
        features: int = 512,
        scale: float | None = None,
        norm: str = "pre",
        act: str = "relu",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if norm not in ("pre", "post", "none"):
            raise ValueError(f"unknown place for a norm '{norm}'; choose from pre, post, none")
        made = 1 / math.sqrt(depth) if scale is None else scale
        self.embed = nn.Linear(features, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, made, norm, act) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim) if norm == "pre" else nn.Identity()
        self.classify = nn.Linear(dim, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classify(self.norm(self.blocks(self.embed(x) + self.positions)).mean(1))
        return y
