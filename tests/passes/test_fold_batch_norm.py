"""A batch norm folds into the layers before or after it, or says what stands in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reparam.passes.fold_batch_norm import FoldBatchNorm
from support.helpers import (
    EXACT,
    NORMS_BY_RANK,
    Conv,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    assert_verification_bites,
    conv_bn,
    convolutions,
    doubles,
    graph_text,
    healthy,
    positive,
    program_of,
    run_rules,
    vector,
)

RULES = [FoldBatchNorm()]


@given(conv=convolutions())
def test_it_folds_into_any_convolution_before_it(conv: Conv) -> None:
    model = healthy(nn.Sequential(conv.module, NORMS_BY_RANK[conv.rank](conv.c_out)))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert "batch_norm" in graph_text(fused.original) and "batch_norm" not in fused.text
    assert fused.outcome.kinds["basis"] + fused.outcome.kinds["sampled"] == 1


@given(conv=convolutions(transposed=True))
def test_it_folds_into_any_transposed_convolution_before_it(conv: Conv) -> None:
    model = healthy(nn.Sequential(conv.module, NORMS_BY_RANK[conv.rank](conv.c_out)))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert fused.text.startswith("deconv")


@given(conv=convolutions(padded=False))
def test_it_folds_into_any_convolution_after_it_that_is_not_padded(conv: Conv) -> None:
    norm = NORMS_BY_RANK[conv.rank](conv.shape[1])
    model = healthy(nn.Sequential(nn.Tanh(), norm, conv.module))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert "batch_norm" not in fused.text


@given(conv=convolutions())
def test_before_a_padded_convolution_it_stays_unless_nothing_is_shifted(conv: Conv) -> None:
    model = healthy(nn.Sequential(nn.Tanh(), NORMS_BY_RANK[conv.rank](conv.shape[1]), conv.module))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert ("batch_norm" in fused.text) == any(conv.module.padding)  # type: ignore[arg-type]


@given(conv=convolutions() | convolutions(transposed=True), entry=st.integers(0, 10**6))
def test_any_single_entry_of_a_new_weight_is_checked(conv: Conv, entry: int) -> None:
    model = healthy(nn.Sequential(conv.module, NORMS_BY_RANK[conv.rank](conv.c_out)))
    x = doubles(*conv.shape)
    assert assert_no_wrong_entry_is_accepted(program_of(model, x), FoldBatchNorm(), entry, [x]), (
        "there was nothing to spoil"
    )


def test_the_graph_before_and_after() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
    fused = apply_exactly(model, doubles(2, 3, 5, 6), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == "relu(batch_norm(conv3x3(x)))"
    assert fused.text == "relu(conv3x3(x))"
    assert fused.passed("fold-batch-norm") == ["folded into the output of '0'"]
    [remark] = fused.outcome.remarks
    assert remark.module == "1" and remark.macs == 0 and remark.params == 4 - 4 * 4  # a bias comes, four vectors go
    assert remark.evidence == "basis" and remark.max_abs is not None and remark.max_abs < 1e-14


def test_linear_layers_on_both_sides() -> None:
    before = healthy(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU()))
    assert apply_exactly(before, doubles(3, 4), rules=RULES, bound=EXACT).text == "relu(linear(x))"
    after = healthy(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 5)))
    fused = apply_exactly(after, doubles(3, 4), rules=RULES, bound=EXACT)
    assert fused.text == "linear(relu(x))"
    assert fused.passed("fold-batch-norm") == ["folded into the input of '2'"]


@pytest.mark.parametrize("after", [False, True])
def test_a_scale_passes_the_division_by_a_number_for_each_sample(after: bool) -> None:
    """On both sides: what is divided by its length, as cosine classifiers do it."""
    linear, bn = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False)
    first, last = (bn, linear) if after else (linear, bn)
    model = healthy(Lambda(lambda m, x: m.last(m.first(x) / x.norm(dim=1, keepdim=True)), first=first, last=last))
    bn.running_mean.zero_()
    fused = apply_exactly(model, doubles(3, 4), rules=RULES, bound=EXACT)
    assert "batch_norm" not in fused.text and "batch_norm" in graph_text(fused.original)
    assert fused.passed("fold-batch-norm")


def _cat(m: Any, x: Any) -> Any:
    return m.bn(torch.cat([m.a(x), m.b(x)], 1))


def _sum(m: Any, x: Any) -> Any:
    return m.bn(m.a(x) + m.b(x))


def _permuted(m: Any, x: Any) -> Any:
    return m.bn(m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _tokens(m: Any, x: Any) -> Any:
    return m.bn(m.a(x).flatten(2)).reshape(2, 4, 5, 6)


def _pooled(m: Any, x: Any) -> Any:
    return m.bn(F.avg_pool2d(F.interpolate(m.a(x), scale_factor=2, mode="nearest"), 2))


def _rearranged(m: Any, x: Any) -> Any:
    return m.bn(F.pixel_unshuffle(F.pixel_shuffle(F.channel_shuffle(m.a(x), 2), 2), 2))


def _selected(m: Any, x: Any) -> Any:
    return m.bn(m.a(x).index_select(1, m.order))


def _selected_first(m: Any, x: Any) -> Any:
    return m.a(m.bn(torch.tanh(x)).index_select(1, m.twice))


def _two_users(m: Any, x: Any) -> Any:
    y = m.bn(torch.tanh(x))
    return m.d(y) + m.e(y.mean((2, 3)))[:, :, None, None]


def _split(m: Any, x: Any) -> Any:
    left, right = m.bn(torch.tanh(x)).chunk(2, 1)
    return m.f(left) * m.f(right)


def _joined(m: Any, x: Any) -> Any:
    return m.g(torch.cat([m.bn(torch.tanh(x)), torch.sigmoid(x)], 1))


def _parts() -> dict[str, Any]:
    return {
        "order": nn.Buffer(torch.tensor([2, 0, 3, 1])),
        "twice": nn.Buffer(torch.tensor([2, 0, 2, 1])),
        "bn": nn.BatchNorm2d(4),
        "a": nn.Conv2d(4, 4, 1),
        "b": nn.Conv2d(4, 4, 3, padding=1),
        "linear": nn.Linear(4, 4),
        "d": nn.Conv2d(4, 4, 1),
        "e": nn.Linear(4, 4),
        "f": nn.Conv2d(2, 3, 1),
        "g": nn.Conv2d(8, 3, 1),
    }


@pytest.mark.parametrize(
    "forward",
    [_sum, _permuted, _pooled, _rearranged, _selected, _selected_first, _two_users, _split, _joined],
    ids=lambda f: f.__name__[1:],
)
def test_it_passes_through_what_commutes_with_a_channel_affine(forward: Any) -> None:
    model = healthy(Lambda(forward, **_parts()))
    x = doubles(2, 4, 6, 6)
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert "batch_norm" not in fused.text
    assert_verification_bites(fused, [x], bound=EXACT)


def test_it_passes_a_concatenation_with_its_slices() -> None:
    model = healthy(Lambda(_cat, **{**_parts(), "bn": nn.BatchNorm2d(8)}))
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == "cat([conv1x1(x), conv3x3(x)], 1)"


def test_it_passes_a_flattening_of_space() -> None:
    model = healthy(Lambda(_tokens, **{**_parts(), "bn": nn.BatchNorm1d(4)}))
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert "batch_norm" not in fused.text


def test_it_passes_a_flattening_of_channels_and_space_into_a_linear_layer() -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 5 * 6, 3)))
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == "linear(flatten(tanh(x), 1))"


def test_its_scale_passes_a_relu_only_where_it_is_positive() -> None:
    """relu(a z) = a relu(z) for a >= 0: the norm has no shift, so only its signs decide."""
    for flip in (False, True):
        norm = nn.BatchNorm2d(4)
        model = positive(healthy(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), norm, nn.Tanh())))
        with torch.no_grad():
            norm.bias.zero_()
            assert norm.running_mean is not None
            norm.running_mean.zero_()
            if flip:
                norm.weight[2].neg_()
        fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
        assert ("batch_norm" in fused.text) == flip
        assert any("negative scale through (1 channels)" in m for m in fused.missed("fold-batch-norm")) == flip


# ---- refusals ----------------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, *inputs: Any) -> str:
    fused = apply_exactly(healthy(model), *inputs, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    [message] = fused.missed("fold-batch-norm")
    return message


def test_refused_by_batch_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert "statistics of each batch" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_when_statistics_depend_on_the_data() -> None:
    model = Lambda(
        lambda m, x: F.batch_norm(m.conv(x), x.mean((0, 2, 3)), m.v.abs(), None, None),
        conv=nn.Conv2d(4, 4, 1),
        v=vector(4),
    )
    assert "computed from the data" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_for_a_negative_variance_by_channel() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    program_model = healthy(model)
    assert isinstance(model[1].running_var, torch.Tensor)
    model[1].running_var[3] = -2.0
    program = program_of(program_model, doubles(2, 4, 5, 6))
    [message] = run_rules(program, *RULES).missed("fold-batch-norm")
    assert "no finite scale (channel 3: variance -2)" in message


def test_refused_with_both_reasons_when_it_is_boxed_in() -> None:
    message = _refusal(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Sigmoid()), doubles(2, 4, 5, 6))
    assert message == (
        "before it: tanh does not commute with a channel affine (at '0'); "
        "after it: sigmoid does not commute with a channel affine (at '2')"
    )


def test_refused_at_the_ends_of_the_network() -> None:
    message = _refusal(nn.Sequential(nn.BatchNorm2d(4)), doubles(2, 4, 5, 6))
    assert "what comes before it is an input of the network" in message
    assert "its value is an output of the network" in message


def test_refused_before_zero_padding() -> None:
    message = _refusal(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), doubles(2, 4, 5, 6))
    assert "the shift before a zero-padded convolution would be wrong on the border (at '2')" in message


def test_refused_when_the_value_before_it_has_another_user() -> None:
    model = Lambda(
        lambda m, x: torch.sigmoid(m.bn(y := m.conv(x))) * y.exp(), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)
    )
    assert "the value before it is also used by 'exp' (at 'conv')" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_when_an_absorbing_layer_reads_the_value_that_would_change() -> None:
    """conv(b) + b: the scale that b would take would reach the convolution's input as well."""
    model = Lambda(
        lambda m, x: torch.tanh(m.bn(m.b(y := m.a(x)) + y)),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 3, padding=1),
        bn=nn.BatchNorm2d(4),
    )
    assert "the value before it is also used by 'b' (at 'a')" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_across_channels_that_are_mixed() -> None:
    model = Lambda(lambda m, x: torch.tanh(m.bn(x.softmax(1))), bn=nn.BatchNorm2d(4))
    assert "softmax does not commute" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_across_a_selection_that_is_not_known() -> None:
    """The order of the channels is made inside the graph."""
    model = Lambda(
        lambda m, x: torch.tanh(m.bn(m.conv(x).index_select(1, m.order + 1 - 1))),
        conv=nn.Conv2d(4, 4, 1),
        bn=nn.BatchNorm2d(4),
        order=nn.Buffer(torch.tensor([2, 0, 3, 1])),
    )
    assert "index_select does not commute" in _refusal(model, doubles(2, 4, 5, 6))


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 4, 5, 6)
    for model in (conv_bn(padding=1), nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3))):
        fused = apply_exactly(healthy(model), x, rules=RULES, bound=EXACT)
        assert_verification_bites(fused, [x], bound=EXACT)
        assert_evidence_bites(fused.original, FoldBatchNorm())
