"""Errors input by input: how they are added up, what counts as fair, and the law of the original's own errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.check import exactness
from reparam.check.exactness import DISTURBED, MORE, TAIL, OutputSpread, add_spreads, disturbed, spread_further
from reparam.check.input_plan import Plan
from reparam.check.rounds import Round
from reparam.emit import finalize
from reparam.ir import Program, evaluate
from support.helpers import Lambda, program_of

EPS = torch.finfo(torch.float32).eps
INF = math.inf


def spread(new: list[float], old: list[float], size: list[float] | None = None, **more: Any) -> OutputSpread:
    return OutputSpread(new, old, size or [1.0] * len(new), more.pop("weight", [1] * len(new)), **more)


# ---- what counts as fair ---------------------------------------------------------------------------------------------


def test_errors_of_all_inputs_together_are_weighted_by_their_elements() -> None:
    found = spread([1.0, 2.0], [3.0, 5.0], [7.0, 4.0], weight=[1, 3])
    assert found.new_rms == pytest.approx(math.sqrt((1 + 3 * 4) / 4))
    assert found.old_rms == pytest.approx(math.sqrt((9 + 3 * 25) / 4))
    size = math.sqrt((49 + 3 * 16) / 4)
    assert found.ratio(0.5) == pytest.approx(found.new_rms / (2 * found.old_rms + 0.5 * size))
    assert spread([0.3], [0.0]).new_rms == pytest.approx(0.3), "a single number"
    assert OutputSpread().new_rms == OutputSpread().old_rms == 0.0


def test_a_share_of_nothing_is_nothing_for_an_exact_result_alone() -> None:
    assert spread([0.0], [0.0]).ratio(0.0) == 0.0
    assert spread([1e-9], [0.0]).ratio(0.0) == INF
    assert OutputSpread().ratio(0.1) == 0.0


@pytest.mark.parametrize("new, fair", [(2.0, True), (2.01, False)])
def test_exactly_twice_the_error_is_fair(new: float, fair: bool) -> None:
    assert spread([new], [1.0]).fair(0.0) is fair
    assert spread([new], [1.0]).fair_against_spread(0.0) is fair


def test_each_of_the_two_measures_decides_alone() -> None:
    """All inputs together are twice as bad for one of them; most are three times as bad, beside one large error."""
    together = spread([1.0, 1.0, 4.0], [1.0, 1.0, 1.0])
    assert together.median_ratio(0.0) == 1.0 and 1 < together.ratio(0.0) < 2 and not together.fair(0.0)
    most = spread([3.0, 3.0, 0.0], [1.0, 1.0, 100.0])
    assert most.median_ratio(0.0) == 3.0 and most.ratio(0.0) < 1 and not most.fair(0.0)


@pytest.mark.parametrize(
    "new, old, size, ratio",
    [
        (1.0, 2.0, 1.0, 0.5),
        (3.0, 1.0, 1.0, 3.0),
        (6.0, 2.0, 1.0, 3.0),
        (3.0, 1.0, 100.0, 2.0),  # within the roundings that are allowed on top
        (3.0, 1.0, 9.9, 3.0),
        (0.0, 0.0, 0.0, 0.0),
        (0.5, 0.0, 10.0, 0.0),
        (0.5, 0.0, 1.0, INF),
    ],
)
def test_a_few_roundings_are_allowed_on_top_of_twice(new: float, old: float, size: float, ratio: float) -> None:
    assert spread([new], [old], [size]).median_ratio(0.1) == ratio


def test_the_median_is_over_inputs_and_for_each_over_its_own_runs() -> None:
    """Against one draw the third input would be six times as bad, against the median of its runs it is thrice."""
    found = spread([1.0, 4.0, 6.0], [1.0, 1.0, 1.0])
    assert found.median_ratio(0.0) == 4.0
    found.spread = [[1.0, 1.0], [8.0, 9.0], [2.0, 3.0]]
    assert found.median_ratio(0.0) == 1.0, "0.5, 1 and 3"
    assert OutputSpread().median_ratio(0.0) == 0.0


@pytest.mark.parametrize("unit", [1.0, 2.0**-20])
def test_no_input_may_pass_eight_times_the_largest_share_of_the_original(unit: float) -> None:
    """A share is an error by the size of its output; the largest may be that of a run that is off by a rounding."""
    assert TAIL == 8.0
    old, size, wide = [unit] * 3, [10 * unit, unit, 100 * unit], [[unit], [2 * unit], [unit]]

    def fair(last: float, floor: float = 0.0, **more: Any) -> bool:
        return spread([unit, unit, last * unit], old, size, **more).fair_against_spread(floor)

    assert fair(800.0) and not fair(801.0)
    assert fair(801.0, 0.02), "8.02 of its size"
    assert fair(1600.0, spread=wide) and not fair(1601.0, spread=wide)


def test_outputs_that_are_zero_have_to_stay_zero() -> None:
    """There is nothing that an error could be a share of."""
    assert spread([0.0] * 3, [0.0] * 3, [0.0] * 3).fair_against_spread(1e-6)
    assert not spread([0.0, 0.0, 1e-9], [0.0] * 3, [0.0] * 3).fair_against_spread(1e-6)
    assert OutputSpread().fair_against_spread(0.0)


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_a_result_that_is_not_finite_is_never_fair(bad: float) -> None:
    """Even where the original's own errors are beyond all numbers."""
    assert not spread([0.0, 0.0, bad], [1.0, 1.0, INF]).fair_against_spread(0.1)


# ---- how errors are added up -----------------------------------------------------------------------------------------


def test_each_sample_of_a_batch_is_an_input_by_itself() -> None:
    truth = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    outputs: list[OutputSpread] = []
    add_spreads(outputs, [truth], [truth + torch.tensor([[1.0, -1.0], [0.0, 0.0]])], [truth + 2], 2)
    [found] = outputs
    assert found.new == pytest.approx([2.0, 2.0]) and found.old == pytest.approx([1.0, 0.0])
    assert found.size == pytest.approx([math.sqrt(12.5), math.sqrt(2)]) and found.weight == [2, 2]
    add_spreads(outputs, [truth], [truth], [truth + 3], 1)
    assert found.new == pytest.approx([2.0, 2.0, 3.0]) and found.weight == [2, 2, 4] and len(outputs) == 1


@pytest.mark.parametrize("truth", [torch.ones(3, 2), torch.ones(())])
def test_an_output_that_is_no_batch_of_samples_is_one_value(truth: Tensor) -> None:
    outputs: list[OutputSpread] = []
    add_spreads(outputs, [truth], [truth], [truth + 1], 2)
    assert (outputs[0].new, outputs[0].old, outputs[0].size) == ([1.0], [0.0], [1.0])
    assert outputs[0].weight == [truth.numel()]


def test_whole_numbers_and_outputs_without_elements_have_no_errors() -> None:
    numbers, nothing, x = torch.tensor([1, 2]), torch.ones(2, 0), torch.ones(2, 1)
    outputs: list[OutputSpread] = []
    add_spreads(outputs, [numbers, nothing, 3, x], [numbers, nothing, 3, x], [numbers, nothing, 3, x + 1], 2)
    assert [o.new for o in outputs] == [[], [1.0, 1.0]]


def test_complex_numbers_are_measured_by_their_parts_and_narrow_ones_in_float64() -> None:
    outputs: list[OutputSpread] = []
    wide = torch.tensor([1.0 + 2.0**-40], dtype=torch.float64)
    values = [torch.tensor([[3 + 4j]])], [torch.tensor([[3 + 4j]])], [torch.tensor([[3 + 2j]])]
    add_spreads(outputs, [*values[0], wide], [*values[1], wide.float()], [*values[2], wide], 1)
    assert outputs[0].new == pytest.approx([math.sqrt(2)]) and outputs[0].weight == [2]
    assert outputs[1].old == [2.0**-40] and outputs[1].new == [0.0]


# ---- the law of the original's own errors ----------------------------------------------------------------------------


def scaled(by: float = 0.3) -> Program:
    return program_of(Lambda(lambda m, x: x * m.w, w=nn.Parameter(torch.tensor([by, by, by]))), torch.zeros(2, 3))


def rounds(program: Program, *values: Tensor) -> list[Round]:
    return [Round([v], evaluate(program, [v]), Plan({}, len(v)), 0.0) for v in values]


@pytest.mark.parametrize("dtype, eps", [(None, EPS), (torch.bfloat16, 2.0**-7)])
def test_every_number_is_off_by_up_to_one_rounding(dtype: torch.dtype | None, eps: float) -> None:
    """Of one, the next numbers are half a rounding below and one above. Whole numbers and the program stay."""
    net = Lambda(lambda m, x, i: x * m.w + m.n + i, w=nn.Parameter(torch.ones(500)))
    net.register_buffer("n", torch.arange(500))
    program = program_of(net, torch.ones(2, 500), torch.ones(500, dtype=torch.int64))
    x, i = torch.ones(2, 500, dtype=dtype or torch.float32), torch.arange(500)
    made, values = disturbed(program, [x, i, 7], dtype, torch.Generator().manual_seed(0))
    for value in (made.constants["w"].value, values[0]):
        assert value.dtype == (dtype or torch.float32)
        assert set(((value.double() - 1) / eps).flatten().tolist()) == {-1.0, -0.5, 0.0, 1.0}
        assert abs(float((value.double() - 1).mean())) < 0.1 * eps
    assert torch.equal(made.constants["n"].value, torch.arange(500))
    assert values[1] is i and values[2] == 7
    assert torch.equal(program.constants["w"].value, torch.ones(500)) and torch.equal(x, torch.ones_like(x))


def test_the_law_is_measured_on_the_inputs_and_on_more_like_the_largest_batch() -> None:
    program = scaled()
    small, large = torch.full((1, 3), 5.0).double(), torch.tensor([[1.0], [1e6], [1e3], [1.0]]).expand(4, 3).double()
    [found] = spread_further(program, finalize(program.copy()), rounds(program, small, large), None, [])
    assert len(found.new) == len(found.old) == len(found.spread) == 1 + 4 + MORE * 4
    assert all(len(s) == DISTURBED for s in found.spread)
    assert found.new == found.old, "the same network"
    assert found.size[:5] == pytest.approx([1.5, 0.3, 3e5, 300.0, 0.3], rel=1e-6)
    assert set(found.weight) == {3}
    for size, runs, old in zip(found.size, found.spread, found.old, strict=True):
        assert 0 < max(runs) <= 3 * EPS * size, "each beside its own input"
        assert max(runs) > 0.01 * EPS * size and old <= EPS * size
        assert len(set(runs)) > 1, "each run is off in its own way"
    assert len({round(s, 6) for s in found.size[5:]}) > 3, "in other orders"
    assert max(found.size) <= 3e5 * 1.001 and min(found.size) >= 0.2999


def test_the_law_is_the_same_whenever_it_is_measured() -> None:
    program = scaled()
    given = rounds(program, torch.arange(1.0, 7.0).reshape(2, 3).double() / 7)
    first, again = (spread_further(program, finalize(program.copy()), given, None, []) for _ in range(2))
    assert first == again


def test_inputs_and_weights_are_off_in_the_dtype_that_is_emitted_and_all_is_computed_in_it() -> None:
    """Numbers of bfloat16 that are off by less are themselves again, and their products lie between its numbers."""
    net = Lambda(lambda m, x: (x * 1.0, x * 0.0 + m.w, x * m.w), w=nn.Parameter(torch.tensor([0.75])))
    original, narrow = program_of(net, torch.zeros(2, 1)), torch.bfloat16
    given = rounds(original, torch.full((1, 1), 2.0).double())
    found = spread_further(original, finalize(original.copy(), narrow), given, narrow, [])
    for output, step in zip(found, (2.0**-7, 2.0**-8, 2.0**-7), strict=True):
        assert output.old == output.new == [0.0] * (1 + MORE)
        assert max(max(runs) for runs in output.spread) >= step
        assert all(run / step == int(run / step) for runs in output.spread for run in runs)


def test_what_is_emitted_is_measured_beside_the_original() -> None:
    """In the dtype that it is emitted in, which the original is run in as well."""
    program = scaled(1.0)
    worse = scaled(1.0 + 2.0**-10)
    values = torch.full((2, 3), 2.0).double()
    [found] = spread_further(program, finalize(worse), rounds(program, values), None, [])
    assert found.new[:2] == [2.0**-9] * 2 and found.old == [0.0] * 8
    narrow, original = torch.bfloat16, scaled()
    [coarse] = spread_further(original, finalize(scaled(), narrow), rounds(original, values), narrow, [])
    assert coarse.old == coarse.new and coarse.old[0] > 100 * EPS
    assert max(coarse.spread[0]) > 100 * EPS


def test_more_inputs_are_made_of_the_numbers_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole numbers stay as they are, as not every index is in a table, and so does what is no tensor."""
    program = program_of(Lambda(lambda m, x, i, n: x[i] * n + x), torch.zeros(2, 3), torch.tensor([0, 1]), 2)
    x, i = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]).double(), torch.tensor([1, 1])
    run: list[list[Any]] = []

    def watched(program: Program, values: list[Any], dtype: torch.dtype | None = torch.float64) -> list[Any]:
        if dtype is not None:
            run.append(values)
        return evaluate(program, values, dtype)

    monkeypatch.setattr(exactness, "evaluate", watched)
    spread_further(program, finalize(program.copy()), [Round([x, i, 2], [x], Plan({}, 2), 0.0)], None, [])
    assert len(run) == MORE
    for drawn, index, number in run:
        assert index is i and number == 2
        assert drawn.shape == x.shape and set(drawn.flatten().tolist()) <= set(x.flatten().tolist())
    assert len({tuple(v[0].flatten().tolist()) for v in run}) == MORE
    assert len({n for v in run for n in v[0].flatten().tolist()}) == 6, "each number may be drawn"


def test_outputs_of_whole_numbers_have_no_law() -> None:
    net = Lambda(lambda m, x: (x.argmax(1), x * m.w), w=nn.Parameter(torch.tensor(0.3)))
    program = program_of(net, torch.zeros(2, 3))
    found = spread_further(program, finalize(program.copy()), rounds(program, torch.eye(3).double()), None, [])
    assert len(found) == 1 and len(found[0].spread) == 3 * (1 + MORE)
