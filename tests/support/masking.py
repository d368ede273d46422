"""Programs whose weights were masked at random: zero rows and columns, equal rows, norms with channels switched off."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor, fx

from reparam.ir import BATCH_NORMS, LINEARS, TRANSPOSED_CONVS, WEIGHTED, Program, arguments, is_call


def masked(program: Program, seed: int) -> Program:
    """A copy of `program` with weights that leave something to shrink. The same for a seed."""
    draw = random.Random(seed)
    out = program.copy()
    for node in out.calls():
        if is_call(node, WEIGHTED) and draw.random() < 0.8:
            _mask_layer(out, node, draw)
        elif is_call(node, BATCH_NORMS) and draw.random() < 0.7:
            _mask_norm(out, node, draw)
    return out


def _some(count: int, draw: random.Random) -> Tensor:
    share = draw.choice([0.2, 0.5, 0.9])
    return torch.tensor([i for i in range(count) if draw.random() < share], dtype=torch.int64)


def _put(program: Program, node: fx.Node, value: Tensor) -> None:
    name = str(node.target)
    program.constants[name] = replace(program.constants[name], value=value)


def _value(program: Program, node: object) -> Tensor | None:
    constant = program.constant(node)
    return None if constant is None or not constant.value.is_floating_point() else constant.value.detach().clone()


def _mask_layer(program: Program, node: fx.Node, draw: random.Random) -> None:
    given = arguments(node)
    weight, bias = _value(program, given["weight"]), _value(program, given["bias"])
    if weight is None or weight.dim() < 2:
        return
    transposed, groups = is_call(node, TRANSPOSED_CONVS), 1 if is_call(node, LINEARS) else int(given["groups"])
    rows = weight.transpose(0, 1) if transposed and groups == 1 else weight
    what = draw.choice(["rows", "rows", "rows and bias", "columns", "equal", "equal", "rows and columns"])
    if "rows" in what:
        dead = _some(rows.shape[0], draw)
        rows[dead] = 0
        if "bias" in what and bias is not None and not (transposed and groups > 1):
            bias[dead] = 0
    if "columns" in what:
        rows[:, _some(rows.shape[1], draw)] = 0
    if what == "equal":
        twins = _some(rows.shape[0], draw)
        rows[twins] = rows[int(draw.random() * rows.shape[0])].clone()
        if bias is not None and not (transposed and groups > 1) and len(twins):
            bias[twins] = bias[int(twins[0])].clone()
    _put(program, given["weight"], weight)
    if bias is not None:
        _put(program, given["bias"], bias)


def _mask_norm(program: Program, node: fx.Node, draw: random.Random) -> None:
    given = arguments(node)
    gamma, beta = _value(program, given["weight"]), _value(program, given["bias"])
    if gamma is None:
        return
    off = _some(len(gamma), draw)
    gamma[off] = 0
    _put(program, given["weight"], gamma)
    if beta is not None and draw.random() < 0.5:
        beta[off] = 0
        _put(program, given["bias"], beta)
