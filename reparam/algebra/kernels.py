"""Tensor algebra on weights, in float64. No graph, no search: each function states the identity that it implements.

Weights of convolutions are (C_out, C_in/groups, *kernel), of transposed ones (C_in, C_out/groups, *kernel), of linear
layers (C_out, C_in). A scale or shift is a vector over channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["conv", "transposed", "linear"]


def column(vector: Tensor, ndim: int, axis: int) -> Tensor:
    """`vector` reshaped to broadcast along `axis` of an `ndim`-dimensional tensor."""
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


def scale_outputs(
    kind: Kind, weight: Tensor, bias: Tensor | None, groups: int, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """a*(W*x + b) + t = (aW)*x + (ab + t); scale a and shift t are (C_out,)."""
    if scale is not None:
        if kind == "transposed":
            per_group = weight.unflatten(0, (groups, -1)) * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
            weight = per_group.flatten(0, 1)
        else:
            weight = weight * column(scale, weight.dim(), 0)
        bias = bias * scale if bias is not None else None
    if shift is not None:
        bias = shift if bias is None else add_shifts(bias, shift)
    return weight, bias


def add_shifts(a: Tensor, b: Tensor) -> Tensor:
    """a + b, with a sum that is nothing but the rounding of its parts set to zero.

    A shift that cancels exactly on paper (a batch norm's own value at zero, subtracted) must not leave 1e-17 behind,
    which could not pass a zero-padded border. What is dropped is below the bound that the rewrite is checked against.
    Where the sum is rounding as a whole, an entry may be so against its own parts a thousandfold less: these may be
    differences of larger numbers, as a batch norm's shift is.
    """
    total, size = a + b, a.abs() + b.abs()
    eps = 32 * torch.finfo(torch.float64).eps
    whole = size.numel() > 0 and bool(total.abs().max() <= eps * size.max())
    return torch.where(total.abs() <= eps * (2**10 if whole else 1) * size, torch.zeros_like(total), total)


def _by_input(kind: Kind, weight: Tensor, groups: int, vector: Tensor) -> Tensor:
    """`vector` (C_in,) shaped to multiply `weight` over its input channels."""
    if kind == "transposed":
        return column(vector, weight.dim(), 0)
    if kind == "linear":
        return vector[None, :]
    rows = vector.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1).reshape(weight.shape[0], -1)
    return rows.reshape(*rows.shape, *[1] * (weight.dim() - 2))


def scale_inputs(
    kind: Kind, weight: Tensor, bias: Tensor | None, groups: int, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """W*(a*x + t) + b = (Wa)*x + (b + sum W t), for windows that never see padding; a and t are (C_in,).

    Raises ValueError for a shift into a transposed convolution, whose border sees fewer taps than its interior.
    """
    if shift is not None:
        if kind == "transposed":
            raise ValueError("a shift does not fold into a transposed convolution")
        add = (weight * _by_input(kind, weight, groups, shift)).flatten(1).sum(1)
        bias = add if bias is None else bias + add
    if scale is not None:
        weight = weight * _by_input(kind, weight, groups, scale)
    return weight, bias


def expand_groups(weight: Tensor, groups: int, target: int) -> Tensor:
    """The same map with `target` groups (a divisor of `groups`): blocks on the diagonal, zeros beside them."""
    if groups == target:
        return weight
    c_out, per_in = weight.shape[:2]
    fold, per_out = groups // target, c_out // groups
    blocks = weight.reshape(target, fold, per_out, per_in, *weight.shape[2:])
    wide = weight.new_zeros(target, fold, per_out, fold, per_in, *weight.shape[2:])
    for j in range(fold):
        wide[:, j, :, j] = blocks[:, j]
    return wide.reshape(c_out, fold * per_in, *weight.shape[2:])


def dilate(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """The kernel with its zeros written out, so that its dilation becomes 1."""
    if all(d == 1 for d in dilation):
        return weight
    kernel = weight.shape[2:]
    size = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    wide = weight.new_zeros(*weight.shape[:2], *size)
    wide[(slice(None), slice(None), *(slice(None, None, d) for d in dilation))] = weight
    return wide


def embed(weight: Tensor, before: Sequence[int], size: Sequence[int]) -> Tensor:
    """The kernel inside a larger one of `size` taps, `before` zeros ahead of it on each axis."""
    wide = weight.new_zeros(*weight.shape[:2], *size)
    window = tuple(slice(b, b + k) for b, k in zip(before, weight.shape[2:], strict=True))
    wide[(slice(None), slice(None), *window)] = weight
    return wide


def dirac(channels: int, groups: int, ndim: int, *, like: Tensor | None = None) -> Tensor:
    """The identity as a kernel of one tap: (C, C/groups, 1, ...)."""
    eye = torch.eye(channels // groups, dtype=torch.float64, device=like.device if like is not None else None)
    return eye.repeat(groups, 1).reshape(channels, channels // groups, *[1] * ndim)


def average_kernel(channels: int, kernel: Sequence[int], divisor: int | None, *, like: Tensor | None = None) -> Tensor:
    """Average pooling as a depthwise kernel, 1/prod(k) in each tap (or 1/divisor)."""
    value = 1.0 / (divisor or math.prod(kernel))
    device = like.device if like is not None else None
    return torch.full((channels, 1, *kernel), value, dtype=torch.float64, device=device)


def compose(first: Tensor, groups_first: int, second: Tensor, groups_second: int, step: Sequence[int]) -> Tensor:
    """The kernel of (second after first), with gcd(groups) groups.

    first: (C_mid, C_in/g1, *k1), dilation written out. second: (C_out, C_mid/g2, *k2), likewise. step: the stride of
    the first, by which the second's taps lie apart. Result: (C_out, C_in/g, *(k1 + step*(k2 - 1))).

    (W2 * W1)[o, i, u] = sum over m, v of W2[o, m, v] * W1[m, i, u - step*v]: one matrix product over m per tap v. Where
    one of the two is depthwise there is one m, and each tap is a product of numbers.
    """
    groups = math.gcd(groups_first, groups_second)
    window, taps = first.shape[2:], second.shape[2:]
    if groups_second == second.shape[0] == first.shape[0]:
        products = _scaled_rows(first, second)
    elif first.shape[1] == 1 and groups_first == first.shape[0]:
        products = _scaled_columns(first, second, groups)
    else:
        a, b = expand_groups(first, groups_first, groups), expand_groups(second, groups_second, groups)
        products = _mixed(a, b, groups)
    size = [k + s * (t - 1) for k, s, t in zip(window, step, taps, strict=True)]
    total = None
    for tap, product in zip(itertools.product(*map(range, taps)), products, strict=True):
        place = tuple(slice(s * v, s * v + k) for s, v, k in zip(step, tap, window, strict=True))
        if total is None:
            total = first.new_zeros(*product.shape[:2], *size)
        total[(slice(None), slice(None), *place)] += product
    assert total is not None
    return total


def _mixed(first: Tensor, second: Tensor, groups: int) -> Iterator[Tensor]:
    """sum over m of W2[o, m, v] * W1[m, i, u] for each tap v, as (C_out, C_in/g, *k1)."""
    rows = first.unflatten(0, (groups, -1)).flatten(2)
    mixes = second.unflatten(0, (groups, -1)).reshape(groups, -1, second.shape[1], math.prod(second.shape[2:]))
    for mix in mixes.unbind(3):
        yield torch.bmm(mix, rows).reshape(second.shape[0], *first.shape[1:])


def _scaled_rows(first: Tensor, second: Tensor) -> Iterator[Tensor]:
    """W2[o, 0, v] * W1[o, i, u] for each tap v of a depthwise second kernel."""
    for scale in second.flatten(1).unbind(1):
        yield first * column(scale, first.dim(), 0)


def _scaled_columns(first: Tensor, second: Tensor, groups: int) -> Iterator[Tensor]:
    """W2[o, i, v] * W1[i, 0, u] for each tap v behind a depthwise first kernel."""
    ndim = first.dim() - 2
    columns = first.reshape(groups, 1, -1, *first.shape[2:])
    for scale in second.reshape(groups, -1, second.shape[1], math.prod(second.shape[2:])).unbind(3):
        yield (scale.reshape(*scale.shape, *[1] * ndim) * columns).flatten(0, 1)


def batch_norm_affine(
    gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """gamma*(x - mean)/sqrt(var + eps) + beta as scale*x + shift; all (C,), float64 (Ioffe & Szegedy 2015, alg. 2)."""
    scale = (var + eps).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    return scale, shift if beta is None else shift + beta
