"""Which lines of a model the judge runs, and models whose functions say nothing of their path."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture import places
from reparam.check import Judge
from support.helpers import Lambda, program_of

X = torch.tensor([[0.1, -0.7, 1.3], [2.1, 0.3, -1.9]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _breaks_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make mutants` calls broken functions by one of its own, which is no line of the model."""
    caller = sys.modules.get("mutmut.mutation.trampoline")
    if caller is not None:
        monkeypatch.setattr(places, "_OUR_CODE", (*places._OUR_CODE, str(caller.__file__)))


def tripled(x: Tensor) -> Tensor:
    return x * 3


def forward(m: Any, x: Tensor) -> Tensor:
    if len(x) > 1:
        x = tripled(x)
    rows, x = x.shape[0], F.relu(x)  # what is only asked for is no call
    return x + rows


def judge() -> Judge:
    model = Lambda(forward).eval()
    return Judge(model, program_of(model, X.float()))


def test_the_lines_are_those_of_the_model_that_call_functions_of_torch_in_their_order() -> None:
    lines = judge().lines_where_it_runs([X])
    assert lines is not None
    assert [line.code for line in lines] == [
        "return x * 3",
        "rows, x = x.shape[0], F.relu(x)  # what is only asked for is no call",
        "return x + rows",
    ]
    assert {line.file for line in lines} == {__file__}
    shorter = judge().lines_where_it_runs([X[:1]])
    assert shorter == lines[1:]


def test_lines_are_noted_where_they_are_asked_for_alone() -> None:
    one = judge()
    lines = one.lines_where_it_runs([X])
    assert lines is not None
    assert one.own_where_it_runs([X]) is not None
    assert (len(lines) == 3 and one.path == ("__mul__", "relu", "__add__")) or one.path == ("mul", "relu", "add")
    assert one.lines_where_it_runs([X]) == lines


def test_calls_of_torch_alone_are_on_no_line_of_the_model() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Softmax(1)).eval()
    one = Judge(model, program_of(model, X.float()))
    assert one.lines_where_it_runs([X]) == [] and "relu" in one.path


def test_there_are_none_for_inputs_that_it_does_not_take() -> None:
    model = Lambda(lambda m, x: x.reshape(2, 3) * 2).eval()
    one = Judge(model, program_of(model, X.float(), dynamic=()))
    assert one.lines_where_it_runs([X[:1]]) is None
    found = one.lines_where_it_runs([X])
    assert found is not None and len(found) == 2, "the lines of a run that stopped are gone"


def test_a_model_that_spells_sizes_has_no_path() -> None:
    """It calls other functions for other sizes, and says that these compute the same."""
    model = Lambda(lambda m, x: x * 2).eval()
    program = program_of(model, X.float())
    for spells, path in ((False, ("mul",)), (True, ())):
        model.spells_sizes = spells  # type: ignore[assignment]
        one = Judge(model, program)
        one.truth([X])
        assert one.path == path
