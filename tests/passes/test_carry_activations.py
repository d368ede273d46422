"""Every activation lets carried channels through, of either sign and of any size, or says why it cannot.

The block is y = b(act(a(x))) + x between layers that are no activations, so that x is signed; `positive` puts a ReLU
before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.ir import evaluate, is_chain
from support.helpers import Fused, Lambda, doubles, healthy, max_rel, module_rel
from support.plain_helpers import assert_carried_rows_matter, assert_the_check_bites, counts, plain, refusal

Act = Callable[[Tensor], Tensor]
EXACT = 1e-12
SHAPE = (2, 3, 5, 6)
HUGE = 1e3


class Clamp(nn.Module):
    """Bounds of its own for both sides, or for one."""

    def __init__(self, low: float | None, high: float | None) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(x, self.low, self.high)


def slopes(c: int = 6) -> nn.PReLU:
    layer = nn.PReLU(c)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 0.9, c))
    return layer


@dataclass(frozen=True)
class Row:
    """An activation and what stands in its place. signed: with carried channels of both signs; None: refused.
    positive: with carried channels that are proven to be at least zero."""

    act: nn.Module
    signed: str | None
    positive: str

    @property
    def name(self) -> str:
        low = getattr(self.act, "low", None)
        return (
            type(self.act).__name__
            + (f"({low}..)" if low is not None else "")
            + getattr(self.act, "approximate", "").replace("none", "")
        )


# Of the gates x*g(b*x + c) only the end is told: what g is made of.
ROWS = (
    Row(nn.ReLU(), "prelu(", "relu("),
    Row(nn.LeakyReLU(0.2), "prelu(", "prelu("),
    Row(nn.LeakyReLU(-0.3), "prelu(", "prelu("),
    Row(slopes(), "prelu(", "prelu("),
    Row(nn.PReLU(), "prelu(", "prelu("),
    Row(nn.ReLU6(), "clamp(", "clamp("),
    Row(nn.Hardtanh(-0.5, 0.75), "clamp(", "clamp("),
    Row(Clamp(-0.25, 1.5), "clamp(", "clamp("),
    Row(Clamp(-0.125, None), "clamp(", "clamp("),
    Row(Clamp(None, 0.5), "clamp(", "clamp("),
    Row(nn.SiLU(), "sigmoid(", "sigmoid("),
    Row(nn.GELU(), "erf(", "erf("),
    Row(nn.GELU("tanh"), "sigmoid(", "sigmoid("),
    Row(nn.Mish(), "softplus(", "softplus("),
    Row(nn.Hardswish(), "hardsigmoid(", "hardsigmoid("),
    Row(nn.ELU(), None, "elu("),
    Row(nn.ELU(0.5), None, "elu("),
    Row(nn.SELU(), None, "selu("),
    Row(nn.CELU(1.5), None, "celu("),
)
SIGNED = [pytest.param(r, id=r.name) for r in ROWS if r.signed is not None]
ALL = [pytest.param(r, id=r.name, marks=[pytest.mark.sweep] if i % 2 else []) for i, r in enumerate(ROWS)]
UPWARD = [pytest.param(r, id=r.name) for r in ROWS if r.signed is None]


def block(act: nn.Module, *, positive: bool, c: int = 4, wide: int = 6) -> nn.Module:
    """[relu] -> b(act(a(x))) + x -> a last layer, so that the block is not the end."""
    torch.manual_seed(1)

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(m.first(x)) if positive else m.first(x)
        return m.last(F.relu(m.b(m.act(m.a(x))) + x))

    layers = {
        "first": nn.Conv2d(3, c, 1),
        "a": nn.Conv2d(c, wide, 3, padding=1),
        "b": nn.Conv2d(wide, c, 3, padding=1),
        "last": nn.Conv2d(c, 3, 1),
    }
    return healthy(Lambda(forward, act=act, **layers))


def sizes() -> list[Tensor]:
    """Inputs of size one, and such that carried values lie around 1e3 and -1e3."""
    x = doubles(*SHAPE)
    return [x, HUGE * x, -HUGE * x, HUGE * torch.ones_like(x), -HUGE * torch.ones_like(x), torch.zeros_like(x)]


def assert_carried(model: nn.Module, name: str) -> Fused:
    """The block is a chain with this activation in it, exactly in float64 and well in float32."""
    fused = plain(model, doubles(*SHAPE))
    assert counts(fused)[1].merges == 0 and is_chain(fused.program), fused.missed("carry-residual")
    assert name in fused.text, fused.text
    for x in sizes():
        assert module_rel(model, fused.program, [x]) <= EXACT
        _assert_as_good_in_float32(fused, x)
    assert_carried_rows_matter(fused, doubles(*SHAPE))
    assert_the_check_bites(fused.original)
    return fused


def _assert_as_good_in_float32(fused: Fused, x: Tensor) -> None:
    """At most twice the error of the original, and a few roundings of the largest value on the way."""
    x = x.float().double()
    truth = evaluate(fused.original, [x])[0]
    before, after = (
        float((evaluate(p, [x.float()], torch.float32)[0].double() - truth).abs().max())
        for p in (fused.original, fused.program)
    )
    tops = [1.0]
    evaluate(fused.original, [x], observe=lambda n, v: tops.append(float(v.abs().max())))
    assert after <= 2 * before + 16 * torch.finfo(torch.float32).eps * max(tops)


# ---- what is carried -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SIGNED)
def test_signed_channels_are_carried(row: Row) -> None:
    assert row.signed is not None
    fused = assert_carried(block(row.act, positive=False), row.signed)
    [fact] = [m for m in _facts(fused) if "carried past" in m]
    assert "lies in (-inf, inf)" in fact


@pytest.mark.parametrize("row", ALL)
def test_channels_that_are_never_negative_are_carried(row: Row) -> None:
    fused = assert_carried(block(row.act, positive=True), row.positive)
    [fact] = [m for m in _facts(fused) if "carried past" in m]
    assert "lies in [0, inf)" in fact


def _facts(fused: Fused) -> list[str]:
    return [r.message for r in fused.outcome.remarks if r.rule == "carry-residual" and r.kind == "analysis"]


def test_what_is_clipped_stays_clipped_and_what_is_carried_is_not() -> None:
    """ReLU6 with a large gain: a converter that drops the clip, or clips what it carries, is wrong by a lot."""
    model: Any = block(nn.ReLU6(), positive=False)
    with torch.no_grad():
        model.a.weight.mul_(50.0)
        model.first.weight.mul_(50.0)
    seen: dict[str, Tensor] = {}
    hooks = [
        model.act.register_forward_hook(lambda m, a, y: seen.update(inside=y)),
        model.a.register_forward_pre_hook(lambda m, a: seen.update(carried=a[0])),
    ]
    with torch.no_grad():
        model(doubles(*SHAPE))
    for hook in hooks:
        hook.remove()
    assert float((seen["inside"] == 6).double().mean()) > 0.3
    assert float(seen["carried"].max()) > 60 and float(seen["carried"].min()) < -60
    fused = assert_carried(model, "clamp(")
    bounds = [c.value for n, c in fused.program.constants.items() if n.endswith(("low", "high"))]
    assert len(bounds) == 2 and all({abs(float(v)) for v in b.flatten()} <= {0.0, 6.0, float("inf")} for b in bounds)


def test_a_selu_scales_what_it_carries_and_the_merge_divides_by_it() -> None:
    """selu(x) = l*x for x >= 0: the carrying row is 1/l."""
    gain = 1.0507009873554804934193349852946
    fused = assert_carried(block(nn.SELU(), positive=True), "selu(")
    rows = [c.value.flatten(1) for c in fused.program.constants.values() if c.value.dim() == 4]
    alone = [r for w in rows for r in w if int((r != 0).sum()) == 1]
    assert len(alone) == 4 and all(abs(float(r.abs().max()) - 1 / gain) <= 1e-15 for r in alone)


def test_signed_channels_in_pairs_on_request() -> None:
    """x = relu(x) - relu(-x): no PReLU."""
    model = block(nn.ReLU(), positive=False)
    fused = plain(model, doubles(*SHAPE), signed="relu")
    assert is_chain(fused.program) and "prelu" not in fused.text
    for x in sizes():
        assert module_rel(model, fused.program, [x]) <= EXACT
    assert_the_check_bites(fused.original, signed="relu")


@given(
    family=st.sampled_from(["prelu", "clamp", "silu"]),
    c=st.integers(1, 4),
    wide=st.integers(1, 5),
    positive=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3, 1e5]),
    numbers=st.tuples(st.floats(-2, 2), st.floats(-2, 2)),
)
def test_any_width_slope_bound_and_size(
    family: str, c: int, wide: int, positive: bool, scale: float, numbers: tuple[float, float]
) -> None:
    low, high = min(numbers), max(numbers)
    act = {"prelu": nn.PReLU(1, init=low), "clamp": Clamp(low, high), "silu": nn.SiLU()}[family]
    model = block(act, positive=positive, c=c, wide=wide)
    x = scale * doubles(*SHAPE)
    fused = plain(model, x)
    assert counts(fused)[1].merges == 0
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_two_activations_of_one_register_share_one_call() -> None:
    """relu and leaky_relu beside a carried channel: slopes 0, 0.2 and 1."""
    model = healthy(
        Lambda(
            lambda m, x: m.last(F.relu(torch.cat([F.leaky_relu(m.a(x), 0.2), F.relu(m.b(x)), x], 1))),
            a=nn.Conv2d(3, 2, 3, padding=1),
            b=nn.Conv2d(3, 2, 3, padding=1),
            last=nn.Conv2d(7, 3, 1),
        )
    )
    fused = plain(model, doubles(*SHAPE))
    assert is_chain(fused.program)
    found = {float(v) for n, c in fused.program.constants.items() if n.endswith("slopes") for v in c.value}
    assert found == {0.0, 0.2, 1.0}
    for x in sizes():
        assert module_rel(model, fused.program, [x]) <= EXACT


def test_a_linear_value_that_comes_into_being_beside_selu_is_divided_by_its_slope() -> None:
    """A pooled map that is proven positive joins two SELU layers, each of which multiplies it by 1.0507."""
    model = healthy(
        Lambda(
            lambda m, x: m.last(torch.cat([F.selu(m.b(F.selu(m.a(y := F.relu(m.stem(x)))))), F.avg_pool2d(y, 2)], 1)),
            stem=nn.Conv2d(3, 4, 3, padding=1),
            a=nn.Conv2d(4, 5, 3, stride=2, padding=1),
            b=nn.Conv2d(5, 5, 3, padding=1),
            last=nn.Conv2d(9, 3, 1),
        )
    )
    x = doubles(2, 3, 8, 8)
    fused = plain(model, x)
    assert is_chain(fused.program), fused.missed("carry-residual")
    assert fused.text.count("selu") == 2
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_a_slope_that_is_off_is_noticed() -> None:
    """The slopes of carried channels are weights, and are checked like others."""
    fused = plain(block(nn.ReLU(), positive=False), doubles(*SHAPE))
    [name] = [n for n in fused.program.constants if n.endswith("slopes")]
    values = fused.program.constants[name].value
    carried = [k for k, v in enumerate(values) if float(v) == 1.0]
    assert len(carried) == 4 and len(values) == 10
    gaps = []
    for k in carried:
        copy = fused.program.copy()
        wrong = values.clone()
        wrong[k] += 1e-6
        copy.constants[name] = replace(copy.constants[name], value=wrong)
        gaps.append(max(max_rel(fused.original, copy, [x]) for x in sizes()[:3]))
    assert sum(g > 1e3 * EXACT for g in gaps) >= 2, gaps  # behind the last ReLU a channel may be dead


# ---- what is not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", ["prelu", "relu"])
@pytest.mark.parametrize("row", UPWARD)
def test_refused_for_signed_channels_beside_what_is_the_identity_upward_only(row: Row, signed: str) -> None:
    """Pairs do not help: elu(x) and elu(-x) do not make x."""
    model = block(row.act, positive=False)
    fused = plain(model, doubles(*SHAPE), signed=signed)
    _, message = refusal(fused)
    name = type(row.act).__name__.lower()
    assert name in message and "so that nothing can be carried past it" in message
    assert counts(fused)[1].merges == 1
    assert module_rel(model, fused.program, [doubles(*SHAPE)]) <= EXACT


@pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
@pytest.mark.parametrize(
    "act", [nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Softplus()], ids=lambda a: type(a).__name__
)
def test_refused_beside_what_changes_every_value(act: nn.Module, positive: bool) -> None:
    model = block(act, positive=positive)
    fused = plain(model, doubles(*SHAPE))
    module, message = refusal(fused)
    name = type(act).__name__.lower()
    assert f"{name} at 'act' changes every value, so that nothing can be carried past it" in message, message
    assert module == "" and counts(fused)[1].merges == 1
    assert module_rel(model, fused.program, [doubles(*SHAPE)]) <= EXACT


def test_refused_beside_a_softmax() -> None:
    model = block(nn.Softmax(1), positive=True)
    fused = plain(model, doubles(*SHAPE))
    assert "softmax at 'act' acts on all channels or positions of a value at once" in refusal(fused)[1]
    assert counts(fused)[1].merges == 1


def test_bounds_that_are_infinite_are_no_weights_to_train_and_are_taken_in_again() -> None:
    made = convert(block(nn.ReLU6(), positive=False).float(), torch.rand(SHAPE), to="plain").module
    bounds = {n: b for n, b in made.named_buffers() if n.endswith(("low", "high"))}
    assert len(bounds) == 2 and any(bool(b.isinf().any()) for b in bounds.values())
    assert convert(made, torch.rand(SHAPE), to="as-is").report.equivalent


def test_bounds_of_each_channel_are_carried_past() -> None:
    """A batch norm with scales of both signs before a ReLU6 leaves such bounds in the fused network."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y + self.b(F.relu6(self.bn(y)))

    model = healthy(nn.Sequential(nn.Conv2d(3, 6, 1), Block(), nn.Conv2d(6, 2, 1)))
    found = plain(model, doubles(*SHAPE))
    assert counts(found)[1].merges == 0 and "batch_norm" not in found.text and "clamp" in found.text
    assert module_rel(model, found.program, [doubles(*SHAPE)]) <= EXACT
