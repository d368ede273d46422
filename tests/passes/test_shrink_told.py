"""shrink on networks built by hand: when it looks, and what it says of the layers."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from reparam.channels import ChannelPlan
from reparam.ir import Refusal, aten, evaluate
from reparam.passes import shrink
from reparam.passes.shrink import Shrink
from reparam.rewrite import Match, Rewrite
from support.by_hand import ByHand, Make, call, then
from support.helpers import EXACT, doubles


def rows(constant: tuple[int, ...] = (), same: tuple[int, ...] = (), width: int = 4, out: int = 6) -> Tensor:
    """A weight with rows of zeros, and with rows that repeat the first."""
    weight = doubles(out, width)
    weight[list(constant)] = 0
    weight[list(same)] = weight[0].clone()
    return weight


def linear(weight: Tensor, module: str = "", bias: bool = False) -> Make:
    def make(graph: ByHand, x: fx.Node) -> fx.Node:
        b = graph.weight(torch.arange(len(weight)).double() + 1, "b") if bias else None
        return graph.call(aten.linear.default, x, graph.weight(weight), b, module=module)

    return make


relu = call(aten.relu.default)


def network(*calls: Make, ends: int = 1) -> tuple[ByHand, list[fx.Node]]:
    """The calls on an input of four features; what the last `ends` of them make are the outputs."""
    graph = ByHand()
    value = graph.input(3, 4, free=(0,))
    made = [value := one(graph, value) for one in calls]
    graph.returns(*made[-ends:])
    return graph, list(graph.program.calls())


def shrunk(graph: ByHand, first: fx.Node) -> Rewrite:
    """The rewrite, after a comparison of both networks on numbers."""
    outputs = list(graph.program.output.args[0])  # type: ignore[arg-type]
    plan = Shrink(0).check(graph.program, Match(first, {}))
    assert isinstance(plan, ChannelPlan)
    made = Shrink(0).rewrite(graph.program, plan)
    assert made.claims, "each new layer is checked by itself"
    x = doubles(3, 4, seed=3)
    before = evaluate(graph.program, [x])
    after = evaluate(graph.returns(*(made.replace.get(o, o) for o in outputs)), [x])
    assert all(float((a - b).abs().max()) <= EXACT for a, b in zip(before, after, strict=True))
    return made


def columns(*unread: int) -> Tensor:
    weight = doubles(5, 6, seed=1)
    weight[:, list(unread)] = 0
    return weight


TOLD: dict[str, tuple[Tensor, Tensor, str]] = {
    "constant": (rows((1, 3)), columns(), "6 channels became 4 (2 constant)"),
    "same": (rows(same=(2, 5)), columns(), "6 channels became 4 (2 the same as others)"),
    "unread": (rows(), columns(0, 4, 5), "6 channels became 3 (3 read by nobody)"),
    "all": (
        rows((1,), (2, 5)),
        columns(4),
        "6 channels became 2 (1 constant, 2 the same as others, 1 read by nobody)",
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_became_of_a_layer_and_why(name: str) -> None:
    weight, reader, told = TOLD[name]
    graph, nodes = network(linear(weight, bias=name in ("constant", "unread")), relu, linear(reader))
    made = shrunk(graph, nodes[0])
    assert dict(made.layers) == {nodes[0]: told}
    before, after = 6, int(told.split(" became ")[1].split()[0])
    assert made.message == f"removed {before - after} of {before} channels of 1 layers"


def test_the_channels_of_all_layers_are_counted() -> None:
    """Those of layers that keep theirs are not."""
    calls = (linear(rows((1,), out=5)), relu, linear(doubles(6, 5)[[0, 1, 2, 3, 4, 4]]), relu, linear(doubles(2, 6)))
    graph, nodes = network(*calls)
    made = shrunk(graph, nodes[0])
    assert made.message == "removed 2 of 11 channels of 2 layers"
    assert list(made.layers.values()) == [
        "5 channels became 4 (1 constant)",
        "6 channels became 5 (1 the same as others)",
    ]


# ---- constants that stay -----------------------------------------------------------------------------------------

STAY = " of its channels are constant, and stay: {} reads all of them together"
softmax = call(aten.softmax.int, 1)
norm = call(aten.layer_norm.default, [6])


STAYING: dict[str, tuple[tuple[Make, ...], str | None]] = {
    "an output": ((linear(rows((1, 3))),), "2" + STAY.format("an output")),
    "an output behind an activation": ((linear(rows((0, 1, 3))), relu), "3" + STAY.format("an output")),
    "one alone": ((linear(rows((3,))),), None),
    "softmax": (
        (linear(rows((1, 3))), relu, call(aten.softmax.int, 1, module="attention"), linear(doubles(2, 6))),
        "2" + STAY.format("'attention' (softmax)"),
    ),
    "a norm of the channels": (
        (linear(rows((1, 3))), call(aten.layer_norm.default, [6]), linear(doubles(2, 6))),
        "2" + STAY.format("'layer_norm_default' (layer_norm)"),
    ),
}


@pytest.mark.parametrize("name", STAYING)
def test_constants_that_stay_are_told_with_what_reads_them(name: str) -> None:
    calls, reason = STAYING[name]
    graph, nodes = network(*calls)
    found = Shrink(0).check(graph.program, Match(nodes[0], {}))
    assert found == (None if reason is None else Refusal(reason, nodes[0]))


def test_constants_that_stay_are_told_beside_those_that_go() -> None:
    graph, nodes = network(linear(rows((1,))), relu, linear(rows((2, 4), width=6)))
    made = shrunk(graph, nodes[0])
    assert dict(made.layers) == {
        nodes[0]: "6 channels became 5 (1 constant)",
        nodes[2]: "2" + STAY.format("an output"),
    }


def test_what_another_layer_makes_of_them_is_not_what_keeps_them() -> None:
    graph, nodes = network(linear(rows((1, 3))))
    behind = call(aten.softmax.int, 1, module="attention")(graph, relu(graph, nodes[0]))
    graph.returns(linear(doubles(2, 6))(graph, nodes[0]), behind)
    found = Shrink(0).check(graph.program, Match(nodes[0], {}))
    assert found == Refusal("2" + STAY.format("'attention' (softmax)"), nodes[0])


def test_constants_are_read_through_the_pieces_of_a_split() -> None:
    def pieces(graph: ByHand, x: fx.Node) -> fx.Node:
        split = graph.call(aten.split.Tensor, x, 3, 1)
        return graph.call(aten.cat.default, [graph.call(operator.getitem, split, i) for i in (1, 0)], 1)

    graph, nodes = network(linear(rows((1, 4))), pieces)
    found = Shrink(0).check(graph.program, Match(nodes[0], {}))
    assert found == Refusal("2" + STAY.format("an output"), nodes[0])


# ---- when it looks -----------------------------------------------------------------------------------------------


def test_it_looks_once_at_a_network_without_anything_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first call; again when the network has changed."""
    graph, nodes = network(linear(rows((1, 3))), relu)
    looked: list[Any] = []
    plan = shrink.plan_channels

    def counted(program: Any, pays: float) -> ChannelPlan:
        looked.append(pays)
        return plan(program, pays)

    monkeypatch.setattr(shrink, "plan_channels", counted)
    rule = Shrink(7.0)
    assert rule.check(graph.program, Match(nodes[1], {})) is None and not looked
    first = rule.check(graph.program, Match(nodes[0], {}))
    assert isinstance(first, Refusal) and rule.check(graph.program, Match(nodes[0], {})) is first
    assert looked == [7.0]
    value = graph.call(aten.tanh.default, nodes[1])
    graph.returns(value)
    assert isinstance(rule.check(graph.program, Match(nodes[0], {})), Refusal) and len(looked) == 2


def test_a_network_without_layers_is_left_alone() -> None:
    graph, nodes = network(relu, then(relu, call(aten.tanh.default)))
    assert Shrink(0).check(graph.program, Match(nodes[0], {})) is None
