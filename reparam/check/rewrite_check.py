"""Evidence for one rewrite: the region before and after agree in float64 on fresh inputs.

basis:   an affine region agrees on zero and on every unit impulse (each channel, at every position of the smallest
         map that shows the interior and all border classes), which determines an affine function completely;
sampled: everything else, on random inputs drawn in the inputs' proven ranges. It is labelled so, never as a proof.

The bound comes from the arithmetic, see `rounding_bound`; inputs are finite (a zero weight times infinity is NaN).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from reparam.errors import RuleError
from reparam.ir import (
    BATCH_NORMS,
    CONVS,
    DIVS,
    IDENTITIES,
    MOVEMENTS,
    MULS,
    WEIGHTED,
    Program,
    Ranges,
    Values,
    arguments,
    aten,
    evaluate_region,
    is_call,
    largest_index,
    node_macs,
    shape_of,
    size_hint,
    static_shape,
)

from .region import AFFINE, Region, RegionShapes, small_shapes
from .rounding_bound import EPS, accumulation_length, magnitudes
from .values import is_number

BASIS_MACS = 60_000_000
_WHOLE_DIVISIONS = frozenset({aten.remainder.Tensor, aten.fmod.Tensor, aten.floor_divide.default, aten.div.Tensor_mode})
BASIS_ELEMENTS = 3_000_000
Sizes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Evidence:
    """How a rewrite was checked: the largest absolute difference, the bound it had to meet, and the kind of check."""

    kind: Literal["basis", "sampled"]
    max_abs: float
    bound: float
    ok: bool


# ---- inputs ------------------------------------------------------------------------------------------------------


def _is_affine(program: Program, region: Sequence[fx.Node], inputs: set[fx.Node]) -> bool:
    varying: set[fx.Node] = set(inputs)
    for node in region:
        if node.op == "get_attr" or not any(i in varying for i in node.all_input_nodes):
            continue
        varying.add(node)
        if not is_call(node, AFFINE):
            return False
        given = arguments(node)
        if is_call(node, MULS) and given["self"] in varying and given["other"] in varying:  # x * x too
            return False
        if is_call(node, DIVS) and given["other"] in varying:
            return False
        if is_call(node, WEIGHTED | BATCH_NORMS) and any(
            isinstance(v, fx.Node) and v in varying for k, v in given.items() if k != "input"
        ):
            return False
        if is_call(node, BATCH_NORMS) and given["training"]:
            return False
    return True


_ANY = (-math.inf, math.inf)


def _draw(shape: Sequence[int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Random values inside [low, high], half of them about zero and half over the whole interval, ends included.

    An open end is replaced by a few times the size of the other one, so that every sign that can occur does occur.
    """
    sizes = torch.tensor([0.3, 1.0, 4.0]).double() * (math.pi / 3)  # which fills the digits of float64
    x = torch.randn(tuple(shape), generator=generator).double()  # in a fifth of the time that float64 takes
    x = x * sizes.take(torch.randint(3, tuple(shape), generator=generator))
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


def _basis_fits(region: Region, shapes: RegionShapes) -> bool:
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


def _size_ratio(region: Region, shapes: RegionShapes) -> float:
    if not region.inputs:  # of constants alone
        return 1.0
    traced = math.prod(shape_of(region.inputs[0]))
    return math.prod(shapes.sizes[0][1:]) / max(traced, 1)


def _sides(program: Program, region: Region, values: Sequence[Any]) -> tuple[Values, Values]:
    """The values of both sides on these inputs."""
    known = dict(zip(region.inputs, values, strict=True))
    return evaluate_region(program, region.old, known), evaluate_region(program, region.new, known)


def _compare(
    program: Program, region: Region, sides: tuple[Values, Values], envelope: tuple[Values, Values] | None = None
) -> tuple[float, float, bool]:
    """Largest difference, the largest bound, and whether every element meets its bound.

    The largest bound is NaN where magnitudes grew beyond all numbers; nothing meets that.

    envelope: the sides on one sample that is at least as large as every sample of `sides` everywhere; the bound is
    taken from it, since magnitudes only grow with their inputs. Without it the bound is taken from `sides`.
    """
    before, after = sides
    base_old, base_new = envelope or sides
    n_eps = EPS * (accumulation_length(region.old) + accumulation_length(region.new))
    scale_old = magnitudes(program, region.old, base_old)
    scale_new = magnitudes(program, region.new, base_new)
    worst, limit, ok = 0.0, 0.0, True
    results = [
        (old.name, *result)
        for old, new in region.outputs
        for result in _one_by_one(before[old], after[new], scale_old[old], scale_new[new])
    ]
    for name, a, b, grown_old, grown_new in results:
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
            raise RuleError(f"the new value of {name} has another shape than the old one")
        if not a.numel():
            continue
        if not is_number(a):
            same = a.dtype == b.dtype and torch.equal(a, b)
            worst, ok = (worst, ok) if same else (math.inf, False)
            continue
        gap = torch.where(a == b, 0.0, (a - b).abs())  # infinities (of a mask) agree when they are equal
        bound = n_eps * (grown_old + grown_new)
        ok = ok and bool((torch.isfinite(gap) & (gap <= bound)).all())
        worst, limit = max(worst, float(gap.max())), _larger(limit, float(bound.max()))
    return worst, limit, ok


def _one_by_one(*values: Any) -> list[tuple[Any, ...]]:
    """The results of calls that give several, as a recurrent layer does, those of one place together."""
    if all(isinstance(v, (list, tuple)) and len(v) == len(values[0]) for v in values):
        return list(zip(*values, strict=True))
    return [values]


def _fixed_value(node: fx.Node) -> Any:
    value = node.meta["val"]
    return size_hint(value) if not isinstance(value, Tensor) else None


@torch.no_grad()
def check_region(program: Program, region: Region, ranges: Ranges, seed: int) -> Evidence:
    """Compares the two computations of `region` in float64 and says how.

    Raises RuleError when the shapes differ.
    """
    shapes = small_shapes(region)
    if shapes.free and _basis_fits(region, shapes):
        inputs = set(region.inputs)
        if _is_affine(program, region.old, inputs) and _is_affine(program, region.new, inputs):
            ones = _comparable(
                program, region, [torch.ones(1, *size[1:], dtype=torch.float64) for size in shapes.sizes]
            )
            if ones is not None:
                found = _compare(program, region, _sides(program, region, _impulses(shapes.sizes)), ones)
                return Evidence("basis", *found)
    generator = torch.Generator().manual_seed(seed)

    def drawn(sizes: Sizes) -> list[Any]:
        return [_sample(n, s, ranges, generator) for n, s in zip(region.inputs, sizes, strict=True)]

    worst, limit, ok = 0.0, 0.0, True
    for _, sides in _sampled(program, region, shapes, drawn):
        w, b, fine = _compare(program, region, sides)
        worst, limit, ok = max(worst, w), _larger(limit, b), ok and fine
    return Evidence("sampled", worst, limit, ok)


def _larger(a: float, b: float) -> float:
    """The larger of two bounds; NaN where one is, that is where magnitudes grew beyond all numbers."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def _sampled(
    program: Program, region: Region, shapes: RegionShapes, drawn: Callable[[Sizes], list[Any]]
) -> Iterator[tuple[Sizes, tuple[Values, Values]]]:
    """Sizes and both sides on samples of them: `shapes` and a second one of the other parity.

    The traced sizes alone where the network's own computation does not run on smaller maps.
    """
    small = _comparable(program, region, drawn(shapes.sizes)) if shapes.free else None
    if small is None:
        sizes = tuple(shape_of(n) for n in region.inputs) if shapes.free else shapes.sizes
        yield sizes, _sides(program, region, drawn(sizes))
        return
    yield shapes.sizes, small
    odd = tuple((1, s[1], *(v + 1 if v > 1 else v for v in s[2:])) for s in shapes.sizes)
    if not shapes.parity and any(s[2:] != o[2:] for s, o in zip(shapes.sizes, odd, strict=True)):
        other = _comparable(program, region, drawn(odd))
        if other is not None:
            yield odd, other


def _comparable(program: Program, region: Region, values: Sequence[Any]) -> tuple[Values, Values] | None:
    """Both sides on values of sizes that were not traced, None where they cannot be compared there.

    The old side may not run: two branches whose outputs agree at the traced size need not agree at another. Where sizes
    are fixed the new side need not give the old shape either; where they are free it has to, and `_compare` says so.
    """
    free = any(None in static_shape(n)[2:] for n in region.inputs)
    known = dict(zip(region.inputs, values, strict=True))
    try:
        before = evaluate_region(program, region.old, known)
    except RuntimeError:
        return None
    try:
        after = evaluate_region(program, region.new, known)
    except RuntimeError:
        if free:
            raise
        return None
    same = all(getattr(before[old], "shape", None) == getattr(after[new], "shape", None) for old, new in region.outputs)
    return (before, after) if free or same else None


def _sample(node: fx.Node, shape: tuple[int, ...], ranges: Ranges, generator: torch.Generator) -> Any:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return _fixed_value(node)
    if value.is_complex():
        return torch.complex(*(_draw(shape, *_ANY, generator) for _ in range(2)))
    if not value.is_floating_point():
        if value.dtype == torch.bool:
            return torch.rand(shape, generator=generator) < 0.5
        least, rows = int(_divides(node)), largest_index(node)
        most = max(least, int(rows)) if math.isfinite(rows) else least + 1
        return torch.randint(least, most + 1, shape, generator=generator, dtype=value.dtype)
    low, high = ranges.of(node)
    return _draw(shape, low, high, generator)


def _divides(node: fx.Node) -> bool:
    """Whether whole numbers are divided by this value, as it is or moved: zero would be an error."""
    moved = [node]
    for value in moved:
        for user in value.users:
            if is_call(user, _WHOLE_DIVISIONS) and arguments(user)["other"] is value:
                return True
            if is_call(user, MOVEMENTS | IDENTITIES) and user not in moved:
                moved.append(user)
    return False
