"""Conditions on sizes: the same answers as sympy's, for many sizes at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy  # type: ignore[import-untyped]
from torch.utils._sympy.functions import CeilToInt, FloorDiv, FloorToInt, IntTrueDiv, Max, Min, Mod, PythonMod

from reparam.ir.size_condition import SizeCondition

H, W = sympy.symbols("h w", integer=True, positive=True)
ROWS = [(h, w) for h in (2, 3, 7, 8, 31, 224) for w in (2, 5, 64)]


def padded(size: Any) -> Any:
    """The size behind a convolution of three with a step of two that pads as much as it needs."""
    pad = Max(0, 2 * CeilToInt(IntTrueDiv(size, 2)) - size + 1)
    return FloorDiv(size + pad - 3, 2) + 1


@pytest.mark.parametrize(
    "condition",
    [
        sympy.Eq(Mod(H, 2), 0),
        sympy.Ne(PythonMod(H - W, 3), 1),
        sympy.And(H >= 3, W < 64),
        sympy.Or(H > 100, sympy.Eq(Min(H, W), 5)),
        sympy.Not(sympy.Eq(H, 2 * W)),
        H * W * 3 <= 90,
        sympy.Eq(FloorToInt(IntTrueDiv(3 * H, 4)), FloorDiv(3 * H, 4)),
        padded(padded(H)) > W,
        H**2 > 9 * W,  # a power, and a fraction below: left to sympy
        H / 2 < W,
        Min(H, 2**63) + W > 2**64,  # too large to be a size
        sympy.true,
        sympy.false,
    ],
)
def test_it_holds_where_sympy_says_so(condition: Any) -> None:
    truth = [bool(condition.subs({H: h, W: w})) for h, w in ROWS]
    assert SizeCondition(condition, (H, W)).holds(ROWS) == truth


def test_nothing_is_asked_where_it_divides_by_zero() -> None:
    condition = SizeCondition(sympy.Eq(Mod(H, FloorDiv(W, 8)), 1), (H, W))
    assert condition.holds([(8, 16), (8, 4), (9, 16)]) == [False, True, True]
    assert condition.holds([(8, 4)]) == [True]
    assert condition.holds([]) == []


def test_a_remainder_of_what_may_be_negative_beside_a_division_by_zero() -> None:
    """Of each row by itself, where some rows divide by zero; sympy's own remainders do not take the negative ones."""
    condition = SizeCondition(sympy.Or(sympy.Eq(PythonMod(H - 5, 4), 3), sympy.Eq(FloorDiv(8, W - 2), 4)), (H, W))
    assert condition.holds([(4, 9), (5, 4), (5, 2), (6, 9)]) == [True, True, True, False]
    size = SizeCondition(FloorDiv(H - 7, W - 2), (H, W))
    assert size.sizes(np.array([(4, 3), (4, 2), (11, 4)])).tolist() == [-3, 0, 2]


@pytest.mark.parametrize("size", [H, 2 * H - 3, FloorDiv(H * W, 7), padded(padded(H)), H**2, sympy.Integer(4)])
def test_sizes_are_what_sympy_says(size: Any) -> None:
    truth = [int(size.subs({H: h, W: w}).doit()) for h, w in ROWS]
    assert SizeCondition(size, (H, W)).sizes(np.array(ROWS)).tolist() == truth


def test_a_size_that_is_divided_by_zero_is_none() -> None:
    rows = np.array([(8, 16), (8, 4)])
    assert SizeCondition(FloorDiv(H, FloorDiv(W, 8)), (H, W)).sizes(rows).tolist() == [4, 0]


def test_each_different_term_of_a_long_expression_is_computed_once() -> None:
    """Of five layers that pad as they need."""
    size = H
    for _ in range(5):
        size = padded(size)
    condition = SizeCondition(size >= 1, (H,))
    assert sum(1 for _ in sympy.preorder_traversal(size)) > 20 * len(condition._terms)
    assert condition.holds([(n,) for n in range(2, 500)]) == [True] * 498
