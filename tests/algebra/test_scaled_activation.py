"""A scale passes PReLU and clamps, which change their slopes and bounds; what does not let it through says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.algebra.scaled_activation import CLAMPS, emit_swap, scale_before, scale_behind, takes_scale
from reparam.ir import Refusal, aten, evaluate
from support.by_hand import ByHand
from support.helpers import EXACT, Lambda, doubles, fuse_exactly, healthy

SLOPES = torch.tensor([0.3, 0.1, 2.0, 0.7]).double()
LOW, HIGH = torch.tensor([-0.1, 0.2, -0.7, -0.3]).double(), torch.tensor([0.1, 0.6, 0.4, 0.9]).double()
OTHER = torch.tensor([0.5, -2.0, 0.75, -3.0]).double()


def column(vector: Tensor, rank: int) -> Tensor:
    return vector.reshape(-1, *[1] * (rank - 2))


ACTIVATIONS: dict[str, Any] = {  # the arguments behind the input, with its rank
    "prelu": (aten.prelu.default, lambda rank: (SLOPES,)),
    "one slope": (aten.prelu.default, lambda rank: (SLOPES[:1],)),
    "relu6": (aten.relu6.default, lambda rank: ()),
    "hardtanh": (aten.hardtanh.default, lambda rank: ()),
    "hardtanh between others": (aten.hardtanh.default, lambda rank: (-0.1, 0.7)),
    "clamp": (aten.clamp.default, lambda rank: (-0.1, 0.2)),
    "clamp to one number": (aten.clamp.default, lambda rank: (0.3, 0.3)),
    "clamp from below": (aten.clamp.default, lambda rank: (-0.1,)),
    "clamp from above": (aten.clamp.default, lambda rank: (None, 0.1)),
    "clamp by tensors": (aten.clamp.Tensor, lambda rank: (column(LOW, rank), column(HIGH, rank))),
    "clamp by whole tensors": (aten.clamp.Tensor, lambda rank: (column(LOW, rank)[None], column(HIGH, rank)[None])),
    "clamp by one tensor": (aten.clamp.Tensor, lambda rank: (column(LOW, rank),)),
    "clamp by one number and a tensor": (aten.clamp.Tensor, lambda rank: (torch.tensor(-0.9), column(HIGH, rank))),
}
scales = st.lists(st.sampled_from([-2.0, -0.5, 0.75, 3.0]), min_size=4, max_size=4)


def activation(graph: ByHand, name: str, rank: int = 3) -> fx.Node:
    target, make = ACTIVATIONS[name]
    given = [graph.weight(a, "a") if isinstance(a, Tensor) else a for a in make(rank)]
    return graph.call(target, graph.input(*(2, 4, 6, 3)[:rank]), *given, module="act")


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_both_sides_are_the_same_function(name: str, rank: int, behind: bool) -> None:
    """For scales of both signs, of one sign, and for one scale of all channels."""
    graph = ByHand()
    node = activation(graph, name, rank)
    assert takes_scale(graph.program, node)
    x = doubles(2, 4, 6, 3)[(...,) + (0,) * (4 - rank)] * 3
    for values in (OTHER, OTHER.abs(), OTHER[1:2], OTHER[:1]):
        s = column(values, rank)[None]
        found = (scale_behind if behind else scale_before)(graph.program, node, s)
        assert not isinstance(found, Refusal)
        moved, swap = found
        assert swap.target is (aten.prelu.default if node.target is aten.prelu.default else aten.clamp.Tensor)
        assert moved.dim() == rank and moved.numel() == max(moved.shape)
        new = emit_swap(graph.program, swap, node.args[0], node)  # type: ignore[arg-type]
        assert new < node and new.meta["module"] == "act"
        truth = s * evaluate(graph.returns(node), [x])[0] if behind else evaluate(graph.returns(node), [s * x])[0]
        after = evaluate(graph.returns(new), [moved * x])[0] if behind else moved * evaluate(graph.returns(new), [x])[0]
        assert float((truth - after).abs().max()) <= EXACT


@given(name=st.sampled_from(list(ACTIVATIONS)), scale=scales, behind=st.booleans())
def test_a_positive_scale_passes_unchanged(name: str, scale: list[float], behind: bool) -> None:
    """And behind a negative one a slope is turned over, while bounds change their ends alone."""
    graph = ByHand()
    s = torch.tensor(scale).double().reshape(1, 4, 1)
    found = (scale_behind if behind else scale_before)(graph.program, activation(graph, name), s)
    assert not isinstance(found, Refusal)
    slopes = {"prelu": SLOPES, "one slope": SLOPES[:1]}.get(name, torch.ones(1).double())
    factor = torch.where(s < 0, s * column(slopes, 3), s)
    assert torch.equal(found[0], factor)


def test_bounds_that_all_channels_share_are_numbers() -> None:
    graph = ByHand()
    node = activation(graph, "clamp from below")
    for scale, expected in ((torch.full((1, 4, 1), 0.5), (-0.2, None)), (torch.full((1, 4, 1), -0.5), (None, 0.2))):
        found = scale_before(graph.program, node, scale.double())
        assert not isinstance(found, Refusal)
        new = emit_swap(graph.program, found[1], node.args[0], node)  # type: ignore[arg-type]
        assert new.target is aten.clamp.default and new.args[1:] == expected


@pytest.mark.parametrize("move", [scale_before, scale_behind])
def test_other_bounds_and_slopes_are_weights_named_after_their_place(move: Any) -> None:
    graph = ByHand()
    for name, parts in (("clamp", {"act.low": False, "act.high": False}), ("prelu", {"act.slopes": True})):
        node = activation(graph, name)
        found = move(graph.program, node, OTHER.reshape(1, 4, 1))
        assert not isinstance(found, Refusal)
        new = emit_swap(graph.program, found[1], node.args[0], node)  # type: ignore[arg-type]
        made = [graph.program.constant(n) for n in new.args[1:]]
        assert {c.origin: c.trainable for c in made if c} == parts
        assert all(c and c.value.numel() == 4 for c in made)
        assert all(n.meta["module"] == "act" and n < new for n in new.all_input_nodes[1:])


def test_bounds_of_which_one_differs_are_all_weights() -> None:
    graph = ByHand()
    node = activation(graph, "clamp by one tensor")
    found = scale_before(graph.program, node, torch.ones(1, 4, 1).double())
    assert not isinstance(found, Refusal)
    new = emit_swap(graph.program, found[1], node.args[0], node)  # type: ignore[arg-type]
    assert new.target is aten.clamp.Tensor and new.args[1].meta["val"].shape == (4, 1)  # type: ignore[union-attr]


# ---- what does not let it through --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slopes", "behind", "refused"),
    [
        ([0.0], False, 2),
        ([0.0], True, 2),
        ([-0.5], True, 2),
        ([-0.5], False, None),
        ([0.5, 0.0, 0.5, 0.0], False, 1),
        ([0.5, -1.0, 0.5, 0.0], True, 1),
        ([0.0, 0.5, 0.25, -1.0], True, None),
        ([0.0, 0.5, 0.25, 0.0], False, None),
    ],
)
def test_a_slope_that_cannot_be_turned(slopes: list[float], behind: bool, refused: int | None) -> None:
    """It matters where the scale is negative alone: here in the second and the third channel."""
    graph = ByHand()
    node = graph.call(aten.prelu.default, graph.input(2, 4, 6), graph.weight(torch.tensor(slopes).double()))
    s = torch.tensor([1.0, -1.0, -2.0, 3.0]).double().reshape(1, 4, 1)
    found = (scale_behind if behind else scale_before)(graph.program, node, s)
    if refused is None:
        assert not isinstance(found, Refusal)
    else:
        reason = f"prelu lets no negative scale through where its slope is not positive ({refused})"
        assert found == Refusal(reason, node)


@pytest.mark.parametrize("move", [scale_before, scale_behind])
@pytest.mark.parametrize("name", ["prelu", "clamp"])
def test_a_scale_that_has_no_way_back(name: str, move: Any) -> None:
    graph = ByHand()
    node = activation(graph, name)
    zero = torch.tensor([1.0, 0.0, 1.0, 1.0]).double().reshape(1, 4, 1)
    assert move(graph.program, node, zero) == Refusal(f"{name} does not let a scale of zero through", node)
    other = Refusal(f"the scale varies along other axes than the channels of {name}", node)
    assert move(graph.program, node, doubles(1, 1, 6)) == other


OTHERS: dict[str, Any] = {
    "slopes from data": lambda g, x: g.call(aten.prelu.default, x, g.input(4)),
    "bounds from data": lambda g, x: g.call(aten.clamp.Tensor, x, g.input(4, 1)),
    "bounds from data above": lambda g, x: g.call(aten.clamp.Tensor, x, None, g.input(4, 1)),
    "bounds along another axis": lambda g, x: g.call(aten.clamp.Tensor, x, g.weight(doubles(6))),
    "bounds along two axes": lambda g, x: g.call(aten.clamp.Tensor, x, g.weight(doubles(4, 6))),
    "bounds with more axes": lambda g, x: g.call(aten.clamp.Tensor, x, g.weight(doubles(1, 1, 4, 1))),
    "bounds that cross": lambda g, x: g.call(aten.clamp.default, x, 0.5, 0.25),
    "bounds of which one crosses": lambda g, x: g.call(
        aten.clamp.Tensor, x, g.weight(column(LOW, 3)), g.weight(column(HIGH - torch.tensor([0, 0, 0, 2]), 3))
    ),
    "another activation": lambda g, x: g.call(aten.relu.default, x),
    "an activation that has bounds too": lambda g, x: g.call(aten.elu.default, x, 0.5, 2.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_calls_take_no_scale(name: str) -> None:
    graph = ByHand()
    assert not takes_scale(graph.program, OTHERS[name](graph, graph.input(2, 4, 6)))


def test_every_clamp_is_tried() -> None:
    assert {ACTIVATIONS[n][0] for n in ACTIVATIONS} - {aten.prelu.default} == CLAMPS


# ---- whole networks ----------------------------------------------------------------------------------------------

MODULES = {"prelu": lambda: nn.PReLU(4, 0.3), "relu6": nn.ReLU6, "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0)}


@pytest.mark.parametrize("name", MODULES)
def test_batch_norm_before_it_leaves_a_sum_alone(name: str) -> None:
    """The input of the norm is read elsewhere too, and its scales have both signs."""
    model = Lambda(
        lambda m, x: (y := m.a(x)) + m.b(m.act(m.bn(y))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
        act=MODULES[name](),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    done = fuse_exactly(healthy(model), doubles(2, 3, 6, 6), bound=1e-13)
    assert "batch_norm" not in done.text and "mul" not in done.text


def test_relu_keeps_a_norm_with_negative_scales_and_says_what_the_other_form_costs() -> None:
    model = Lambda(
        lambda m, x: (y := m.a(x)) + m.b(torch.relu(m.bn(y))),
        a=nn.Conv2d(3, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
        b=nn.Conv2d(4, 4, 3, padding=1),
    )
    done = fuse_exactly(healthy(model), doubles(2, 3, 6, 6), bound=1e-13)
    assert any("takes longer than the batch norm" in m for m in done.missed("leave-shift"))
