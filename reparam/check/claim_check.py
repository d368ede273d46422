"""Evidence for a rewrite of a whole network, call by call: each new call gives what the old one gave.

A region as deep as a network has a rounding bound that says nothing. Here every call is a region of its own: its
operands are drawn at random, made what the rewrite says is known of them (constants, equal channels), and cut to what
the new operands hold. Both calls run; the result has to be the same on what is kept, and what is said of it has to
hold. What holds of every call holds of the network, since each takes over what the calls before it make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from reparam.errors import RuleError
from reparam.ir import Program, Ranges, evaluate_region, shape_of

from .region import Region, small_shapes
from .rewrite_check import Evidence, _comparable, _sample
from .rounding_bound import EPS, accumulation_length, magnitudes
from .values import is_number


def _same(value: Tensor) -> Tensor:
    return value


def _other(value: Tensor, held: Tensor) -> Tensor:
    return held


@dataclass(frozen=True)
class Slot:
    """A value and what took its place.

    impose: makes a value what is known of it. cut: what of it the new one holds. put: a value made to hold what a new
    one holds. sizes: of the axes that these speak of.
    """

    old: fx.Node
    new: fx.Node
    impose: Callable[[Tensor], Tensor] = _same
    cut: Callable[[Tensor], Tensor] = _same
    put: Callable[[Tensor, Tensor], Tensor] = _other
    sizes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """That `new`, which reads the new operands, makes of them what `old` makes of the old ones.

    Both in execution order; the last of each makes the result.
    """

    old: tuple[fx.Node, ...]
    new: tuple[fx.Node, ...]
    operands: tuple[Slot, ...]
    result: Slot


@torch.no_grad()
def check_claims(program: Program, claims: Sequence[Claim], ranges: Ranges, seed: int) -> Evidence:
    """The largest difference of all claims, and whether each meets its own bound.

    Raises RuleError when a claim does not hold even of the shapes.
    """
    worst = limit = 0.0
    ok = True
    generator = torch.Generator().manual_seed(seed)
    for claim in claims:
        difference, bound, fine = _check(program, claim, ranges, generator)
        worst, limit, ok = max(worst, difference), max(limit, bound), ok and fine
    return Evidence("sampled", worst, limit, ok)


def _check(program: Program, claim: Claim, ranges: Ranges, generator: torch.Generator) -> tuple[float, float, bool]:
    before: dict[fx.Node, Any] = {}
    after: dict[fx.Node, Any] = {}
    for slot, size in zip(claim.operands, _sizes(program, claim), strict=True):
        value = _sample(slot.old, size, ranges, generator)
        if isinstance(value, Tensor) and value.is_floating_point():
            value = slot.impose(value)
            if slot.new in after:  # two values became one
                value = slot.put(value, after[slot.new])
            before[slot.old], after[slot.new] = value, slot.cut(value)
        else:
            before[slot.old] = after[slot.new] = value
    before, after = evaluate_region(program, claim.old, before), evaluate_region(program, claim.new, after)
    n_eps = EPS * (accumulation_length(claim.old) + accumulation_length(claim.new))
    scales = magnitudes(program, claim.old, before), magnitudes(program, claim.new, after)
    return _compare(claim.result, (before, after), scales, n_eps)


def _sizes(program: Program, claim: Claim) -> tuple[tuple[int, ...], ...]:
    """Of the operands: small ones where the slots' axes are whole and the old calls run, else the traced ones."""
    region = Region(tuple(s.old for s in claim.operands), claim.old, (), ())
    small = small_shapes(region)
    if not small.free:
        return small.sizes
    fit = all(_fits(slot, size) for slot, size in zip(claim.operands, small.sizes, strict=True))
    if fit and _comparable(program, region, [torch.zeros(size, dtype=torch.float64) for size in small.sizes]):
        return small.sizes
    return tuple(shape_of(n) for n in region.inputs)


def _fits(slot: Slot, shape: Sequence[int]) -> bool:
    """Whether a value of this shape has the channels that the slot speaks of, and as many axes as the value has."""
    return len(shape) == len(shape_of(slot.old)) and all(shape[a] == n for a, n in slot.sizes.items())


def _compare(
    slot: Slot, values: tuple[Mapping[fx.Node, Any], ...], scales: tuple[Mapping[fx.Node, Any], ...], n_eps: float
) -> tuple[float, float, bool]:
    old, new = values[0][slot.old], values[1][slot.new]
    if not isinstance(old, Tensor):
        return 0.0, 0.0, _equal(old, new)
    if not is_number(old):
        return 0.0, 0.0, old.dtype == new.dtype and torch.equal(old, new)
    here = slot.cut(old)
    if here.shape != new.shape:
        raise RuleError(f"the new value of {slot.old.name} has shape {tuple(new.shape)}, not {tuple(here.shape)}")
    if not here.numel():
        return 0.0, 0.0, True
    whole = scales[0][slot.old].broadcast_to(old.shape)  # some are the same along an axis
    gap, bound = torch.where(here == new, 0.0, (here - new).abs()), n_eps * (slot.cut(whole) + scales[1][slot.new])
    told = slot.impose(old)
    off = torch.where(told == old, 0.0, (told - old).abs())
    fine = bool((torch.isfinite(gap) & (gap <= bound)).all()) and float(off.max()) <= 2 * n_eps * float(whole.max())
    return float(gap.max()), float(bound.max()), fine


def _equal(old: Any, new: Any) -> bool:
    """Whether sizes, or lists of values, are the same."""
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(_equal(a, b) for a, b in zip(old, new, strict=True))
    if isinstance(old, Tensor):
        return old.shape == new.shape and bool(torch.allclose(old, new, rtol=1e-12, atol=0, equal_nan=True))
    return bool(old == new)
