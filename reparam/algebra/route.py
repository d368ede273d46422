"""Routes: how an affine travels through the graph, and the nodes that this makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    AVG_POOLS,
    BATCH_NORMS,
    IDENTITIES,
    MAX_POOLS,
    PADS,
    RECURRENT,
    SIZE_READERS,
    SUBS,
    Program,
    Refusal,
    arguments,
    aten,
    is_call,
    is_float_cast,
    op_name,
    place_of,
    shape_of,
)

from .absorbing_constants import TABLES, write_table, write_term
from .channel_affine import Affine as ChannelAffine
from .channel_affine import Pair, read_affine, write_affine
from .kernels import scale_inputs, scale_outputs
from .layer import Layer, read_layer, weights, write_layer
from .masking import FILLED, RUNNING_SUMS, filled, running_sum
from .recurrent_input import write_recurrent
from .scaled_activation import Swap, emit_swap

HOMOGENEOUS = frozenset({aten.relu.default, aten.leaky_relu.default, aten.abs.default})


GLOBAL_POOLS = frozenset(
    {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
)


INTERPOLATIONS = frozenset(  # the weights of each result add up to one
    {
        *(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec),
        *(aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec),
    }
)
SAMPLERS = frozenset({aten.grid_sampler.default})


def is_transparent(node: fx.Node) -> bool:
    """Whether any affine passes the call as it is: copies, and casts that only round."""
    return is_call(node, IDENTITIES) or is_float_cast(node)


Action = Literal["clone", "skip", "sink"]


@dataclass(frozen=True)
class Step:
    """What becomes of one old node: cloned on new operands, skipped (it was an affine), or re-weighted (a sink).

    swap: the activation that a clone becomes.
    """

    node: fx.Node
    action: Action
    pair: Pair = field(default_factory=Pair)
    swap: Swap | None = None


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
        """What takes the affine, and what takes no notice of it, as it reads the size of a value alone."""
        return tuple(s.node for s in self.steps if s.action == "sink")

    @property
    def takers(self) -> tuple[fx.Node, ...]:
        """The sinks that the affine changes."""
        return tuple(s for s in self.sinks if op_name(s) not in SIZE_READERS)


def _spatial_constant(value: Tensor | None) -> bool:
    return value is None or all(s == 1 for s in value.shape[2:])


def _negative(value: Tensor | None) -> int:
    return 0 if value is None else int((value < 0).sum())


def positive_only(node: fx.Node, carried: Pair) -> Refusal | None:
    """relu-like operators let through a scale that is nowhere negative, and no shift."""
    if carried.shift is not None:
        return Refusal(f"{op_name(node)} does not let a shift through", node)
    if _negative(carried.scale):
        return Refusal(
            f"{op_name(node)} does not let a negative scale through ({_negative(carried.scale)} channels)", node
        )
    return None


def _pool(node: fx.Node, carried: Pair) -> Refusal | None:
    if not _spatial_constant(carried.scale) or not _spatial_constant(carried.shift):
        return Refusal(f"the affine varies over the window of {op_name(node)}", node)
    if is_call(node, MAX_POOLS):
        if _negative(carried.scale):
            return Refusal(
                f"max-pool does not let a negative scale through ({_negative(carried.scale)} channels)", node
            )
        return None
    if not is_call(node, AVG_POOLS) or carried.shift is None:
        return None
    args = arguments(node)
    padded = any(args["padding"]) and args["count_include_pad"]
    if args.get("divisor_override") is not None or padded:
        return Refusal("the shift meets the average pool's padding, which counts as zero", node)
    return None


def passes_beside(layer: Layer, pair: Pair) -> bool:
    """Whether a scale passes a layer: it lies along another axis than the channels, and there is no bias.

    The layer is linear, or a convolution that reads one position for each that it makes.
    """
    if layer.bias is not None or pair.shift is not None or pair.scale is None:
        return False
    if layer.kind == "linear":
        return pair.scale.shape[-1] == 1
    return layer.pointwise and all(s == 1 for s in layer.geometry.stride) and pair.scale.shape[1] == 1


def _pad(node: fx.Node, carried: Pair) -> Refusal | None:
    """A pad with zeros lets a scale through that does not vary along what it widens."""
    args = arguments(node)
    if carried.shift is not None:
        return Refusal("a shift does not pass through zero padding", node)
    if args["value"]:
        return Refusal("a scale does not pass through a pad with another number than zero", node)
    padded = [len(shape_of(node)) - 1 - i // 2 for i, p in enumerate(args["pad"]) if p]
    if carried.scale is not None and any(carried.scale.shape[a] != 1 for a in padded):
        return Refusal("the padding adds channels to the axis of the scale", node)
    return None


def _sampler(node: fx.Node, carried: Pair) -> Refusal | None:
    """The weights of each sample add up to one, but where zeros stand beyond the border."""
    if not _spatial_constant(carried.scale) or not _spatial_constant(carried.shift):
        return Refusal(f"the affine varies over what {op_name(node)} reads", node)
    if carried.shift is not None and arguments(node)["padding_mode"] == 0:
        return Refusal(f"the shift meets the zeros beyond the border that {op_name(node)} reads", node)
    return None


_PASSING: Sequence[tuple[frozenset[Any], Callable[[fx.Node, Pair], Refusal | None]]] = (
    (HOMOGENEOUS, positive_only),
    (AVG_POOLS | MAX_POOLS | GLOBAL_POOLS | INTERPOLATIONS, _pool),
    (PADS, _pad),
    (SAMPLERS, _sampler),
    (FILLED, filled),
    (RUNNING_SUMS, running_sum),
)


def passing(node: fx.Node) -> Callable[[fx.Node, Pair], Refusal | None] | None:
    """Of a call that lets an affine of its first operand through as it is, or not at all, what says so."""
    return next((check for kinds, check in _PASSING if is_call(node, kinds)), None)


def execute(program: Program, route: Route, substitution: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """Builds the new nodes of a route. `substitution` holds what already has a replacement; it is extended."""
    for step in route.steps:
        node = step.node
        if step.action == "skip":
            affine = read_affine(program, node)
            assert isinstance(affine, ChannelAffine)
            substitution[node] = substitution[affine.x]
        elif step.swap is not None:
            substitution[node] = emit_swap(program, step.swap, substitution[node.args[0]], node)  # type: ignore[index]
        elif step.action == "clone":
            substitution[node] = program.clone(node, substitution)
        else:
            substitution[node] = _write_sink(program, step, route.direction, substitution)
    return substitution


def _write_sink(program: Program, step: Step, direction: str, substitution: dict[fx.Node, fx.Node]) -> fx.Node:
    if op_name(step.node) in SIZE_READERS:
        return program.clone(step.node, substitution)
    layer, affine = read_layer(program, step.node), read_affine(program, step.node)
    if isinstance(affine, ChannelAffine):
        return _write_affine(program, step, affine, substitution[affine.x])
    if is_call(step.node, RECURRENT):
        return write_recurrent(program, step.node, step.pair, substitution)
    if is_call(step.node, TABLES):
        return write_table(program, step.node, step.pair)
    if is_call(step.node, ADDS | SUBS):
        return write_term(program, step.node, step.pair, substitution)
    if layer is None:
        return _write_norm(program, step)
    weight, bias = weights(program, layer)
    fold: Callable[..., tuple[Tensor, Tensor | None]] = scale_inputs if direction == "forward" else scale_outputs
    weight, bias = fold(layer.kind, weight, bias, layer.geometry.groups, step.pair.scale, step.pair.shift)
    return write_layer(program, layer, weight, bias, x=substitution.get(layer.x))


def _write_affine(program: Program, step: Step, own: ChannelAffine, x: fx.Node) -> fx.Node:
    """An affine that takes the pair on its input: g*((s*x + t) - mu) + b = (g*s)*(x - (mu - t)/s) + b."""
    node = step.node
    origin = place_of(node)
    if not is_call(node, BATCH_NORMS):
        return write_affine(program, x, step.pair.then(own.pair.scale, own.pair.shift), origin, like=node)
    args = dict(arguments(node))
    channels = step.pair.scale if step.pair.scale is not None else step.pair.shift
    assert channels is not None
    scale = torch.ones_like(channels) if step.pair.scale is None else step.pair.scale
    shift = torch.zeros_like(channels) if step.pair.shift is None else step.pair.shift
    gamma, mean = program.tensor(args["weight"]), program.tensor(args["running_mean"])
    assert mean is not None
    args["weight"] = scale if gamma is None else gamma * scale
    args["running_mean"] = (mean - shift) / scale
    for name in ("weight", "running_mean"):
        args[name] = program.weight(args[name], f"{origin}.{name}", trainable=name == "weight", like=node)
    same = node if shape_of(x) == shape_of(args["input"]) else None
    args["input"] = x
    return program.call(node.target, tuple(args.values()), like=node, same=same)


def _write_norm(program: Program, step: Step) -> fx.Node:
    """A layer or group norm whose own affine takes the pair: s*(g*n + b) + t = (s*g)*n + (s*b + t)."""
    args = arguments(step.node)
    count = (step.pair.scale if step.pair.scale is not None else step.pair.shift).numel()  # type: ignore[union-attr]
    gamma, beta = program.tensor(args["weight"]), program.tensor(args["bias"])
    own = Pair(gamma, beta).then(step.pair.scale, step.pair.shift)
    origin = place_of(step.node)
    scale = own.scale if own.scale is not None else torch.ones(count)
    shift = own.shift if own.shift is not None else torch.zeros(count)
    w = program.weight(scale, f"{origin}.weight", like=step.node)
    b = program.weight(shift, f"{origin}.bias", like=step.node)
    first, second = (args["input"], args.get("normalized_shape", args.get("num_groups")))
    kwargs = {"eps": args["eps"]}
    return program.call(step.node.target, (first, second, w, b), kwargs, like=step.node)
