"""Proof of one rewrite: the region before and after agree in float64 on fresh inputs.

basis:   an affine region agrees on zero and on every unit impulse (each channel, at every position of the smallest
         map that shows the interior and all border classes), which determines an affine function completely;
sampled: everything else, on random inputs drawn in the inputs' proven ranges. It is labelled so, never as a proof.

The bound comes from the arithmetic, see `majorant`; inputs are finite (a zero weight times infinity is NaN).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from .cost import node_macs
from .errors import RuleError
from .evaluate import evaluate_region
from .facts import Ranges
from .majorant import accumulation_length, magnitudes
from .ops import (
    ACTIVATIONS,
    ADDS,
    AVG_POOLS,
    BATCH_NORMS,
    CATS,
    CONVS,
    DIVS,
    LINEARS,
    MAX_POOLS,
    MULS,
    PADS,
    SUBS,
    TRANSPOSED_CONVS,
    WEIGHTED,
    arguments,
    aten,
    is_call,
    pair,
)
from .program import Program, shape_of, size_hint, static_shape, upstream

EPS = torch.finfo(torch.float64).eps
BASIS_MACS = 60_000_000
BASIS_ELEMENTS = 3_000_000

_AFFINE = WEIGHTED | BATCH_NORMS | ADDS | SUBS | MULS | DIVS | CATS | AVG_POOLS | {aten.neg.default, aten.pad.default}
_POINTWISE = frozenset({aten.prelu.default, aten.clamp.Tensor})
_SIZE_FREE = _AFFINE | MAX_POOLS | frozenset(ACTIVATIONS) | _POINTWISE


@dataclass(frozen=True)
class Region:
    """The old and the new computation of the same values from the same inputs, each in execution order."""

    inputs: tuple[fx.Node, ...]
    old: tuple[fx.Node, ...]
    new: tuple[fx.Node, ...]
    outputs: tuple[tuple[fx.Node, fx.Node], ...]


@dataclass(frozen=True)
class Evidence:
    """How a rewrite was checked: the largest absolute difference, the bound it had to meet, and the kind of check."""

    kind: Literal["basis", "sampled"]
    max_abs: float
    bound: float
    ok: bool


def _is_size(node: fx.Node) -> bool:
    """A size of some tensor: an int as far as the region is concerned, not data."""
    return node.op == "call_function" and isinstance(node.meta["val"], (int, torch.SymInt))


def find_region(replace: Mapping[fx.Node, fx.Node], created: Sequence[fx.Node]) -> Region:
    """The region of a rewrite: from the old values that the new nodes read to the replaced ones.

    Raises RuleError when the old values depend on something that the new ones do not read.
    """
    made = set(created)
    inputs: dict[fx.Node, None] = {}
    for node in created:
        for operand in node.all_input_nodes:
            if operand not in made and operand.op != "get_attr":
                inputs[operand] = None
    for new in replace.values():
        if new not in made and new.op != "get_attr":
            inputs[new] = None
    stop = set(inputs)

    def is_input(node: fx.Node) -> bool:
        return node in stop or _is_size(node)

    before, after = upstream(replace.keys(), is_input), upstream(replace.values(), is_input)
    dropped = next((n for n in before if n.op == "placeholder"), None)
    if dropped is not None:
        raise RuleError(
            f"the rewrite dropped an input: the old value depends on '{dropped.name}', the new one does not"
        )
    sizes = dict.fromkeys(i for n in (*before, *after) for i in n.all_input_nodes if _is_size(i))
    return Region((*inputs, *sizes), tuple(before), tuple(after), tuple(replace.items()))


# ---- inputs ------------------------------------------------------------------------------------------------------


def _is_affine(program: Program, region: Sequence[fx.Node], inputs: set[fx.Node]) -> bool:
    varying: set[fx.Node] = set(inputs)
    for node in region:
        if node.op == "get_attr" or not any(i in varying for i in node.all_input_nodes):
            continue
        varying.add(node)
        if not is_call(node, _AFFINE):
            return False
        moving = [i for i in node.all_input_nodes if i in varying]
        if is_call(node, MULS) and len(moving) > 1:
            return False
        if is_call(node, DIVS) and arguments(node)["other"] in varying:
            return False
        if is_call(node, WEIGHTED) and any(arguments(node)[k] in varying for k in ("weight", "bias")):
            return False
        if is_call(node, BATCH_NORMS) and arguments(node)["training"]:
            return False
    return True


def _reduced_size(region: Sequence[fx.Node], ndim: int) -> list[int]:
    """The smallest map that shows the interior and every border class of all sliding windows of the region."""
    reach = [1] * ndim
    step = [1] * ndim
    for node in region:
        if is_call(node, CONVS):
            args = arguments(node)
            kernel = shape_of(args["weight"])[2:]
            dilation, stride = pair(args["dilation"], ndim), pair(args["stride"], ndim)
        elif is_call(node, AVG_POOLS | MAX_POOLS):
            args = arguments(node)
            kernel = pair(args["kernel_size"], ndim)
            dilation = pair(args.get("dilation", 1), ndim)
            stride = pair(args["stride"] or args["kernel_size"], ndim)
        elif is_call(node, TRANSPOSED_CONVS | PADS):
            reach = [r + extra * s for r, extra, s in zip(reach, _inner_reach(node, ndim), step, strict=True)]
            continue
        else:
            continue
        for a in range(ndim):
            if kernel[a] > 1 or stride[a] > 1:
                reach[a] += dilation[a] * (kernel[a] - 1) * step[a]
                step[a] = max(step[a], stride[a])
    return [1 if r == s == 1 else r + 2 * s for r, s in zip(reach, step, strict=True)]


def _inner_reach(node: fx.Node, ndim: int) -> list[int]:
    """What a transposed convolution or a cropping pad adds: what one output reads, and what is cut off."""
    args = arguments(node)
    if is_call(node, PADS):
        flat = list(args["pad"]) + [0] * (2 * ndim - len(args["pad"]))
        return [-min(flat[2 * i], 0) - min(flat[2 * i + 1], 0) for i in reversed(range(ndim))]
    spans = [d * (k - 1) for k, d in zip(shape_of(args["weight"])[2:], pair(args["dilation"], ndim), strict=True)]
    steps = zip(spans, pair(args["stride"], ndim), pair(args["padding"], ndim), strict=True)
    return [2 * (-(-span // stride) + -(-padding // stride)) for span, stride, padding in steps]


def _reads_a_map(node: fx.Node) -> bool:
    """True when an elementwise call reads a constant that varies over space, which ties it to the traced size."""
    if not is_call(node, ADDS | SUBS | MULS | DIVS | CATS | _POINTWISE):
        return False
    return any(math.prod(shape_of(i)[2:]) > 1 for i in node.all_input_nodes if i.op == "get_attr")


@dataclass(frozen=True)
class _Shapes:
    """Input shapes to check a region on. `free` regions may use any batch, and any map size unless `parity`."""

    sizes: tuple[tuple[int, ...], ...]
    free: bool
    parity: bool = False


def _shapes(region: Region) -> _Shapes:
    hints = tuple(shape_of(n) if isinstance(n.meta["val"], Tensor) else () for n in region.inputs)
    fixed = _Shapes(hints, False)
    if not all(isinstance(n.meta["val"], Tensor) and n.meta["val"].is_floating_point() for n in region.inputs):
        return fixed
    calls = [n for n in (*region.old, *region.new) if n.op == "call_function"]
    if not all(is_call(n, _SIZE_FREE) and not _reads_a_map(n) for n in calls):
        return fixed
    ranks = {len(h) for h in hints}
    has_linear = any(is_call(n, LINEARS) for n in calls)
    if has_linear and not any(is_call(n, CONVS | TRANSPOSED_CONVS | AVG_POOLS | MAX_POOLS) for n in calls):
        return _Shapes(tuple((2, h[-1]) for h in hints), True) if _all_rowwise(calls) else fixed
    if len(ranks) != 1 or has_linear or len({h[2:] for h in hints}) != 1:
        return fixed
    rank = ranks.pop()
    if rank < 3:
        return _Shapes(hints, rank == 2)
    small = _reduced_size(region.old, rank - 2), _reduced_size(region.new, rank - 2)
    unit = _common_stride(region.old, rank - 2) if _needs_parity(region.old) else [1] * (rank - 2)
    space = tuple(
        min(least + (full - least) % u, full)
        for least, full, u in zip(map(max, *small), hints[0][2:], unit, strict=True)
    )
    return _Shapes(tuple((2, h[1], *space) for h in hints), True, _needs_parity(region.old))


def _needs_parity(region: Sequence[fx.Node]) -> bool:
    """True when a window may be cut off at the border, so that a rewrite can be right for even sizes alone."""
    return any(is_call(n, AVG_POOLS) and arguments(n)["ceil_mode"] for n in region)


def _common_stride(region: Sequence[fx.Node], ndim: int) -> list[int]:
    """The strides of all sliding windows of the region multiplied."""
    total = [1] * ndim
    for node in region:
        if is_call(node, CONVS | AVG_POOLS | MAX_POOLS):
            args = arguments(node)
            stride = pair(args["stride"] or args["kernel_size"], ndim)
            total = [t * s for t, s in zip(total, stride, strict=True)]
    return total


def _all_rowwise(calls: Sequence[fx.Node]) -> bool:
    """True when every call treats the rows of a matrix independently, so that (N, C) stands for (..., C)."""
    rowwise = LINEARS | ADDS | SUBS | MULS | DIVS | frozenset(ACTIVATIONS)
    return all(is_call(n, rowwise) and _constants_are_rows(n) for n in calls)


def _constants_are_rows(node: fx.Node) -> bool:
    if is_call(node, LINEARS):
        return True
    return all(i.op != "get_attr" or math.prod(shape_of(i)[:-1]) == 1 for i in node.all_input_nodes)


def _draw(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Random values inside [low, high], half of them about zero and half over the whole interval, ends included.

    An open end is replaced by a few times the size of the other one, so that every sign that can occur does occur.
    """
    sizes = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
    x = x * sizes[torch.randint(3, tuple(shape), generator=generator)]
    if math.isinf(low) and math.isinf(high):
        return x
    if math.isfinite(low) and math.isfinite(high):
        wide = low + (high - low) * torch.rand(tuple(shape), generator=generator, dtype=torch.float64)
    else:
        wide = low + x.abs() * (1 + abs(low)) if math.isfinite(low) else high - x.abs() * (1 + abs(high))
    return torch.where(torch.rand(tuple(shape), generator=generator) < 0.5, wide, x.clamp(low, high))


def _impulses(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Zero and every unit impulse of the joint input space, stacked along the batch axis."""
    counts = [math.prod(s[1:]) for s in shapes]
    total = sum(counts) + 1
    stacked, offset = [], 1
    for shape, count in zip(shapes, counts, strict=True):
        flat = torch.zeros(total, count, dtype=torch.float64)
        flat[offset : offset + count] = torch.eye(count, dtype=torch.float64)
        stacked.append(flat.reshape(total, *shape[1:]))
        offset += count
    return stacked


# ---- the check ---------------------------------------------------------------------------------------------------


def _basis_fits(region: Region, shapes: _Shapes) -> bool:
    """Whether trying every impulse stays cheap; a depthwise product is memory bound and counts for several."""
    if not shapes.free:
        return False
    impulses = sum(math.prod(s[1:]) for s in shapes.sizes)
    ratio = _size_ratio(region, shapes)
    calls = [n for n in (*region.old, *region.new) if n.op == "call_function"]
    macs = sum(node_macs(n) * (16 if _is_depthwise(n) else 1) for n in calls) * ratio * impulses
    elements = sum(math.prod(shape_of(n)) for n in (*region.inputs, *calls)) * ratio * impulses
    return macs <= BASIS_MACS and elements <= BASIS_ELEMENTS


def _is_depthwise(node: fx.Node) -> bool:
    return is_call(node, CONVS) and shape_of(arguments(node)["weight"])[1] == 1


def _size_ratio(region: Region, shapes: _Shapes) -> float:
    traced = math.prod(shape_of(region.inputs[0]))
    return math.prod(shapes.sizes[0][1:]) / max(traced, 1)


def _compare(
    program: Program, region: Region, values: Sequence[Any], envelope: Sequence[Any] | None = None
) -> tuple[float, float, bool]:
    """Largest difference, the largest bound, and whether every element meets its bound.

    envelope: one sample that is at least as large as every sample of `values` everywhere; the bound is taken from it,
    since magnitudes only grow with their inputs. Without it the bound is taken from `values`.
    """
    known = _on_device(program, region, values)
    before = evaluate_region(program, region.old, known)
    after = evaluate_region(program, region.new, known)
    base_old, base_new = before, after
    if envelope is not None:
        top = _on_device(program, region, envelope)
        base_old, base_new = evaluate_region(program, region.old, top), evaluate_region(program, region.new, top)
    n_eps = EPS * (accumulation_length(region.old) + accumulation_length(region.new))
    scale_old = magnitudes(program, region.old, base_old)
    scale_new = magnitudes(program, region.new, base_new)
    worst, limit, ok = 0.0, 0.0, True
    for old, new in region.outputs:
        a, b = before[old], after[new]
        if not isinstance(a, Tensor) or a.shape != b.shape:
            raise RuleError(f"the new value of {old.name} has another shape than the old one")
        if not a.numel():
            continue
        gap = torch.where(a == b, 0.0, (a - b).abs())  # infinities (of a mask) agree when they are equal
        bound = n_eps * (scale_old[old] + scale_new[new])
        ok = ok and bool((torch.isfinite(gap) & (gap <= bound)).all())
        worst, limit = max(worst, float(gap.max())), max(limit, float(bound.max()))
    return worst, limit, ok


def _on_device(program: Program, region: Region, values: Sequence[Any]) -> dict[fx.Node, Any]:
    pairs = zip(region.inputs, values, strict=True)
    return {n: v.to(program.device) if isinstance(v, Tensor) else v for n, v in pairs}


def _fixed_value(node: fx.Node) -> Any:
    value = node.meta["val"]
    return size_hint(value) if not isinstance(value, Tensor) else None


@torch.no_grad()
def check_region(program: Program, region: Region, ranges: Ranges, seed: int) -> Evidence:
    """Compares the two computations of `region` in float64 and says how.

    Raises RuleError when the shapes differ.
    """
    shapes = _runnable(program, region, _shapes(region))
    if shapes.free and _basis_fits(region, shapes):
        inputs = set(region.inputs)
        if _is_affine(program, region.old, inputs) and _is_affine(program, region.new, inputs):
            ones = [torch.ones(1, *size[1:], dtype=torch.float64) for size in shapes.sizes]
            worst, limit, ok = _compare(program, region, _impulses(shapes.sizes), ones)
            return Evidence("basis", worst, limit, ok)
    generator = torch.Generator().manual_seed(seed)
    worst = limit = 0.0
    ok = True
    for sizes in _sampled_sizes(program, region, shapes):
        values = [_sample(n, s, ranges, generator) for n, s in zip(region.inputs, sizes, strict=True)]
        w, b, fine = _compare(program, region, values)
        worst, limit, ok = max(worst, w), max(limit, b), ok and fine
    return Evidence("sampled", worst, limit, ok)


def _sampled_sizes(program: Program, region: Region, shapes: _Shapes) -> list[tuple[tuple[int, ...], ...]]:
    if not shapes.free or shapes.parity or not shapes.sizes or len(shapes.sizes[0]) < 3:
        return [shapes.sizes]
    odd = tuple((1, s[1], *(v + 1 if v > 1 else v for v in s[2:])) for s in shapes.sizes)
    return [shapes.sizes, odd] if _runs(program, region, odd) else [shapes.sizes]


def _runnable(program: Program, region: Region, shapes: _Shapes) -> _Shapes:
    """`shapes`, or the traced ones where the network's own computation does not run on smaller maps."""
    if not shapes.free or _runs(program, region, shapes.sizes):
        return shapes
    return _Shapes(tuple(shape_of(n) for n in region.inputs), False)


def _runs(program: Program, region: Region, sizes: Sequence[tuple[int, ...]]) -> bool:
    """Whether both sides can be compared on these sizes.

    The old side may not run: two branches whose outputs agree at the traced size need not agree at another. Where sizes
    are fixed the new side need not give the old shape either; where they are free it has to, and `_compare` says so.
    """
    known = _on_device(program, region, [torch.zeros(s, dtype=torch.float64) for s in sizes])
    try:
        before = evaluate_region(program, region.old, known)
    except RuntimeError:
        return False
    if any(None in static_shape(n)[2:] for n in region.inputs):
        return True
    try:
        after = evaluate_region(program, region.new, known)
    except RuntimeError:
        return False
    return all(before[old].shape == after[new].shape for old, new in region.outputs)


def _sample(node: fx.Node, shape: tuple[int, ...], ranges: Ranges, generator: torch.Generator) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _fixed_value(node)
    if not value.is_floating_point():
        if value.dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        return torch.randint(0, 2, shape, generator=generator, dtype=value.dtype)
    low, high = ranges.of(node)
    return _draw(shape, low, high, generator)
