"""Methods that draw the weights of every layer: he, autoinit, zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import Program, is_float, place_of, shape_of
from reparam.signal import (
    Predicted,
    Read,
    Scale,
    Sums,
    Weighed,
    as_it_is,
    blocks,
    factors_of,
    function_behind,
    packed_parts,
    predict,
    random_batches,
    read_of,
)
from reparam.utils import first_line

from .driven import Step, result_of, walk
from .options import InitOptions
from .report import Outcome
from .shared import balance, is_table
from .spread import told_spread
from .weights import Part, Weights

NUMBERS = 1 << 22  # of the largest value of a network, over all random inputs
FEWEST, MOST = 8, 1024  # random inputs
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


def autoinit(weights: Weights, options: InitOptions) -> Outcome:
    """Var(w) = s^2/(fan_in*E x^2), with E x^2 of each layer's input from moments carried through the graph.

    s^2 is `variance`. fan_in leaves out taps on zero padding. Batch norms count as in training, dropouts drop. A layer
    whose input has moments that are not known is set as `he` sets it, and named.

    Moments are means over all weights that could have been drawn. One draw of n features is off by sqrt(5/n) or so in
    each layer, and what moments take for independent may not be. So the layers are then scaled once more, in order,
    each such that E y^2 = s^2 on random inputs, with the weights as they are. `samples` = 0 leaves that out.

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
    found, seen = _balanced(weights, found, squares, options)
    sums = Sums(weights.program)
    for part in weights.first_parts():
        if part.weight not in squares:
            set_he(weights, part, InitOptions(distribution=distribution), sums)
            weights.changed[part.weight] += "; the moments of what it reads are not known"
    missing = sum(node.meta["data"] and value.power is None for node, value in found.values.items())
    outputs = [found.power(n) for n in weights.program.output.all_input_nodes]
    known = [p.second for p in outputs if p is not None]
    figures = {"values_without_moments": missing, "predicted_output_power": known[0] if known else None}
    predicted = Outcome(figures=figures, seen=seen, measure="the predicted power", notes=found.remarks)
    if options.samples == 0:
        return predicted
    try:
        return _scaled(weights, options, figures)
    except Exception as error:  # of any kind: the network need not run on random inputs
        why = first_line(error)
        failed = f"the layers behind a failure on random inputs are not scaled: {why}"
        return replace(predicted, notes=(*found.remarks, failed))


def _balanced(
    weights: Weights, found: Predicted, squares: Mapping[str, float], options: InitOptions
) -> tuple[Predicted, dict[fx.Node, float]]:
    """Moments once more, where a weight makes what its own layer reads. squares: Var(w) as drawn."""
    parts = {part.node: part for part in weights.parts() if part.weight in squares}
    drawn = {name: float(weights.value(name).square().mean()) for name in squares}

    def square(part: Part) -> float:
        return squares[part.weight] * float(weights.value(part.weight).square().mean()) / drawn[part.weight]

    def power(part: Part, layers: Sequence[Weighed]) -> float:
        return layers[0].fan * layers[0].power.second * square(part) / options.variance

    def run(look: Step) -> Predicted:
        def policy(layer: Weighed) -> Scale:
            part = parts.get(layer.node)
            if part is None:
                return as_it_is(layer)
            look(part, [layer])
            return Scale(square(part))

        return predict(weights.program, policy=policy, training=True, seed=options.seed)

    again, seen = balance(weights, run, power)
    return again or found, {node: value * options.variance for node, value in seen.items()}


def _scaled(weights: Weights, options: InitOptions, figures: dict[str, Any]) -> Outcome:
    """Each layer times what gives its result the power `variance` on random inputs."""
    seen: set[str] = set()
    lost: list[str] = []  # layers that give nothing

    def step(part: Part, inputs: Sequence[Any]) -> None:
        if part.weight in seen:
            return
        seen.add(part.weight)
        powers = [float(result_of(weights.program, part, x).square().mean()) for x in inputs]
        power = sum(powers) / len(powers)
        if not 0 < power < math.inf:
            lost.append(place_of(part.node))
        else:
            factor, what = math.sqrt(options.variance / power), weights.changed[part.weight]
            weights.put(part.weight, weights.value(part.weight) * factor, f"{what}; times {factor:.4g} for this draw")

    count, whole = _sizes(weights.program, options.samples)
    batches = [tuple(b) for b in random_batches(weights.program, count, whole, weights.generator)]
    results = walk(weights, batches, step, weights.generator)

    def power_of(part: Part, inputs: Sequence[Any]) -> float:
        powers = [float(result_of(weights.program, part, x).square().mean()) for x in inputs]
        return sum(powers) / len(powers) / options.variance

    def run(look: Step) -> list[tuple[Any, ...]]:
        return walk(weights, batches, look, torch.Generator().manual_seed(options.seed))

    again, given = balance(weights, run, power_of)
    outputs = [y for made in again or results for y in made[:1]]
    of_some = "layers give nothing, or nothing finite, on random inputs, and are not scaled, such as"
    unscaled = tuple(f"{len(lost)} {of_some} '{name}'" for name in lost[:1])
    told = Outcome(
        figures=figures,
        seen={n: v * options.variance for n, v in given.items()},
        measure="the power on random inputs",
    )
    if not outputs or not all(isinstance(y, Tensor) and y.is_floating_point() and y.dim() for y in outputs):
        return replace(told, notes=unscaled)
    powers = torch.cat([y.square().flatten(1).mean(1) if y.dim() > 1 else y.square() for y in outputs])
    power = float(powers.mean())
    if not math.isfinite(power):
        why = "the result is not finite on random inputs, so that its power is not known"
        return replace(told, notes=(*unscaled, why))
    spread = float(powers.std(correction=0)) / power if power > 0 else 0.0
    figures |= {"measured_output_power": power, "deviation_between_samples": spread}
    numbers = outputs[0][0].numel()
    return replace(told, notes=(*unscaled, *told_spread(weights.program, powers, numbers)))


def _sizes(program: Program, samples: int | None) -> tuple[int, int]:
    """How many random inputs are in a batch, and how many batches there are."""
    free = {s.shape[0] for s in program.inputs if s.shape and isinstance(s.shape[0], str)}
    made = [n for n in program.calls() if n.meta["data"] and is_float(n)]
    one = max((math.prod(shape_of(n, dict.fromkeys(free, 1))) for n in made), default=1)
    count = samples or min(MOST, max(FEWEST, NUMBERS // max(1, one)))
    if free:
        return count, 1
    held = next((int(s.shape[0]) for s in program.inputs if s.shape), 1)
    return held, max(1, round(count / max(1, held)))


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
