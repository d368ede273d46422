"""Errors of one output over several inputs: what is added up, the bar, and which complaint is made."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reparam.check.output_error import SLACK, ErrorSums, OutputError
from support.helpers import doubles


def rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=4), floor=st.sampled_from([0.0, 1e-3, 0.5]))
def test_sums_over_inputs_give_the_errors_of_all_of_them(counts: list[int], floor: float) -> None:
    sums = ErrorSums()
    rounds = [tuple(doubles(n, 2, seed=4 * i + k) for k in range(4)) for i, n in enumerate(counts)]
    for values in rounds:
        sums.add(*values)
    found = sums.result(3, floor)
    assert found.index == 3
    if not sum(counts):
        assert (found.difference, found.error_a, found.error_b, found.size, found.bar, found.peak) == (0,) * 6
        return
    truth, other, a, b = (torch.cat([r[k] for r in rounds]) for k in range(4))
    assert found.difference == pytest.approx(rms(other - truth))
    assert found.error_a == pytest.approx(rms(a - truth))
    assert found.error_b == pytest.approx(rms(b - truth))
    assert found.size == pytest.approx(rms(truth))
    assert found.bar == pytest.approx(SLACK * rms(a - truth) + floor * rms(truth))
    assert found.peak == pytest.approx(float((other - truth).abs().max()))
    assert found.peak_bar == pytest.approx(SLACK * float((a - truth).abs().max()) + floor * float(truth.abs().max()))


def test_one_more_run_of_the_first_model_widens_what_one_number_may_be_off_by() -> None:
    sums = ErrorSums()
    sums.add(*(torch.tensor(v) for v in ([1.0, -4.0], [1.0, -4.0], [1.5, -4.0], [1.0, -4.0])))
    before = sums.result(0, 0.25)
    assert before.peak_bar == 0.5 * SLACK + 0.25 * 4
    sums.widen(torch.tensor([1.0, -4.0]), torch.tensor([1.25, -4.0]), "disturbed")
    sums.widen(torch.tensor([]), torch.tensor([]), "disturbed")
    assert sums.result(0, 0.25) == before
    sums.widen(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -6.0]), "disturbed")
    widened = math.sqrt((0.25**2 + 2.0**2) / 4)  # of both runs, of two numbers each
    bar = SLACK * widened + 0.25 * before.size
    assert sums.result(0, 0.25) == dataclasses.replace(before, bar=bar, peak_bar=2.0 * SLACK + 0.25 * 4)
    sums.widen(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -6.25]), "in order")
    bar = SLACK * math.sqrt(2.25**2 / 2) + 0.25 * before.size  # of the one run of its kind
    assert sums.result(0, 0.25) == dataclasses.replace(before, bar=bar, peak_bar=2.25 * SLACK + 0.25 * 4)


def test_a_single_number_is_its_own_mean() -> None:
    sums = ErrorSums()
    sums.add(*(torch.tensor([v]) for v in (1.0, 4.0, 1.5, 3.0)))
    assert sums.result(0, 0.25) == OutputError(0, 3.0, 0.5, 2.0, 1.0, 0.5 * SLACK + 0.25, 3.0, 0.5 * SLACK + 0.25)


def error(difference: float = 0.0, error_b: float = 0.0, peak: float = 0.0) -> OutputError:
    return OutputError(2, difference, 0.0, error_b, 1.0, 0.5, peak, 0.75)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (error(difference=0.6), "output 2 differs by 0.6 (RMS), where 0.5 is allowed"),
        (error(error_b=0.625), "output 2 differs by 0.625 (RMS), where 0.5 is allowed"),
        (error(0.6, 0.7, 0.9), "output 2 differs by 0.7 (RMS), where 0.5 is allowed"),
        (error(difference=math.nan), "output 2 differs by nan (RMS), where 0.5 is allowed"),
        (error(peak=0.8), "an element of output 2 differs by 0.8, where 0.75 is allowed"),
        (error(peak=math.nan), "an element of output 2 differs by nan, where 0.75 is allowed"),
    ],
)
def test_what_is_too_large_is_named(found: OutputError, complaint: str) -> None:
    assert not found.ok
    assert found.complaint == complaint


def test_errors_at_their_bars_are_allowed() -> None:
    assert error(0.5, 0.5, 0.75).ok
