"""Each free axis is tried alone, and none at all: who is named follows from which of these fail."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from reparam.check import PathError
from reparam.check import blame as subject
from reparam.check.blame import unasked_batch_is_to_blame
from reparam.errors import CaptureError
from reparam.utils import DEFAULT_AXES

FIRST = PathError("it takes another path", ["first guess"])
MODEL, X = nn.ReLU(), torch.zeros(2, 3)
LENGTH = "x:1=length"


@dataclass
class Captured:
    program: tuple[str, ...]


def blame(
    monkeypatch: pytest.MonkeyPatch, dynamic: Sequence[str], failing: Collection[tuple[str, ...]], model: Any = MODEL
) -> tuple[PathError, list[tuple[str, ...]]]:
    """What is returned or raised where the graph is not the model for these sets of axes, and what was tried."""
    tried: list[tuple[str, ...]] = []

    def capture(module: nn.Module, inputs: Sequence[Any], *, dynamic: Sequence[str]) -> Captured:
        assert module is MODEL and inputs == (X,)
        tried.append(tuple(dynamic))
        if tuple(dynamic) in failing and len(dynamic) == 1 and dynamic[0] == "width":
            raise CaptureError("it cannot be captured")
        return Captured(tuple(dynamic))

    def check(original: Any, converted: Any, seed: int, judge: Any) -> None:
        assert original is converted and seed == 9 and judge == (MODEL, original)
        if original in failing:
            raise PathError("it is something else", [f"guess of {original}"])

    monkeypatch.setattr(subject, "capture", capture)
    monkeypatch.setattr(subject, "check_float64", check)
    monkeypatch.setattr(subject, "Judge", lambda module, program: (module, program))
    try:
        return unasked_batch_is_to_blame(FIRST, model, (X,), dynamic, 9), tried
    except PathError as raised:
        raised.add_note("raised")
        return raised, tried


def was_raised(error: BaseException) -> bool:
    return getattr(error, "__notes__", None) == ["raised"]


def test_a_batch_for_which_nobody_asked_is_fixed_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = blame(monkeypatch, DEFAULT_AXES, {("batch",)})
    assert not was_raised(found) and found.axes == ("batch",) and not tried
    assert str(found) == "it takes another path; leave batch out of the free axes"


def test_a_batch_that_was_asked_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = blame(monkeypatch, ("batch",), {("batch",)})
    assert was_raised(found) and found.axes == ("batch",) and found.__cause__ is FIRST
    assert tried == [()], "it is the only one"


@pytest.mark.parametrize(
    "failing, named",
    [
        ([("height",)], ("height",)),
        ([("width",)], ("width",)),
        ([("batch",), ("height",)], ("batch", "height")),
        ([], ("height", "width")),  # which fail together alone; the batch is the last to be given up
    ],
)
def test_those_are_named_that_fail_alone(
    monkeypatch: pytest.MonkeyPatch, failing: list[tuple[str, ...]], named: tuple[str, ...]
) -> None:
    found, tried = blame(monkeypatch, ("batch", "height", "width"), failing)
    assert was_raised(found) and found.axes == named and found.__cause__ is FIRST
    assert str(found) == f"it takes another path; leave {' and '.join(named)} out of the free axes"
    assert tried == [(), ("batch",), ("height",), ("width",)]


def test_where_no_choice_of_axes_helps_that_is_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = blame(monkeypatch, ("batch", "height"), [(), ("batch",)])
    assert was_raised(found) and found.what == "it is something else" and found.__cause__ is FIRST
    assert tried == [()]


def test_an_unasked_batch_that_fails_alone_is_fixed_beside_other_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = blame(monkeypatch, (*DEFAULT_AXES, "height"), [("batch",)])
    assert not was_raised(found) and found.axes == ("batch",)
    assert tried == [(), ("batch",), ("height",)]
    asked, _ = blame(monkeypatch, ("batch", "height"), [("batch",)])
    assert was_raised(asked) and asked.axes == ("batch",)
    both, _ = blame(monkeypatch, (*DEFAULT_AXES, "height"), [("batch",), ("height",)])
    assert was_raised(both) and both.axes == ("batch", "height")


def test_axes_are_named_once_as_the_user_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = blame(monkeypatch, ("x:0=batch", LENGTH, "y:1=length"), [(LENGTH,), ("y:1=length",)])
    assert found.axes == ("length",)
    batches, tried = blame(monkeypatch, ("x:0=batch", "y:0=batch"), [])
    assert batches.axes == ("batch",) and was_raised(batches)
    assert tried == [(), ("x:0=batch",), ("y:0=batch",)]


def test_without_free_axes_the_error_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found, tried = blame(monkeypatch, (), [])
    assert found is FIRST and was_raised(found) and not tried
    del FIRST.__notes__


def test_so_it_does_for_an_exported_program_whose_sizes_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = torch.export.export(MODEL, (X,))
    found, tried = blame(monkeypatch, ("batch", "height"), [("height",)], exported)
    assert found is FIRST and was_raised(found) and not tried
    del FIRST.__notes__


def test_other_errors_of_a_trial_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(subject, "capture", broken)
    with pytest.raises(ZeroDivisionError):
        unasked_batch_is_to_blame(FIRST, MODEL, (X,), ("batch", "height"), 9)
