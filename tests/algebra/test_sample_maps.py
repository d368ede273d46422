"""Maps of one sample: which calls are steps of one, and the matrix of a chain, by running it on numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from reparam.algebra import SampleMap, data_operand, keeps_samples, map_of, matrix_of, moved, sample_maps
from reparam.ir import aten, evaluate
from support.by_hand import ByHand
from support.helpers import EXACT, doubles

Make = Callable[[ByHand, fx.Node], fx.Node]


def w(graph: ByHand, *shape: int) -> fx.Node:
    return graph.weight(doubles(*shape, seed=3).float())


def twice(call: Any) -> Make:
    return lambda g, x: g.call(call, x, x)


def with_size(call: Any) -> Make:
    """With the number of samples as the other operand."""
    return lambda g, x: g.call(call, x, g.call(aten.sym_size.int, x, 0))


# ---- steps -------------------------------------------------------------------------------------------------------

STEPS: dict[str, tuple[Make, tuple[int, ...], int]] = {
    "linear": (lambda g, x: g.call(aten.linear.default, x, w(g, 5, 4), w(g, 5)), (2, 3, 4), 0),
    "linear, samples in the middle": (lambda g, x: g.call(aten.linear.default, x, w(g, 5, 4)), (3, 2, 4), 1),
    "conv": (
        lambda g, x: g.call(aten.conv2d.default, x, w(g, 2, 3, 2, 2), w(g, 2), [1, 1], [1, 0]),
        (2, 3, 4, 4),
        0,
    ),
    "product from the right": (lambda g, x: g.call(aten.matmul.default, x, w(g, 3, 4, 5)), (3, 2, 4), 1),
    "product from the left": (lambda g, x: g.call(aten.matmul.default, w(g, 3, 5, 4), x), (3, 4, 2), 2),
    "product with a vector": (lambda g, x: g.call(aten.matmul.default, x, w(g, 4)), (2, 3, 4), 0),
    "sum": (lambda g, x: g.call(aten.sum.dim_IntList, x, [-2]), (2, 3, 4), 0),
    "mean, kept": (lambda g, x: g.call(aten.mean.dim, x, [0, 2], True), (3, 2, 4), 1),
    "permute": (lambda g, x: g.call(aten.permute.default, x, [2, 0, 1]), (3, 2, 4), 1),
    "transpose": (lambda g, x: g.call(aten.transpose.int, x, 0, 1), (2, 3, 4), 0),
    "flatten behind": (lambda g, x: g.call(aten.flatten.using_ints, x, 1), (2, 3, 4), 0),
    "flatten before": (lambda g, x: g.call(aten.flatten.using_ints, x, 0, 1), (3, 4, 2), 2),
    "unflatten": (lambda g, x: g.call(aten.unflatten.int, x, 1, [2, 3]), (2, 6), 0),
    "reshape": (
        lambda g, x: g.call(aten.reshape.default, x, [3, g.call(aten.sym_size.int, x, 1), 2, 2]),
        (3, 2, 4),
        1,
    ),
    "squeeze": (lambda g, x: g.call(aten.squeeze.dim, x, 1), (2, 1, 4), 0),
    "unsqueeze": (lambda g, x: g.call(aten.unsqueeze.default, x, 0), (2, 4), 0),
    "clone": (lambda g, x: g.call(aten.clone.default, x), (2, 4), 0),
    "sum with a weight": (lambda g, x: g.call(aten.add.Tensor, x, w(g, 3, 1, 4)), (2, 4), 0),
    "difference from a number": (lambda g, x: g.call(aten.rsub.Scalar, x, 1.5, 2), (2, 4), 0),
    "difference from a weight": (lambda g, x: g.call(aten.sub.Tensor, w(g, 4), x), (2, 4), 0),
    "product with a weight": (lambda g, x: g.call(aten.mul.Tensor, w(g, 4), x), (2, 4), 0),
    "over a weight": (lambda g, x: g.call(aten.div.Tensor, x, w(g, 4)), (2, 4), 0),
    "over a number": (lambda g, x: g.call(aten.div.Tensor, x, 3.0), (2, 4), 0),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_matrix_and_the_bias_of_what_it_does_to_a_sample(name: str) -> None:
    """In double precision, whatever the weights are kept in."""
    make, shape, axis = STEPS[name]
    graph = ByHand(torch.float32)
    x = graph.input(*shape, free=(axis,))
    node = make(graph, x)
    assert data_operand(graph.program, node) is x and keeps_samples(graph.program, node)
    assert_matrix(graph, x, [node], doubles(*shape, seed=5))


OTHERS: dict[str, tuple[Make, tuple[int, ...], int]] = {
    "an activation": (lambda g, x: g.call(aten.relu.default, x), (2, 4), 0),
    "a square": (twice(aten.mul.Tensor), (2, 4), 0),
    "a sum with itself": (twice(aten.add.Tensor), (2, 4), 0),
    "a ratio to itself": (twice(aten.div.Tensor), (2, 4), 0),
    "a matrix times itself": (twice(aten.matmul.default), (2, 4, 4), 0),
    "a reciprocal": (lambda g, x: g.call(aten.div.Tensor, w(g, 4), x), (2, 4), 0),
    "over the number of samples": (with_size(aten.div.Tensor), (2, 4), 0),
    "times the number of samples": (with_size(aten.mul.Tensor), (2, 4), 0),
    "times other data": (lambda g, x: g.call(aten.mul.Tensor, x, g.call(aten.tanh.default, x)), (2, 4), 0),
    "times a mask": (lambda g, x: g.call(aten.mul.Tensor, x, g.call(aten.gt.Scalar, x, 0.0)), (2, 4), 0),
    "a mask": (lambda g, x: g.call(aten.gt.Scalar, x, 0.0), (2, 4), 0),
    "a conv along the free axis": (
        lambda g, x: g.call(aten.conv2d.default, x, w(g, 2, 3, 3, 3), None, [1, 1], [1, 1]),
        (2, 3, 4, 4),
        2,
    ),
    "a layer with weights from data": (lambda g, x: g.call(aten.linear.default, w(g, 5, 4), x), (2, 4), 0),
    "a conv with kernels from data": (lambda g, x: g.call(aten.conv1d.default, w(g, 1, 3, 4), x), (2, 3, 2), 0),
    "sum over samples": (lambda g, x: g.call(aten.sum.dim_IntList, x, [0]), (2, 4), 0),
    "sum over samples, kept": (lambda g, x: g.call(aten.sum.dim_IntList, x, [-2], True), (2, 4), 0),
    "sum of everything": (lambda g, x: g.call(aten.sum.dim_IntList, x, None), (2, 4), 0),
    "sum of another dtype": (
        lambda g, x: g.call(aten.sum.dim_IntList, x, [1], dtype=torch.float64),
        (2, 4),
        0,
    ),
    "samples and channels in one axis": (lambda g, x: g.call(aten.reshape.default, x, [-1]), (2, 4), 0),
    "numbers before the samples move behind them": (
        lambda g, x: g.call(aten.reshape.default, x, [g.call(aten.sym_size.int, x, 1), 12]),
        (3, 2, 4),
        1,
    ),
    "two free axes": (lambda g, x: g.call(aten.mul.Tensor, x, 2.0), (2, 4), -1),
    "no free axis": (lambda g, x: g.call(aten.mul.Tensor, x, 2.0), (2, 4), -2),
    "a split": (lambda g, x: g.call(aten.split.Tensor, x, 2, 1), (2, 4), 0),
    "a size of its own": (lambda g, x: g.call(aten.slice.Tensor, x, 0, 1), (2, 4), 0),
    "twice the samples": (lambda g, x: g.call(aten.repeat.default, x, [2, 1]), (2, 4), 0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_step(name: str) -> None:
    make, shape, axis = OTHERS[name]
    graph = ByHand(torch.float32)
    node = make(graph, graph.input(*shape, free=(axis,) if axis >= 0 else (0, 1) if axis == -1 else ()))
    assert not keeps_samples(graph.program, node)


def test_inputs_and_weights_are_no_steps() -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, free=(0,)), w(graph, 4)
    assert not keeps_samples(graph.program, x) and not keeps_samples(graph.program, weight)
    assert data_operand(graph.program, graph.call(aten.relu.default, weight)) is None
    words = graph.call(aten.embedding.default, weight := w(graph, 9, 4), graph.input(2, dtype=torch.int64))
    assert data_operand(graph.program, words) is None and weight in words.all_input_nodes


# ---- chains ------------------------------------------------------------------------------------------------------


def assert_matrix(graph: ByHand, x: fx.Node, steps: list[fx.Node], values: Tensor) -> None:
    """M s + b for every sample s, in the order of its numbers, is what the chain makes of it."""
    plan = map_of(x, steps)
    assert plan is not None and (plan.x, plan.steps) == (x, tuple(steps))
    rows = values.movedim(plan.axes[0], 0).flatten(1)
    [truth] = evaluate(graph.returns(steps[-1]), [values])
    wanted = truth.movedim(plan.axes[1], 0).reshape(truth.shape[plan.axes[1]], -1)
    assert plan.size == (rows.shape[1], wanted.shape[1])
    matrix, bias = matrix_of(graph.program, plan)
    assert matrix.shape == plan.size[::-1] and not matrix.requires_grad
    made = rows @ matrix.T
    if bias is not None:
        assert bias.shape == wanted.shape[1:] and not bias.requires_grad
        made = made + bias
    assert float((made - wanted).abs().max()) <= EXACT
    assert (bias is None) == (float(evaluate(graph.program, [torch.zeros_like(values)])[0].abs().max()) == 0)


def chain(graph: ByHand) -> tuple[fx.Node, list[fx.Node]]:
    """From (3, samples, 4) to (samples, 5, 2): 12 numbers to 10."""
    x = graph.input(3, 2, 4, free=(1,))
    first = graph.call(aten.matmul.default, x, w(graph, 3, 4, 10))
    second = graph.call(aten.add.Tensor, graph_sum := graph.call(aten.sum.dim_IntList, first, [0]), w(graph, 10))
    last = graph.call(aten.unflatten.int, second, 1, [5, 2])
    return x, [first, graph_sum, second, last]


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_chain_is_one_matrix(mode: Callable[[], Any]) -> None:
    """Whether derivatives are wanted where it is called or not; the matrix is one."""
    with mode():
        graph = ByHand(torch.float32)
        x, steps = chain(graph)
        plan = map_of(x, steps)
        assert plan is not None and plan.axes == (1, 0) and plan.size == (12, 10)
        assert plan.symbol == graph.program.inputs[0].shape[1]
        assert_matrix(graph, x, steps, doubles(3, 2, 4))


@pytest.mark.parametrize(("largest", "expected"), [(100, [3, 3, 3, 1]), (1, [1] * 10), (10**6, [10])])
def test_a_matrix_is_computed_a_few_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, largest: int, expected: list[int]
) -> None:
    """As many as fit: the widest value of a sample, behind the first product, has 30 numbers."""
    graph = ByHand(torch.float32)
    x, steps = chain(graph)
    counts, run = [], sample_maps._run

    def counted(program: Any, plan: SampleMap, x: Tensor, count: int) -> Tensor:
        counts.append(count)
        return run(program, plan, x, count)

    monkeypatch.setattr(sample_maps, "_LARGEST", largest)
    monkeypatch.setattr(sample_maps, "_run", counted)
    assert_matrix(graph, x, steps, doubles(3, 2, 4))
    assert counts == expected


def test_samples_that_cannot_be_told_apart() -> None:
    graph = ByHand()
    x = graph.input(2, 4, free=(0,))
    flat, fixed = graph.call(aten.reshape.default, x, [-1]), graph.input(2, 4)
    assert map_of(x, [flat]) is None and map_of(fixed, [graph.call(aten.neg.default, fixed)]) is None
    assert map_of(flat, [x]) is None


@pytest.mark.parametrize(("source", "target"), [(0, 2), (2, 0), (1, 2), (0, 1), (1, 1)])
def test_an_axis_in_another_place(source: int, target: int) -> None:
    graph = ByHand()
    x = graph.input(2, 3, 4)
    like = graph.call(aten.relu.default, x, module="here")
    node = moved(graph.program, x, source, target, like)
    [made] = evaluate(graph.returns(node), [values := doubles(2, 3, 4)])
    assert torch.equal(made, values.movedim(source, target))
    assert node is x if source == target else node.meta["module"] == "here"
