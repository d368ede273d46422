"""Writes a laid-out chain into the graph: one convolution and one activation for each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from .activations import emit_activation
from .forms import Map, Value, numbers_of, shift_vector
from .gates import emit_gate
from .kernels import expand_groups
from .layers import conv_call
from .ops import WEIGHTED, aten, is_call
from .packing import Layout
from .program import FOLD_DTYPE, Program
from .regions import carries_data
from .schedule import Layers, Stage
from .slots import natural, width
from .terms import fit
from .values import Network

_NEAR = 4  # calls between an activation and the layer that it is named after


@dataclass(frozen=True)
class Chain:
    """A planned span: what it was, its layers, and how they are laid out."""

    network: Network
    layers: Layers
    layout: Layout


def lower(program: Program, chain: Chain) -> fx.Node:
    """The result of the chain, as new nodes before the span's last one."""
    current = chain.network.span.entry
    for i, stage in enumerate(chain.layers.stages):
        like = _origin(stage)
        anchor = chain.network.span.exit
        before, after = chain.layout.orders[i], chain.layout.orders[i + 1]
        if stage.kind == "pool":
            call = stage.forms[0][0].node
            current = program.call(call.target, (current, *call.args[1:]), call.kwargs, like=anchor)
        elif stage.kind == "gate":
            value = stage.forms[0][0]
            current = emit_gate(program, value, current, _places(stage.after, after)[value], like=anchor)
        else:
            current = _layer(program, chain, stage, current, chain.layout.groups[i], (before, after), anchor)
        current.meta["module"] = like.meta.get("module", "")
    return current


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


def _places(register: tuple[Value, ...], order: np.ndarray) -> dict[Value, Tensor]:
    """For each value of a register the slots of its channels."""
    slots = np.empty(width(register), dtype=np.int64)
    used = order >= 0
    slots[order[used]] = np.flatnonzero(used)
    starts = natural(register)
    return {v: torch.from_numpy(slots[starts[v] : starts[v] + v.channels].copy()) for v in register}


def _layer(
    program: Program,
    chain: Chain,
    stage: Stage,
    x: fx.Node,
    groups: int,
    orders: tuple[np.ndarray, np.ndarray],
    like: fx.Node,
) -> fx.Node:
    weight, bias = _numbers(program, stage, groups, orders)
    origin = _origin(stage)
    stem = str(origin.meta.get("module") or origin.name)
    w = program.weight(weight, f"{stem}.weight", like=like)
    b = program.weight(bias, f"{stem}.bias", like=like) if bool((bias != 0).any()) else None
    if chain.network.ndim:
        y = conv_call(program, x, w, b, stage.window.geometry(groups), like=like)
    else:
        y = program.call(aten.linear.default, (x, w, b), like=like)
    y.meta["module"] = origin.meta.get("module", "")
    slots = torch.from_numpy(orders[1].copy())
    return emit_activation(program, stage.joint, y, slots, chain.network.axis, like=like)


def _numbers(
    program: Program, stage: Stage, groups: int, orders: tuple[np.ndarray, np.ndarray]
) -> tuple[Tensor, Tensor]:
    """weight (C_out, C_in/groups, *kernel) and bias (C_out,) of a layer, float64."""
    n_in, n_out = len(orders[0]), len(orders[1])
    weight = torch.zeros(n_out, n_in // groups, *stage.window.size, dtype=FOLD_DTYPE, device=program.device)
    bias = torch.zeros(n_out, dtype=FOLD_DTYPE, device=program.device)
    into, out = _places(stage.before, orders[0]), _places(stage.after, orders[1])
    active = {v for v, _ in stage.forms if v.act.family != "linear"}
    for v, u, m in stage.blocks():
        numbers = fit(numbers_of(m), m.window, stage.window)
        if v not in active and stage.joint.gain != 1.0:
            numbers = numbers / stage.joint.gain
        _place(weight, numbers, m, out[v][m.rows : m.rows + m.n_out], into[u][m.cols : m.cols + m.n_in], groups)
    for v, form in stage.forms:
        shift = shift_vector(form, program.device)
        if shift is not None:
            bias[out[v]] += shift if v in active else shift / stage.joint.gain
    return weight, bias


def _place(weight: Tensor, numbers: Tensor, m: Map, rows: Tensor, cols: Tensor, groups: int) -> None:
    """Adds the block to the rows and columns where it belongs, within the groups of the layer."""
    per_out, per_in = weight.shape[0] // groups, weight.shape[1]
    if m.n_in == m.groups:  # depthwise: one operand channel for each result
        sources = cols.repeat_interleave(m.n_out // m.groups)
        weight[rows, sources % per_in] += numbers[:, 0]
        _same_bin(rows // per_out, sources // per_in)
        return
    if groups == 1:
        dense = expand_groups(numbers, m.groups, 1)
        weight[rows[:, None], cols[None, :]] += dense
        return
    for k in range(m.groups):
        r = rows[k * (m.n_out // m.groups) : (k + 1) * (m.n_out // m.groups)]
        c = cols[k * (m.n_in // m.groups) : (k + 1) * (m.n_in // m.groups)]
        part = numbers[k * (m.n_out // m.groups) : (k + 1) * (m.n_out // m.groups)]
        _same_bin(r // per_out, c // per_in)
        weight[r[:, None], (c % per_in)[None, :]] += part


def _same_bin(rows: Tensor, cols: Tensor) -> None:
    if (
        len(rows)
        and len(cols)
        and not bool((rows.max() == cols.max()) & (rows.min() == cols.min()))
        and not (rows.shape == cols.shape and torch.equal(rows, cols))
    ):
        raise AssertionError("a block lies across two groups")
