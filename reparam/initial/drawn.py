"""Methods that draw the weights of every layer from its shape and what it reads: he, zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.ir import place_of
from reparam.signal import (
    Read,
    Sums,
    blocks,
    factors_of,
    function_behind,
    packed_parts,
    read_of,
)

from .options import InitOptions
from .report import Outcome
from .shared import is_table
from .weights import Part, Weights

MOST_NAMED = 3


def he(weights: Weights, options: InitOptions) -> Outcome:
    """Var(w) = g/fan_in, g = 1/E f(X)^2 of the function that the layer reads: 2 for a ReLU, 2/(1 + a^2) for a PReLU of
    slope a, 1 for what is no function. Of functions side by side, E f(X)^2 is the mean over the channels; of the
    largest of k linear maps it is E max(X_1, ..., X_k)^2. With fan_out: Var(w) = g/fan_out, g = 1/E f'(X)^2 of the
    function behind it. A factor at a residual sum belongs to the sum, and is neither made up for nor taken for a
    function. Strides count: fan_in of a transposed convolution and fan_out of a convolution are divided by them, since
    of s results (or values) one meets each tap.

    Source: He et al. 2015, "Delving deep into rectifiers", arXiv 1502.01852, equations 10, 14 and 15; it treats ReLU
    and PReLU, and other functions are treated alike here. Biases are zero.
    """
    sums = Sums(weights.program)
    for part in weights.first_parts():
        set_he(weights, part, options, sums)
    own = [(b, f) for b in sums.blocks.values() if (f := factors_of(weights.program, b).described())]
    told = f"{len(own)} residual sums have factors of their own, for which no weight makes up, such as that of"
    return Outcome(notes=tuple(f"{told} '{place_of(b.add)}': {f}" for b, f in own[:1]))


def set_he(weights: Weights, part: Part, options: InitOptions, sums: Sums) -> None:
    """One layer as `he` sets it. sums: of the program."""
    backward = options.mode == "fan_out"
    if backward:
        behind = function_behind(weights.program, part.node)
        gain, whose = sums.gain_behind(behind), "behind it"
        where = "no single activation" if behind is None else f"'{place_of(behind.result)}'"
    else:
        read = read_of(sums, part.x)
        gain, whose, where = 1 / read.second, "it reads", _named(read)
    fan = part.fan_out if backward else part.fan_in
    value = weights.draw(part, gain / fan, options.drawn_from("normal"))
    mode = options.mode.replace("_", " ")
    weights.put(part.weight, value, f"variance {gain:.4g}/{fan:.10g}, {mode}; {whose}: {where}")
    weights.clear_bias(part)


def _named(read: Read) -> str:
    """What a layer reads, in words."""
    if not read.of:
        return "no single activation"
    names = [f"'{place_of(n)}'" for n in read.of[:MOST_NAMED]]
    more = f" and {len(read.of) - MOST_NAMED} more" if len(read.of) > MOST_NAMED else ""
    beside = " side by side" if len(read.of) > 1 else ""
    largest = f", the largest of {read.largest}" if read.largest > 1 else ""
    return f"{', '.join(names)}{more}{beside}{largest}"


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
    branches the last layer is set like the others. A linear layer whose results are read in equal parts, as queries,
    keys and values are, is one for each part. A weight that is also the table of an embedding is left.
    """
    found = list(blocks(weights.program))
    ends = {node for block in found for node in block.last}
    for part in weights.first_parts():
        if is_table(weights, part.weight):
            weights.leave(part.weight, "it is also the table of an embedding, whose rows would be alike or zero")
            weights.clear_bias(part)
            continue
        outputs = bool(found) and _gives_output(part)
        if part.node in ends or outputs:
            why = "the last of a branch" if part.node in ends else "it gives an output"
            weights.put(part.weight, torch.zeros(part.shape), f"zero: {why}")
        else:
            parts = packed_parts(weights.program, part.node) if part.kind == "linear" else ()
            count = max(1, len(parts))
            rows = part.outputs // count
            what = "Hadamard matrix" if rows > part.inputs else "identity"
            each = f", {count} times, as its results are read in {count} parts" if count > 1 else ""
            weights.put(part.weight, zero_weight(part, parts), f"{what} {rows} x {part.inputs}{each}")
        weights.clear_bias(part)
    notes = [
        f"the branch at '{place_of(block.add)}' does not end in a layer, so that it does not start at zero"
        for block in found
        if not block.last
    ]
    return Outcome(notes=tuple(notes))


def zero_weight(part: Part, parts: Sequence[Tensor] = ()) -> Tensor:
    """ZerO's weight of a layer that is no last one, for each group. parts: the results of each of the layers that it
    stands for, one for none."""
    count = max(1, len(parts))
    matrix = zero_matrix(part.outputs // count, part.inputs).repeat(count, 1)
    if count > 1:
        matrix = matrix[torch.argsort(torch.cat(tuple(parts)))]
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
