"""Methods that draw the weights of every layer: he, autoinit, zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reparam.ir import place_of
from reparam.signal import (
    Scale,
    Weighed,
    as_it_is,
    blocks,
    function_behind,
    function_read,
    gain_of,
    predict,
)

from .options import InitOptions
from .report import Outcome
from .weights import Part, Weights


def he(weights: Weights, options: InitOptions) -> Outcome:
    """Var(w) = g/fan_in, g = 1/E f(X)^2 of the function that the layer reads: 2 for a ReLU, 2/(1 + a^2) for a PReLU of
    slope a, 1 for what is no function. With fan_out: Var(w) = g/fan_out, g = 1/E f'(X)^2 of the function behind it.

    Source: He et al. 2015, "Delving deep into rectifiers", arXiv 1502.01852, equations 10, 14 and 15; it treats ReLU
    and PReLU, and other functions are treated alike here. Biases are zero.
    """
    for part in weights.first_parts():
        set_he(weights, part, options)
    return Outcome()


def set_he(weights: Weights, part: Part, options: InitOptions) -> None:
    """One layer as `he` sets it."""
    backward = options.mode == "fan_out"
    reads = function_behind(weights.program, part.node) if backward else function_read(weights.program, part.x)
    gain = gain_of(reads, backward=backward)
    fan = part.fan_out if backward else part.fan_in
    value = weights.draw(part, gain / fan, options.drawn_from("normal"))
    where = "no activation" if reads is None else f"'{place_of(reads.result)}'"
    whose = "behind it" if backward else "it reads"
    weights.put(part.weight, value, f"variance {gain:.4g}/{fan}, {options.mode.replace('_', ' ')}; {whose}: {where}")
    weights.clear_bias(part)


def autoinit(weights: Weights, options: InitOptions) -> Outcome:
    """Var(w) = s^2/(fan_in*E x^2), with E x^2 of each layer's input from moments carried through the graph.

    s^2 is `variance`. fan_in leaves out taps on zero padding. Batch norms count as in training, dropouts drop. A layer
    whose input has moments that are not known is set as `he` sets it, and named.

    Source: Bingham & Miikkulainen 2021, arXiv 2109.08958. Weights are from a truncated normal distribution.
    """
    parts = {part.node: part for part in weights.parts()}
    squares: dict[str, float] = {}
    distribution = options.drawn_from("truncated")

    def policy(layer: Weighed) -> Scale:
        part = parts.get(layer.node)
        if part is None:
            return as_it_is(layer)
        if part.weight not in squares:
            second = layer.power.second
            square = options.variance / (layer.fan * second) if second > 0 else 1 / part.fan_in
            squares[part.weight] = square
            value = weights.draw(part, square, distribution)
            weights.put(part.weight, value, f"variance {square:.4g}: fan in {layer.fan:.4g}, E x² {second:.4g}")
            weights.clear_bias(part)
        return Scale(squares[part.weight])

    found = predict(weights.program, policy=policy, training=True, seed=options.seed)
    for part in weights.first_parts():
        if part.weight not in squares:
            set_he(weights, part, InitOptions(distribution=distribution))
            weights.changed[part.weight] += "; the moments of what it reads are not known"
    missing = sum(node.meta["data"] and value.power is None for node, value in found.values.items())
    outputs = [found.power(n) for n in weights.program.output.all_input_nodes]
    known = [p.second for p in outputs if p is not None]
    return Outcome(figures={"values_without_moments": missing, "predicted_output_power": known[0] if known else None})


# ---- ZerO --------------------------------------------------------------------------------------------------------


def hadamard(p: int) -> Tensor:
    """Sylvester's Hadamard matrix (p, p), entries +-1; p is a power of two."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < p:
        h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)))
    return h


def zero_matrix(m: int, n: int) -> Tensor:
    """(m, n): the partial identity where m <= n, else I(m, p) H_p/sqrt(p) I(p, n), p the next power of two from m."""
    if m <= n:
        return torch.eye(m, n, dtype=torch.float64)
    p = 1 << (m - 1).bit_length()
    return hadamard(p)[:m, :n] / math.sqrt(p)


def zero(weights: Weights, options: InitOptions) -> Outcome:
    """Zeros and ones alone: identities where a layer does not widen, Hadamard matrices where it does, at the centre of
    a kernel; the last layers of residual branches are zero, and the layers behind them that give outputs.

    Source: Zhao et al. 2021, "ZerO initialization", arXiv 2110.12661, algorithms 1 and 2. In a network without residual
    branches the last layer is set like the others.
    """
    found = list(blocks(weights.program))
    ends = {node for block in found for node in block.last}
    for part in weights.first_parts():
        outputs = bool(found) and _gives_output(part)
        if part.node in ends or outputs:
            why = "the last of a branch" if part.node in ends else "it gives an output"
            weights.put(part.weight, torch.zeros(part.shape), f"zero: {why}")
        else:
            wide = part.outputs > part.inputs
            what = "Hadamard matrix" if wide else "identity"
            weights.put(part.weight, zero_weight(part), f"{what} {part.outputs} x {part.inputs}")
        weights.clear_bias(part)
    notes = [
        f"the branch at '{place_of(block.add)}' does not end in a layer, so that it does not start at zero"
        for block in found
        if not block.last
    ]
    return Outcome(notes=tuple(notes))


def zero_weight(part: Part) -> Tensor:
    """ZerO's weight of a layer that is no last one, for each group."""
    matrix = zero_matrix(part.outputs, part.inputs)
    if part.kind in ("transposed", "matrix"):
        matrix = matrix.t()
    flat = matrix.repeat(part.groups, 1) if part.kind != "matrix" else matrix
    if len(part.shape) == 2:
        return flat
    value = torch.zeros(part.shape, dtype=torch.float64)
    centre: tuple[Any, ...] = (slice(None), slice(None), *(k // 2 for k in part.shape[2:]))
    value[centre] = flat
    return value


def _gives_output(part: Part) -> bool:
    node = part.node
    while len(node.users) == 1:
        (user,) = node.users
        if user.op == "output":
            return True
        if sum(bool(n.meta["data"]) for n in user.all_input_nodes) != 1:
            return False
        node = user
    return False
