"""Methods that look at samples, layer by layer: lsuv, point-variance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from reparam.errors import InputError
from reparam.ir import (
    BATCH_NORMS,
    Program,
    arguments,
    call_node,
    default_dtype,
    filled,
    is_call,
    last_uses,
    place_of,
    weight_value,
)
from reparam.signal import in_training, norm_of_batch
from reparam.utils import foreign_code

from .options import InitOptions
from .report import Outcome
from .shared import balance
from .weights import Part, Weights

Batches = Sequence[tuple[Tensor, ...]]
Step = Callable[[Part, Sequence[Any]], None]


def lsuv(weights: Weights, options: InitOptions, batches: Batches) -> Outcome:
    """Orthogonal weights, each then divided by the standard deviation of its layer's results on samples.

    Source: Mishkin & Matas 2016, "All you need is a good init", arXiv 1511.06422. Biases are zero, so that one division
    is exact. The deviation is that of all results, as there.
    """
    seen: set[str] = set()
    figures: dict[str, float] = {}

    def step(part: Part, inputs: Sequence[Any]) -> None:
        if part.weight in seen:
            return
        seen.add(part.weight)
        weights.put(part.weight, weights.draw(part, 1 / part.fan_in, "orthogonal"), "orthogonal")
        weights.clear_bias(part)
        values = torch.cat([result_of(weights.program, part, x).flatten() for x in inputs])
        deviation = _positive(float(values.std(correction=0)), part)
        weights.put(part.weight, weights.value(part.weight) / deviation, f"orthogonal, times {1 / deviation:.4g}")
        figures[weights.name(part.weight)] = deviation

    def variance(part: Part, inputs: Sequence[Any]) -> float:
        return float(torch.cat([result_of(weights.program, part, x).flatten() for x in inputs]).var(correction=0))

    walk(weights, batches, step)
    _, given = balance(weights, lambda look: walk(weights, batches, look), variance)
    return Outcome(figures={"deviations": figures}, seen=given, measure="the variance on the samples")


def point_variance(weights: Weights, options: InitOptions, batches: Batches) -> Outcome:
    """Var(w) = 1/E|A|^2, A what one result of a layer reads, layer by layer; 1/E|A|^2 is averaged over batches.

    Of a continuous convolution over points, A holds the sums of features times basis functions, so that
    E|A|^2 = E sum_ij <f_i, f_j> <B_i, B_j> over a receptive field, which no rule of fan-in knows. Of a layer of another
    kind, A holds the values under its kernel. Biases are zero.

    Source: Hermosilla et al. 2022, "Variance-aware weight initialization for point convolutional neural networks",
    arXiv 2112.03777.
    """
    seen: set[str] = set()

    def step(part: Part, inputs: Sequence[Any]) -> None:
        if part.weight in seen:
            return
        seen.add(part.weight)
        powers = [_positive(_power_read(weights, part, x), part) for x in inputs]
        variance = sum(1 / p for p in powers) / len(powers)
        value = weights.draw(part, variance, options.drawn_from("normal"))
        weights.put(part.weight, value, f"variance {variance:.4g}: 1/E|A|² on samples")
        weights.clear_bias(part)

    def power(part: Part, inputs: Sequence[Any]) -> float:
        square = float(weights.value(part.weight).square().mean())
        return square * len(inputs) / sum(1 / _positive(_power_read(weights, part, x), part) for x in inputs)

    walk(weights, batches, step)
    _, given = balance(weights, lambda look: walk(weights, batches, look), power)
    return Outcome(seen=given, measure="the power on the samples, on average over weights,")


def _positive(value: float, part: Part) -> float:
    if not 0 < value < float("inf"):
        raise InputError(
            f"what the layer '{place_of(part.node)}' reads or gives on the samples is zero or not finite, so that its "
            "weights have no scale"
        )
    return value


def _power_read(weights: Weights, part: Part, x: Tensor) -> float:
    """E|A|^2, over samples and places, of a float64 input."""
    if part.kind in ("linear", "matrix"):
        return float(x.square().sum(-1).mean())
    ones = torch.ones(part.shape, dtype=torch.float64, device=x.device)
    return float(result_of(weights.program, part, x.square(), ones).mean())


def result_of(program: Program, part: Part, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """The call on x with the weight as it is now, or another one, and no bias."""
    w = program.constants[part.weight].value.to(torch.float64) if weight is None else weight
    if part.kind == "matrix":
        return x @ w
    if part.kind == "linear":
        return F.linear(x, w)
    args = arguments(part.node) | {"input": x, "weight": w, "bias": None}
    assert callable(part.node.target)
    made: Tensor = part.node.target(*args.values())
    return made


@torch.no_grad()
def walk(weights: Weights, batches: Batches, step: Step, drops: torch.Generator | None = None) -> list[tuple[Any, ...]]:
    """Runs the program call by call on all batches at once; `step` may set the weights of a layer before it runs.

    Values are float64; batch norms take the statistics of each batch, as in training. drops: of dropouts and of the
    slopes of an RReLU, which are as in evaluation without it. Returns the outputs of each batch.
    """
    program = weights.program
    parts = {part.node: part for part in weights.parts()}
    feeds = [iter(filled(program, [t for t in batch])) for batch in batches]
    envs: list[dict[fx.Node, Any]] = [{} for _ in batches]
    frees = last_uses(program.graph.nodes)
    with default_dtype(torch.float64), foreign_code("running the network"):
        for node in program.graph.nodes:
            if node.op == "output":
                break
            part = parts.get(node)
            if part is not None:
                step(part, [env[part.x] for env in envs])
            for env, feed in zip(envs, feeds, strict=True):
                if node.op == "placeholder":
                    value = next(feed)
                    floating = isinstance(value, Tensor) and value.is_floating_point()
                    env[node] = value.to(torch.float64) if floating else value
                elif node.op == "get_attr":
                    env[node] = weight_value(program, node, torch.float64)
                else:
                    env[node] = _call(program, node, env, part, drops)
            for dead in frees.get(node, ()):
                for env in envs:
                    env.pop(dead, None)
    return [tuple(env[n] for n in program.output.all_input_nodes) for env in envs]


def _call(
    program: Program, node: fx.Node, env: Mapping[fx.Node, Any], part: Part | None, drops: torch.Generator | None
) -> Any:
    if part is not None:  # a weight may have been set since it was read
        fresh = dict(env)
        for operand in node.all_input_nodes:
            if operand.op == "get_attr":
                fresh[operand] = weight_value(program, operand, torch.float64)
        return call_node(node, fresh, torch.float64)
    if drops is not None:
        return in_training(node, env, drops)
    return norm_of_batch(node, env) if is_call(node, BATCH_NORMS) else call_node(node, env, torch.float64)
