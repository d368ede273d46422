"""Two layers in a row become one where that is exact on the border and costs no more."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from reparam.passes.compose_convs import ComposeConvs
from support.helpers import (
    CONVS_BY_RANK,
    EXACT,
    Fused,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    assert_verification_bites,
    doubles,
    graph_text,
    program_of,
    run_rules,
)

RULES = [ComposeConvs()]


@st.composite
def pairs(
    draw: st.DrawFn, *, first_kernel: int | None = None, second_padded: bool = True
) -> tuple[nn.Module, tuple[int, ...]]:
    """Two convolutions in a row and an input shape; a pointwise first one has no bias where the second is padded."""
    rank = draw(st.integers(1, 3))
    g1, g2 = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)]))
    c_in, mid, c_out = 4, 4 * draw(st.integers(1, 2)), 2 * draw(st.integers(1, 2))

    def axes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    k1 = (first_kernel,) * rank if first_kernel else axes(1, 3)
    k2, d1, d2, s1, s2 = axes(1, 3), axes(1, 2), axes(1, 2), axes(1, 2), axes(1, 2)
    p1 = (0,) * rank if first_kernel == 1 else axes(0, 2)
    p2 = axes(0, 2) if second_padded else (0,) * rank
    need = [(d * (k - 1) + 1 - 1) * s for k, d, s in zip(k2, d2, s1, strict=True)]
    size = tuple(n + d * (k - 1) + 1 + draw(st.integers(0, 3)) for n, k, d in zip(need, k1, d1, strict=True))
    bias1 = draw(st.booleans()) and not (second_padded and any(p2))
    conv = CONVS_BY_RANK[rank]
    first = conv(c_in, mid, k1, stride=s1, padding=p1, dilation=d1, groups=g1, bias=bias1)
    second = conv(mid, c_out, k2, stride=s2, padding=p2, dilation=d2, groups=g2, bias=draw(st.booleans()))
    return nn.Sequential(first, second).double(), (2, c_in, *size)


def _composed(fused: Fused) -> bool:
    """Whether the two are one; if they are not, that would have cost more."""
    one = fused.text.count("conv") == 1
    assert one != any("would cost" in m for m in fused.missed("compose-convs"))
    return one


def test_a_pointwise_convolution_goes_into_any_that_follows() -> None:
    composed: list[bool] = []

    @given(case=pairs(first_kernel=1))
    def run(case: tuple[nn.Module, tuple[int, ...]]) -> None:
        model, shape = case
        exact = apply_exactly(model, doubles(*shape), rules=RULES, bound=EXACT)
        composed.append(_composed(exact))
        dear = run_rules(program_of(model, doubles(*shape)), *RULES, allow_cost=True)
        assert dear.text == exact.text

    run()
    assert sum(composed) > len(composed) / 2


def test_any_convolution_goes_into_one_without_padding() -> None:
    composed: list[bool] = []

    @given(case=pairs(second_padded=False))
    def run(case: tuple[nn.Module, tuple[int, ...]]) -> None:
        model, shape = case
        composed.append(_composed(apply_exactly(model, doubles(*shape), rules=RULES, bound=EXACT)))

    run()
    assert sum(composed) > len(composed) / 2


def test_any_single_entry_of_a_composed_kernel_is_checked() -> None:
    tried: list[bool] = []

    @given(case=pairs(first_kernel=1) | pairs(second_padded=False), entry=st.integers(0, 10**6))
    def run(case: tuple[nn.Module, tuple[int, ...]], entry: int) -> None:
        model, shape = case
        x = doubles(*shape)
        tried.append(assert_no_wrong_entry_is_accepted(program_of(model, x), ComposeConvs(), entry, [x]))

    run()
    assert sum(tried) > 5


@given(
    widths=st.tuples(*[st.integers(1, 6)] * 3),
    biases=st.tuples(st.booleans(), st.booleans()),
    lead=st.lists(st.integers(1, 3), max_size=2),
)
def test_linear_layers_compose_where_that_is_cheaper(
    widths: tuple[int, int, int], biases: tuple[bool, bool], lead: list[int]
) -> None:
    a, b, c = widths
    model = nn.Sequential(nn.Linear(a, b, bias=biases[0]), nn.Linear(b, c, bias=biases[1])).double()
    fused = apply_exactly(model, doubles(2, *lead, a), rules=RULES, bound=EXACT)
    assert (fused.text == "linear(x)") == (a * c <= a * b + b * c)


def test_the_graph_before_and_after() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=1)).double()
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == "conv3x3(conv1x1(x))"
    assert fused.text == "conv3x3(x)"
    assert fused.passed("compose-convs") == ["composed with '0'"]
    [remark] = fused.outcome.remarks
    assert remark.macs == 5 * 6 * (4 * 5 * 9 - 4 * 6 - 6 * 5 * 9)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_the_geometry_of_the_composition(padding: int) -> None:
    """Kernel k1 + s1 (k2 - 1), stride s1 s2, and the first one's padding."""
    first = nn.Conv2d(2, 9, 3, stride=2, padding=padding, bias=True)
    model = nn.Sequential(first, nn.Conv2d(9, 1, 3, stride=2)).double()
    fused = apply_exactly(model, doubles(1, 2, 15, 15), rules=RULES, bound=EXACT)
    assert fused.text == "conv7x7s4(x)"
    [conv] = fused.program.calls()
    assert conv.args[4] == [padding, padding]


# ---- refusals ----------------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, *inputs: Any) -> str:
    fused = apply_exactly(model.double(), *inputs, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    [message] = fused.missed("compose-convs")
    return message


def test_refused_when_it_would_cost_more_with_the_numbers() -> None:
    model = nn.Sequential(nn.Conv2d(8, 2, 1, bias=False), nn.Conv2d(2, 8, 3, padding=1))
    now, then = 5 * 6 * (8 * 2 + 2 * 8 * 9), 5 * 6 * 8 * 8 * 9
    assert _refusal(model, doubles(2, 8, 5, 6)) == (
        f"composing it with '0' would cost {then:,} multiply-accumulates instead of {now:,}"
    )
    low_rank = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8))
    assert "would cost 64 multiply-accumulates instead of 32" in _refusal(low_rank, doubles(1, 8))


def test_refused_for_a_padded_window_after_another_window() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 1, 3, padding=1))
    assert "a padded window after another window sees the wrong border" in _refusal(model, doubles(2, 1, 9, 9))


def test_refused_for_a_bias_into_zero_padding() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=1))
    assert "its bias would meet the zero padding that follows" in _refusal(model, doubles(2, 4, 5, 6))


def test_a_zero_bias_meets_no_border() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, padding=1)).double()
    with torch.no_grad():
        model[0].bias.zero_()  # type: ignore[union-attr, operator]
    assert apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT).text == "conv3x3(x)"


@pytest.mark.parametrize(
    "model",
    [
        Lambda(lambda m, x: m.b(y := m.a(x)) + y.mean(), a=nn.Conv2d(4, 4, 1, bias=False), b=nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1)),
        Lambda(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(4, 4, 1), b=nn.Linear(6, 4)),
        Lambda(lambda m, x: m.b(m.a(x[0])), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)),
        Lambda(lambda m, x: m.b(F.conv2d(x, m.b.weight * x.mean())), b=nn.Conv2d(4, 4, 1)),
        Lambda(lambda m, x: F.conv2d(m.b(x), m.b.weight * x.mean()), b=nn.Conv2d(4, 4, 1)),
    ],
    ids=["two users", "a ReLU between", "transposed", "of two kinds", "one sample", "first of data", "second of data"],
)
def test_silent_where_there_are_no_two_layers_in_a_row(model: nn.Module) -> None:
    fused = apply_exactly(model.double(), doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


def test_a_chain_of_layers_becomes_one() -> None:
    model = nn.Sequential(*[nn.Conv2d(4, 4, 1) for _ in range(6)], nn.Conv2d(4, 4, 3)).double()
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == "conv3x3(x)"
    assert len(fused.passed("compose-convs")) == 6
    assert math.isclose(sum(r.macs for r in fused.outcome.remarks), -6 * 16 * 30)


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 4, 5, 6)
    model = nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 5, 3, padding=1)).double()
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert_verification_bites(fused, [x], bound=EXACT)
    assert_evidence_bites(fused.original, ComposeConvs())


# ---- the price ---------------------------------------------------------------------------------------------------


def test_what_costs_the_same_is_one_layer() -> None:
    fused = apply_exactly(
        nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2)).double(), doubles(3, 2), rules=RULES, bound=EXACT
    )
    assert fused.text == "linear(x)"
    assert [r.macs for r in fused.outcome.remarks] == [0]


def test_groups_make_the_composition_cheaper() -> None:
    """Two of two groups are one of two groups, of one and two or of two and one a dense one."""
    for g1, g2, then in ((2, 2, "conv3x3g2(x)"), (1, 2, "conv3x3(x)"), (2, 1, "conv3x3(x)")):
        layers = (nn.Conv2d(4, 8, 1, groups=g1), nn.Conv2d(8, 4, 3, groups=g2))
        fused = apply_exactly(nn.Sequential(*layers).double(), doubles(2, 4, 5, 5), rules=RULES, bound=EXACT)
        assert fused.text == then


@pytest.mark.parametrize(("g1", "g2", "now"), [(1, 2, 9 * 8 * 2 + 8 * 9), (2, 1, 9 * 8 + 2 * 8 * 9)])
def test_of_a_grouped_and_a_dense_one_the_price_is_that_of_a_dense_one(g1: int, g2: int, now: int) -> None:
    model = nn.Sequential(nn.Conv2d(8, 2, 1, groups=g1), nn.Conv2d(2, 8, 3, groups=g2))
    assert f"would cost 576 multiply-accumulates instead of {now}" in _refusal(model, doubles(1, 8, 3, 3))
