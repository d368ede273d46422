"""What torch makes for sizes that are known alone, made of what it makes for free ones too.

torch.export fixes the length of a linspace, the sides of an affine_grid, and sizes that become a tensor by as_tensor or
new_tensor.
The range that the first two are made of may have any length. It fixes the length that a max_pool1d pools over, and no
side of a max_pool2d; and the number of windows of an adaptive max-pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import SymFloat, SymInt, Tensor
from torch.utils import _pytree as pytree


def maker_for_free_sizes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """What to call in place of a function of torch; None where it is called as it is."""
    maker = _MAKERS.get(func) if isinstance(func, _HASHED) else None
    leaves = pytree.tree_leaves((args, dict(kwargs))) if maker is not None else []
    sizes = (n for v in leaves for n in (v.shape[1:] if isinstance(v, Tensor) else [v]))
    return maker if any(isinstance(n, SymInt | SymFloat) for n in sizes) else None


def _linspace(
    start: Any, end: Any, steps: Any, *, dtype: torch.dtype | None = None, device: Any = None, **rest: Any
) -> Tensor:
    """start + (end - start) i / (steps - 1), from both ends to the middle, as torch computes it."""
    kind, free = dtype or torch.get_default_dtype(), isinstance(steps, SymInt)
    if not free or not kind.is_floating_point or isinstance(start, Tensor) or isinstance(end, Tensor) or rest:
        made: Tensor = torch.linspace(start, end, steps, dtype=dtype, device=device, **rest)
        return made
    place = torch.arange(steps, dtype=kind, device=device)
    last = place[-1:]
    gaps, length = last.clamp(min=1), end - start
    return torch.where(2 * place <= last, start + place * length / gaps, end - (last - place) * length / gaps)


def _affine_grid(theta: Tensor, size: Sequence[Any], align_corners: bool | None = None) -> Tensor:
    """The positions -1 to 1 of each axis of `size`, (N, C, *sides), times theta (N, k, k + 1): (N, *sides, k)."""
    sides = list(size[2:])
    if len(sides) not in (2, 3) or not any(isinstance(n, SymInt) for n in sides):
        return F.affine_grid(theta, list(size), align_corners)
    axes = [_positions(theta, n, bool(align_corners)) for n in sides]
    places = [p.reshape([-1 if i == j else 1 for j in range(len(sides))]) for i, p in enumerate(axes)]
    whole = sum(places[1:], places[0])  # of the shape of the grid
    columns = [p + torch.zeros_like(whole) for p in reversed(places)]
    base = torch.stack([*columns, torch.ones_like(whole)], -1).reshape(1, -1, len(sides) + 1)
    return torch.matmul(base, theta.transpose(1, 2)).reshape(theta.shape[0], *sides, len(sides))


def _positions(like: Tensor, steps: Any, aligned: bool) -> Tensor:
    """From -1 to 1, of the corners or of the middles of so many cells; 0 of a single one."""
    place = torch.arange(steps, dtype=like.dtype, device=like.device)
    last = place[-1:]
    if not aligned:
        return (2 * place - last) / (last + 1)
    return (2 * place - last) / last.clamp(min=1)


def _as_tensor(data: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
    """Sizes, in lists or not, as tensors of whole numbers, or of floats where one is among them."""
    leaves = pytree.tree_leaves(data)
    if any(isinstance(v, Tensor) for v in leaves):
        return torch.as_tensor(data, dtype=dtype, device=device)
    floats = any(isinstance(v, float | SymFloat) for v in leaves)
    return _stacked(data, dtype or (torch.get_default_dtype() if floats else torch.int64), device)


def _new_tensor(x: Tensor, data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **rest: Any) -> Tensor:
    """The same, of the dtype and on the device of another tensor."""
    if rest or any(isinstance(v, Tensor) for v in pytree.tree_leaves(data)):
        made: Tensor = x.new_tensor(data, dtype=dtype, device=device, **rest)
        return made
    return _stacked(data, dtype or x.dtype, device or x.device)


def _stacked(data: Any, dtype: torch.dtype, device: Any) -> Tensor:
    if isinstance(data, list | tuple):
        return torch.stack([_stacked(v, dtype, device) for v in data])
    return torch.scalar_tensor(data, dtype=dtype, device=device)


def _max_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """The maxima of windows (1, kernel_size) of x as one row."""
    if return_indices:
        return F.max_pool1d(x, kernel_size, stride, padding, dilation, ceil_mode, True)
    step = kernel_size if stride is None or stride in ((), []) else stride
    kernel, steps, pads, gaps = (
        n[0] if isinstance(n, list | tuple) else n for n in (kernel_size, step, padding, dilation)
    )
    row = x.unsqueeze(-2)
    return F.max_pool2d(row, (1, kernel), (1, steps), (0, pads), (1, gaps), ceil_mode).squeeze(-2)


def _adaptive_max_pool(pool: Callable[..., Any], rank: int) -> Callable[..., Any]:
    """Maxima of windows whose number is a free size, along one axis after the other."""

    def made(x: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        sizes = list(output_size) if isinstance(output_size, list | tuple) else [output_size] * rank
        own = x.shape[-rank:]
        free = any(isinstance(own[i] if n is None else n, SymInt) for i, n in enumerate(sizes))
        if return_indices or not free or len(sizes) != rank:
            return pool(x, output_size, return_indices)
        for i, size in enumerate(sizes):
            if size is not None:
                x = _largest_of_windows(x, x.dim() - rank + i, size)
        return x

    return made


def _largest_of_windows(x: Tensor, axis: int, count: Any) -> Tensor:
    """Window i of `count` is x[floor(i n / count) : ceil((i + 1) n / count)] along an axis of size n.

    No window is longer than n // count + 2; of a shorter one the last element is taken several times.
    """
    n, place = x.shape[axis], torch.arange(count, device=x.device)
    first, last = place * n // count, ((place + 1) * n + count - 1) // count - 1
    within = torch.arange(n // count + 2, device=x.device)
    index = torch.minimum(first[:, None] + within, last[:, None])
    return x[(slice(None),) * axis + (index,)].amax(axis + 1)


_MAKERS: dict[Any, Callable[..., Any]] = {
    torch.linspace: _linspace,
    F.affine_grid: _affine_grid,
    torch.as_tensor: _as_tensor,
    Tensor.new_tensor: _new_tensor,
    torch.max_pool1d: _max_pool1d,
    F.max_pool1d: _max_pool1d,
    F.adaptive_max_pool1d: _adaptive_max_pool(F.adaptive_max_pool1d, 1),
    F.adaptive_max_pool2d: _adaptive_max_pool(F.adaptive_max_pool2d, 2),
    F.adaptive_max_pool3d: _adaptive_max_pool(F.adaptive_max_pool3d, 3),
}
_HASHED = tuple({type(f) for f in _MAKERS})
