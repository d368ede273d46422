"""Calls that return their operand go; calls that only look like it stay."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.drop_identity import DropIdentity
from reparam.rewrite import Match, Rewrite
from support.helpers import Lambda, apply_exactly, doubles, graph_text, program_of, run_rules, vector

RULES = [DropIdentity()]
Function = Callable[[Tensor], Any]

# Each stands between two calls, so that what is left is tanh(tanh(x)) on a (2, 4, 5, 6) input.
IDENTITIES: dict[str, Function] = {
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "dropout2d": lambda x: F.dropout2d(x, 0.5, False),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, False),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, False),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "clone": lambda x: x.clone(),
    "to dtype": lambda x: x.to(torch.float64),
    "type_as": lambda x: x.type_as(x),
    "view": lambda x: x.view(x.shape[0], 4, 5, 6),
    "view -1": lambda x: x.view(-1, 4, 5, 6),
    "view_as": lambda x: x.view_as(x),
    "flatten one axis": lambda x: x.flatten(1, 1),
    "squeeze nothing": lambda x: x.squeeze(1),
    "expand to itself": lambda x: x.expand(-1, 4, 5, 6),
    "slice all": lambda x: x[:, :, :, :],
    "slice to the end": lambda x: x[:, 0:4, :5],
    "narrow all": lambda x: x.narrow(1, 0, 4),
    "permute nothing": lambda x: x.permute(0, 1, 2, 3),
    "permute there and back": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "transpose twice": lambda x: x.transpose(1, 2).transpose(-2, -3),
    "transpose with itself": lambda x: x.transpose(2, 2),
    "roll by zero": lambda x: x.roll((0, 0), (2, 3)),
    "roll by the size": lambda x: x.roll(5, 2),
    "roll there and back": lambda x: x.roll((2, -2), (3, 3)),
    "pad by zero": lambda x: F.pad(x, [0, 0, 0, 0]),
    "repeat once": lambda x: x.repeat(1, 1, 1, 1),
    "times one": lambda x: x * 1,
    "over one": lambda x: x / 1.0,
    "plus zero": lambda x: x + 0,
    "minus zero": lambda x: x - 0.0,
    "zero plus": lambda x: 0 + x,
    "plus zeros": lambda x: x + torch.zeros_like(x),
    "zeros plus": lambda x: torch.zeros_like(x) + x,
    "minus zeros": lambda x: x - torch.zeros_like(x),
    "plus three times zeros": lambda x: torch.add(x, torch.zeros_like(x), alpha=3),
    "plus zeros times a number": lambda x: x + (torch.zeros_like(x) * 3.0) / 2,
    "average pool of one": lambda x: F.avg_pool2d(x, 1),
    "average pool of one with a divisor of one": lambda x: F.avg_pool2d(x, 1, divisor_override=1),
    "max pool of one": lambda x: F.max_pool2d(x, 1),
    "cat of one": lambda x: torch.cat([x], 1),
    "hardtanh of tanh": F.hardtanh,
    "clamp of tanh": lambda x: x.clamp(-1, 1),
    "clamp wide": lambda x: x.clamp(min=-3),
    "positive": lambda x: +x,
}

NEIGHBOURS: dict[str, Function] = {
    "dropout that is on": lambda x: F.dropout(x, 0.0, True),
    "to another dtype": lambda x: x.to(torch.float32),
    "view of another shape": lambda x: x.view(-1, 4, 6, 5),
    "flip": lambda x: x.flip(1),
    "slice off one": lambda x: torch.ops.aten.slice.Tensor(x, 1, 1, 4),
    "slice with a step": lambda x: torch.ops.aten.slice.Tensor(x, 2, 0, 5, 2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute twice the same way": lambda x: x.permute(0, 2, 3, 1).permute(0, 2, 3, 1),
    "roll": lambda x: x.roll(1, 2),
    "roll of all elements": lambda x: x.roll(6),
    "pad": lambda x: F.pad(x, [1, 0]),
    "pad and crop": lambda x: F.pad(x, [1, -1]),
    "repeat twice": lambda x: x.repeat(1, 2, 1, 1),
    "times nearly one": lambda x: x * (1 + 1e-9),
    "times minus one": lambda x: x * -1,
    "plus nearly zero": lambda x: x + 1e-12,
    "one minus": lambda x: 1 - x,
    "zero minus": lambda x: 0 - x,
    "over minus one": lambda x: x / -1,
    "zeros minus": lambda x: torch.zeros_like(x) - x,
    "zeros plus twice": lambda x: torch.add(torch.zeros_like(x), x, alpha=2),
    "plus ones": lambda x: x + torch.ones_like(x),
    "plus zeros times itself": lambda x: x + torch.zeros_like(x) * x,
    "times zeros": lambda x: x * torch.zeros_like(x),
    "strided max pool of one": lambda x: F.max_pool2d(x, 1, 2),
    "pool of one by two": lambda x: F.avg_pool2d(x, (1, 2), 1),
    "pool of one strided by one and two": lambda x: F.avg_pool2d(x, 1, (1, 2)),
    "average pool of two": lambda x: F.avg_pool2d(x, 2, 1),
    "strided pool of one": lambda x: F.avg_pool2d(x, 1, 2),
    "pool of one with a divisor": lambda x: F.avg_pool2d(x, 1, divisor_override=2),
    "max pool of three": lambda x: F.max_pool2d(x, 3, 1, 1),
    "cat with itself": lambda x: torch.cat([x, x], 1),
    "clamp inside": lambda x: x.clamp(-0.5, 0.5),
    "hardtanh inside": lambda x: F.hardtanh(x, -0.999, 1),
    "relu of a signed value": F.relu,
    "relu6 of a signed value": F.relu6,
    "abs": lambda x: x.abs(),
}


def _between(function: Function) -> nn.Module:
    return Lambda(lambda m, x: torch.tanh(function(torch.tanh(x))))


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_goes(name: str) -> None:
    fused = apply_exactly(_between(IDENTITIES[name]), doubles(2, 4, 5, 6), rules=RULES, bound=0.0)
    assert fused.text == "tanh(tanh(x))" != graph_text(fused.original)


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_its_neighbour_stays(name: str) -> None:
    program = program_of(_between(NEIGHBOURS[name]), doubles(2, 4, 5, 6))
    fused = run_rules(program, *RULES)
    assert fused.text == graph_text(program)
    assert fused.text != "tanh(tanh(x))"
    assert not fused.outcome.remarks  # it was never meant to be an identity, so there is nothing to say


@given(order=st.permutations(range(4)), second=st.permutations(range(4)))
def test_two_permutes_go_exactly_when_they_undo_each_other(order: list[int], second: list[int]) -> None:
    fused = apply_exactly(
        _between(lambda x: x.permute(order).permute(second)), doubles(2, 4, 5, 6), rules=RULES, bound=0.0
    )
    whole = [order[i] for i in second]
    if whole == [0, 1, 2, 3]:
        assert fused.text == "tanh(tanh(x))"
    else:
        trivial = [order, second].count([0, 1, 2, 3])
        assert fused.text.count("permute") == 2 - trivial


MAYBE_NOTHING: st.SearchStrategy[Function] = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0]).map(lambda slope: lambda x: F.leaky_relu(x, slope)),
    st.tuples(st.integers(1, 3), st.integers(-12, 12)).map(lambda t: lambda x: x.roll(t[1], t[0])),
    st.lists(st.integers(-1, 1), min_size=4, max_size=4).map(lambda sides: lambda x: F.pad(x, sides)),
    st.tuples(st.integers(1, 3), st.integers(0, 1), st.integers(1, 2)).map(
        lambda t: lambda x: x[(slice(None),) * t[0] + (slice(t[1], None, t[2]),)]
    ),
    st.tuples(st.sampled_from([1.0, -1.0, 2.0]), st.sampled_from([0.0, 0.5])).map(lambda t: lambda x: x * t[0] + t[1]),
    st.tuples(st.integers(1, 2), st.booleans()).map(
        lambda t: lambda x: (F.max_pool2d if t[1] else F.avg_pool2d)(x, t[0], 1)
    ),
    st.lists(st.integers(1, 2), min_size=3, max_size=3).map(lambda times: lambda x: x.repeat(1, *times)),
)


@given(function=MAYBE_NOTHING)
def test_an_operator_goes_exactly_when_it_does_nothing(function: Function) -> None:
    x = doubles(2, 4, 5, 6).tanh()
    fused = apply_exactly(_between(function), doubles(2, 4, 5, 6), rules=RULES, bound=0.0)
    assert (fused.text == "tanh(tanh(x))") == torch.equal(function(x), x)


@given(low=st.sampled_from([-1.5, -1.0, -0.5, 0.0]), high=st.sampled_from([0.5, 1.0, 1.5]))
def test_a_clamp_goes_exactly_when_its_operand_is_proven_to_lie_inside(low: float, high: float) -> None:
    fused = apply_exactly(_between(lambda x: x.clamp(low, high)), doubles(2, 4, 5, 6), rules=RULES, bound=0.0)
    assert (fused.text == "tanh(tanh(x))") == (low <= -1 and high >= 1)


@pytest.mark.parametrize(
    "inner, outer",
    [
        (torch.sigmoid, F.relu),
        (F.relu, F.relu),
        (F.relu6, F.relu6),
        (F.relu6, lambda x: x.clamp(0, 6)),
        (lambda x: F.relu(x) + F.relu(-x), F.relu),
        (lambda x: F.max_pool2d(F.relu(x), 2).flatten(2), F.relu),
        (lambda x: F.avg_pool2d(F.relu(x), 3, 1, 1), torch.abs),
        (lambda x: torch.cat([F.relu(x), torch.sigmoid(x)], 1), F.relu),
        (lambda x: x * x, F.relu),
        (lambda x: x.softmax(1), F.relu6),
    ],
)
def test_an_activation_of_a_value_in_its_own_range_goes(inner: Function, outer: Function) -> None:
    model = Lambda(lambda m, x: torch.tanh(outer(inner(x))))
    bare = Lambda(lambda m, x: torch.tanh(inner(x)))
    x = doubles(2, 4, 5, 6)
    fused = apply_exactly(model, x, rules=RULES, bound=0.0)
    assert fused.text == graph_text(run_rules(program_of(bare, x), *RULES).program)


@pytest.mark.parametrize(
    "inner",
    [
        lambda x: F.softplus(torch.sigmoid(x)),
        lambda x: torch.exp(torch.sigmoid(x)),
        lambda x: torch.square(F.relu6(x)),
        lambda x: F.avg_pool2d(torch.sigmoid(x), 2, divisor_override=1),
        lambda x: torch.sigmoid(x) + torch.sigmoid(x),
        lambda x: F.elu(x) * 2,
    ],
)
def test_a_clamp_that_bites_stays(inner: Function) -> None:
    """Each of these exceeds 1 although its operand does not: an interval that is too narrow would drop the clamp."""
    x = 3 * doubles(2, 4, 5, 6)
    assert float(inner(x).max()) > 1.0
    fused = apply_exactly(Lambda(lambda m, x: inner(x).clamp(max=1.0)), x, rules=RULES, bound=0.0)
    assert fused.text.startswith("clamp(")


# An outer activation, and the interval that it leaves alone.
ENDS: dict[str, tuple[Function, float, float]] = {
    "relu": (F.relu, 0.0, math.inf),
    "relu6": (F.relu6, 0.0, 6.0),
    "hardtanh": (F.hardtanh, -1.0, 1.0),
    "hardtanh -2 3": (lambda x: F.hardtanh(x, -2.0, 3.0), -2.0, 3.0),
    "clamp -2 3": (lambda x: x.clamp(-2.0, 3.0), -2.0, 3.0),
    "clamp min": (lambda x: x.clamp(min=-2.0), -2.0, math.inf),
    "clamp max": (lambda x: x.clamp(max=3.0), -math.inf, 3.0),
    "clamp_min": (lambda x: torch.clamp_min(x, -2.0), -2.0, math.inf),
    "clamp_max": (lambda x: torch.clamp_max(x, 3.0), -math.inf, 3.0),
    "abs": (torch.abs, 0.0, math.inf),
}


def reaching(name: str, below: float, above: float) -> tuple[float, float]:
    """The ends of an interval that reaches past that of `name` by so much."""
    _, least, most = ENDS[name]
    return (least if math.isfinite(least) else -5.0) + below, (most if math.isfinite(most) else 8.0) + above


@functools.cache
def what_stays(below: float, above: float) -> list[str]:
    """Of each of ENDS behind a clamp to `reaching`, all in one network."""

    def forward(m: nn.Module, x: Tensor) -> list[Tensor]:
        return [torch.tanh(outer(x.clamp(*reaching(name, below, above)))) for name, (outer, _, _) in ENDS.items()]

    text = apply_exactly(Lambda(forward), 9 * doubles(2, 4, 5, 6), rules=RULES, bound=0.0).text
    return text.removeprefix("tanh(").split(", tanh(")


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("below, above", [(0.0, 0.0), (0.5, -0.5), (-0.5, 0.0), (0.0, 0.5), (-0.5, 0.5)])
def test_a_value_that_reaches_past_either_end_stays_and_one_exactly_at_it_goes(
    name: str, below: float, above: float
) -> None:
    _, least, most = ENDS[name]
    low, high = reaching(name, below, above)
    behind = dict(zip(ENDS, what_stays(below, above), strict=True))[name]
    assert (behind == f"clamp(x, {low}, {high}))") == (low >= least and high <= most)


def test_a_value_without_an_upper_end_stays_below_six() -> None:
    for inner in (F.relu, lambda x: x.abs(), lambda x: x * x):
        fused = apply_exactly(Lambda(lambda m, x, f=inner: F.relu6(f(x))), 9 * doubles(2, 4), rules=RULES, bound=0.0)
        assert fused.text.startswith("relu6(")


def test_a_weight_of_ones_and_a_weight_of_zeros_go() -> None:
    ones, zeros = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.zeros(4, 1, 1))
    model = Lambda(lambda m, x: torch.tanh(x * m.ones + m.zeros), ones=ones, zeros=zeros).double()
    assert apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=0.0).text == "tanh(x)"


def test_a_weight_that_broadcasts_the_value_up_stays() -> None:
    model = Lambda(lambda m, x: torch.tanh(x * m.ones), ones=nn.Parameter(torch.ones(3, 1))).double()
    fused = apply_exactly(model, doubles(3, 2, 1, 4), rules=RULES, bound=0.0)
    assert fused.text == "tanh(mul(x, w))"


def test_sizes_that_only_agree_at_the_traced_size_are_not_the_same() -> None:
    """A slice to the traced height is the identity only for that height."""
    model = Lambda(lambda m, x: torch.tanh(torch.ops.aten.slice.Tensor(x, 2, 0, 5)))
    program = program_of(model, doubles(2, 4, 7, 6), dynamic=("batch", "height", "width"))
    assert run_rules(program, *RULES).text == graph_text(program)


def test_the_graph_before_and_after() -> None:
    model = Lambda(lambda m, x: F.relu(F.dropout(F.relu(x), 0.5, False)).clone() * 1.0)
    fused = apply_exactly(model, doubles(2, 4), rules=RULES, bound=0.0)
    assert graph_text(fused.original) == "mul(clone(relu(dropout(relu(x), 0.5, False))), 1.0)"
    assert fused.text == "relu(x)"
    assert sorted(fused.passed("drop-identity")) == [
        "clone does nothing here",
        "dropout does nothing here",
        "mul does nothing here",
        "relu does nothing here",
    ]
    assert all(r.max_abs == 0.0 for r in fused.outcome.remarks)


# ---- negative control --------------------------------------------------------------------------------------------


class Overeager(DropIdentity):
    """Takes every product for the identity."""

    def check(self, program: Any, match: Match) -> Any:
        return match.root

    def rewrite(self, program: Any, plan: Any) -> Rewrite:
        return Rewrite({plan: plan.args[0]}, "dropped")


def test_a_product_by_nearly_one_that_is_dropped_is_rejected() -> None:
    for factor in (1 + 1e-9, 1 - 1e-12):
        model = Lambda(lambda m, x, factor=factor: torch.tanh(x * factor))
        program = program_of(model, doubles(2, 4))
        fused = run_rules(program, Overeager())
        assert fused.text == graph_text(program)
        assert any("rejected by its own check" in m for m in fused.missed("drop-identity"))


def test_a_scale_of_nearly_one_in_a_weight_stays() -> None:
    scale = vector(4)
    with torch.no_grad():
        scale.fill_(1.0)
        scale[2] += 1e-15 * 8
    model = Lambda(lambda m, x: torch.tanh(x * m.scale), scale=scale)
    fused = apply_exactly(model, doubles(2, 4), rules=RULES, bound=0.0)
    assert fused.text == "tanh(mul(x, w))"


STRAIGHT = {
    "leaky slope one": lambda x: F.leaky_relu(x, 1.0),
    "threshold without end": lambda x: F.threshold(x, -math.inf, 0.0),
    "rrelu about one": lambda x: F.rrelu(x, 0.5, 1.5),
    "clamp without ends": lambda x: x.clamp(max=math.inf),
}
BEHIND_RELU = {
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "rrelu": F.rrelu,
    "threshold": lambda x: F.threshold(x, -1.0, 3.0),
    "abs": torch.abs,
}


@pytest.mark.parametrize("function", STRAIGHT.values(), ids=STRAIGHT)
def test_rectifiers_that_are_straight_lines_go(function: Any) -> None:
    done = apply_exactly(Lambda(lambda _, x: function(x.sin()).cos()), doubles(2, 3, 4), rules=RULES, bound=0.0)
    assert done.text == "cos(sin(x))"


@pytest.mark.parametrize("function", BEHIND_RELU.values(), ids=BEHIND_RELU)
def test_rectifiers_of_what_is_never_negative_go(function: Any) -> None:
    done = apply_exactly(Lambda(lambda _, x: function(x.relu()).cos()), doubles(2, 3, 4), rules=RULES, bound=0.0)
    assert done.text == "cos(relu(x))"


@pytest.mark.parametrize("function", BEHIND_RELU.values(), ids=BEHIND_RELU)
def test_rectifiers_of_what_may_be_negative_stay(function: Any) -> None:
    done = apply_exactly(Lambda(lambda _, x: function(x.sin()).cos()), doubles(2, 3, 4) * 3, rules=RULES, bound=0.0)
    assert done.text != "cos(sin(x))"


def test_prelu_of_ones_goes_and_another_stays() -> None:
    for slope, text in ((1.0, "cos(sin(x))"), (0.5, "cos(prelu(sin(x), w))")):
        model = Lambda(lambda m, x: m.f(x.sin()).cos(), f=nn.PReLU(3, slope).double())
        assert apply_exactly(model, doubles(2, 3, 4), rules=RULES, bound=0.0).text == text


def test_selu_of_what_is_never_negative_stays() -> None:
    done = apply_exactly(Lambda(lambda _, x: F.selu(x.relu())), doubles(2, 3, 4), rules=RULES, bound=0.0)
    assert "elu" in done.text.replace("relu", "")
