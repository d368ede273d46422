"""The affine of a layer or group norm moves into what reads it; its statistics never do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from reparam.passes.fold_norm_affine import FoldNormAffine
from support.helpers import (
    EXACT,
    Conv,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_verification_bites,
    convolutions,
    doubles,
    graph_text,
    healthy,
    positive,
)

RULES = [FoldNormAffine()]


@given(
    width=st.integers(1, 6),
    out=st.integers(1, 5),
    lead=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    biases=st.tuples(st.booleans(), st.booleans()),
)
def test_a_layer_norm_before_a_linear_layer(width: int, out: int, lead: list[int], biases: tuple[bool, bool]) -> None:
    norm = nn.LayerNorm(width, bias=biases[0])
    model = healthy(nn.Sequential(norm, nn.Linear(width, out, bias=biases[1])))
    fused = apply_exactly(model, doubles(2, *lead, width), rules=RULES, bound=1e-11)
    assert fused.text == f"linear(layer_norm(x, [{width}]))"


@given(conv=convolutions(padded=False), groups=st.integers(1, 2))
def test_a_group_norm_before_a_convolution_without_padding(conv: Conv, groups: int) -> None:
    channels = conv.shape[1]
    model = healthy(nn.Sequential(nn.GroupNorm(groups if channels % groups == 0 else 1, channels), conv.module))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=1e-11)
    assert fused.text.startswith("conv") and ", w" not in fused.text


def test_the_graph_before_and_after() -> None:
    model = healthy(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)))
    fused = apply_exactly(model, doubles(2, 5, 4), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == "linear(layer_norm(x, [4], w, w, 1e-05, False))"
    assert fused.text == "linear(layer_norm(x, [4]))"
    assert fused.passed("fold-norm-affine") == ["affine folded into 1 layer(s)"]
    [remark] = fused.outcome.remarks
    assert remark.params == -2 * 4 and remark.macs == 0 and remark.evidence == "sampled"


def test_it_reaches_query_key_and_value_through_window_partitions() -> None:
    def forward(m: Any, x: Any) -> Any:
        y = m.norm(x).roll(1, 1).view(2, 2, 3, 2, 2, 4).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, 4)
        return m.q(y) @ m.k(y).transpose(1, 2) @ m.v(y)

    parts = {name: nn.Linear(4, 4) for name in "qkv"}
    model = healthy(Lambda(forward, norm=nn.LayerNorm(4), **parts))
    x = doubles(2, 6, 4, 4)
    fused = apply_exactly(model, x, rules=RULES, bound=1e-11)
    assert ", w" not in fused.text
    assert fused.passed("fold-norm-affine") == ["affine folded into 3 layer(s)"]
    assert_verification_bites(fused, [x], bound=1e-11)


def test_it_reaches_a_convolution_through_a_permute() -> None:
    """Channels-last norms as ConvNeXt has them."""
    model = healthy(
        Lambda(
            lambda m, x: m.conv(m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
            norm=nn.LayerNorm(4),
            conv=nn.Conv2d(4, 3, 2, 2),
        )
    )
    fused = apply_exactly(model, doubles(2, 4, 6, 8), rules=RULES, bound=1e-11)
    assert fused.text == "conv2x2s2(permute(layer_norm(permute(x, [0, 2, 3, 1]), [4]), [0, 3, 1, 2]))"


@pytest.mark.parametrize("negative", [False, True])
def test_it_passes_a_relu_only_where_its_scale_is_positive_and_it_has_no_shift(negative: bool) -> None:
    model = positive(healthy(nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))))
    with torch.no_grad():
        model[0].bias.zero_()  # type: ignore[index, union-attr, operator]
        if negative:
            model[0].weight[1].neg_()  # type: ignore[index, union-attr, operator]
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=1e-11)
    assert (", w" in fused.text) == negative
    assert (
        any("negative scale through (1 channels) (at '1')" in m for m in fused.missed("fold-norm-affine")) == negative
    )


# ---- refusals ----------------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, *inputs: Any) -> str:
    fused = apply_exactly(healthy(model), *inputs, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    [message] = fused.missed("fold-norm-affine")
    return message


def test_refused_when_one_user_does_not_take_it() -> None:
    model = Lambda(lambda m, x: (m.head(y := m.norm(x)), torch.tanh(y)), norm=nn.LayerNorm(4), head=nn.Linear(4, 3))
    assert _refusal(model, doubles(2, 5, 4)) == (
        "its affine stays: tanh does not commute with a channel affine (at 'tanh')"
    )


def test_refused_when_it_is_an_output() -> None:
    assert "its value is an output of the network" in _refusal(nn.Sequential(nn.LayerNorm(4)), doubles(2, 5, 4))


def test_refused_before_zero_padding() -> None:
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3, padding=1))
    assert "zero-padded convolution would be wrong on the border (at '1')" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_for_a_shift_into_a_relu() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 3))
    assert "relu does not let a shift through (at '1')" in _refusal(model, doubles(2, 5, 4))


@pytest.mark.parametrize(
    "norm, x",
    [
        (nn.LayerNorm((3, 4)), doubles(2, 3, 4)),  # its affine spans two axes
        (nn.LayerNorm(4, elementwise_affine=False), doubles(2, 3, 4)),
        (nn.LayerNorm(4), doubles(2, 3, 4)),  # its affine is trivial, as it is when fresh
    ],
    ids=["two axes", "none", "trivial"],
)
def test_silent_where_there_is_no_affine_along_one_axis(norm: nn.Module, x: torch.Tensor) -> None:
    model = nn.Sequential(norm, nn.Linear(4, 3)).double()
    if norm.normalized_shape == (3, 4):  # type: ignore[comparison-overlap]
        healthy(model)
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 5, 4)
    fused = apply_exactly(healthy(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))), x, rules=RULES, bound=EXACT)
    assert_verification_bites(fused, [x], bound=EXACT)
    assert_evidence_bites(fused.original, FoldNormAffine())


# ---- its own numbers ---------------------------------------------------------------------------------------------


def test_a_group_norm_reaches_a_linear_layer_through_a_permute() -> None:
    model = Lambda(lambda m, x: m.l(m.n(x).permute(0, 2, 3, 1)), n=nn.GroupNorm(2, 4), l=nn.Linear(4, 3))
    fused = apply_exactly(healthy(model), doubles(2, 4, 3, 5), rules=RULES, bound=1e-11)
    assert fused.text == "linear(permute(group_norm(x, 2), [0, 2, 3, 1]))"


def test_its_epsilon_stays() -> None:
    model = healthy(nn.Sequential(nn.LayerNorm(4, eps=0.5), nn.Linear(4, 3)))
    fused = apply_exactly(model, doubles(2, 5, 4), rules=RULES, bound=1e-11)
    assert fused.text == "linear(layer_norm(x, [4]))"
