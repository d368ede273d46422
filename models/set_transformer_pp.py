"""Set Transformer++ (Zhang, Tozzo, Higgins, Ranganath 2022, arXiv 2206.11925; Lee et al. 2019, arXiv 1810.00825).

    MAB(Q, K):  O = Q + softmax(q k^T/sqrt(dim)) v,    y = O + fc_o(relu(SN(O)))
                q = fc_q(SN_q(Q)),    k = fc_k(SN_k(K)),    v = fc_v(SN_k(K)): one norm for k and v
    ISAB(X):    MAB(X, MAB(I, X)),    I: inducing points, learned
    PMA(X):     MAB(S, X),    S: seeds, learned

The scale of the softmax is that of the whole width, not of a head. SN: set norm (`deep_sets_pp.py`). As published: 16
ISABs of 128 features with 4 heads and 16 inducing points, for clouds of points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reparam.models.deep_sets_pp import norm_layer
from reparam.models.registry import register

__all__ = ["ISAB", "MAB", "PMA", "SetTransformer"]


class MAB(nn.Module):
    """queries (N, A, dim), keys (N, B, dim) -> (N, A, dim). Raises ValueError when heads do not divide dim."""

    def __init__(self, dim: int, heads: int, norm: str) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} features cannot be split into {heads} heads")
        self.heads, self.scale = heads, 1 / math.sqrt(dim)
        self.norm_q, self.norm_k, self.norm_o = (norm_layer(norm, dim) for _ in range(3))
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(dim, dim) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        """(N, A, dim) -> (N, heads, A, dim/heads)."""
        y: Tensor = x.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return y

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        normal = self.norm_k(keys)
        q, k, v = (
            self.split(self.fc_q(self.norm_q(queries))),
            self.split(self.fc_k(normal)),
            self.split(self.fc_v(normal)),
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * self.scale, dim=-1)
        o = queries + (weights @ v).transpose(1, 2).flatten(2)
        y: Tensor = o + self.fc_o(torch.relu(self.norm_o(o)))
        return y


class ISAB(nn.Module):
    """(N, M, dim) -> (N, M, dim), by way of `points` inducing points: M*points products instead of M*M."""

    def __init__(self, dim: int, heads: int, points: int, norm: str) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(1, points, dim))
        nn.init.xavier_uniform_(self.points)
        self.inner, self.outer = MAB(dim, heads, norm), MAB(dim, heads, norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(x, self.inner(self.points.expand(x.shape[0], -1, -1), x))
        return y


class PMA(nn.Module):
    """(N, M, dim) -> (N, seeds, dim)."""

    def __init__(self, dim: int, heads: int, seeds: int, norm: str) -> None:
        super().__init__()
        self.seeds = nn.Parameter(torch.empty(1, seeds, dim))
        nn.init.xavier_uniform_(self.seeds)
        self.block = MAB(dim, heads, norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(self.seeds.expand(x.shape[0], -1, -1), x)
        return y


@register(
    "set_transformer_pp",
    small={"blocks": 1, "dim": 16, "heads": 2, "points": 4, "outputs": 10},
    published={},
    small_input=(12, 3),
    published_input=(1024, 3),
)
class SetTransformer(nn.Module):
    """sets (N, M, features) -> (N, outputs), whatever the order of the M elements. norm: set, layer or none."""

    def __init__(
        self,
        blocks: int = 16,
        dim: int = 128,
        heads: int = 4,
        points: int = 16,
        features: int = 3,
        outputs: int = 40,
        norm: str = "set",
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.blocks = nn.Sequential(*(ISAB(dim, heads, points, norm) for _ in range(blocks)))
        self.pool = PMA(dim, heads, 1, norm)
        self.classify = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classify(self.pool(self.blocks(self.embed(x))).flatten(1))
        return y
