"""Looks for inputs on which two programs differ, and for the layer where they part.

What rounding may do is measured, not guessed. The first program's *twin* has every weight moved by a random rounding
error of the dtype in question, so it is the same function; wherever the search leads, two equal programs differ by
about as much as the twins do there, and whatever differs by several times more is another function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ACTIVATIONS,
    Feed,
    Program,
    Room,
    aten,
    census,
    drawn_inputs,
    evaluate,
    give_back,
    is_call,
    is_floating,
    is_whole,
    op_name,
    shape_of,
)

# Sizes of the random inputs to begin with: a clip that only large values reach needs large inputs.
SCALES = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)
STEPS = 4
FEW_STEPS = 2
HEAVY_MACS = 1_000_000_000
STEP_SIZE = 0.25
# How many times more than the twins two equal programs may differ on the worst input. Measured on forty networks: at
# most 3 for what reparam emits, 6 for a deploy form whose weights were folded in float32.
SLACK = 10.0
# The same for one value inside.
INNER_SLACK = 4.0
# Relative, in roundings: what two equal programs may differ by where the twins agree exactly.
FLOOR = 4.0
FLOAT64_ROUNDING = 1e-12
PROBES = 8
KEPT = 1 << 14

_SCALE_FREE = frozenset({aten.relu.default, aten.leaky_relu.default, aten.neg.default, aten.abs.default})
_BENT = frozenset(ACTIVATIONS) - _SCALE_FREE


@dataclass(frozen=True)
class Search:
    """What the search found. worst: the largest difference as a share of what is allowed. point: the input it is at."""

    worst: float
    inputs: int
    point: Feed


def rounding(dtype: torch.dtype) -> float:
    """The relative rounding error that a weight of `dtype` stands for; in float64, that of a whole fold."""
    return max(torch.finfo(dtype).eps / 2, FLOAT64_ROUNDING)


def twin(program: Program, eps: float, seed: int = 0) -> Program:
    """A copy whose floating weights are each off by a random relative error of at most `eps`."""
    generator = torch.Generator().manual_seed(seed)
    copy, room = program.copy(), Room()
    for name, constant in copy.constants.items():
        value = constant.value.detach()
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator, dtype=torch.float64).mul_(2.0).sub_(1.0)
            moved = noise.to(value.device).mul_(eps).add_(1.0).mul_(value)
            give_back(value)
            copy.constants[name] = replace(constant, value=room.take(moved))
    return copy


# ---- the search --------------------------------------------------------------------------------------------------


def search(a: Program, b: Program, draw: Callable[[], Feed], eps: float, seed: int = 0) -> Search:
    """Tries random inputs of many sizes, then climbs: towards larger differences, and towards larger activations.

    draw: gives a fresh random input in the scale of one. eps: the rounding error of a weight, see `rounding`.
    """
    other, floor = twin(a, eps, seed), FLOOR * eps
    steps = FEW_STEPS if census(a).macs > HEAVY_MACS else STEPS
    tried: list[tuple[float, Feed]] = []
    for scale in SCALES:
        point = _scaled(a, draw(), scale)
        tried.append((_share(gap(a, b, point), gap(a, other, point), floor), point))
    start = max(tried, key=lambda t: t[0])[1]
    mine, yardstick = (list(_climb(a, p, start, _apart, steps)) for p in (b, other))
    allowed = max((difference for difference, _ in yardstick), default=math.nan)
    tried += [(_share(difference, allowed, floor), point) for difference, point in mine]
    for sign in (1.0, -1.0):
        for difference, point in _climb(a, b, draw(), partial(_raised, sign), steps):
            tried.append((_share(difference, gap(a, other, point), floor), point))
    worst, at = max(tried, key=lambda t: t[0])
    return Search(worst, len(tried), at)


def _share(difference: float, allowed: float, floor: float) -> float:
    """Inputs on which nothing finite can be said count as no difference."""
    if math.isnan(difference) or not math.isfinite(allowed):
        return 0.0
    return difference / (SLACK * max(allowed, floor))


def _scaled(program: Program, point: Feed, scale: float) -> Feed:
    """The random input `scale` times as large; one with bounds goes to its corners instead, last to all ends alike.

    Integers are drawn anew for every scale; those of which all of a dtype are drawn go to their ends as well.
    """
    moved: Feed = []
    for value, (low, high) in zip(point, _bounds(program), strict=True):
        if scale == 1.0 or not (is_floating(value) or (math.isfinite(high) and scale >= SCALES[-2])):
            moved.append(value)
        elif math.isinf(low) or math.isinf(high):
            moved.append((value * scale).clamp(low, high))
        elif scale >= SCALES[-2]:
            moved.append(torch.full_like(value, high if scale == SCALES[-1] else low))
        else:
            moved.append(torch.where(value > (low + high) / 2, high, low) if scale > 1.0 else value)
    return moved


def _bounds(program: Program) -> list[tuple[float, float]]:
    """The least and the largest value of each placeholder; of integers, where these are drawn from a whole dtype."""
    specs = {s.name: (s.low, s.high) for s in drawn_inputs(program) if s.dtype.is_floating_point or is_whole(s)}
    return [specs.get(str(n.target), (-math.inf, math.inf)) for n in program.placeholders]


def _floats(values: Sequence[Any]) -> list[Tensor]:
    return [v for v in values if is_floating(v)]


def gap(a: Program, b: Program, point: Feed) -> float:
    """The relative difference of the outputs at `point`, in float64."""
    return relative_gap(_floats(evaluate(a, point)), _floats(evaluate(b, point)))


def relative_gap(truth: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest relative difference of any tensor: RMS, or of the largest element. NaN when `truth` is not finite."""
    worst = 0.0
    for t, o in zip(truth, other, strict=True):
        if not t.numel():
            continue
        if not bool(torch.isfinite(t).all()):
            return math.nan
        off = (o - t).abs()
        for size, total in ((off.square().mean().sqrt(), t.square().mean().sqrt()), (off.max(), t.abs().max())):
            ratio = float(size) / float(total) if float(total) else (math.inf if float(size) else 0.0)
            worst = max(worst, ratio if not math.isnan(ratio) else math.inf)
    return worst


Objective = Callable[[Program, Program, Feed], tuple[list[Tensor], float]]


def _climb(a: Program, b: Program, point: Feed, objective: Objective, steps: int) -> Iterator[tuple[float, Feed]]:
    """The points on the way uphill from `point`, each with the difference there.

    objective: gives the terms whose sum is the height, and the difference. Ends early where there is no way up.
    """
    for _ in range(steps):
        leaves = [p.detach().requires_grad_(True) if is_floating(p) else p for p in point]
        terms, difference = objective(a, b, leaves)
        yield difference, [p.detach() if isinstance(p, Tensor) else p for p in leaves]
        height = torch.stack(terms).sum() if terms else torch.zeros(())
        if math.isnan(difference) or not height.requires_grad or not bool(torch.isfinite(height)):
            return
        point = _uphill(a, leaves, height)


def _uphill(program: Program, leaves: Feed, height: Tensor) -> Feed:
    """One step along the gradient, a quarter of each input's own size, inside its bounds."""
    grads = iter(torch.autograd.grad(height, _floats(leaves), allow_unused=True))
    moved: Feed = []
    for p, (low, high) in zip(leaves, _bounds(program), strict=True):
        if not is_floating(p):
            moved.append(p)
            continue
        grad, x = next(grads), p.detach()
        length = 0.0 if grad is None else float(grad.square().mean().sqrt())
        if grad is None or not math.isfinite(length) or length == 0.0:
            moved.append(x)
            continue
        size = STEP_SIZE * float(x.square().mean().sqrt()) + 1e-3
        moved.append((x + size * grad / length).clamp(low, high))
    return moved


def _apart(a: Program, b: Program, leaves: Feed) -> tuple[list[Tensor], float]:
    """Height: the squared relative difference of the outputs."""
    truth, other = (_floats(evaluate(p, leaves, gradients=True)) for p in (a, b))
    terms = [
        (o - t).square().mean() / max(float(t.detach().square().mean()), 1e-300)
        for t, o in zip(truth, other, strict=True)
        if t.numel()
    ]
    return terms, relative_gap([t.detach() for t in truth], [o.detach() for o in other])


def _raised(sign: float, a: Program, b: Program, leaves: Feed) -> tuple[list[Tensor], float]:
    """Height: the largest (sign 1) or smallest (-1) value that goes into each bent activation, where clips may hide."""
    terms: list[Tensor] = []

    def observe(node: fx.Node, value: Any) -> None:
        if is_floating(value) and value.numel() and any(is_call(u, _BENT) for u in node.users):
            terms.append((sign * value).amax() / (value.detach().square().mean().sqrt() + 1e-30))

    truth, other = (_floats(evaluate(p, leaves, gradients=True, observe=observe)) for p in (a, b))
    return terms, relative_gap([t.detach() for t in truth], [o.detach() for o in other])


# ---- where they part ---------------------------------------------------------------------------------------------


def first_divergence(a: Program, b: Program, point: Feed, eps: float) -> str | None:
    """The first layer of `a` behind which no value is found in `b`, as "'module' (operator, shape), after 'module'".

    From an output that differs, the search goes back through values of `a` that `b` does not have, until it meets
    values that it has: so a layer whose inner values were fused away is passed over when its result is right. Values
    are recognised by their elements (of large ones, a few random projections), to a multiple of what the twins differ.
    """
    return _first_missing(a, [(size, signature) for _, size, signature in _signatures(b, point)], point, eps)


def first_divergence_among(a: Program, values: Sequence[Tensor], point: Feed, eps: float) -> str | None:
    """`first_divergence` from another model's inner values, in float64, on the same inputs."""
    return _first_missing(a, [(v.numel(), _project(v)) for v in values if v.numel()], point, eps)


def _first_missing(a: Program, others: Sequence[tuple[int, Tensor]], point: Feed, eps: float) -> str | None:
    theirs: dict[int, list[Tensor]] = {}
    for size, signature in others:
        theirs.setdefault(size, []).append(signature)
    missing: dict[str, bool] = {}
    for mine, twins in zip(_signatures(a, point), _signatures(twin(a, eps), point), strict=True):
        name, size, signature = mine
        allowed = max(INNER_SLACK * relative_gap([signature], [twins[2]]), eps)
        missing[name] = not any(relative_gap([signature], [s]) <= allowed for s in theirs.get(size, ()))
    return _describe(_earliest(a, missing), missing)


def _signatures(program: Program, point: Feed) -> list[tuple[str, int, Tensor]]:
    """(name, elements, projections) of every value that depends on the input."""
    found: list[tuple[str, int, Tensor]] = []

    def observe(node: fx.Node, value: Any) -> None:
        if is_floating(value) and value.numel() and node.meta["data"]:
            found.append((node.name, value.numel(), _project(value)))

    evaluate(program, point, observe=observe)
    return found


def _project(value: Tensor) -> Tensor:
    """The flattened value; of a large one, (PROBES,): its projections on fixed random directions."""
    flat = value.detach().reshape(-1)
    if flat.numel() <= KEPT:
        return flat
    generator = torch.Generator().manual_seed(7)
    probes = torch.randn(PROBES, flat.numel(), generator=generator, dtype=torch.float64)
    return probes.to(flat.device) @ flat


def _earliest(program: Program, missing: Mapping[str, bool]) -> fx.Node | None:
    """The earliest missing value among those that lead to an output through missing values alone."""
    found: set[fx.Node] = set()
    stack = list(program.output.all_input_nodes)
    while stack:
        node = stack.pop()
        if node not in found and node.op == "call_function" and missing.get(node.name, node.meta["data"]):
            found.add(node)
            stack.extend(node.all_input_nodes)
    return min((n for n in found if n.name in missing), default=None)


def _describe(node: fx.Node | None, missing: Mapping[str, bool]) -> str | None:
    if node is None:
        return None
    before = next((i for i in node.all_input_nodes if missing.get(i.name) is False), None)
    after = "the input" if before is None else f"'{before.meta.get('module') or before.name}'"
    return f"'{node.meta.get('module') or node.name}' ({op_name(node)}, shape {list(shape_of(node))}), after {after}"
