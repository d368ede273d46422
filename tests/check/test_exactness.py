"""Exactness in the emitted dtype: a truly worse result is refused, one heavy-tailed input does not decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import conversion
from reparam.check import LostDigitsError
from reparam.check.exactness import OutputSpread
from reparam.conversion import convert
from reparam.emit import finalize
from reparam.ir import Program
from support.choice import crossed

FLOOR = 4 * torch.finfo(torch.float32).eps


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def deep() -> nn.Module:
    """Amplifies what is rounded: an input decides by how much."""
    torch.manual_seed(1)
    layers = [m for _ in range(24) for m in (nn.Linear(16, 16), nn.Tanh())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.6)  # type: ignore[arg-type]
    return nn.Sequential(*layers).eval()


def spread(new: list[float], old: list[float]) -> OutputSpread:
    return OutputSpread(new, old, [1.0] * len(new), [1] * len(new))


@given(st.lists(st.floats(1e-6, 1e-3), min_size=8, max_size=16), st.floats(0.0, 2.0))
def test_twice_the_error_of_each_input_is_fair(old: list[float], times: float) -> None:
    assert spread([times * e for e in old], old).fair(FLOOR)


@given(st.lists(st.floats(1e-4, 1e-3), min_size=8, max_size=16), st.floats(2.2, 100.0))
def test_more_than_twice_in_the_median_is_not(old: list[float], times: float) -> None:
    found = spread([times * e for e in old], old)
    assert not found.fair(FLOOR)
    assert not found.fair_against_spread(FLOOR)


@given(st.integers(0, 7), st.floats(3.0, 7.0))
def test_one_input_out_of_many_does_not_decide(which: int, times: float) -> None:
    new = [1e-3] * 8
    new[which] *= times
    assert spread(new, [1e-3] * 8).fair_against_spread(FLOOR)


def test_no_input_may_be_beyond_all_that_the_original_does() -> None:
    assert not spread([1e-3] * 7 + [1.0], [1e-3] * 8).fair_against_spread(FLOOR)
    assert not spread([1e-3] * 7 + [float("nan")], [1e-3] * 8).fair_against_spread(FLOOR)


def half(value: Tensor) -> Tensor:
    return value.half().to(value.dtype) if value.is_floating_point() else value


def digits(value: Tensor) -> Tensor:
    """Without the last bits of float32."""
    return value.float().view(torch.int32).bitwise_and(~0xF).view(torch.float32).to(value.dtype)


class Sized(nn.Module):
    """The size that it was traced at stands in its graph, which runs at no other, as the model itself does."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize("make, worse", crossed([net, deep, Sized], [half, digits]))
def test_dropped_digits_are_refused(
    worse: Callable[[Tensor], Tensor], make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(program: Program, dtype: torch.dtype | None) -> Program:
        made = finalize(program, dtype)
        for name, constant in list(made.constants.items()):
            if constant.value.is_floating_point():
                made.constants[name] = dataclasses.replace(constant, value=worse(constant.value))
        return made

    x = torch.randn(2, 16) if make is deep else torch.randn(2, 3, 8, 8)
    assert convert(make().eval(), x, to="fused").report.equivalent
    monkeypatch.setattr(conversion, "finalize", damaged)
    with pytest.raises(LostDigitsError):
        convert(make().eval(), x, to="fused")


def test_a_rewrite_that_loses_digits_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the check says that a network without its batch norm is worse."""
    real = conversion.check_emitted

    def check(original: Program, emitted: Program, *rest: object) -> object:
        if "batch_norm" not in str(emitted.graph):
            raise LostDigitsError("its error is 9 times that of the original")
        return real(original, emitted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(conversion, "check_emitted", check)
    found = convert(net(), torch.randn(2, 3, 8, 8), to="fused")
    assert found.report.equivalent and "batch_norm" in str(found.program.graph)
    [left] = [r for r in found.report.remarks if "would lose digits" in r.message]
    assert left.kind == "missed" and "9 times" in left.message
