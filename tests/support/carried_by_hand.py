"""Short programs with an affine to carry through them, and whether a route computes what was there before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import Pair, Route, execute
from reparam.ir import Refusal, aten, evaluate
from support.by_hand import ByHand, Make
from support.helpers import EXACT, doubles

SHAPE = (2, 4, 3, 5)
SCALE, SHIFT = [0.5, -2.0, 1.5, 3.0], [1.0, -1.0, 0.5, 2.0]


def column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def conv(graph: ByHand, x: fx.Node) -> fx.Node:
    weight, bias = doubles(3, x.meta["val"].shape[1], 1, 1, seed=2), doubles(3, seed=3)
    return graph.call(aten.conv2d.default, x, graph.weight(weight), graph.weight(bias), module="conv")


def norm(**changed: Any) -> Make:
    """A batch norm in evaluation mode."""
    given: dict[str, Any] = {"mean": SHIFT, "var": [1.0, 4.0, 0.25, 9.0], "gamma": [2.0, -1.0, 0.5, 3.0]} | changed

    def make(graph: ByHand, x: fx.Node) -> fx.Node:
        gamma, mean, var = (graph.weight(torch.tensor(given[k]).double()) for k in ("gamma", "mean", "var"))
        args = (x, gamma, graph.weight(doubles(4, seed=5)), mean, var, False, 0.1, 1e-5, False)
        return graph.call(aten.batch_norm.default, *args, module="norm")

    return make


def started(scale: list[float] | None, shift: list[float] | None) -> tuple[ByHand, fx.Node, fx.Node, Pair]:
    """A graph with x, the value that x becomes by the affine, and the affine."""
    graph = ByHand()
    start = x = graph.input(*SHAPE)
    pair = Pair(*(None if part is None else column(part) for part in (scale, shift)))
    if pair.scale is not None:
        start = graph.call(aten.mul.Tensor, start, graph.weight(pair.scale))
    if pair.shift is not None:
        start = graph.call(aten.add.Tensor, start, graph.weight(pair.shift))
    return graph, x, start, pair


def assert_same(graph: ByHand, route: Route | Refusal, instead: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """The ends of the route compute what they did. Returns the new ones."""
    assert isinstance(route, Route), route
    inputs = [doubles(*SHAPE, seed=20 + i) for i in range(len(graph.program.inputs))]
    made = execute(graph.program, route, dict(instead))
    new = [made[s] for s in route.sinks]
    before, after = evaluate(graph.returns(*route.sinks), inputs), evaluate(graph.returns(*new), inputs)
    for old, found in zip(before, after, strict=True):
        assert found.shape == old.shape and found.dtype == old.dtype
        assert float((found - old).abs().max()) <= EXACT * float(old.abs().max())
    return new


def actions(route: Route | Refusal) -> str:
    assert isinstance(route, Route)
    return " ".join(s.action for s in route.steps)


def two() -> tuple[ByHand, list[fx.Node], list[fx.Node], list[Pair]]:
    """Two inputs, each with a shift of its own behind it."""
    graph = ByHand()
    inputs = [graph.input(*SHAPE) for _ in range(2)]
    pairs = [Pair(None, column(SHIFT)), Pair(None, column(SCALE))]
    starts = [graph.call(aten.add.Tensor, x, graph.weight(p.shift)) for x, p in zip(inputs, pairs, strict=True)]  # type: ignore[arg-type]
    return graph, inputs, starts, pairs
