"""A scale passes a gated linear unit by its first half, in both directions; nothing passes by the gate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.algebra import Pair, forward
from reparam.algebra.glu_scales import glu_backward, glu_forward
from reparam.ir import Refusal, aten
from reparam.passes.fold_batch_norm import FoldBatchNorm
from reparam.passes.fold_channel_affine import FoldChannelAffine
from reparam.passes.leave_shift import LeaveShift
from support.by_hand import ByHand
from support.helpers import (
    EXACT,
    Conv,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    convolutions,
    doubles,
    fuse_exactly,
    healthy,
    program_of,
    vector,
)

RULES = [FoldBatchNorm(), FoldChannelAffine()]
SHIFT = "glu does not let a shift through"
GATE = "glu does not let a scale of its gate through"
FREE = "the halves of this glu are of a free size"


def doubled(conv: Conv) -> nn.Module:
    """A convolution with two halves of the channels of `conv`."""
    return nn.Sequential(conv.module, type(conv.module)(conv.c_out, 2 * conv.c_out, 1))  # type: ignore[arg-type]


@given(
    conv=convolutions(),
    factor=st.sampled_from(["each", "negative", "zero", "one for all"]),
    entry=st.integers(0, 10**6),
)
def test_any_scale_behind_a_unit_goes_into_the_layer_before_it(conv: Conv, factor: str, entry: int) -> None:
    each = doubles(conv.c_out, *[1] * conv.rank, seed=entry % 100)
    scale = {"each": each, "negative": -each.abs(), "zero": each * (each > 0), "one for all": each[:1]}[factor]
    model = Lambda(lambda m, x: F.glu(m.layer(x), 1) * m.scale, layer=doubled(conv), scale=nn.Parameter(scale))
    x = doubles(*conv.shape)
    fused = apply_exactly(model.double(), x, rules=RULES, bound=EXACT)
    assert fused.text.startswith("glu(conv") and not fused.outcome.rejected
    assert assert_no_wrong_entry_is_accepted(fused.original, FoldChannelAffine(), entry, [x])


def test_a_norm_leaves_one_sum() -> None:
    model = Lambda(
        lambda m, x: torch.relu(m.norm(F.glu(m.conv(x), 1))), conv=nn.Conv1d(3, 8, 3), norm=nn.BatchNorm1d(4)
    )
    fused = fuse_exactly(healthy(model), doubles(2, 3, 9), bound=EXACT)
    assert fused.text == "relu(add(glu(conv3(x), 1), w))"
    assert fused.passed("leave-shift") == ["scale folded, the shift left standing (4 parameters)"]


def test_along_the_last_axis_and_along_another_than_the_scale() -> None:
    """Halves of the features with a scale of them, and halves of the places with a scale of the channels."""
    last = Lambda(lambda m, x: F.glu(m.lin(x)) * m.scale, lin=nn.Linear(3, 8), scale=vector(4)).double()
    assert apply_exactly(last, doubles(2, 5, 3), rules=RULES, bound=EXACT).text == "glu(linear(x))"
    places = Lambda(lambda m, x: F.glu(m.conv(x), 2) * m.scale, conv=nn.Conv1d(3, 4, 1), scale=vector(4, 1)).double()
    told = apply_exactly(places, doubles(2, 3, 6), rules=RULES, bound=EXACT).missed("fold-channel-affine")
    assert told[0].startswith("before it: the affine does not lie along the channel axis of the layer before it")


def test_a_scale_of_the_first_half_comes_out_behind_it() -> None:
    """The halves are made apart and joined; a norm on the first one folds into what follows."""
    model = Lambda(
        lambda m, x: m.last(F.glu(torch.cat([torch.tanh(x) * m.scale, torch.sin(x)], 1), 1)),
        scale=vector(4, 1),
        last=nn.Conv1d(4, 5, 3, padding=1),
    ).double()
    fused = apply_exactly(model, doubles(2, 4, 9), rules=RULES, bound=EXACT)
    assert fused.text == "conv3(glu(cat([tanh(x), sin(x)], 1), 1))"
    assert fused.passed("fold-channel-affine") == ["folded into the input of 'last'"]


def test_a_wrong_weight_is_caught() -> None:
    model = Lambda(lambda m, x: m.norm(F.glu(m.conv(x), 1)), conv=nn.Conv1d(3, 8, 3), norm=nn.BatchNorm1d(4))
    assert_evidence_bites(program_of(healthy(model), doubles(2, 3, 9)), LeaveShift())


# ---- step by step ------------------------------------------------------------------------------------------------


def unit(*shape: int, dim: int = -1, free: tuple[int, ...] = ()) -> tuple[ByHand, fx.Node]:
    graph = ByHand()
    return graph, graph.call(aten.glu.default, graph.input(*shape, free=free), dim)


def column(*values: float) -> Tensor:
    return torch.tensor(values).double().reshape(1, -1, 1)


@pytest.mark.parametrize(("dim", "axis"), [(1, 1), (-2, 1), (2, 2), (-1, 2), (0, 0)])
@pytest.mark.parametrize("varies", [0, 1, 2])
def test_the_scale_of_the_operand_makes_that_of_the_result(dim: int, axis: int, varies: int) -> None:
    _, node = unit(2, 4, 6, dim=dim)
    sizes = [2, 4, 6]
    sizes[axis] //= 2
    scale = doubles(*(n if i == varies else 1 for i, n in enumerate(sizes)))
    taken = glu_backward(node, Pair(scale))
    assert isinstance(taken, Pair) and taken.scale is not None and taken.shift is None
    x = doubles(2, 4, 6, seed=3)
    torch.testing.assert_close(F.glu(x * taken.scale, dim), F.glu(x, dim) * scale, rtol=EXACT, atol=EXACT)
    back = glu_forward(node, taken)
    assert isinstance(back, Pair) and back.scale is not None and back.scale.shape == scale.shape
    assert torch.equal(back.scale, scale)


def test_nothing_passes_by_the_gate() -> None:
    _, node = unit(2, 4, 6, dim=1)
    for scale in (column(1, 1, 2, 1), column(2, 2, 2, 2), column(3)):
        told = glu_forward(node, Pair(scale))
        assert isinstance(told, Refusal) and told.reason == GATE and told.node is node
    for scale in (column(1, 1, 1, 1), column(1)):
        assert isinstance(glu_forward(node, Pair(scale)), Pair)
    assert glu_forward(node, Pair()) == glu_backward(node, Pair()) == Pair()


@pytest.mark.parametrize("pair", [Pair(None, column(1, 2)), Pair(column(1, 2), column(0, 2))])
def test_no_shift_passes(pair: Pair) -> None:
    _, node = unit(2, 4, 6, dim=1)
    for told in (glu_backward(node, pair), glu_forward(node, pair)):
        assert isinstance(told, Refusal) and told.reason == SHIFT and told.node is node


def test_halves_of_a_free_size_are_refused() -> None:
    _, node = unit(2, 4, 6, dim=2, free=(2,))
    told = glu_backward(node, Pair(column(1, 2, 3, 4)))
    assert isinstance(told, Refusal) and told.reason == FREE
    _, node = unit(2, 4, 6, dim=1, free=(0, 2))
    assert isinstance(glu_backward(node, Pair(column(1, 2))), Pair)


def test_the_way_ahead_leads_past_it() -> None:
    graph, node = unit(2, 4, 6, dim=1)
    graph.returns(graph.call(aten.conv1d.default, node, graph.weight(doubles(3, 2, 1))))
    [start] = graph.program.placeholders
    ahead = forward(graph.program, start, Pair(column(2, -3, 1, 1)))
    assert not isinstance(ahead, Refusal) and [s.action for s in ahead.steps] == ["clone", "sink"]
