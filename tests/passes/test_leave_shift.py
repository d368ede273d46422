"""Where a shift would meet a border or a ReLU, the scale folds and the shift stays as a sum, exact everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reparam.passes.leave_shift import LeaveShift
from support.helpers import (
    EXACT,
    NORMS_BY_RANK,
    Conv,
    Fused,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    assert_verification_bites,
    convolutions,
    doubles,
    fuse_exactly,
    graph_text,
    healthy,
    positive,
    program_of,
    run_rules,
)

RULES = [LeaveShift()]


@given(conv=convolutions())
def test_before_any_convolution_the_scale_folds_and_the_shift_stays(conv: Conv) -> None:
    model = healthy(nn.Sequential(nn.Tanh(), NORMS_BY_RANK[conv.rank](conv.shape[1]), conv.module))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert fused.text.endswith("(add(tanh(x), w))")


@given(conv=convolutions(transposed=True))
def test_before_any_transposed_convolution_likewise(conv: Conv) -> None:
    model = healthy(nn.Sequential(nn.Tanh(), NORMS_BY_RANK[conv.rank](conv.shape[1]), conv.module))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert fused.text.endswith("(add(tanh(x), w))")


@given(conv=convolutions() | convolutions(transposed=True), entry=st.integers(0, 10**6))
def test_any_single_entry_of_a_new_weight_is_checked(conv: Conv, entry: int) -> None:
    model = healthy(nn.Sequential(nn.Tanh(), NORMS_BY_RANK[conv.rank](conv.shape[1]), conv.module))
    x = doubles(*conv.shape)
    assert assert_no_wrong_entry_is_accepted(program_of(model, x), LeaveShift(), entry, [x]), (
        "there was nothing to spoil"
    )


def test_the_graph_before_and_after() -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)))
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == "conv3x3(batch_norm(tanh(x)))"
    assert fused.text == "conv3x3(add(tanh(x), w))"
    assert fused.passed("leave-shift") == ["scale folded, the shift left standing (4 parameters)"]
    [remark] = fused.outcome.remarks
    assert remark.params == 4 - 4 * 4 and remark.macs == 0


def test_behind_a_relu_the_scale_goes_back_through_it() -> None:
    """a relu(z) + t with a > 0: the layer before the ReLU takes a, the sum keeps t."""
    norm = nn.BatchNorm2d(4)
    model = positive(healthy(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), norm, nn.Tanh())))
    fused = apply_exactly(model, doubles(2, 3, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == "tanh(add(relu(conv1x1(x)), w))"


def test_before_a_relu_the_scale_goes_forward_through_it() -> None:
    """relu(a z + t) = a relu(z + t/a) for a > 0."""
    model = positive(healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))))
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == "conv3x3(relu(add(tanh(x), w)))"


def test_together_with_the_other_rules_nothing_is_moved_back_and_forth() -> None:
    """A preactivation block: each norm is gone, and one sum is left where a border forbids more."""
    model = healthy(
        nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    )
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "relu(conv3x3(add(tanh(x), w)))"


# ---- refusals ----------------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, *inputs: Any) -> str:
    fused = apply_exactly(model.double().eval(), *inputs, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    [message] = fused.missed("leave-shift")
    return message


def test_refused_when_the_scale_finds_no_way_either() -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Sigmoid()))
    message = _refusal(model, doubles(2, 4, 5, 6))
    assert message == (
        "not even its scale folds: tanh does not commute with a channel affine (at '0'); "
        "sigmoid does not commute with a channel affine (at '2')"
    )


def test_refused_for_a_scale_of_zero() -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)))
    with torch.no_grad():
        model[1].weight[2] = 0.0  # type: ignore[index, operator]
    message = _refusal(model, doubles(2, 4, 5, 6))
    assert message == "1 of its scales are zero, so the shift cannot be divided by them"


def test_refused_for_a_negative_scale_before_a_relu() -> None:
    model = positive(healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1))))
    with torch.no_grad():
        model[1].weight[2].neg_()  # type: ignore[index, union-attr, operator]
    assert "relu does not let a negative scale through (1 channels) (at '2')" in _refusal(model, doubles(2, 4, 5, 6))


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        Lambda(lambda m, x: m.conv(torch.tanh(x) * m.c), conv=nn.Conv2d(4, 5, 3), c=nn.Parameter(torch.rand(4, 1, 1))),
    ],
    ids=["batch statistics", "no batch norm"],
)
def test_silent_about_what_another_rule_speaks_for(model: nn.Module) -> None:
    fused = apply_exactly(healthy(model), doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 4, 5, 6)
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)))
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert_verification_bites(fused, [x], bound=EXACT)
    assert_evidence_bites(fused.original, LeaveShift())


def scaled_and_shifted(scale: torch.Tensor) -> nn.Module:
    """A set norm's affine: x*a + t, a ReLU, a linear layer."""
    return Lambda(
        lambda m, x: m.fc(torch.relu(torch.tanh(x) * m.a + m.t)),
        fc=nn.Linear(4, 3),
        a=nn.Parameter(scale),
        t=nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.4])),
    ).double()


def test_of_a_product_and_a_sum_only_the_sum_stays() -> None:
    model = scaled_and_shifted(torch.tensor([0.5, 1.5, 2.0, 3.0]))
    fused = apply_exactly(model, doubles(2, 5, 4), rules=RULES, bound=EXACT)
    assert fused.text == "linear(relu(add(tanh(x), w)))"
    assert_evidence_bites(program_of(model, doubles(2, 5, 4)), LeaveShift())


def test_a_product_and_a_sum_stay_where_the_scale_finds_no_way() -> None:
    for scale in ([0.5, -1.5, 2.0, 3.0], [0.5, 0.0, 2.0, 3.0]):
        done = run_rules(program_of(scaled_and_shifted(torch.tensor(scale)), doubles(2, 5, 4)), *RULES)
        assert done.text == "linear(relu(add(mul(tanh(x), w), w)))"
        assert not done.outcome.remarks  # fold-channel-affine says why
    read_again = Lambda(
        lambda m, x: m.fc(torch.relu((u := torch.tanh(x) * m.a) + 1.0)) + u.sum(-1, keepdim=True),
        fc=nn.Linear(4, 3),
        a=nn.Parameter(torch.tensor([0.5, 1.5, 2.0, 3.0])),
    ).double()
    assert not run_rules(program_of(read_again, doubles(2, 5, 4)), *RULES).passed("leave-shift")


# ---- where it stands aside -----------------------------------------------------------------------------------------


def test_silent_about_a_norm_without_shift() -> None:
    norm = nn.BatchNorm2d(4)
    model = healthy(nn.Sequential(nn.Tanh(), norm, nn.Conv2d(4, 5, 3, padding=1)))
    with torch.no_grad():
        norm.bias.zero_()
        norm.running_mean.zero_()  # type: ignore[union-attr]
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


@pytest.mark.parametrize(
    ("act", "told"), [(nn.ReLU(), True), (nn.Sigmoid(), False), (nn.LeakyReLU(), False), (nn.MaxPool2d(2), False)]
)
def test_where_a_negative_scale_meets_a_relu_it_says_what_would_let_it_through(act: nn.Module, told: bool) -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), act, nn.Conv2d(4, 5, 3, padding=1)))
    hint = "; a clamp with bounds for each channel lets it through, but takes longer than the batch norm that it saves"
    assert _refusal(model, doubles(2, 4, 5, 6)).endswith(hint) == told


def test_the_shift_that_stays_has_the_name_of_its_norm() -> None:
    for layers in ((nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3, padding=1)), (nn.Conv2d(4, 4, 1), nn.ReLU())):
        model = positive(healthy(nn.Sequential(*layers, *([nn.BatchNorm2d(4), nn.Tanh()] if len(layers) == 2 else []))))
        fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
        assert fused.passed("leave-shift") == ["scale folded, the shift left standing (4 parameters)"]
        place = "1" if len(layers) == 3 else "2"
        assert f"{place}.shift" in fused.program.constants


def test_a_piece_that_is_read_elsewhere_keeps_its_values_there() -> None:
    """The layer that takes the scale of one half is written anew for both."""

    def forward(m: Any, x: Any) -> Any:
        first, second = torch.relu(m.conv(x)).chunk(2, 1)
        return m.norm(first).tanh(), second

    model = positive(healthy(Lambda(forward, conv=nn.Conv2d(3, 8, 1), norm=nn.BatchNorm2d(4))))
    fused = apply_exactly(model, doubles(2, 3, 5, 6), rules=RULES, bound=EXACT)
    assert "batch_norm" not in fused.text and fused.passed("leave-shift")


def affine(form: Any) -> Fused:
    """A form of tanh(x) and constants a, t before a ReLU and a linear layer."""
    model = Lambda(
        lambda m, x: m.fc(torch.relu(form(m, torch.tanh(x)))),
        fc=nn.Linear(4, 3),
        norm=nn.BatchNorm1d(4),
        a=nn.Parameter(torch.tensor([0.5, 1.5, 2.0, 3.0])),
        t=nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.4])),
    )
    model = healthy(model)
    with torch.no_grad():
        model.norm.bias.zero_()  # type: ignore[union-attr, operator]
        model.norm.running_mean.zero_()  # type: ignore[union-attr, operator]
        model.norm.weight.abs_()  # type: ignore[union-attr, operator]
    return apply_exactly(model, doubles(5, 4), rules=RULES, bound=EXACT)


@pytest.mark.parametrize(
    "form",
    [
        lambda m, x: x + m.t,
        lambda m, x: x * m.a,
        lambda m, x: torch.add(m.t, x * m.a, alpha=2),
        lambda m, x: m.norm(x) + m.t,
        lambda m, x: x + m.a + m.t,
        lambda m, x: (m.a - x) + m.t,
        lambda m, x: x * x.cos() + m.t,
        lambda m, x: (y := x * m.a) + m.t + 0 * y.cos(),
    ],
    ids=[
        "a sum alone",
        "a product alone",
        "a sum with a factor",
        "a batch norm",
        "two sums",
        "a difference before it",
        "a product of data",
        "the product is read elsewhere",
    ],
)
def test_silent_about_other_sums(form: Any) -> None:
    fused = affine(form)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


def test_the_sum_of_a_product_may_stand_on_either_side() -> None:
    for form in (lambda m, x: x * m.a + m.t, lambda m, x: m.t + m.a * x, lambda m, x: x / m.a + m.t):
        fused = affine(form)
        assert fused.text == "linear(relu(add(tanh(x), w)))"
        assert fused.passed("leave-shift") == ["scale folded, the shift left standing (4 parameters)"]
