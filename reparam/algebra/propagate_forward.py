"""Carries a channel affine through the graph until weighted layers absorb it.

`forward` follows every user of a value until a layer's input takes the affine; `backward` follows operands until a
layer's output does. Both return a `Route`, the steps in execution order, or Refusal with the reason and the node.

What each operator lets through is stated once, in `_forward_step` and `_backward_step` or in what they ask.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    BATCH_NORMS,
    CATS,
    DIVS,
    EINSUMS,
    EXTREMES,
    MULS,
    RECURRENT,
    SUBS,
    Program,
    Refusal,
    arguments,
    aten,
    is_call,
    op_name,
    reads_size_alone,
    shape_of,
    static_shape,
)

from .channel_affine import Affine as ChannelAffine
from .channel_affine import Pair, along, compress, lift, plus, read_affine, same, times
from .einsum_scales import einsum_forward
from .glu_scales import GLUS, glu_forward
from .layer import Layer, read_layer
from .masking import CHOICES, choice_forward
from .movements import is_movement, move_forward
from .recurrent_input import recurrent_forward
from .reductions import REDUCTIONS, WITH_POSITIONS, reduced_forward
from .route import (
    Action,
    Route,
    Step,
    is_transparent,
    passes_beside,
    passing,
    positive_only,
)
from .scaled_activation import Swap, scale_before, takes_scale


@dataclass(frozen=True)
class Swapped:
    """What comes out of an activation that another takes the place of."""

    pair: Pair
    swap: Swap


# ---- forward -----------------------------------------------------------------------------------------------------


def forward(program: Program, start: fx.Node, carried: Pair) -> Route | Refusal:
    """Pushes `carried`, the affine that `start` applies, into all layers that use `start`.

    In the rewritten graph `start` is replaced by its un-affined value. Every path must end in a layer that absorbs
    the affine exactly, or, where some do not, in another affine that takes it. Otherwise Refusal names the first node
    on the way to the layers that does not.
    """
    through = forward_all(program, {start: carried})
    if isinstance(through, Route):
        return through
    joined = forward_all(program, {start: carried}, joining=True)
    return joined if isinstance(joined, Route) else through


def forward_all(
    program: Program,
    starts: Mapping[fx.Node, Pair],
    *,
    leaving: Collection[fx.Node] = (),
    joining: bool = False,
    swapping: bool = True,
) -> Route | Refusal:
    """`forward` for several values at once, each replaced by its own un-affined value.

    leaving: users of the starts that are taken care of elsewhere, and must not be reached on another way.
    joining: an affine on the way takes what is carried, if it can, instead of adding to it. swapping: an activation may
    become another of its kind, with slopes or bounds for each channel.
    """
    known: dict[fx.Node, Any] = dict(starts)
    steps: list[Step] = []
    heap = [u for u in dict.fromkeys(u for s in starts for u in s.users) if u not in starts and u not in leaving]
    heapq.heapify(heap)
    queued = set(heap)
    while heap:
        node = heapq.heappop(heap)
        step = (_forward_join(program, node, known) if joining else None) or _forward_step(program, node, known)
        if isinstance(step, Refusal):
            return step
        action, value = step
        swap: Swap | None = None
        if isinstance(value, Swapped):
            if not swapping:
                return _blocked(node)
            swap, value = value.swap, value.pair
        steps.append(Step(node, action, value if isinstance(value, Pair) else Pair(), swap))
        if action == "sink":
            continue
        known[node] = value
        for user in node.users:
            if user in starts or user in leaving:
                return Refusal("it is reached on more than one way", user)
            if user not in queued:
                queued.add(user)
                heapq.heappush(heap, user)
    if not any(s.action == "sink" for s in steps):
        return Refusal("nothing after it could absorb it", next(iter(starts)))
    return Route(tuple(steps), "forward")


def _forward_step(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> tuple[Action, Any] | Refusal:
    if node.op == "output":
        return Refusal("its value is an output of the network", node)
    carriers = [i for i in node.all_input_nodes if i in known]
    if carriers and all(reads_size_alone(node, i) for i in carriers):
        return "sink", Pair()
    layer = read_layer(program, node)
    if layer is not None and layer.x in known:
        return _forward_sink(layer, known[layer.x])
    if is_call(node, RECURRENT):
        taken = recurrent_forward(program, node, known)
        return taken if isinstance(taken, Refusal) else ("sink", taken)
    affine = read_affine(program, node)
    if isinstance(affine, ChannelAffine) and affine.x in known and isinstance(known[affine.x], Pair):
        return "skip", known[affine.x].then(affine.pair.scale, affine.pair.shift)
    if is_call(node, CHOICES):
        chosen = choice_forward(program, node, known)
        return chosen if isinstance(chosen, Refusal) else ("clone", chosen)
    for kinds, joined in _OF_SEVERAL:
        if is_call(node, kinds):
            pair = joined(node, known)
            return pair if isinstance(pair, Refusal) else ("clone", pair)
    first = node.args[0] if node.args else None
    carried = known.get(first) if isinstance(first, fx.Node) else None
    if carried is None or any(i in known for i in node.all_input_nodes if i is not first):
        return Refusal(f"{op_name(node)} uses the value in a way that an affine cannot follow", node)
    if isinstance(carried, list):
        return ("clone", carried[int(node.args[1])]) if op_name(node) == "getitem" else _blocked(node)  # type: ignore[arg-type]
    return _forward_unary(program, node, first, carried)  # type: ignore[arg-type]


def _forward_join(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> tuple[Action, Any] | None:
    """An affine of the same kind as what is carried: a batch norm takes both, a product a scale, a sum a shift."""
    affine = read_affine(program, node)
    if not isinstance(affine, ChannelAffine) or not isinstance(carried := known.get(affine.x), Pair):
        return None
    if is_call(node, BATCH_NORMS):
        try:
            scale, shift = along(carried.scale, 1), along(carried.shift, 1)
        except ValueError:
            return None
        width = shape_of(node)[1]
        reversible = scale is None or not bool((scale == 0).any())
        return ("sink", Pair(_widen(scale, width), _widen(shift, width))) if reversible else None
    scales = carried.shift is None and affine.pair.shift is None
    shifts = carried.scale is None and affine.pair.scale is None
    return ("sink", carried) if scales or shifts else None


def _blocked(node: fx.Node) -> Refusal:
    return Refusal(f"{op_name(node)} does not commute with a channel affine", node)


def _forward_sink(layer: Layer, carried: Pair) -> tuple[Action, Pair] | Refusal:
    axis = 1 if layer.kind != "linear" else len(shape_of(layer.x)) - 1
    try:
        scale, shift = along(carried.scale, axis), along(carried.shift, axis)
    except ValueError:
        if passes_beside(layer, carried):
            return "clone", carried
        return Refusal("the affine does not lie along the channel axis of this layer", layer.node)
    if shift is not None and layer.kind == "transposed":
        return Refusal("a shift before a transposed convolution changes its border", layer.node)
    if shift is not None and layer.geometry.padded:
        return Refusal("the shift before a zero-padded convolution would be wrong on the border", layer.node)
    width = layer.in_channels
    return "sink", Pair(_widen(scale, width), _widen(shift, width))


def _widen(vector: Tensor | None, width: int) -> Tensor | None:
    return vector if vector is None or vector.numel() == width else vector.expand(width)


def _forward_cat(node: fx.Node, known: dict[fx.Node, Any]) -> Pair | Refusal:
    """The parts side by side; a refusal where they differ and their sizes are free, so that none knows its place."""
    operands: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
    axis = int(arguments(node)["dim"]) % len(shape_of(node))
    free = any(static_shape(o)[axis] is None for o in operands)
    result: list[Tensor | None] = []
    for part, neutral in (("scale", 1.0), ("shift", 0.0)):
        parts = [getattr(known[o], part) if o in known else None for o in operands]
        if all(p is None for p in parts):
            result.append(None)
            continue
        device = next(p.device for p in parts if p is not None)
        full = [
            (p if p is not None else torch.full([1] * o.meta["val"].dim(), neutral, dtype=torch.float64, device=device))
            .cpu()
            .expand(shape_of(o))
            for p, o in zip(parts, operands, strict=True)
        ]
        joined = compress(torch.cat(full, axis))
        if free and joined.shape[axis] > 1:
            return Refusal(f"the {part} differs between the parts of a concatenation, whose sizes are free", node)
        result.append(joined.to(device))
    return Pair(*result)


def _forward_sum(node: fx.Node, known: dict[fx.Node, Any]) -> Pair | Refusal:
    args = arguments(node)
    rank = node.meta["val"].dim()
    sides: list[Pair] = [known.get(s, Pair()) for s in (args["self"], args["other"])]
    left, right = (Pair(*(None if t is None else lift(t, rank) for t in (s.scale, s.shift))) for s in sides)
    if not same(left.scale, right.scale):
        return Refusal("a scale on one operand only does not pass through a sum", node)
    if not isinstance(args["alpha"], (int, float)):
        return _blocked(node)
    alpha = float(args["alpha"])
    signs = (1.0, alpha) if is_call(node, ADDS) else (1.0, -alpha)
    if node.target in (aten.rsub.Tensor, aten.rsub.Scalar):
        signs = (-alpha, 1.0)
    shifts = [None if s.shift is None else f * s.shift for f, s in zip(signs, (left, right), strict=True)]
    return Pair(left.scale, plus(*shifts))


def _forward_product(node: fx.Node, known: dict[fx.Node, Any]) -> Pair | Refusal:
    rank = node.meta["val"].dim()
    scale: Tensor | None = None
    args = arguments(node)
    for operand in (args["self"], args["other"]):
        carried: Pair | None = known.get(operand)
        if carried is None:
            continue
        if carried.shift is not None:
            return Refusal("a shift does not pass through a product with data", node)
        scale = times(scale, None if carried.scale is None else lift(carried.scale, rank))
    return Pair(scale)


def _forward_quotient(node: fx.Node, known: dict[fx.Node, Any]) -> Pair | Refusal:
    """(a x) / d = a (x / d) for any d that carries nothing."""
    args = arguments(node)
    top: Pair = known.get(args["self"], Pair())
    divisor: Pair = known.get(args["other"], Pair())
    if not divisor.trivial:
        return Refusal(f"{op_name(node)} uses the value in a way that an affine cannot follow", node)
    if top.shift is not None:
        return Refusal("a shift does not pass through a quotient of data", node)
    return Pair(None if top.scale is None else lift(top.scale, node.meta["val"].dim()))


def _forward_extreme(node: fx.Node, known: dict[fx.Node, Any]) -> Pair | Refusal:
    """max(a x + t, a y + t) = a max(x, y) + t for a >= 0; the same of the minimum."""
    left, right = (known.get(side, Pair()) for side in arguments(node).values())
    if not same(left.scale, right.scale) or not same(left.shift, right.shift):
        return Refusal(f"an affine on one operand only does not pass through {op_name(node)}", node)
    return positive_only(node, Pair(left.scale)) or left


_OF_SEVERAL: Sequence[tuple[frozenset[Any], Callable[[fx.Node, dict[fx.Node, Any]], Pair | Refusal]]] = (
    (CATS, _forward_cat),
    (ADDS | SUBS, _forward_sum),
    (MULS, _forward_product),
    (DIVS, _forward_quotient),
    (EXTREMES, _forward_extreme),
    (EINSUMS, einsum_forward),
)


def _forward_unary(program: Program, node: fx.Node, x: fx.Node, carried: Pair) -> tuple[Action, Any] | Refusal:
    if is_transparent(node):
        return "clone", carried
    if is_movement(program, node):
        moved = _moved(program, node, x, carried)
        return moved if isinstance(moved, Refusal) else ("clone", moved)
    check = passing(node)
    if check is not None:
        return check(node, carried) or ("clone", carried)
    if takes_scale(program, node) and carried.shift is None and carried.scale is not None:
        swapped = scale_before(program, node, carried.scale)
        return swapped if isinstance(swapped, Refusal) else ("clone", Swapped(Pair(swapped[0]), swapped[1]))
    if is_call(node, GLUS):
        gated = glu_forward(node, carried)
        return gated if isinstance(gated, Refusal) else ("clone", gated)
    if is_call(node, REDUCTIONS):
        reduced = reduced_forward(node, x, carried)
        if isinstance(reduced, Refusal):
            return reduced
        return "clone", [reduced] if is_call(node, WITH_POSITIONS) else reduced
    return _blocked(node)


def _moved(program: Program, node: fx.Node, x: fx.Node, carried: Pair) -> Any:
    scale = None if carried.scale is None else move_forward(program, node, x, carried.scale)
    shift = None if carried.shift is None else move_forward(program, node, x, carried.shift)
    refused = next((part for part in (scale, shift) if isinstance(part, Refusal)), None)
    if refused is not None:
        return refused
    pieces = scale if isinstance(scale, list) else shift
    if isinstance(pieces, list):
        return [Pair(scale and scale[i], shift and shift[i]) for i in range(len(pieces))]
    return Pair(scale, shift)


# ---- execution ---------------------------------------------------------------------------------------------------
