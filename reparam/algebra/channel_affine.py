"""Channel affines y = a*x + t.

A scale or shift is kept as a float64 tensor of the value's rank with size 1 on every axis along which it is constant,
for example (1, C, 1, 1). None stands for a scale of one or a shift of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    BATCH_NORMS,
    DIVS,
    MULS,
    SUBS,
    Program,
    Refusal,
    arguments,
    aten,
    is_call,
    is_float,
    shape_of,
)

from .kernels import add_shifts, batch_norm_affine


@dataclass(frozen=True)
class Pair:
    """A scale and a shift, each None or broadcastable to the value that they belong to."""

    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def trivial(self) -> bool:
        return self.scale is None and self.shift is None

    def then(self, scale: Tensor | None, shift: Tensor | None) -> Pair:
        """This affine followed by another: s*(a*x + t) + u = (s*a)*x + (s*t + u)."""
        return Pair(times(self.scale, scale), plus(times_shift(self.shift, scale), shift))


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The product of two scales, None being one."""
    return b if a is None else a if b is None else a * b


def times_shift(shift: Tensor | None, scale: Tensor | None) -> Tensor | None:
    """A shift scaled; None stays zero."""
    return shift if shift is None or scale is None else shift * scale


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two shifts, None being zero."""
    return b if a is None else a if b is None else nonzero(add_shifts(a, b))


def nonzero(shift: Tensor) -> Tensor | None:
    """The shift, or None when it is zero everywhere: then it is in nobody's way."""
    return shift if bool((shift != 0).any()) else None


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """True when two scales or shifts are the same tensor value (None equals only None)."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)


@dataclass(frozen=True)
class Affine:
    """The call `node` computes pair.scale * x + pair.shift."""

    node: fx.Node
    x: fx.Node
    pair: Pair


def along(value: Tensor | None, axis: int) -> Tensor | None:
    """The vector of `value` along `axis`. Raises ValueError when it varies along another axis as well."""
    if value is None:
        return None
    if any(s != 1 for i, s in enumerate(value.shape) if i != axis % value.dim()):
        raise ValueError(f"it varies along more axes than {axis}: {tuple(value.shape)}")
    return value.reshape(-1)


def compress(value: Tensor) -> Tensor:
    """`value` with every axis along which it is constant reduced to size 1."""
    for axis in range(value.dim()):
        if value.shape[axis] > 1:
            first = value.narrow(axis, 0, 1)
            if bool((value == first).all()):
                value = first
    return value.contiguous()


def lift(value: Tensor, rank: int) -> Tensor:
    """`value` with leading axes of size 1 up to `rank`."""
    return value.reshape(*[1] * (rank - value.dim()), *value.shape)


# ---- reading -----------------------------------------------------------------------------------------------------


def read_affine(program: Program, node: fx.Node) -> Affine | Refusal | None:
    """`node` as a channel affine of one data operand.

    Returns None when it is something else, and Refusal when it is a batch norm that is not one (statistics of the
    batch, statistics that are not constants, a variance that gives no finite scale).
    """
    if is_call(node, BATCH_NORMS):
        return _read_batch_norm(program, node)
    if is_call(node, ADDS | SUBS | MULS | DIVS):
        return _read_arithmetic(program, node)
    if is_call(node, frozenset({aten.neg.default})) and is_float(node):
        rank = node.meta["val"].dim()
        return Affine(node, node.args[0], Pair(torch.full([1] * rank, -1.0, dtype=torch.float64)))  # type: ignore[arg-type]
    return None


def _read_batch_norm(program: Program, node: fx.Node) -> Affine | Refusal:
    args = arguments(node)
    if args["training"]:
        return Refusal(
            "it normalises by the statistics of each batch, even in evaluation mode",
            node,
            "track_running_stats=True makes it foldable",
        )
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {k: program.tensor(args[k]) if args[k] is not None else None for k in names}
    if any(args[k] is not None and tensors[k] is None for k in names):
        return Refusal("its statistics or weights are computed from the data", node)
    mean, var = tensors["running_mean"], tensors["running_var"]
    assert mean is not None and var is not None
    scale, shift = batch_norm_affine(tensors["weight"], tensors["bias"], mean, var, float(args["eps"]))
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        bad = int((~torch.isfinite(scale) | ~torch.isfinite(shift)).nonzero()[0])
        return Refusal(f"its statistics give no finite scale (channel {bad}: variance {float(var[bad]):.3g})", node)
    shape = [1, -1] + [1] * (node.meta["val"].dim() - 2)
    return Affine(node, args["input"], Pair(scale.reshape(shape), nonzero(shift.reshape(shape))))


def _constant_factor(program: Program, value: Any, rank: int) -> Tensor | None:
    """A finite scalar or weight that varies along at most one axis, as one at `rank`; None for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full([1] * rank, float(value), dtype=torch.float64) if math.isfinite(value) else None
    tensor = program.tensor(value)
    if tensor is None or not tensor.is_floating_point() or tensor.dim() > rank:
        return None
    if not bool(torch.isfinite(tensor).all()):
        return None  # a mask: carried through a layer it would meet weights of zero
    tensor = compress(lift(tensor, rank))
    return tensor if sum(s > 1 for s in tensor.shape) <= 1 else None


def _read_arithmetic(program: Program, node: fx.Node) -> Affine | None:
    args = arguments(node)
    left, right = args["self"], args["other"]
    rank = node.meta["val"].dim()
    data, other, flipped = (left, right, False) if not _is_weight(program, left) else (right, left, True)
    factor = _constant_factor(program, other, rank)
    if factor is None or not is_float(data) or _is_weight(program, data) or shape_of(data) != shape_of(node):
        return None
    if not isinstance(alpha := args.get("alpha", 1.0), (int, float)):
        return None  # a size of the input
    if is_call(node, MULS):
        return Affine(node, data, Pair(factor))
    if is_call(node, DIVS):
        return None if flipped or bool((factor == 0).any()) else Affine(node, data, Pair(factor.reciprocal()))
    if is_call(node, ADDS):
        scale = torch.full([1] * rank, alpha, dtype=torch.float64) if flipped and alpha != 1.0 else None
        return Affine(node, data, Pair(scale, factor if flipped else alpha * factor))
    return _read_difference(node, data, factor, alpha, flipped)


def _read_difference(node: fx.Node, data: fx.Node, factor: Tensor, alpha: float, flipped: bool) -> Affine:
    """self - alpha*other, or for rsub other - alpha*self, with one side constant."""
    reverse = node.target in (aten.rsub.Scalar, aten.rsub.Tensor)
    data_is_subtracted = flipped != reverse
    rank = node.meta["val"].dim()
    if data_is_subtracted:
        return Affine(node, data, Pair(torch.full([1] * rank, -alpha, dtype=torch.float64), factor))
    return Affine(node, data, Pair(None, -alpha * factor))


def _is_weight(program: Program, value: Any) -> bool:
    return not isinstance(value, fx.Node) or program.constant(value) is not None


# ---- writing -----------------------------------------------------------------------------------------------------


def write_affine(program: Program, x: fx.Node, pair: Pair, origin: str, *, like: fx.Node) -> fx.Node:
    """Emits scale*x + shift as a product and a sum with weights (each only when needed)."""
    value = x
    for tensor, target, part in ((pair.scale, aten.mul.Tensor, "scale"), (pair.shift, aten.add.Tensor, "shift")):
        if tensor is not None:
            weight = program.weight(trim(tensor), f"{origin}.{part}", like=like)
            value = program.call(target, (value, weight), like=like)
    return value


def trim(value: Tensor) -> Tensor:
    """`value` without leading axes of size 1, as a weight is usually kept."""
    while value.dim() > 1 and value.shape[0] == 1:
        value = value[0]
    return value
