"""A constant scale or shift along the channels folds like a batch norm; anything else is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.fold_channel_affine import FoldChannelAffine
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
    program_of,
    run_rules,
    vector,
)
from support.sums import SUMS

RULES = [FoldChannelAffine()]
Operation = Callable[[Tensor, Tensor], Tensor]
OPERATIONS: dict[str, Operation] = {
    "x * c": lambda x, c: x * c,
    "c * x": lambda x, c: c * x,
    "x / c": lambda x, c: x / c,
    **SUMS,
    "-x": lambda x, c: -x,
    "2.5 * x": lambda x, c: 2.5 * x,
    "x / 4": lambda x, c: x / 4,
    "1 - x": lambda x, c: 1 - x,
    "x - 2": lambda x, c: x - 2,
}


def _constant(conv: Conv, lead: bool) -> nn.Parameter:
    return vector(*([1] if lead else []), conv.c_out, *[1] * conv.rank)


@given(conv=convolutions(), name=st.sampled_from(sorted(OPERATIONS)), lead=st.booleans())
def test_every_spelling_folds_into_any_convolution_before_it(conv: Conv, name: str, lead: bool) -> None:
    operation = OPERATIONS[name]
    model = Lambda(lambda m, x: operation(m.conv(x), m.c), conv=conv.module.double(), c=_constant(conv, lead))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert fused.text.startswith("conv")
    assert len(fused.passed("fold-channel-affine")) == 1


@given(conv=convolutions(padded=False), name=st.sampled_from(sorted(OPERATIONS)))
def test_every_spelling_folds_into_any_convolution_after_it(conv: Conv, name: str) -> None:
    operation = OPERATIONS[name]
    constant = vector(conv.shape[1], *[1] * conv.rank)
    model = Lambda(lambda m, x: m.conv(operation(torch.tanh(x), m.c)), conv=conv.module.double(), c=constant)
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert fused.text.startswith("conv") and fused.text.endswith("(tanh(x))")


@given(conv=convolutions(transposed=True), name=st.sampled_from(sorted(OPERATIONS)))
def test_every_spelling_folds_into_any_transposed_convolution_before_it(conv: Conv, name: str) -> None:
    operation = OPERATIONS[name]
    model = Lambda(lambda m, x: operation(m.conv(x), m.c), conv=conv.module.double(), c=_constant(conv, True))
    fused = apply_exactly(model, doubles(*conv.shape), rules=RULES, bound=EXACT)
    assert fused.text.startswith("deconv")


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_spelling_folds_into_a_linear_layer_over_the_last_axis(name: str) -> None:
    operation = OPERATIONS[name]
    model = Lambda(lambda m, x: operation(m.linear(x), m.c), linear=nn.Linear(4, 5).double(), c=vector(5))
    x = doubles(2, 3, 4)
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert fused.text == "linear(x)"
    assert_verification_bites(fused, [x], bound=EXACT)


def test_the_graph_before_and_after() -> None:
    """LayerScale and a depth gain on a residual branch."""
    model = Lambda(
        lambda m, x: x + m.gain * (m.gamma * m.linear(x)) / 2**0.5,
        linear=nn.Linear(4, 4),
        gamma=vector(4),
        gain=vector(1),
    ).double()
    fused = apply_exactly(model, doubles(2, 3, 4), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == "add(x, div(mul(w, mul(w, linear(x))), 1.4142135623730951))"
    assert fused.text == "add(x, linear(x))"


def test_a_scale_after_a_norm_goes_into_the_norms_own_affine() -> None:
    for norm, x in ((nn.LayerNorm(4), doubles(2, 3, 4)), (nn.LayerNorm(4, elementwise_affine=False), doubles(2, 3, 4))):
        model = Lambda(lambda m, x: torch.tanh(m.norm(x) * m.c + 1), norm=norm, c=vector(4)).double()
        fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
        assert fused.text == "tanh(layer_norm(x, [4], w, w))"
    model = Lambda(lambda m, x: torch.tanh(m.norm(x) * m.c), norm=nn.GroupNorm(2, 4), c=vector(4, 1, 1)).double()
    fused = apply_exactly(model, doubles(2, 4, 3, 5), rules=RULES, bound=EXACT)
    assert fused.text == "tanh(group_norm(x, 2, w, w))"


def attention(scale: Callable[[Tensor], Tensor]) -> nn.Module:
    """softmax(scale(q k^T)) v of tokens (N, 5, 4), each of the three from a layer of its own."""
    return Lambda(
        lambda m, x: torch.softmax(scale(m.q(x) @ m.k(x).transpose(1, 2)), -1) @ m.v(x),
        q=nn.Linear(4, 6),
        k=nn.Linear(4, 6),
        v=nn.Linear(4, 6),
    ).double()


SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "of the whole": lambda s: s / 2.5,
    "of rows": lambda s: s * torch.linspace(0.5, 2.0, 5).double().reshape(5, 1),
    "of columns": lambda s: s * torch.linspace(0.5, 2.0, 5).double(),
}


def test_the_scale_of_a_product_of_matrices_goes_into_one_factor() -> None:
    model = attention(SCALES["of the whole"])
    fused = apply_exactly(model, doubles(2, 5, 4), rules=RULES, bound=EXACT)
    assert fused.passed("fold-channel-affine") and "div" not in fused.text
    assert_evidence_bites(program_of(model, doubles(2, 5, 4)), FoldChannelAffine())


@pytest.mark.parametrize("name", ["of rows", "of columns"])
def test_a_scale_of_tokens_is_no_scale_of_features(name: str) -> None:
    done = run_rules(program_of(attention(SCALES[name]), doubles(2, 5, 4)), *RULES)
    assert not done.passed("fold-channel-affine")


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_features_that_are_rows_or_columns_of_a_product_take_its_scale(side: str) -> None:
    scale = 0.5 + torch.rand((6, 1) if side == "rows" else (6,), dtype=torch.float64)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        return (y.transpose(1, 2) @ x.sin() if side == "rows" else x.sin().transpose(1, 2) @ y) * scale

    model = Lambda(forward, f=nn.Linear(4, 6)).double()
    fused = apply_exactly(model, doubles(2, 5, 4), rules=RULES, bound=EXACT)
    assert fused.text.startswith("matmul(")


def test_a_scale_with_a_zero_folds_backwards_and_forwards() -> None:
    zero = nn.Parameter(torch.tensor([1.0, 0.0, 2.0, 3.0]).double().reshape(4, 1, 1))
    before = Lambda(lambda m, x: m.c * m.conv(x), c=zero, conv=nn.Conv2d(3, 4, 3).double())
    after = Lambda(lambda m, x: m.conv(torch.tanh(x) * m.c), c=zero, conv=nn.Conv2d(4, 3, 3, padding=1).double())
    assert apply_exactly(before, doubles(2, 3, 5, 6), rules=RULES, bound=EXACT).text == "conv3x3(x)"
    assert apply_exactly(after, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT).text == "conv3x3(tanh(x))"


def test_a_shift_after_a_sum_goes_into_the_one_operand_that_is_a_layer() -> None:
    for swap in (False, True):
        model = Lambda(
            lambda m, x, z, swap=swap: (z + m.conv(x) if swap else m.conv(x) + z) + m.c,
            conv=nn.Conv2d(4, 4, 1),
            c=vector(4, 1, 1),
        ).double()
        fused = apply_exactly(model, doubles(2, 4, 5, 6), doubles(2, 4, 5, 6, seed=9), rules=RULES, bound=EXACT)
        assert fused.text == ("add(x1, conv1x1(x0))" if swap else "add(conv1x1(x0), x1)")


# ---- refusals ----------------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, *inputs: Any) -> str:
    fused = apply_exactly(model.double(), *inputs, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    [message] = fused.missed("fold-channel-affine")
    return message


def test_refused_with_both_reasons() -> None:
    message = _refusal(Lambda(lambda m, x: torch.tanh(x.exp() * m.c), c=vector(4, 1, 1)), doubles(2, 4, 5, 6))
    assert message == (
        "before it: exp does not commute with a channel affine (at 'exp'); "
        "after it: tanh does not commute with a channel affine (at 'tanh')"
    )


def test_refused_when_the_constant_lies_along_another_axis() -> None:
    model = Lambda(lambda m, x: m.d(m.a(x) * m.c), a=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1), c=vector(6))
    message = _refusal(model, doubles(2, 4, 5, 6))
    assert "does not lie along the channel axis of the layer before it (at 'a')" in message
    assert "does not lie along the channel axis of this layer (at 'd')" in message


def test_refused_for_a_scale_on_one_side_of_a_sum() -> None:
    model = Lambda(lambda m, x: m.d(x.exp() * m.c + x.sin()), d=nn.Conv2d(4, 4, 1), c=vector(4, 1, 1))
    assert "a scale on one operand only does not pass through a sum (at 'add')" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_for_a_shift_into_a_product_with_data() -> None:
    model = Lambda(lambda m, x: m.d((x.exp() + m.c) * x.sin()), d=nn.Conv2d(4, 4, 1), c=vector(4, 1, 1))
    assert "a shift does not pass through a product with data (at 'mul')" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_for_a_shift_into_zero_padding_of_any_kind() -> None:
    shift = {"c": vector(4, 1, 1), "d": nn.Conv2d(4, 4, 3), "p": nn.Conv2d(4, 4, 3, padding=1)}
    padded = Lambda(lambda m, x: m.p(x.exp() + m.c), **shift)
    assert "zero-padded convolution would be wrong on the border (at 'p')" in _refusal(padded, doubles(2, 4, 5, 6))
    explicit = Lambda(lambda m, x: m.d(nn.functional.pad(x.exp() + m.c, [1, 1])), **shift)
    assert "a shift does not pass through zero padding (at 'pad')" in _refusal(explicit, doubles(2, 4, 5, 6))


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 1), (1, 4, 5, 6)])
def test_silent_about_a_constant_that_varies_along_several_axes(shape: tuple[int, ...]) -> None:
    model = Lambda(lambda m, x: m.d(m.a(x) * m.c), a=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1), c=vector(*shape))
    fused = apply_exactly(model.double(), doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    assert not fused.outcome.remarks


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 1), (1, 4, 5, 6)])
def test_a_constant_of_many_axes_that_is_the_same_along_them_folds(shape: tuple[int, ...]) -> None:
    constant = nn.Parameter(torch.full(shape, 0.7))
    model = Lambda(lambda m, x: m.d(m.a(x) * m.c), a=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1), c=constant)
    fused = apply_exactly(model.double(), doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == "conv1x1(conv1x1(x))"


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.tanh(m.c / m.a(x)),
        lambda m, x: torch.tanh(m.a(x) / m.zero),
        lambda m, x: torch.div(m.a(x), m.c, rounding_mode="floor"),
        lambda m, x: m.a(x) * x,
    ],
    ids=["a reciprocal", "over zero", "floor division", "a product of data"],
)
def test_silent_about_what_is_no_affine(forward: Callable[..., Tensor]) -> None:
    zero = nn.Parameter(torch.zeros(4, 1, 1))
    model = Lambda(forward, a=nn.Conv2d(4, 4, 1), c=vector(4, 1, 1), zero=zero).double()
    program = program_of(model, doubles(2, 4, 5, 6))
    fused = run_rules(program, *RULES)
    assert fused.text == graph_text(program) and not fused.outcome.remarks


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 4, 5, 6)
    for model in (
        Lambda(lambda m, x: m.conv(x) * m.c, conv=nn.Conv2d(4, 4, 3, padding=1), c=vector(4, 1, 1)),
        Lambda(lambda m, x: m.conv(torch.tanh(x) + m.c), conv=nn.Conv2d(4, 4, 3), c=vector(4, 1, 1)),
    ):
        fused = apply_exactly(model.double(), x, rules=RULES, bound=EXACT)
        assert_verification_bites(fused, [x], bound=EXACT)
        assert_evidence_bites(fused.original, FoldChannelAffine())
