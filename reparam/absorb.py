"""Carries a channel affine through the graph until weighted layers absorb it.

`forward` follows every user of a value until a layer's input takes the affine; `backward` follows operands until a
layer's output does. Both return a `Route`, the steps in execution order, or Blocked with the reason and the node.

What each operator lets through is stated once, in `_forward_step` and `_backward_step`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from .channels import Affine as ChannelAffine
from .channels import Pair, along, compress, is_movement, lift, move_forward, plus, read_affine, same, times
from .kernels import scale_inputs, scale_outputs
from .layers import Layer, read_layer, weights, write_layer
from .ops import (
    ADDS,
    AVG_POOLS,
    CASTS,
    CATS,
    IDENTITIES,
    MAX_POOLS,
    MULS,
    PADS,
    SUBS,
    arguments,
    aten,
    is_call,
    op_name,
    pair,
)
from .program import Program, shape_of

HOMOGENEOUS = frozenset({aten.relu.default, aten.leaky_relu.default})
GLOBAL_POOLS = frozenset(
    {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
)
MEANS = frozenset({aten.mean.dim})
INTERPOLATIONS = frozenset({aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec, aten.upsample_trilinear3d.vec})
TRANSPARENT = IDENTITIES | CASTS
Action = Literal["clone", "skip", "sink"]


@dataclass(frozen=True)
class Blocked:
    """Why an affine cannot pass: the node in its way and the reason."""

    node: fx.Node
    reason: str


@dataclass(frozen=True)
class Step:
    """What becomes of one old node: cloned on new operands, skipped (it was an affine), or re-weighted (a sink)."""

    node: fx.Node
    action: Action
    pair: Pair = field(default_factory=Pair)


@dataclass(frozen=True)
class Route:
    """Steps in execution order, from the affine to the layers that absorb it or the other way round.

    others: values on the side (sibling pieces of a split) that must be replaced by their clones as well.
    """

    steps: tuple[Step, ...]
    direction: Literal["forward", "backward"]
    others: tuple[fx.Node, ...] = ()

    @property
    def sinks(self) -> tuple[fx.Node, ...]:
        return tuple(s.node for s in self.steps if s.action == "sink")


def _spatial_constant(value: Tensor | None) -> bool:
    return value is None or all(s == 1 for s in value.shape[2:])


def _negative(value: Tensor | None) -> int:
    return 0 if value is None else int((value < 0).sum())


def _positive_only(node: fx.Node, carried: Pair) -> Blocked | None:
    """relu-like operators let through a scale that is nowhere negative, and no shift."""
    if carried.shift is not None:
        return Blocked(node, f"{op_name(node)} does not let a shift through")
    if _negative(carried.scale):
        return Blocked(
            node, f"{op_name(node)} does not let a negative scale through ({_negative(carried.scale)} channels)"
        )
    return None


def _pool(node: fx.Node, carried: Pair) -> Blocked | None:
    if not _spatial_constant(carried.scale) or not _spatial_constant(carried.shift):
        return Blocked(node, f"the affine varies over the window of {op_name(node)}")
    if is_call(node, MAX_POOLS):
        if _negative(carried.scale):
            return Blocked(
                node, f"max-pool does not let a negative scale through ({_negative(carried.scale)} channels)"
            )
        return None
    if not is_call(node, AVG_POOLS) or carried.shift is None:
        return None
    args = arguments(node)
    padded = any(pair(args["padding"], 1)) if not isinstance(args["padding"], (list, tuple)) else any(args["padding"])
    if args.get("divisor_override") is not None or (padded and args["count_include_pad"]):
        return Blocked(node, "the shift meets the average pool's padding, which counts as zero")
    return None


# ---- forward -----------------------------------------------------------------------------------------------------


def forward(program: Program, start: fx.Node, carried: Pair) -> Route | Blocked:
    """Pushes `carried`, the affine that `start` applies, into all layers that use `start`.

    In the rewritten graph `start` is replaced by its un-affined value. Every path must end in a layer that absorbs
    the affine exactly; otherwise Blocked names the first node that does not.
    """
    return forward_all(program, {start: carried})


def forward_all(program: Program, starts: Mapping[fx.Node, Pair], *, leaving: fx.Node | None = None) -> Route | Blocked:
    """`forward` for several values at once, each replaced by its own un-affined value.

    leaving: one user of the starts that is taken care of elsewhere, and must not be reached on another way.
    """
    known: dict[fx.Node, Any] = dict(starts)
    steps: list[Step] = []
    heap = [u for u in dict.fromkeys(u for s in starts for u in s.users) if u not in starts and u is not leaving]
    heapq.heapify(heap)
    queued = set(heap)
    while heap:
        node = heapq.heappop(heap)
        step = _forward_step(program, node, known)
        if isinstance(step, Blocked):
            return step
        action, value = step
        steps.append(Step(node, action, value if isinstance(value, Pair) else Pair()))
        if action == "sink":
            continue
        known[node] = value
        for user in node.users:
            if user in starts or user is leaving:
                return Blocked(user, "it is reached on more than one way")
            if user not in queued:
                queued.add(user)
                heapq.heappush(heap, user)
    if not any(s.action == "sink" for s in steps):
        return Blocked(next(iter(starts)), "nothing after it could absorb it")
    return Route(tuple(steps), "forward")


def _forward_step(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> tuple[Action, Any] | Blocked:
    if node.op == "output":
        return Blocked(node, "its value is an output of the network")
    layer = read_layer(program, node)
    if layer is not None and layer.x in known:
        return _forward_sink(layer, known[layer.x])
    affine = read_affine(program, node)
    if isinstance(affine, ChannelAffine) and affine.x in known and isinstance(known[affine.x], Pair):
        return "skip", known[affine.x].then(affine.pair.scale, affine.pair.shift)
    if is_call(node, CATS):
        return "clone", _forward_cat(node, known)
    if is_call(node, ADDS | SUBS):
        return _forward_sum(node, known)
    if is_call(node, MULS):
        return _forward_product(node, known)
    first = node.args[0] if node.args else None
    carried = known.get(first) if isinstance(first, fx.Node) else None
    if carried is None or any(i in known for i in node.all_input_nodes if i is not first):
        return Blocked(node, f"{op_name(node)} uses the value in a way that an affine cannot follow")
    if isinstance(carried, list):
        return ("clone", carried[int(node.args[1])]) if op_name(node) == "getitem" else _blocked(node)  # type: ignore[arg-type]
    return _forward_unary(program, node, first, carried)  # type: ignore[arg-type]


def _blocked(node: fx.Node) -> Blocked:
    return Blocked(node, f"{op_name(node)} does not commute with a channel affine")


def _forward_sink(layer: Layer, carried: Pair) -> tuple[Action, Pair] | Blocked:
    axis = 1 if layer.kind != "linear" else len(shape_of(layer.x)) - 1
    try:
        scale, shift = along(carried.scale, axis), along(carried.shift, axis)
    except ValueError:
        return Blocked(layer.node, "the affine does not lie along the channel axis of this layer")
    if shift is not None and layer.kind == "transposed":
        return Blocked(layer.node, "a shift before a transposed convolution changes its border")
    if shift is not None and layer.geometry.padded:
        return Blocked(layer.node, "the shift before a zero-padded convolution would be wrong on the border")
    width = layer.in_channels
    return "sink", Pair(_widen(scale, width), _widen(shift, width))


def _widen(vector: Tensor | None, width: int) -> Tensor | None:
    return vector if vector is None or vector.numel() == width else vector.expand(width)


def _forward_cat(node: fx.Node, known: dict[fx.Node, Any]) -> Pair:
    operands: Sequence[fx.Node] = node.args[0]  # type: ignore[assignment]
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
        joined = torch.ops.aten.cat.default(full, int(arguments(node)["dim"]))
        result.append(compress(joined).to(device))
    return Pair(*result)


def _forward_sum(node: fx.Node, known: dict[fx.Node, Any]) -> tuple[Action, Pair] | Blocked:
    args = arguments(node)
    rank = node.meta["val"].dim()
    sides = [known.get(s, Pair()) if isinstance(s, fx.Node) else Pair() for s in (args["self"], args["other"])]
    if not all(isinstance(s, Pair) for s in sides):
        return _blocked(node)
    left, right = (Pair(*(None if t is None else lift(t, rank) for t in (s.scale, s.shift))) for s in sides)
    if not same(left.scale, right.scale):
        return Blocked(node, "a scale on one operand only does not pass through a sum")
    alpha = float(args.get("alpha") or 1.0)
    signs = (1.0, alpha) if is_call(node, ADDS) else (1.0, -alpha)
    if node.target in (aten.rsub.Tensor, aten.rsub.Scalar):
        signs = (-alpha, 1.0)
    shifts = [None if s.shift is None else f * s.shift for f, s in zip(signs, (left, right), strict=True)]
    return "clone", Pair(left.scale, plus(*shifts))


def _forward_product(node: fx.Node, known: dict[fx.Node, Any]) -> tuple[Action, Pair] | Blocked:
    rank = node.meta["val"].dim()
    scale: Tensor | None = None
    for operand in node.args[:2]:
        carried = known.get(operand) if isinstance(operand, fx.Node) else None
        if carried is None:
            continue
        if not isinstance(carried, Pair) or carried.shift is not None:
            return Blocked(node, "a shift does not pass through a product with data")
        scale = times(scale, None if carried.scale is None else lift(carried.scale, rank))
    return "clone", Pair(scale)


def _forward_unary(program: Program, node: fx.Node, x: fx.Node, carried: Pair) -> tuple[Action, Any] | Blocked:
    if is_call(node, TRANSPARENT):
        return "clone", carried
    if is_movement(program, node) or (is_call(node, PADS) and arguments(node).get("mode", "constant") != "constant"):
        return "clone", _moved(program, node, x, carried)
    if is_call(node, HOMOGENEOUS):
        return _positive_only(node, carried) or ("clone", carried)
    if is_call(node, AVG_POOLS | MAX_POOLS | GLOBAL_POOLS | INTERPOLATIONS):
        return _pool(node, carried) or ("clone", carried)
    if is_call(node, MEANS):
        return _forward_mean(program, node, x, carried)
    if is_call(node, PADS):
        return _forward_pad(node, x, carried)
    return _blocked(node)


def _moved(program: Program, node: fx.Node, x: fx.Node, carried: Pair) -> Any:
    scale = None if carried.scale is None else move_forward(program, node, x, carried.scale)
    shift = None if carried.shift is None else move_forward(program, node, x, carried.shift)
    pieces = scale if isinstance(scale, list) else shift
    if isinstance(pieces, list):
        return [Pair(scale and scale[i], shift and shift[i]) for i in range(len(pieces))]
    return Pair(scale, shift)


def _forward_mean(program: Program, node: fx.Node, x: fx.Node, carried: Pair) -> tuple[Action, Pair] | Blocked:
    dims = arguments(node)["dim"]
    axes = range(len(shape_of(x))) if dims is None else [d % len(shape_of(x)) for d in dims]
    for part in (carried.scale, carried.shift):
        if part is not None and any(part.shape[a] != 1 for a in axes):
            return Blocked(node, "the affine varies along an axis that is averaged away")
    return "clone", _moved(program, node, x, carried)


def _forward_pad(node: fx.Node, x: fx.Node, carried: Pair) -> tuple[Action, Pair] | Blocked:
    if carried.shift is not None or arguments(node)["value"]:
        return Blocked(node, "a shift does not pass through zero padding")
    padded = [len(shape_of(x)) - 1 - i // 2 for i, p in enumerate(arguments(node)["pad"]) if p]
    if carried.scale is not None and any(carried.scale.shape[a] != 1 for a in padded):
        return Blocked(node, "the padding adds channels to the axis of the scale")
    return "clone", carried


# ---- execution ---------------------------------------------------------------------------------------------------


def execute(program: Program, route: Route, substitution: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Builds the new nodes of a route. `substitution` holds what already has a replacement; it is extended."""
    for step in route.steps:
        node = step.node
        if step.action == "skip":
            affine = read_affine(program, node)
            assert isinstance(affine, ChannelAffine)
            substitution[node] = substitution[affine.x]
        elif step.action == "clone":
            substitution[node] = program.clone(node, substitution)
        else:
            substitution[node] = _write_sink(program, step, route.direction, substitution)
    return substitution


def _write_sink(program: Program, step: Step, direction: str, substitution: dict[fx.Node, fx.Node]) -> fx.Node:
    layer = read_layer(program, step.node)
    if layer is None:
        return _write_norm(program, step)
    weight, bias = weights(program, layer)
    fold: Callable[..., tuple[Tensor, Tensor | None]] = scale_inputs if direction == "forward" else scale_outputs
    weight, bias = fold(layer.kind, weight, bias, layer.geometry.groups, step.pair.scale, step.pair.shift)
    return write_layer(program, layer, weight, bias, x=substitution.get(layer.x, layer.x))


def _write_norm(program: Program, step: Step) -> fx.Node:
    """A layer or group norm whose own affine takes the pair: s*(g*n + b) + t = (s*g)*n + (s*b + t)."""
    args = arguments(step.node)
    count = (step.pair.scale if step.pair.scale is not None else step.pair.shift).numel()  # type: ignore[union-attr]
    gamma, beta = program.tensor(args["weight"]), program.tensor(args["bias"])
    own = Pair(gamma, beta).then(step.pair.scale, step.pair.shift)
    origin = str(step.node.meta.get("module") or step.node.name)
    device = program.device
    scale = own.scale if own.scale is not None else torch.ones(count, dtype=torch.float64, device=device)
    shift = own.shift if own.shift is not None else torch.zeros(count, dtype=torch.float64, device=device)
    w = program.weight(scale, f"{origin}.weight", like=step.node)
    b = program.weight(shift, f"{origin}.bias", like=step.node)
    first, second = (args["input"], args.get("normalized_shape", args.get("num_groups")))
    kwargs = {"eps": args["eps"]}
    return program.call(step.node.target, (first, second, w, b), kwargs, like=step.node)
