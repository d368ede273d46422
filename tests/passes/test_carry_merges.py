"""carry-residual on networks built by hand: which span a merge belongs to, and what is said of one that stays."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from reparam.ir import Refusal, aten, evaluate
from reparam.passes import carry_residual
from reparam.passes.carry_residual import CarryResidual
from reparam.plain import PlainChain, Span
from reparam.rewrite import Match
from support.by_hand import ByHand, behind, call
from support.helpers import EXACT, doubles

SHAPE = (2, 4, 5, 6)


def conv(graph: ByHand, x: fx.Node, seed: int = 1, k: int = 1, module: str = "") -> fx.Node:
    channels = x.meta["val"].shape[1]
    w = graph.weight(doubles(4, channels, k, k, seed=seed), f"conv{seed}.weight")
    return graph.call(aten.conv2d.default, x, w, None, [1, 1], [k // 2, k // 2], module=module)


def relu(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.relu.default, x)


def add(graph: ByHand, a: fx.Node, b: fx.Node, **options: Any) -> fx.Node:
    return graph.call(aten.add.Tensor, a, b, **options)


def start() -> tuple[ByHand, fx.Node]:
    """The beginning of a network: relu(conv(x))."""
    graph = ByHand()
    return graph, relu(graph, conv(graph, graph.input(*SHAPE, free=(0,)), 7))


def branch(graph: ByHand, x: fx.Node, seed: int = 1) -> fx.Node:
    """conv(relu(conv(x)))"""
    return conv(graph, relu(graph, conv(graph, x, seed)), seed + 1)


def asked(graph: ByHand, root: fx.Node, **options: Any) -> PlainChain | Refusal | None:
    return CarryResidual(**options).check(graph.program, Match(root, {}))


def planned(graph: ByHand, root: fx.Node, **options: Any) -> PlainChain:
    plan = asked(graph, root, **options)
    assert isinstance(plan, PlainChain), plan
    return plan


def test_a_block_becomes_a_chain() -> None:
    graph, x = start()
    root = add(graph, branch(graph, x), x)
    out = relu(graph, root)
    graph.returns(out)
    plan = planned(graph, root)
    span = plan.span_values.span
    assert (span.entry, span.exit) == (x, out)
    made = CarryResidual().rewrite(graph.program, plan)
    assert list(made.replace) == [out]
    assert made.message == "a chain of 2 layers, 2.00 x the multiply-accumulates"
    assert made.block is not None and (made.block["macs_before"], made.block["macs_after"]) == (960, 1920)
    assert made.facts == ("the input ('relu_default') lies in [0, inf); it is carried past activations unchanged",)
    values = doubles(*SHAPE, seed=9)
    before, after = evaluate(graph.returns(out, made.replace[out]), [values])
    assert float((before - after).abs().max()) <= EXACT


# ---- where a span ends -------------------------------------------------------------------------------------------


def _two(graph: ByHand, x: fx.Node) -> fx.Node:
    return add(graph, conv(graph, x, 21), conv(graph, x, 22))


def _sloped(graph: ByHand, x: fx.Node) -> fx.Node:
    return graph.call(aten.prelu.default, x, graph.call(aten.mean.dim, x, [0, 2, 3]))


softmax = call(aten.softmax.int, 1)
ENDS: dict[str, tuple[list[Any], int]] = {  # what follows the sum, and how many of these calls belong to the span
    "activation": ([relu], 1),
    "activation and layer": ([relu, conv], 1),
    "layer and activation": ([conv, relu], 2),
    "two layers and an activation": ([conv, conv, relu, conv], 3),
    "norm of the data": ([softmax, relu], 0),
    "layer and norm of the data": ([conv, softmax, relu], 0),
    "layer alone": ([conv], 0),
    "another block": ([conv, _two, relu], 0),
    "an activation with slopes from the data": ([conv, _sloped, relu], 0),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_sum_takes_the_layers_up_to_the_next_activation_along(name: str) -> None:
    """They may read the parts of the sum. Where no activation follows, it ends with the sum."""
    calls, count = ENDS[name]
    graph, x = start()
    root = value = add(graph, branch(graph, x), x)
    made = [value := one(graph, value) for one in calls]
    graph.returns(value)
    span = planned(graph, root).span_values.span
    if made[0].target is aten.relu.default:
        assert span.exit is made[0]
    else:
        assert span.exit is (made[count - 1] if count else root)


def test_a_block_beside_another_value_is_a_span_of_its_own() -> None:
    """The whole is none, since a softmax acts on all channels at once."""
    graph, x = start()
    beside = softmax(graph, x)
    y = relu(graph, conv(graph, x, 5))
    root = add(graph, branch(graph, y), y)
    out = graph.call(aten.mul.Tensor, root, beside)
    graph.returns(out)
    span = planned(graph, root).span_values.span
    assert (span.entry, span.exit) == (y, root)
    refused = asked(graph, out)
    assert refused == Refusal("mul combines 2 values that depend on the input, and is not linear in them", out)


# ---- what is no merge --------------------------------------------------------------------------------------------


def test_what_is_no_merge() -> None:
    graph, x = start()
    shift = graph.call(aten.add.Tensor, x, graph.weight(doubles(4, 1, 1)))
    mask = graph.call(aten.mul.Tensor, shift, graph.call(aten.gt.Scalar, x, 0.0))
    twice = add(graph, mask, mask)
    silu = graph.call(aten.mul.Tensor, twice, graph.call(aten.sigmoid.default, twice))
    graph.returns(silu)
    nodes = [graph.program.placeholders[0], x, shift, mask, twice, silu, graph.program.output]
    assert [asked(graph, n) for n in nodes] == [None] * len(nodes)


def test_a_sum_with_a_weight_is_no_merge() -> None:
    graph, x = start()
    root = add(graph, conv(graph, x), graph.weight(doubles(4, 5, 6)))
    graph.returns(relu(graph, root))
    assert asked(graph, root) is None


def test_a_gate_stays() -> None:
    graph, x = start()
    means = graph.call(aten.mean.dim, x, [2, 3], True)
    root = graph.call(aten.mul.Tensor, x, graph.call(aten.sigmoid.default, conv(graph, means, 3)))
    graph.returns(root)
    reason = "a squeeze-excite gate multiplies a value by a function of its means; it stays a gate"
    assert asked(graph, root) == Refusal(reason, root)


# ---- why a merge stays -------------------------------------------------------------------------------------------

AT_ONCE = "acts on all channels or positions of a value at once, so that nothing can be carried past it"


@pytest.mark.parametrize(("module", "place"), [("block.attention", " at 'block.attention'"), ("", "")])
def test_the_reason_names_the_call_and_its_place(module: str, place: str) -> None:
    graph, x = start()
    y = graph.call(aten.softmax.int, conv(graph, x), 1, module=module)
    graph.returns(root := add(graph, y, x))
    assert asked(graph, root) == Refusal(f"softmax{place} {AT_ONCE}", root)


@pytest.mark.parametrize(("module", "place"), [("pad", " (pad at 'pad')"), ("", "")])
def test_the_place_of_a_reason_without_a_name_stands_behind_it(module: str, place: str) -> None:
    graph, x = start()
    y = graph.call(aten.pad.default, relu(graph, conv(graph, x)), [1, 1, 1, 1], "reflect", module=module)
    w = graph.weight(doubles(4, 4, 3, 3))
    graph.returns(root := add(graph, graph.call(aten.conv2d.default, y, w), x))
    reason = "it pads with something else than zeros around the map"
    assert asked(graph, root) == Refusal(reason + place, root)


def test_the_place_of_the_merge_itself_is_not_told() -> None:
    graph, x = start()
    root = graph.call(aten.cat.default, [conv(graph, x), x], 2, module="join")
    graph.returns(relu(graph, root))
    assert asked(graph, root) == Refusal("it concatenates along another axis than the channels", root)


ALIVE = "other values stay alive beside it ({}), so no one register holds all"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_up_to_three_values_that_stay_alive_are_named(count: int) -> None:
    graph = ByHand()
    x, y = graph.input(*SHAPE), graph.input(*SHAPE)
    beside = [graph.call(aten.tanh.default, x, module=f"m{i}" if i else "") for i in range(count)]
    root = add(graph, x, y)
    graph.returns(root, *beside)
    names = ["'tanh_default'", *(f"tanh at 'm{i}'" for i in range(1, count))]
    more = f" and {count - 3} more" if count > 3 else ""
    assert asked(graph, root) == Refusal(ALIVE.format(", ".join(names[:3]) + more), root)


def test_an_activation_that_lets_no_signed_value_through() -> None:
    graph, x = start()
    y = conv(graph, x, 11)
    root = add(graph, conv(graph, graph.call(aten.tanh.default, conv(graph, y), module="act"), 2), y)
    graph.returns(relu(graph, root))
    reason = "tanh at 'act' changes every value, so that nothing can be carried past it"
    assert asked(graph, root) == Refusal(reason, root)


def test_inputs_that_meet_are_named() -> None:
    graph = ByHand()
    x, y = graph.input(*SHAPE), graph.input(*SHAPE)
    graph.returns(root := add(graph, x, y))
    assert asked(graph, root) == Refusal(ALIVE.format("the input 'x0', the input 'x1'"), root)
    later = relu(graph, add(graph, tanh := graph.call(aten.tanh.default, x), y))
    graph.returns(later, y)
    root = next(iter(tanh.users))
    assert asked(graph, root) == Refusal(ALIVE.format("the input 'x1'"), root)


@pytest.mark.parametrize(
    ("most", "reason"),
    [
        (2.0, None),
        (1.9, "the chain would cost 1,920 multiply-accumulates instead of 960, 2 times as many; --max-cost 2 takes it"),
        (0.1, "the chain would cost 1,920 multiply-accumulates instead of 960, 2 times as many; --max-cost 2 takes it"),
    ],
)
def test_a_chain_that_costs_too_much_is_told_with_its_price(most: float, reason: str | None) -> None:
    """Two pointwise layers of four channels on 30 positions; carried, they have four channels more."""
    graph, x = start()
    root = add(graph, branch(graph, x), x)
    graph.returns(relu(graph, root))
    found = asked(graph, root, max_cost=most)
    assert isinstance(found, PlainChain) if reason is None else found == Refusal(reason, root)


def test_a_chain_that_replaces_no_layer_has_no_price() -> None:
    graph, x = start()
    root = graph.call(aten.cat.default, [x, graph.call(aten.avg_pool2d.default, x, [1, 1])], 1)
    graph.returns(relu(graph, root))
    assert isinstance(asked(graph, root, max_cost=0.001), PlainChain)


# ---- what is looked at again -------------------------------------------------------------------------------------


def test_a_span_that_was_refused_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = start()
    first = add(graph, softmax(graph, conv(graph, x)), x)
    second = add(graph, first, conv(graph, x, 3))
    graph.returns(relu(graph, second))
    read: list[Any] = []
    plain = carry_residual.read_span

    def counted(program: Any, span: Any, how: str) -> Any:
        read.append((span.entry, span.exit))
        assert how == "keep"
        return plain(program, span, how)

    monkeypatch.setattr(carry_residual, "read_span", counted)
    for root in (first, second, first):
        assert isinstance(asked(graph, root), Refusal)
    assert len(read) == len(set(read)) and read


def test_a_price_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = start()
    root = add(graph, branch(graph, x), x)
    graph.returns(relu(graph, root))
    assert isinstance(first := asked(graph, root, max_cost=1.0), Refusal)
    monkeypatch.setattr(carry_residual, "plan_chain", lambda *_: pytest.fail("it was planned again"))
    assert asked(graph, root, max_cost=1.0) == first


def test_the_graph_is_surveyed_again_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a merge that is new, or one of whose span something was erased."""
    graph, x = start()
    root = add(graph, y := branch(graph, x), x)
    graph.returns(relu(graph, root))
    made: list[Any] = []
    survey = carry_residual._make_survey

    def counted(program: Any) -> Any:
        made.append(program)
        return survey(program)

    monkeypatch.setattr(carry_residual, "_make_survey", counted)
    planned(graph, root)
    planned(graph, root)
    assert len(made) == 1
    twin = graph.program.clone(y, {})
    y.replace_all_uses_with(twin)
    graph.program.erase([y])
    assert twin in planned(graph, root).span_values.span.nodes and len(made) == 2
    newer = graph.program.clone(root, {})
    root.replace_all_uses_with(newer)
    graph.program.erase([root])
    assert newer in planned(graph, newer).span_values.span.nodes and len(made) == 3


def test_a_span_whose_entry_was_rewritten_starts_at_the_new_one() -> None:
    graph, x = start()
    root = add(graph, branch(graph, behind(aten.mul.Tensor, doubles(4, 1, 1))(graph, x)), x)
    graph.returns(relu(graph, root))
    assert planned(graph, root).span_values.span.entry is x
    twin = graph.program.clone(x, {})
    x.replace_all_uses_with(twin)
    graph.program.erase([x])
    span = planned(graph, root).span_values.span
    assert span.entry is twin and span.nodes[-2] is root


def test_a_merge_takes_the_layers_and_the_activation_that_follow_it_one_by_one() -> None:
    graph, x = start()
    total = add(graph, x, conv(graph, x))
    before, layer = conv(graph, total, 2), conv(graph, total, 3)
    end = relu(graph, layer)
    merge, last = Span(x, (total,)), Span(layer, (end,))
    assert carry_residual._tail([merge, Span(total, (layer,)), last], 0) == [layer, end]
    assert carry_residual._tail([merge, Span(total, (before, layer)), last], 0) == []
    assert carry_residual._tail([merge, Span(x, (layer,)), last], 0) == []


def test_a_sum_beside_which_nothing_is_alive_names_nothing() -> None:
    graph, x = start()
    total = add(graph, relu(graph, x), conv(graph, x))
    program = graph.returns(total)
    told = "other values stay alive beside it, so no one register holds all"
    assert carry_residual._alive(program, total) == told
