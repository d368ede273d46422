"""Operators away from the numbers that random inputs are: what onnxruntime gives for them, and torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import reparam
from reparam.emit import finalize
from reparam.engines.onnx import model_of
from support.helpers import Lambda, program_of

onnxruntime = pytest.importorskip("onnxruntime")

INF = float("inf")
SIZES = (0.0, 1e-30, 1e-7, 1e-4, 3e-3, 0.1, 0.5, 0.88, 1.0, 1.5, 2.5, 7.0, 15.0, 20.5, 50.0, 89.0, 100.0, 1e4, 1e8)
ALL = torch.tensor([s * v for v in (*SIZES, INF) for s in (1, -1)])
PAIRS = tuple(v.contiguous() for v in torch.cartesian_prod(ALL, ALL).unbind(1))
WHOLE = (0, 1, 2, 7, 99, 127, 128, 255, 2**24 + 1, 123456789, 2**31 - 1, 2**31, 2**53 + 1, 2**62 + 1, 2**63)
BY = (1, 2, 3, 7, 100, 2**24 + 3)


def told(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """What onnxruntime gives for the file of a function, which is written for six other numbers."""
    program = program_of(Lambda(lambda m, *x: function(*x)), *(torch.ones_like(v[:6]) / 2 for v in inputs))
    return run(model_of(finalize(program)).SerializeToString(), *inputs)


def told_of_whole(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    program = program_of(Lambda(lambda m, *x: function(*x)), *(v[:6].clone() for v in inputs))
    return run(model_of(finalize(program)).SerializeToString(), *inputs)


def run(model: Any, *inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = {p.name: v.numpy() for p, v in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


def assert_near(got: Tensor, want: Tensor, ulps: float) -> None:
    assert got.dtype is want.dtype
    limits = torch.finfo(want.dtype)
    torch.testing.assert_close(got, want, rtol=ulps * limits.eps, atol=limits.tiny, equal_nan=True)


ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "logsigmoid": F.logsigmoid,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "special.log1p": torch.special.log1p,
    "special.expm1": torch.special.expm1,
    "remainder 3": lambda x: torch.remainder(x, 3),
    "remainder -0.7": lambda x: torch.remainder(x, -0.7),
    "remainder of 3.7": lambda x: torch.remainder(3.7, x),  # type: ignore[call-overload]
    "// 0.3": lambda x: x // 0.3,
    "floor of / -3": lambda x: torch.div(x, -3, rounding_mode="floor"),
    "signbit": lambda x: torch.signbit(x).float(),
}


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_number(name: str) -> None:
    assert_near(told(ONE[name], ALL), ONE[name](ALL), 8)


def test_the_logarithm_of_a_sigmoid() -> None:
    """It is better than torch's own, which is -inf below -104 and is rounded by one."""
    assert_near(told(lambda x: x.sigmoid().log(), ALL), F.logsigmoid(ALL), 8)


TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "logsumexp": lambda x, y: torch.stack([x, y], -1).logsumexp(-1),
    "logsumexp of two axes": lambda x, y: torch.stack([x, y], -1)[:, None].logsumexp((1, 2), keepdim=True),
    "xlog1py": torch.special.xlog1py,
    "remainder": torch.remainder,
    "//": lambda x, y: x // y,
    "cross entropy": lambda x, y: F.binary_cross_entropy_with_logits(x, y.clamp(0, 1), reduction="none"),
    "weighted": lambda x, y: F.binary_cross_entropy_with_logits(
        x, y.clamp(0, 1), torch.tensor(0.5), reduction="none", pos_weight=torch.tensor(3.0)
    ),
    "of probabilities": lambda x, y: F.binary_cross_entropy(x.clamp(0, 1), y.clamp(0, 1), reduction="none"),
    "soft margin": lambda x, y: F.soft_margin_loss(x, y, reduction="none"),
    "atan2": torch.atan2,
    "arctan2": torch.arctan2,
}


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_numbers(name: str) -> None:
    want = TWO[name](*PAIRS)
    # A sum of two nearly equal powers of two is rounded otherwise near zero; torch's own is 1e-8 for an exact zero.
    near_zero = (want.abs() < 2e-8) if name == "logaddexp2" else torch.zeros_like(want, dtype=torch.bool)
    got = told(TWO[name], *PAIRS)
    assert_near(got[~near_zero], want[~near_zero], 80 if name == "logaddexp2" else 16)
    assert bool((got[near_zero].abs() < 2e-8).all())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_that_are_reduced(reduction: str) -> None:
    def losses(x: Tensor, y: Tensor) -> Tensor:
        options = {"reduction": reduction}
        of_logits = F.binary_cross_entropy_with_logits(x, y, weight=y + 1, pos_weight=2 - y, **options)
        of_margins = F.soft_margin_loss(x / 50, 2 * y - 1, **options)
        return torch.stack([of_logits, of_margins, F.binary_cross_entropy(x / 80 + 0.5, y, **options)])

    x, y = torch.linspace(-40, 40, 64), torch.rand(64)
    torch.testing.assert_close(told(losses, x, y), losses(x, y), rtol=1e-5, atol=0)


@pytest.mark.parametrize("function", [F.logsigmoid, torch.log1p, torch.expm1], ids=lambda f: f.__name__)
def test_logarithms_and_powers_are_within_four_roundings(function: Callable[[Tensor], Tensor]) -> None:
    far = torch.logspace(-30, 38, 4001)
    x = torch.cat([far, -far, torch.linspace(-90, 90, 6001), torch.linspace(-0.99, 1, 3001)])
    exact = function(x.double()).float()
    assert_near(told(function, x), exact, 4)


def test_half_precision() -> None:
    x = ALL.half()
    for name in ("logsigmoid", "log1p", "expm1", "remainder 3"):
        assert_near(told(ONE[name], x), ONE[name](x), 8)


def test_double_precision() -> None:
    x, pairs = ALL.double(), tuple(v.double() for v in PAIRS)
    for name in ("logsigmoid", "log1p", "expm1", "remainder -0.7", "// 0.3"):
        assert_near(told(ONE[name], x), ONE[name](x), 8)
    for name in ("logaddexp", "logsumexp", "cross entropy"):
        assert_near(told(TWO[name], *pairs), TWO[name](*pairs), 16)


def test_angles_keep_the_sign_of_zero() -> None:
    y, x = (v.contiguous() for v in torch.cartesian_prod(torch.tensor([0.0, -0.0]), ALL).unbind(1))
    got, want = told(torch.atan2, y, x), torch.atan2(y, x)
    assert_near(got, want, 4)
    assert torch.equal(torch.signbit(got), torch.signbit(want))


def test_remainders_are_inside_of_their_range() -> None:
    x = torch.cat([torch.randn(500) * 10.0**k for k in range(9)])
    for c in (3.0, 0.3, -0.7, 2 * torch.pi):
        got = told(lambda x, c=c: torch.remainder(x, c), x)  # type: ignore[misc]
        assert torch.equal(got, torch.remainder(x, c))
        assert bool((got.abs() <= abs(c)).all() and (got * c >= 0).all())


KINDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def whole(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pairs of numbers that a dtype has, of both signs; the least of all not over -1, which no dtype has."""
    limits = torch.iinfo(dtype)
    pairs = [(s * a, t * b) for a in WHOLE for b in BY for s in (1, -1) for t in (1, -1)]
    kept = [
        (a, b)
        for a, b in pairs
        if limits.min <= min(a, b) and max(a, b) <= limits.max and not (a == limits.min and b == -1)
    ]
    a, b = zip(*kept, strict=True)
    return torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)


def assert_all_equal(functions: Sequence[Callable[[Tensor, Tensor], Tensor]], a: Tensor, b: Tensor) -> None:
    def together(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([f(x, y) for f in functions])

    got, want = told_of_whole(together, a, b), together(a, b)
    assert got.dtype is a.dtype
    for i, (one, other) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(one, other), i


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_quotients_of_whole_numbers(dtype: torch.dtype, mode: str) -> None:
    a, b = whole(dtype)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, y: torch.div(x, y, rounding_mode=mode),
        lambda x, y: torch.div(x, 100, rounding_mode=mode) + y,
        lambda x, y: torch.div(x, -7, rounding_mode=mode) + y,
        lambda x, y: x // y,
        lambda x, y: 100 // y + x,
    ]
    assert_all_equal(functions, a, b)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_shifts(dtype: torch.dtype) -> None:
    a, _ = whole(dtype)
    by = (torch.arange(len(a)) % torch.iinfo(dtype).bits).to(dtype)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, y: x << 1,
        lambda x, y: x >> 2,
        lambda x, y: x << y,
        lambda x, y: x >> y,
        lambda x, y: torch.bitwise_left_shift(x, 3),
        torch.bitwise_left_shift,
        torch.bitwise_right_shift,
        lambda x, y: torch.bitwise_right_shift(100, y),
    ]
    assert_all_equal(functions, a, by)


def test_all_bytes_by_all_bytes() -> None:
    pairs = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8)
    a, b = (v.contiguous() for v in pairs.unbind(1))
    for function in (torch.bitwise_left_shift, torch.bitwise_right_shift):
        assert torch.equal(told_of_whole(function, a, b), function(a, b))


def test_sizes_as_divisors(tmp_path: Path) -> None:
    def parts(x: Tensor) -> Tensor:
        n = x.shape[0]
        return torch.remainder(x, n) + x // n + torch.div(x.long(), n, rounding_mode="trunc")

    reparam.export(Lambda(lambda m, x: parts(x)), torch.randn(3, 4) * 20, path=tmp_path / "net.onnx")
    for batch in (3, 7):
        x = torch.randn(batch, 4) * 1000
        np.testing.assert_array_equal(run(str(tmp_path / "net.onnx"), x).numpy(), parts(x).numpy())
