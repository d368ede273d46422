"""Free axes of one, which torch does not trace: the model itself says what it does there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reparam.check import Judge, NetworkEvidence, PathError, check_float64
from support.helpers import Lambda, program_of


def of_one(forward: Callable[..., Any], axes: tuple[str, ...] = ("height",)) -> NetworkEvidence:
    model = Lambda(forward).eval()
    program = program_of(model, torch.zeros(2, 1, 12, 12), dynamic=axes)
    return check_float64(program, program.copy(), 0, Judge(model, program))[0]


def doubled_but_for_one_row(m: Any, x: Tensor) -> Tensor:
    if x.shape[2] > 1:
        return x * 2
    return x * 3


def test_what_a_model_does_at_a_size_of_one_alone_is_another_path() -> None:
    """torch traces with two rows or more, and takes for granted that there are."""
    with pytest.raises(PathError) as told:
        of_one(doubled_but_for_one_row)
    text = str(told.value)
    assert "shape 2x1x1x12 than the one that was traced: the captured graph computes something else there;" in text
    assert text.index("with 2x1x12x12 it goes on at ") < text.index(", with 2x1x1x12 at ")
    assert told.value.axes == ("height",)
    with pytest.raises(PathError, match="2x1x12x1 than"):
        of_one(lambda m, x: x * 2 if x.shape[3] > 1 else x * 3, ("height", "width"))
    with pytest.raises(PathError, match="2x1x1x1 than"):
        of_one(lambda m, x: x * 2 if x.shape[2] > 1 or x.shape[3] > 1 else x * 3, ("height", "width"))


def test_other_functions_that_give_the_same_at_a_size_of_one_are_no_other_path() -> None:
    evidence = of_one(lambda m, x: x.cumsum(2) if x.shape[2] > 1 else x * 1)
    assert evidence.shapes[-1] == (2, 1, 1, 12) and evidence.trials == 8 + 4 * 2 + 2


def test_sizes_of_one_that_the_model_does_not_take_are_left_out() -> None:
    evidence = of_one(lambda m, x: F.pad(x, (0, 0, 1, 1), mode="reflect"))
    assert all(s[2] > 1 for s in evidence.shapes)


def test_sizes_of_one_that_give_no_number_are_left_out_without_a_word(recwarn: pytest.WarningsRecorder) -> None:
    before = list(warnings.filters)
    evidence = of_one(lambda m, x: x / x.std(2, keepdim=True))
    assert all(s[2] > 1 for s in evidence.shapes) and not list(recwarn)
    assert list(warnings.filters) == before
