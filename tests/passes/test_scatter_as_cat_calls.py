"""scatter-as-cat on calls built by hand: which parts a written or a cut value consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from reparam.ir import aten
from reparam.passes.scatter_as_cat import ScatterAsCat
from reparam.rewrite import Match, Rewrite
from support.by_hand import ByHand, rewritten
from support.helpers import doubles, graph_text

RULE = ScatterAsCat()
SHAPE = (2, 6, 5)
Two = Callable[[ByHand, fx.Node, fx.Node], fx.Node]  # of the value and what is written into it


def scatter(*options: Any) -> Two:
    return lambda g, x, v: g.call(aten.slice_scatter.default, x, v, *options)


def put(index: Any, axis: int = 1, accumulate: bool = False) -> Two:
    def make(graph: ByHand, x: fx.Node, v: fx.Node) -> fx.Node:
        weight = graph.weight(torch.tensor(index) if isinstance(index, list) else index, "index")
        return graph.call(aten.index_put.default, x, [None] * axis + [weight], v, accumulate)

    return make


def tried(
    make: Two, width: int = 2, shape: tuple[int, ...] = SHAPE, axis: int = 1
) -> tuple[Any, ByHand, list[fx.Node]]:
    """The rule on a call of a value and of `width` channels (or positions along another axis) to write."""
    graph = ByHand()
    part = tuple(width if i == axis else n for i, n in enumerate(SHAPE))
    inputs = [graph.input(*SHAPE), graph.input(*part)]
    values = [graph.call(aten.tanh.default, inputs[0]), graph.call(aten.sin.default, inputs[1])]
    made = rewritten(RULE, graph, make(graph, *values), doubles(*SHAPE), doubles(*part, seed=1), bound=0.0)
    return made, graph, values


WRITTEN: dict[str, tuple[Two, int, str]] = {
    "the first": (scatter(1, 0, 2), 2, "cat([sin(x1), slice(tanh(x0), 1, 2, 6)], 1)"),
    "the first, from nowhere": (scatter(1, None, 2), 2, "cat([sin(x1), slice(tanh(x0), 1, 2, 6)], 1)"),
    "the last": (scatter(1, 4), 2, "cat([slice(tanh(x0), 1, 0, 4), sin(x1)], 1)"),
    "the last, from behind": (scatter(-2, -2), 2, "cat([slice(tanh(x0), 1, 0, 4), sin(x1)], 1)"),
    "the middle": (
        scatter(1, 1, -3),
        2,
        "a = tanh(x0); cat([slice(a, 1, 0, 1), sin(x1), slice(a, 1, 3, 6)], 1)",
    ),
    "all": (scatter(1, 0, 6), 6, "sin(x1)"),
    "all, to a far end": (scatter(1, None, 2**62), 6, "sin(x1)"),
    "all but one": (scatter(1, 1, 6), 5, "cat([slice(tanh(x0), 1, 0, 1), sin(x1)], 1)"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_write_into_a_slice_of_the_channels_is_a_concatenation(name: str) -> None:
    make, width, text = WRITTEN[name]
    made, graph, (x, _) = tried(make, width)
    assert isinstance(made, Rewrite)
    assert graph_text(graph.program) == text.replace("x1", "x" if "x0" not in text else "x1")
    parts = text.count("slice") + 1
    told = f"a concatenation of {parts} parts" if parts > 1 else "the part that it takes"
    assert made.message == f"slice_scatter became {told}"
    assert made.unread == ((x,) if parts == 1 else ())


LISTED: dict[str, tuple[Two, int, list[int]]] = {
    "in order": (put([1, 3]), 2, [0, 6, 2, 7, 4, 5]),
    "turned": (put([3, 1]), 2, [0, 7, 2, 6, 4, 5]),
    "from behind": (put([-1, 0]), 2, [7, 1, 2, 3, 4, 6]),
    "one": (put([4]), 1, [0, 1, 2, 3, 6, 5]),
}


@pytest.mark.parametrize("name", LISTED)
def test_a_write_into_listed_channels_is_a_concatenation_in_another_order(name: str) -> None:
    make, width, order = LISTED[name]
    made, graph, _ = tried(make, width)
    assert isinstance(made, Rewrite) and made.message == "index_put became a concatenation of 2 parts"
    assert graph_text(graph.program) == "index_select(cat([tanh(x0), sin(x1)], 1), 1, w)"
    [new] = made.replace.values()
    constant = graph.program.constants[str(new.args[2].target)]  # type: ignore[union-attr]
    assert constant.value.tolist() == order and constant.origin == "index_put_default.order"


def test_a_write_into_listed_positions_of_another_axis() -> None:
    made, graph, _ = tried(put([1, 3], 2), 2, axis=2)
    assert isinstance(made, Rewrite)
    assert graph_text(graph.program) == "index_select(cat([tanh(x0), sin(x1)], 2), 2, w)"


def _two_axes(graph: ByHand, x: fx.Node, v: fx.Node) -> fx.Node:
    index = graph.weight(torch.tensor([1, 0]), "index")
    return graph.call(aten.index_put.default, x, [index, index], graph.call(aten.select.int, v, 1, 0))


def _chosen_by_data(graph: ByHand, x: fx.Node, v: fx.Node) -> fx.Node:
    return graph.call(aten.index_put.default, x, [None, graph.input(2, dtype=torch.int64)], v)


OTHERS: dict[str, tuple[Two, int, int]] = {  # with the width of what is written, and along which axis
    "a step": (scatter(1, 0, 6, 2), 3, 1),
    "a step over all": (scatter(1, 0, 6, 3), 2, 1),
    "rows": (scatter(2, 0, 2), 2, 2),
    "samples": (scatter(0, 0, 1), 1, 0),
    "nothing": (scatter(1, 3, 3), 0, 1),
    "accumulated": (put([1, 3], accumulate=True), 2, 1),
    "one twice": (put([1, 1]), 2, 1),
    "one twice, once from behind": (put([5, -1]), 2, 1),
    "no channels": (put(torch.zeros(0, dtype=torch.int64)), 0, 1),
    "an index of two axes": (lambda g, x, v: put([[1, 3]])(g, x, g.call(aten.unsqueeze.default, v, 1)), 2, 1),
    "two axes": (_two_axes, 2, 1),
    "chosen by the data": (_chosen_by_data, 2, 1),
    "what broadcasts": (put([1, 3]), 1, 1),
    "small whole numbers": (put(torch.tensor([1, 3], dtype=torch.int32)), 2, 1),
    "a mask": (put(torch.tensor([True, False, True, False, False, False])), 2, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_writes_stay(name: str) -> None:
    make, width, axis = OTHERS[name]
    graph = ByHand()
    part = tuple(width if i == axis else n for i, n in enumerate(SHAPE))
    node = make(graph, graph.input(*SHAPE), graph.input(*part))
    assert RULE.check(graph.program, Match(node, {})) is None


def test_what_is_written_in_another_precision_stays() -> None:
    graph = ByHand()
    x, v = graph.input(*SHAPE), graph.input(2, 2, 5, dtype=torch.float32)
    node = scatter(1, 0, 2)(graph, x, v)
    assert RULE.check(graph.program, Match(node, {})) is None
    whole = scatter(1, 0, 6)(graph, x, graph.input(*SHAPE, dtype=torch.float32))
    assert RULE.check(graph.program, Match(whole, {})) is None


def test_free_sizes_stay_unless_all_is_written() -> None:
    graph = ByHand()
    x, v = graph.input(*SHAPE, free=(1,)), graph.input(2, 2, 5)
    assert RULE.check(graph.program, Match(scatter(1, 0, 2)(graph, x, v), {})) is None
    assert RULE.check(graph.program, Match(put([1, 3])(graph, x, v), {})) is None
    plan = RULE.check(graph.program, Match(scatter(1)(graph, x, x), {}))
    assert plan is not None and plan.parts == ((x, None),) and plan.unread == (x,) and plan.axis == 1
    start = graph.call(aten.sym_size.int, graph.input(4, free=(0,)), 0)
    y = graph.input(*SHAPE)
    assert RULE.check(graph.program, Match(graph.call(aten.slice.Tensor, y, 1, start), {})) is None


# ---- slices of a concatenation -----------------------------------------------------------------------------------


def sliced(
    *options: Any, call: Any = aten.slice.Tensor, axis: int = 1, dim: int = 1
) -> tuple[Any, ByHand, list[fx.Node]]:
    """A cut of [a, b, c] with two, three and one channel."""
    graph = ByHand()
    shapes = [tuple(w if i == axis else n for i, n in enumerate(SHAPE)) for w in (2, 3, 1)]
    parts = [graph.call(aten.tanh.default, graph.input(*s)) for s in shapes]
    root = graph.call(call, graph.call(aten.cat.default, parts, dim), *options)
    made = rewritten(RULE, graph, root, *(doubles(*s, seed=i) for i, s in enumerate(shapes)), bound=0.0)
    return made, graph, parts


CUT: dict[str, tuple[tuple[Any, ...], str, tuple[int, ...]]] = {  # with the parts that are left out
    "the first part": ((1, 0, 2), "tanh(x)", (1, 2)),
    "the second part": ((1, 2, 5), "tanh(x)", (0, 2)),
    "the last part, from behind": ((-2, -1), "tanh(x)", (0, 1)),
    "some of a part": ((1, 3, 5), "slice(tanh(x), 1, 1, 3)", (0, 2)),
    "two parts": ((1, 0, 5), "cat([tanh(x0), tanh(x1)], 1)", (2,)),
    "two parts, to the end": ((1, 2), "cat([tanh(x0), tanh(x1)], 1)", (0,)),
}


@pytest.mark.parametrize("name", CUT)
def test_a_slice_of_a_concatenation_is_what_it_takes(name: str) -> None:
    options, text, left_out = CUT[name]
    made, graph, parts = sliced(*options)
    assert isinstance(made, Rewrite) and graph_text(graph.program) == text
    assert made.unread == tuple(parts[i] for i in left_out)
    told = "a concatenation of 2 parts" if "cat" in text else "the part that it takes"
    assert made.message == f"slice became {told}"


@pytest.mark.parametrize(
    ("start", "length", "text"), [(0, 2, "tanh(x)"), (2, 3, "tanh(x)"), (-1, 1, "tanh(x)"), (-4, 3, "tanh(x)")]
)
def test_a_narrow_of_a_concatenation(start: int, length: int, text: str) -> None:
    made, graph, _ = sliced(1, start, length, call=aten.narrow.default)
    assert isinstance(made, Rewrite) and graph_text(graph.program) == text


def test_a_concatenation_counted_from_behind() -> None:
    made, graph, _ = sliced(2, 0, 2, axis=2, dim=-1)
    assert isinstance(made, Rewrite) and graph_text(graph.program) == "tanh(x)"


@pytest.mark.parametrize(
    ("options", "axis"),
    [((1, 1, 5), 1), ((1, 0, 6, 2), 1), ((1, 3, 3), 1), ((2, 0, 2), 1), ((1, 0, 3), 1), ((1, 0, 3), 2)],
    ids=["parts of parts", "a step", "nothing", "another axis", "a part and a half", "beside it"],
)
def test_other_slices_stay(options: tuple[int, ...], axis: int) -> None:
    assert sliced(*options, axis=axis, dim=axis)[0] is None


def test_several_parts_of_a_concatenation_that_is_read_elsewhere_stay() -> None:
    """It is made all the same; one part needs no concatenation."""
    graph = ByHand()
    cat = graph.call(aten.cat.default, [graph.input(2, w, 5) for w in (2, 3, 1)], 1)
    several, one = (graph.call(aten.slice.Tensor, cat, 1, 0, end) for end in (5, 2))
    graph.returns(several, one, cat)
    assert RULE.check(graph.program, Match(several, {})) is None
    assert RULE.check(graph.program, Match(one, {})) is not None


def test_parts_of_free_sizes_or_of_several_precisions_stay() -> None:
    graph = ByHand()
    free = graph.call(aten.cat.default, [graph.input(*SHAPE, free=(1,)), graph.input(*SHAPE)], 1)
    mixed = graph.call(aten.cat.default, [graph.input(*SHAPE, dtype=torch.float32), graph.input(*SHAPE)], 1)
    for cat in (free, mixed, graph.input(2, 9, 5)):
        assert RULE.check(graph.program, Match(graph.call(aten.slice.Tensor, cat, 1, 0, 6), {})) is None
