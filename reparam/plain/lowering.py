"""Writes a laid-out chain into the graph: one convolution and one activation for each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from reparam.algebra import Window, conv_call, identity_window
from reparam.ir import WEIGHTED, Program, aten, is_call, module_of, place_of

from .activation import emit_activation
from .channel_order import width
from .group_packing import Packing
from .grouped_layer import GroupedLayer, placed, rearranged, shifts_of, sums_weight, values_at, weight_of
from .partial_sums import Split
from .register_value import SpanValues
from .span import carries_data
from .squeeze_excite import emit_gate
from .stage import Schedule, Stage

_NEAR = 4  # calls between an activation and the layer that it is named after


@dataclass(frozen=True)
class PlainChain:
    """A planned span: what it was, its layers, and how they are laid out.

    seconds: what each of several ways to lay it out took, when they were measured.
    """

    span_values: SpanValues
    schedule: Schedule
    layout: Packing | Split
    seconds: tuple[tuple[str, float], ...] = ()

    @property
    def selects(self) -> bool:
        """Whether the channels of the span's input or of its result have to be put into another order."""
        stages = self.schedule.stages
        wires = self.layout.wires(stages)
        first, last = (np.arange(width(register)) for register in (stages[0].before, stages[-1].after))
        into, out = wires[0], wires[-1]
        read = into is not None and rearranged(first, into.inputs.reshape(-1)) is not None
        return read or (out is not None and rearranged(out.order, last) is not None)


def lower(program: Program, chain: PlainChain) -> fx.Node:
    """The result of the chain, as new nodes before the span's last one."""
    anchor = chain.span_values.span.exit
    axis = chain.span_values.axis
    current = chain.span_values.span.entry
    stages = chain.schedule.stages
    order = np.arange(width(stages[0].before))
    for stage, wire in zip(stages, chain.layout.wires(stages), strict=True):
        like = _origin(stage)
        if wire is not None:
            current = _select(program, current, order, wire.inputs.reshape(-1), axis, like=anchor)
            current, order = _layer(program, chain, stage, current, wire), wire.order
        elif stage.kind == "pool":
            call = stage.forms[0][0].node
            current = program.call(call.target, (current, *call.args[1:]), call.kwargs, like=anchor)
        else:
            value = stage.forms[0][0]
            current = emit_gate(program, value, current, values_at(stage.after, order)[value], like=anchor)
        current.meta["module"] = module_of(like)
    return _select(program, current, order, np.arange(width(stages[-1].after)), axis, like=anchor)


def _select(
    program: Program, x: fx.Node, order: np.ndarray, wanted: np.ndarray, axis: int, *, like: fx.Node
) -> fx.Node:
    """The channels of `x`, which stand in `order`, in the order `wanted`; some may be left out or come twice."""
    places = rearranged(order, wanted)
    if places is None:
        return x
    index = torch.from_numpy(places)
    stem = place_of(x)
    return program.call(
        aten.index_select.default, (x, axis, program.weight(index, f"{stem}_order", like=like)), like=like
    )


def _origin(stage: Stage) -> fx.Node:
    """The node of the span that a layer stands for: the convolution of the first value that comes into being there."""
    node = stage.forms[0][0].node
    if stage.kind != "layer":
        return node
    seen = [node]
    for _ in range(_NEAR):
        operands = [i for n in seen for i in n.all_input_nodes if carries_data(i)]
        layer = next((n for n in seen if is_call(n, WEIGHTED)), None)
        if layer is not None:
            return layer
        seen = operands
    return node


def _layer(program: Program, chain: PlainChain, stage: Stage, x: fx.Node, wire: GroupedLayer) -> fx.Node:
    """One convolution (two when parts are added up) and one activation; x is in the order of the wire's inputs."""
    like = chain.span_values.span.exit
    origin = _origin(stage)
    stem = place_of(origin)
    shifts = shifts_of(stage)
    has_shift = bool((shifts != 0).any())

    def layer(x: fx.Node, weight: Tensor, name: str, window: Window, groups: int, bias: Tensor | None) -> fx.Node:
        w = program.weight(weight, f"{name}.weight", like=like)
        b = program.weight(bias, f"{name}.bias", like=like) if bias is not None else None
        if chain.span_values.ndim:
            y = conv_call(program, x, w, b, window.geometry(groups), like=like)
        else:
            y = program.call(aten.linear.default, (x, w, b), like=like)
        y.meta["module"] = module_of(origin)
        return y

    bias = placed(shifts, wire.order) if has_shift else None
    weight = weight_of(wire, stage)
    y = layer(x, weight, stem, stage.window, wire.groups, bias if wire.sums is None else None)
    if wire.sums is not None:
        picks = wire.sums.picks.reshape(-1)
        parts = np.arange(wire.outputs.size)
        y = _select(program, y, parts, picks, chain.span_values.axis, like=like)
        ones = sums_weight(wire, wire.sums, chain.span_values.ndim)
        window = identity_window(chain.span_values.ndim)
        y = layer(y, ones, f"{stem}_sums", window, len(wire.sums.picks), bias)
    slots = torch.from_numpy(wire.order.copy())
    return emit_activation(program, stage.joint, y, slots, chain.span_values.axis, like=like)
