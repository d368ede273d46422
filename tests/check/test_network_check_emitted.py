"""The check in the emitted dtype, on rounds that are made by hand: what is measured, what is left out, what is told."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.check import LostDigitsError, NetworkEvidence, PathError, check_emitted, depth_limit
from reparam.check.input_plan import Plan
from reparam.check.rounds import Round
from reparam.emit import finalize
from reparam.errors import CaptureError, InputError, NotEquivalentError
from reparam.ir import Program, evaluate
from support.helpers import Lambda, program_of

EPS = 2.0**-23
SEEN = NetworkEvidence(float64_max_rel=3e-13, trials=5, seed=4, shapes=((1, 3),), dtype="none yet")
FIXED, BATCHES = Plan({}, 2), Plan({"s": 2}, 2)
ROW = torch.tensor([[1.0, 2.0, -4.0], [8.0, 0.5, -2.0]], dtype=torch.float64)  # exact in every product


def row(forward: Callable[..., Any], **parts: Any) -> Program:
    return program_of(Lambda(forward, **parts), ROW.float(), dynamic=())


def times(*factors: float) -> Program:
    return row(lambda m, x: tuple(x * f for f in factors))


def rounds(truth: Program, plan: Plan = FIXED, limit: float = 0.0, **options: Any) -> list[Round]:
    return [Round([ROW], evaluate(truth, [ROW]), plan, limit, **options)]


def calling(function: Callable[[Tensor], Tensor]) -> Program:
    """A program whose only call is this."""
    made = row(lambda m, x: x * 2)
    node = next(made.calls())
    node.target, node.args = function, (node.args[0],)
    return made


def fails(message: str, when: Callable[[Tensor], bool] = lambda x: True) -> Program:
    def stops(x: Tensor) -> Tensor:
        if when(x):
            raise RuntimeError(message)
        return x * 2

    return calling(stops)


def rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def test_a_result_in_another_dtype_is_refused_whatever_its_values() -> None:
    original, emitted = (row(lambda m, x, to=to: (x * 2, (x > 0).to(to), 3)) for to in (torch.int64, torch.bool))
    given = rounds(original)
    check_emitted(original, original, given, SEEN, None)
    with pytest.raises(NotEquivalentError, match="output 1 of the converted network is bool, the original's is int64"):
        check_emitted(original, emitted, given, SEEN, None)
    check_emitted(original, emitted, given, SEEN, torch.float64)  # which is asked for


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_errors_are_measured_against_the_truth_and_added_to_the_evidence() -> None:
    original, emitted = times(2.0 + 2 * EPS), times(2.0 + 4 * EPS)
    found = check_emitted(original, emitted, rounds(times(2.0)), SEEN, None)
    assert found == dataclasses.replace(
        SEEN, error=pytest.approx(4 * EPS * rms(ROW)), original_error=pytest.approx(2 * EPS * rms(ROW)), dtype="float32"
    )


def test_what_is_known_of_the_original_in_its_own_dtype_is_not_computed_again() -> None:
    known = [(ROW * (2.0 + 2**-6)).float()]
    twice, given = times(2.0), rounds(times(2.0), own=known)
    found = check_emitted(fails("is not run"), twice, given, SEEN, None)
    assert found.original_error == pytest.approx(2**-6 * rms(ROW)) and found.error == 0.0
    assert check_emitted(twice, twice, given, SEEN, torch.float32).original_error == 0.0


def test_the_output_that_comes_nearest_to_its_bar_is_reported() -> None:
    """Of 4096, 2 and 1 the second is off by the largest share."""
    emitted = times(4096 * (1 + EPS), 2 * (1 + 3 * EPS), 1.0)
    found = check_emitted(times(4096.0, 2.0, 1.0), emitted, rounds(times(4096.0, 2.0, 1.0)), SEEN, None)
    assert found.error == pytest.approx(6 * EPS * rms(ROW)) and found.original_error == 0.0


def test_both_are_run_in_the_dtype_that_is_emitted() -> None:
    factor, narrow = torch.tensor(0.3), torch.bfloat16
    values = (ROW * 1.1).float().double()
    original = row(lambda m, x: x * m.w, w=nn.Parameter(factor))
    given = [Round([values], [values * float(factor)], FIXED, 0.0)]
    found = check_emitted(original, finalize(original.copy(), narrow), given, SEEN, narrow)
    coarse = (values.to(narrow) * factor.to(narrow)).double() - values * float(factor)
    assert found.dtype == "bfloat16"
    assert found.error == found.original_error == pytest.approx(rms(coarse))


@pytest.mark.parametrize("dtype, unit", [(None, EPS), (torch.bfloat16, 2.0**-7)])
def test_an_exact_original_allows_four_roundings_of_the_emitted_dtype(dtype: torch.dtype | None, unit: float) -> None:
    """Signs lose nothing, wherever their inputs are rounded to."""

    def signs(factor: float) -> Program:
        return row(lambda m, x: x.sign() * factor)

    exact = signs(2.0)
    check_emitted(exact, finalize(signs(2.0 * (1 + 4 * unit)), dtype), rounds(exact), SEEN, dtype)
    with pytest.raises(LostDigitsError):
        check_emitted(exact, finalize(signs(2.0 * (1 + 5 * unit)), dtype), rounds(exact), SEEN, dtype)


def test_or_what_the_check_in_float64_allowed_on_any_of_the_inputs() -> None:
    exact, off = times(2.0), times(2.0 * (1 + 24 * EPS))
    wide = [*rounds(exact), *rounds(exact, limit=25 * EPS)]
    assert check_emitted(exact, off, wide, SEEN, None).error > 0
    with pytest.raises(LostDigitsError):
        check_emitted(exact, off, rounds(exact), SEEN, None)


def test_a_network_without_numbers_among_its_outputs_has_no_errors() -> None:
    whole = row(lambda m, x: x.argmax(1))
    assert check_emitted(whole, whole.copy(), rounds(whole), SEEN, None) == dataclasses.replace(SEEN, dtype="float32")


@pytest.mark.parametrize(
    "layers, bar", [(0, 1e-10), (1, 1e-10), (50, 1e-10), (51, 1.02e-10), (100, 2e-10), (499, 9.98e-10), (600, 1e-9)]
)
def test_the_bar_in_float64_grows_with_the_number_of_layers_from_1e_10_to_1e_9(layers: int, bar: float) -> None:
    made = program_of(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), ROW.float(), dynamic=())
    linear, relu = made.calls()
    deep = SimpleNamespace(calls=lambda: iter([linear] * layers + [relu] * 700))
    assert depth_limit(deep) == pytest.approx(bar, rel=1e-9)  # type: ignore[arg-type]


# ---- digits that are lost --------------------------------------------------------------------------------------------


def test_lost_digits_are_told_in_figures() -> None:
    """Of the first output that lost them."""
    exact, off = times(2.0, 2.0, 2.0), times(2.0, 2.0 * (1 + 2.0**-10), 2.0 * (1 + 2.0**-5))
    with pytest.raises(LostDigitsError) as told:
        check_emitted(exact, off, rounds(exact), SEEN, None)
    found = re.fullmatch(
        r"the converted network is less exact than the original in float32: its error against the float64 truth is "
        r"(\S+) times the original's in the median input, where 2 is allowed \(RMS (\S+), the original's own (\S+)\)",
        str(told.value),
    )
    assert found is not None
    times_, new, old = map(float, found.groups())
    assert times_ > 1000 and old == 0.0
    assert 0.3 * 2.0**-9 * rms(ROW) < new < 3 * 2.0**-9 * rms(ROW)


def sums(error: float) -> Program:
    """x + c - d for large c and d, of which the first is off by so much."""
    large = {"c": nn.Parameter(torch.full((3,), 1e5 + error)), "d": nn.Parameter(torch.full((3,), 1e5))}
    return row(lambda m, x: x + m.c - m.d, **large)


def test_an_original_that_was_lucky_is_judged_by_its_own_law() -> None:
    """It is exact on these inputs, which are whole, and loses half a percent where a rounding falls otherwise."""
    whole = [Round([ROW * 2], [ROW * 2], FIXED, 0.0)]
    found = check_emitted(sums(0.0), sums(2.0**-7), whole, SEEN, None)
    assert (found.error, found.original_error) == (2.0**-7, 0.0)
    with pytest.raises(LostDigitsError, match="less exact"):
        check_emitted(sums(0.0), sums(2.0**-4), whole, SEEN, None)


def test_that_law_is_one_of_the_dtype_that_is_emitted() -> None:
    """Numbers of bfloat16 beside 256 are two apart; in single precision it would be next to nothing."""

    def beside(number: float) -> Program:
        parts = {name: nn.Parameter(torch.full((3,), 256.0)) for name in "bcd"}
        return row(lambda m, x: x + m.a - m.b + m.c - m.d, a=nn.Parameter(torch.full((3,), number)), **parts)

    even, narrow = [Round([ROW * 4], [ROW * 4], FIXED, 0.0)], torch.bfloat16
    found = check_emitted(beside(256.0), finalize(beside(258.0), narrow), even, SEEN, narrow)
    assert (found.error, found.original_error) == (2.0, 0.0)
    with pytest.raises(LostDigitsError):
        check_emitted(beside(256.0), beside(258.0), even, SEEN, None)


@pytest.mark.parametrize("output", [0, 1])
def test_an_original_that_overflows_is_to_blame_itself(output: int) -> None:
    parts: list[Callable[[Tensor], Tensor]] = [lambda x: x * 2, lambda x: x * 2]
    parts[output] = lambda x: x * 1e30 * 1e30 * 1e-30 * 1e-30
    large = row(lambda m, x: tuple(f(x) for f in parts))
    with pytest.raises(InputError) as told:
        check_emitted(large, large.copy(), rounds(large), SEEN, None)
    assert str(told.value) == (
        "the original's own outputs are not finite in float32 on random inputs, so nothing can be compared; they are "
        "in float64"
    )


# ---- what does not run -----------------------------------------------------------------------------------------------


def test_a_smaller_image_that_the_original_does_not_take_is_left_out() -> None:
    """The rewrites made it run there, and nothing is said of that size; the other inputs are measured."""
    exact = times(2.0)
    stops = fails("too small", when=lambda x: bool(x[0, 0] == 7))
    small = Round([ROW * 0 + 7], [ROW * 0], FIXED, 0.0, unclaimed=True)
    found = check_emitted(stops, exact, [small, *rounds(exact)], SEEN, None)
    assert (found.error, found.original_error, found.dtype) == (0.0, 0.0, "float32")
    assert check_emitted(stops, exact, [small], SEEN, None) == dataclasses.replace(SEEN, dtype="float32")
    with pytest.raises(LostDigitsError):
        check_emitted(stops, times(3.0), [small, *rounds(exact)], SEEN, None)


def test_a_smaller_image_of_which_the_captured_graph_makes_other_shapes_is_left_out() -> None:
    """It is not the model there. Where the shapes are the model's, its values count."""
    exact = times(2.0)
    small = Round([ROW], [ROW[:, :2]], FIXED, 0.0, unclaimed=True)
    assert check_emitted(exact, exact, [small], SEEN, None) == dataclasses.replace(SEEN, dtype="float32")
    with pytest.raises(LostDigitsError):
        check_emitted(exact, times(3.0), [small, *rounds(exact)], SEEN, None)
    with pytest.raises(LostDigitsError):
        check_emitted(exact, times(3.0), rounds(exact, unclaimed=True), SEEN, None)
    none = Round([ROW], [None], FIXED, 0.0, unclaimed=True)
    assert check_emitted(exact, exact, [none, *rounds(exact)], SEEN, None).error == 0.0


def test_a_free_size_that_the_original_does_not_take_is_the_captured_graphs_fault() -> None:
    exact = times(2.0)
    with pytest.raises(PathError, match=r"inputs of shape 2x3 than the one .*: the captured graph does not run there"):
        check_emitted(fails("no"), exact, rounds(exact, BATCHES), SEEN, None)


@pytest.mark.parametrize("options", [{}, {"plan": BATCHES}, {"unclaimed": True}])
def test_an_emitted_network_that_does_not_run_where_the_original_does_is_told(options: dict[str, Any]) -> None:
    exact = times(2.0)
    with pytest.raises(CaptureError, match=r"^the model does not run on random inputs of the traced size: no$"):
        check_emitted(exact, fails("no\nand more"), rounds(exact, **options), SEEN, None)


def test_an_original_that_does_not_run_at_its_traced_size_is_told() -> None:
    exact = times(2.0)
    with pytest.raises(CaptureError, match=r"^the model does not run on random inputs of the traced size: no$"):
        check_emitted(fails("no"), exact, rounds(exact), SEEN, None)


@pytest.mark.parametrize(
    "dtype, message",
    [
        (None, "\"conv\" not implemented for 'Float'"),
        (torch.float16, "no such kernel"),
        (torch.float16, "not implemented"),
    ],
)
def test_what_the_machine_cannot_compute_is_its_own_fault(dtype: torch.dtype | None, message: str) -> None:
    exact, name = times(2.0), "float32" if dtype is None else "float16"
    with pytest.raises(InputError) as told:
        check_emitted(exact, fails(f"{message}\nand more"), rounds(exact), SEEN, dtype)
    assert str(told.value) == f"this machine cannot run the network in {name}: {message}"
    assert not isinstance(told.value, CaptureError)
