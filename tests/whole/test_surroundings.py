"""A conversion is the same whatever has been set around it, and in whichever thread it runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor, nn

import reparam
from support.helpers import healthy


def net() -> nn.Module:
    torch.manual_seed(0)
    return healthy(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))).float()


def gap(model: nn.Module, x: Tensor) -> float:
    made = reparam.convert(model, x, to="plain")
    assert made.report.after.norms == 0
    with torch.no_grad():
        return float((made.module(x) - model(x)).abs().max())


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def anomalies() -> Iterator[None]:
    """Entered by the test alone: what torch has for it is on from when it is made."""
    with torch.autograd.set_detect_anomaly(True):
        yield


@contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    "surrounding",
    [
        torch.inference_mode(),
        anomalies(),
        default_dtype(torch.float64),
        default_dtype(torch.float16),
        warnings_as_errors(),
    ],
    ids=["inference mode", "anomalies", "float64", "float16", "warnings"],
)
def test_what_is_set_around_a_conversion(surrounding: AbstractContextManager[None]) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    with surrounding:
        assert gap(model, x) < 1e-5


def test_a_model_that_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = net(), torch.randn(2, 3, 8, 8)
    assert gap(model, x) < 1e-5
    assert all(p.is_inference() for p in model.parameters())


def test_nothing_is_printed_of_torchs_own_code() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,), strict=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert reparam.verify(program, reparam.convert(program).program, x).equivalent
    assert [str(w.message) for w in seen if "treespec" in str(w.message)] == []


def test_threads_take_turns() -> None:
    models, x = [net() for _ in range(3)], torch.randn(2, 3, 8, 8)
    with ThreadPoolExecutor(3) as pool:
        assert all(g < 1e-5 for g in pool.map(lambda model: gap(model, x), models))
