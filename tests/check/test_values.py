"""Outputs compared: how far numbers lie apart, and that all else is the same or not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.check.values import all_finite, first_shape, is_number, largest_difference, refuse_broken_weights, widened
from reparam.errors import InputError
from reparam.ir import Program
from support.helpers import Lambda, program_of

NUMBERS = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (torch.ones(2), True),
        (torch.ones(2, dtype=torch.float16), True),
        (torch.ones(2, dtype=torch.complex64), True),
        (torch.ones(2, dtype=torch.int64), False),
        (torch.ones(2, dtype=torch.bool), False),
        (1.5, False),
        (None, False),
    ],
)
def test_floating_and_complex_tensors_are_numbers(value: Any, number: bool) -> None:
    assert is_number(value) is number


def test_the_first_tensor_gives_the_shape() -> None:
    assert first_shape([2, torch.ones(3, 1), torch.ones(4)]) == (3, 1)


def test_what_is_widened_keeps_its_values_in_double_precision() -> None:
    half = torch.tensor([1.5, -0.25], dtype=torch.float16, requires_grad=True)
    assert widened(half).dtype == torch.float64 and widened(half).tolist() == [1.5, -0.25]
    assert not widened(half).requires_grad
    waves = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    assert widened(waves).tolist() == [[1, 2], [3, -4]]
    assert widened(waves.conj()).tolist() == [[1, -2], [3, 4]]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_value_that_is_not_finite_is_seen(bad: float) -> None:
    fine: list[Any] = [torch.ones(3), None, 2, torch.tensor([True]), torch.ones(0)]
    assert all_finite(fine) and all_finite([])
    assert not all_finite([*fine, torch.tensor([1.0, bad])])
    assert not all_finite([torch.tensor([complex(0, bad)]), *fine])


@given(a=st.lists(NUMBERS, min_size=1, max_size=4), b=st.lists(NUMBERS, min_size=1, max_size=4))
def test_the_difference_is_relative_to_the_largest_magnitude_of_the_truth(a: list[float], b: list[float]) -> None:
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    one, other = (torch.tensor(v, dtype=torch.float64) for v in (a, b))
    expected = max(abs(p - q) for p, q in zip(a, b, strict=True)) / max(*map(abs, a), 1e-300)
    assert largest_difference([one], [other]) == (expected if math.isfinite(expected) else math.inf)
    # Of several outputs the worst one counts, wherever it stands.
    same = torch.ones(2)
    for k in range(3):
        first, second = [same, same], [same, same]
        first.insert(k, one)
        second.insert(k, other)
        assert largest_difference(first, second) == largest_difference([one], [other])


def test_infinities_that_are_the_same_do_not_differ() -> None:
    mask = torch.tensor([-math.inf, 2.0])
    assert largest_difference([mask], [mask.clone()]) == 0.0
    assert largest_difference([torch.tensor([1.0, 2.0])], [torch.tensor([math.nan, 2.0])]) == math.inf
    assert largest_difference([torch.tensor([1.0, 2.0])], [torch.tensor([math.inf, 2.0])]) == math.inf


def test_zeros_against_something_differ_by_more_than_any_bar() -> None:
    assert largest_difference([torch.zeros(2)], [torch.zeros(2)]) == 0.0
    assert largest_difference([torch.zeros(2)], [torch.tensor([0.0, 1e-30])]) > 1e200


def test_nothing_differs_from_nothing() -> None:
    assert largest_difference([], []) == 0.0
    assert largest_difference([torch.ones(0, 3)], [torch.ones(0, 3)]) == 0.0


INTEGERS = torch.tensor([1, 2])
SAME: list[tuple[Any, Any]] = [
    (INTEGERS, INTEGERS.clone()), (torch.tensor([True]), torch.tensor([True])), (3, 3), (None, None),
    (torch.tensor([1 + 1j]), torch.tensor([1 + 1j])),
]  # fmt: skip
OTHER: list[tuple[Any, Any]] = [
    (INTEGERS, INTEGERS + 1), (INTEGERS, INTEGERS[:1]), (INTEGERS, INTEGERS.double()), (INTEGERS.double(), INTEGERS),
    (3, 4), (3, torch.tensor(3)), (torch.tensor(3), 3), (None, 0), (torch.ones(2), torch.ones(2, 1)),
    (torch.ones(1, dtype=torch.complex64), torch.ones(1)), (torch.ones(1), torch.ones(1, dtype=torch.complex64)),
    (torch.ones(0), torch.ones(0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_what_is_no_number_is_the_same(a: Any, b: Any) -> None:
    assert largest_difference([a], [b]) == 0.0


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_or_it_is_another_value(a: Any, b: Any) -> None:
    assert largest_difference([a], [b]) == math.inf
    assert largest_difference([a, torch.ones(1)], [b, torch.ones(1)]) == math.inf


def test_another_number_of_outputs_is_another_result() -> None:
    assert largest_difference([INTEGERS], [INTEGERS, INTEGERS]) == largest_difference([INTEGERS], []) == math.inf


def weighted(*weights: nn.Parameter | Tensor) -> Program:
    """A program that reads these in their order."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for i in range(len(weights)):
            x = x * getattr(m, f"w{i}")
        return x

    net = Lambda(forward)
    for i, weight in enumerate(weights):
        net.register_parameter(f"w{i}", weight) if isinstance(weight, nn.Parameter) else net.register_buffer(
            f"w{i}", weight
        )
    return program_of(net, torch.ones(2, 3))


def test_a_weight_that_is_not_finite_is_refused_and_an_infinity_that_is_data_is_not() -> None:
    whole, broken = nn.Parameter(torch.arange(3), requires_grad=False), torch.tensor([1.0, math.inf, 2.0])
    with pytest.raises(InputError, match=r"weight 'w1' holds NaN or infinite values"):
        refuse_broken_weights(weighted(whole, nn.Parameter(broken)))
    refuse_broken_weights(weighted(whole, broken, nn.Parameter(broken.clone(), requires_grad=False)))
    for data in (broken * math.nan, nn.Parameter(broken * math.nan, requires_grad=False)):
        with pytest.raises(InputError, match="weight 'w0' holds NaN"):
            refuse_broken_weights(weighted(data))
