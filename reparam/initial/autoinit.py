"""AutoInit: the variance of each weight from moments that are carried through the graph, then the scale of the draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import Program, is_float, place_of, shape_of, upstream
from reparam.signal import Predicted, Scale, Sums, Weighed, as_it_is, predict, random_batches
from reparam.utils import first_line

from .drawn import set_he
from .driven import Batches, Step, result_of, walk
from .options import InitOptions
from .report import Outcome
from .shared import CLOSE, ON_RANDOM_INPUTS, PREDICTED, balance, shared_weights
from .spread import told_spread
from .weights import Part, Weights

NUMBERS = 1 << 22  # of the largest value of a network, over all random inputs
FEWEST, MOST = 8, 1024  # random inputs


def autoinit(weights: Weights, options: InitOptions) -> Outcome:
    """Var(w) = s^2/(fan_in*E x^2), with E x^2 of each layer's input from moments carried through the graph.

    s^2 is `variance`. fan_in leaves out taps on zero padding. Batch norms count as in training, dropouts drop. A layer
    whose input has moments that are not known is set as `he` sets it, and named.

    Moments are means over all weights that could have been drawn. One draw of n features is off by sqrt(5/n) or so in
    each layer, and what moments take for independent may not be. So the layers are then scaled once more, in order,
    each such that E y^2 = s^2 on random inputs, with the weights as they are. Where an output is no layer's own result
    and grows as the last layers do, those are scaled such that it has the power s^2. `samples` = 0 leaves that out.

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
    predicted = Outcome(figures=figures, seen=seen, measure=PREDICTED, notes=found.remarks)
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
    scaled = _outputs_scaled(weights, batches, again or results, options)
    outputs = [y for made in scaled or again or results for y in made[:1]]
    of_some = "layers give nothing, or nothing finite, on random inputs, and are not scaled, such as"
    unscaled = tuple(f"{len(lost)} {of_some} '{name}'" for name in lost[:1])
    told = Outcome(
        figures=figures,
        seen={n: v * options.variance for n, v in given.items()},
        measure=ON_RANDOM_INPUTS,
    )
    if not outputs or not all(_is_values(y) for y in outputs):
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


def _outputs_scaled(
    weights: Weights, batches: Batches, results: Sequence[tuple[Any, ...]], options: InitOptions
) -> list[tuple[Any, ...]]:
    """The last layers times what gives each output the power `variance`, where it is no layer's own result.

    That is done where the output grows as those layers do, behind a mean of two heads, a ReLU or a pool, say, and no
    other layer or output depends on them. It is tried with weights of twice the size, which make its power four times
    as large there. results: of each batch, as the weights are. Returns them as they are then; nothing where no output
    was scaled.
    """
    changing = {
        i: last
        for i, last in _last_layers(weights).items()
        if 0 < (power := _power(results, i)) < math.inf and abs(power / options.variance - 1) > CLOSE
    }
    if not changing:
        return []

    def run() -> list[tuple[Any, ...]]:
        return walk(weights, batches, lambda *_: None, torch.Generator().manual_seed(options.seed))

    def times(last: Sequence[Part], factor: float, more: str) -> None:
        for part in last:
            name = part.weight
            weights.put(name, weights.value(name) * factor, weights.changed[name] + more)

    once = run()
    for last in changing.values():
        times(last, 2.0, "")
    twice = run()
    for i, last in changing.items():
        power = _power(once, i)
        grows = abs(_power(twice, i) / (4 * power) - 1) < CLOSE
        factor = math.sqrt(options.variance / power) if grows else 1.0
        times(last, factor / 2, f"; times {factor:.4g} for the output that it leads to" if grows else "")
    return run()


def _last_layers(weights: Weights) -> dict[int, list[Part]]:
    """For outputs, by their numbers, the layers that were set and that lead to them through no other layer.

    Outputs are left out whose layers another layer, another output or another call with the same weight depends on.
    """
    outputs = weights.program.output.all_input_nodes
    parts = {part.node: part for part in weights.parts() if part.weight in weights.changed}
    inside = set(upstream([part.x for part in parts.values()]))
    above = [set(upstream([node])) for node in outputs]
    shared = shared_weights(weights)
    found = {}
    for i, node in enumerate(outputs):
        reached = {node, *upstream([node], stop=parts.__contains__)}
        last = [part for n, part in parts.items() if n in reached or reached & n.users.keys()]
        elsewhere = inside.union(*(a for j, a in enumerate(above) if j != i))
        if last and not any(part.node in elsewhere or part.weight in shared for part in last):
            found[i] = last
    return found


def _power(results: Sequence[tuple[Any, ...]], which: int) -> float:
    """E y^2 of one output over all batches; NaN for what has no values."""
    values = [made[which] for made in results]
    if not values or not all(_is_values(y) for y in values):
        return math.nan
    return sum(float(y.square().mean()) for y in values) / len(values)


def _is_values(y: Any) -> bool:
    """Whether this is a tensor of real numbers for each sample."""
    return isinstance(y, Tensor) and y.is_floating_point() and y.dim() > 0


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
