"""Declared input ranges: rules rely on them, and random inputs keep to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import conversion
from reparam.conversion import convert
from reparam.errors import InputError
from reparam.ir import op_name
from support.helpers import Lambda, conv_bn, healthy


def image() -> Tensor:
    return torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(3))


def clipped() -> nn.Module:
    """A ReLU on the input itself, which is only needed when the input can be negative."""
    torch.manual_seed(0)
    return healthy(Lambda(lambda m, x: m.block(F.relu(x)), block=conv_bn(3, 4, padding=1))).float()


def test_rules_rely_on_the_ranges_that_the_caller_declares() -> None:
    free, bounded = (convert(clipped(), image(), input_ranges=r) for r in (None, [(0.0, 1.0)]))
    assert [op_name(n) for n in free.program.calls()] == ["relu", "conv2d"]
    assert [op_name(n) for n in bounded.program.calls()] == ["conv2d"]
    assert (bounded.program.inputs[0].low, bounded.program.inputs[0].high) == (0.0, 1.0)
    x = torch.rand(2, 3, 9, 11)
    assert torch.allclose(clipped()(x), bounded.module(x), atol=1e-5)


def test_inputs_are_drawn_from_the_declared_range(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[Tensor] = []
    check = conversion.check_float64

    def spy(*args: Any) -> Any:
        evidence, rounds = check(*args)
        fed.extend(v for r in rounds for v in r.values)
        return evidence, rounds

    monkeypatch.setattr(conversion, "check_float64", spy)
    convert(clipped(), image(), input_ranges=[(-3.0, -2.0)])
    assert fed and all(float(v.min()) >= -3.0 and float(v.max()) <= -2.0 for v in fed)


@pytest.mark.parametrize(
    "ranges, message",
    [
        ([(0.0, 1.0), (0.0, 1.0)], "2 input ranges were given for 1 tensor inputs"),
        ([(1.0, 0.0)], r"the input range \(1\.0, 0\.0\) is empty"),
        ([(float("nan"), 1.0)], "is empty"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(ranges: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(clipped(), image(), input_ranges=ranges)
