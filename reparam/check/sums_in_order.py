"""Sums that are added up one number after the other, as engines may, in the place of torch's, which go in pairs.

In pairs each of n numbers is rounded log2(n) times on its way into the sum, in order up to n times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from reparam.ir import aten

STEPS = 1 << 16  # of additions; longer sums go on in several lanes side by side


def _wide(x: Tensor, dtype: Any) -> tuple[Tensor, Any]:
    """What is added up, and the dtype of the result: engines add halves in float32."""
    x = x if dtype is None else x.to(dtype)
    return x.float() if x.is_floating_point() and x.dtype.itemsize < torch.float32.itemsize else x, x.dtype


def _sum(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    wide, dtype = _wide(x, dtype)
    return _added(wide, dims, keepdim).to(dtype)


def _mean(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    wide, dtype = _wide(x, dtype)
    count = math.prod(x.shape[d] for d in dims or range(x.dim()))
    return (_added(wide, dims, keepdim) / count).to(dtype)


def _norm(
    x: Tensor, p: float = 2, dims: Sequence[int] | int | None = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """(sum |x|^p)^(1/p); those that are no such sum as torch has them."""
    if not 0 < p < math.inf or x.is_complex():
        return torch.linalg.vector_norm(x, p, dims, keepdim, dtype=dtype)  # type: ignore[no-any-return]
    wide, dtype = _wide(x, dtype)
    over = [dims] if isinstance(dims, int) else dims
    return (_added(wide.abs() ** p, over, keepdim) ** (1 / p)).to(dtype)


def _added(x: Tensor, dims: Sequence[int] | None, keepdim: bool) -> Tensor:
    over = sorted({d % x.dim() for d in dims or range(x.dim())}) if x.dim() else []
    if not over or not x.is_floating_point() or not x.numel():
        return aten.sum.dim_IntList(x, dims, keepdim)  # type: ignore[no-any-return]
    flat = x.movedim(over, [*range(len(over))]).flatten(0, len(over) - 1)  # (n, ...)
    lanes = -(-len(flat) // STEPS)
    total = torch.zeros_like(flat[:lanes])
    for part in flat.split(lanes):
        total[: len(part)] += part
    result = total.sum(0)
    return result.reshape([1 if d in over else s for d, s in enumerate(x.shape)]) if keepdim else result


def _pooled(otherwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An adaptive average over everything; of several windows as `otherwise` gives it, since those are short."""

    def pool(x: Tensor, size: Sequence[int]) -> Tensor:
        if any(n != 1 for n in size):
            return otherwise(x, size)
        return _mean(x, [*range(-len(size), 0)], keepdim=True)

    return pool


_BY: dict[Any, Callable[..., Any]] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.linalg_vector_norm.default: _norm,
}
_AVERAGES = (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
IN_ORDER: Mapping[Any, Callable[..., Any]] = MappingProxyType(_BY | {op: _pooled(op) for op in _AVERAGES})
