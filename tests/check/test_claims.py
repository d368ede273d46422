"""One claim at a time: on what the two calls are run, what may differ, and what has to hold of the result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.check import Claim, Evidence, Slot, check_claims
from reparam.check.rounding_bound import EPS
from reparam.errors import RuleError
from reparam.ir import Program, ranges_of
from support.helpers import Lambda, doubles, program_of

X = torch.zeros(2, 4, 6, 6, dtype=torch.float64)
UNIT = EPS * (16 + 16)  # of two calls that are no layers
Forward = Callable[..., Any]


def claim_of(old: Forward, new: Forward, *inputs: Any, parts: dict[str, Any] | None = None) -> tuple[Program, Claim]:
    """That `new` makes of the second half of the inputs what `old` makes of the first half. Both return one value."""
    half = len(inputs)

    def forward(m: Any, *given: Any) -> Any:
        return old(m, *given[:half]), new(m, *given[half:])

    program = program_of(Lambda(forward, **(parts or {})).double(), *inputs, *inputs, dynamic=())
    ends = [n for n in program.output.args[0] if isinstance(n, fx.Node)]  # type: ignore[union-attr]
    sides = [tuple(n for n in program.calls() if _reaches(n, end)) for end in ends]
    given = program.placeholders
    slots = tuple(Slot(a, b) for a, b in zip(given[:half], given[half:], strict=True))
    return program, Claim(sides[0], sides[1], slots, Slot(ends[0], ends[1]))


def _reaches(node: fx.Node, end: fx.Node) -> bool:
    return node is end or any(_reaches(user, end) for user in node.users)


def evidence(program: Program, *claims: Claim, seed: int = 0) -> Evidence:
    return check_claims(program, claims, ranges_of(program), seed)


def times(factor: float) -> Forward:
    return lambda m, x: x * factor


def on(claim: Claim, operand: int = 0, result: dict[str, Any] | None = None, **slot: Any) -> Claim:
    """The claim with another operand, and another result."""
    operands = list(claim.operands)
    operands[operand] = replace(operands[operand], **slot)
    return replace(claim, operands=tuple(operands), result=replace(claim.result, **(result or {})))


# ---- how far apart the results may be --------------------------------------------------------------------------------


def test_the_difference_and_its_bound_are_measured() -> None:
    """Of 2 and 2 + d: a rounding each for 16 + 16 operations, on values that are as large as both together."""
    program, claim = claim_of(times(2.0), times(2.0 + 120 * EPS), X)
    found = evidence(program, on(claim, impose=torch.ones_like))
    assert found.kind == "sampled" and found.ok
    assert found.max_abs == 120 * EPS
    assert found.bound == pytest.approx(UNIT * 4, rel=1e-12)


@pytest.mark.parametrize("roundings, ok", [(126, True), (130, False), (-126, True), (-130, False)])
def test_the_bound_decides(roundings: int, ok: bool) -> None:
    program, claim = claim_of(times(2.0), times(2.0 + roundings * EPS), X)
    assert evidence(program, on(claim, impose=torch.ones_like)).ok is ok


def test_every_element_has_its_own_bound() -> None:
    """A wrong entry that is small beside others is found."""

    def impose(value: Tensor) -> Tensor:
        return torch.ones_like(value).index_fill(1, torch.tensor([0]), 1e6)

    program, claim = claim_of(times(2.0), lambda m, x: x * m.w, X, parts={"w": _column(2, 2 + 1e-12, 2, 2)})
    assert not evidence(program, on(claim, impose=impose)).ok
    assert evidence(*claim_of(times(2.0), lambda m, x: x * m.w, X, parts={"w": _column(2, 2, 2, 2)})).ok


def _column(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1))


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_all_claims_have_to_hold_and_the_largest_figures_are_told(wrong: int) -> None:
    program, claim = claim_of(times(2.0), times(2.5), X)
    [x] = claim.operands
    large = replace(x, new=x.old, impose=lambda value: torch.full_like(value, 1e3))
    true = replace(claim, new=claim.old, operands=(large,), result=Slot(claim.result.old, claim.result.old))
    claims = [true, true, true]
    claims[wrong] = on(claim, impose=torch.ones_like)
    found = evidence(program, *claims)
    assert not found.ok and found.max_abs == 0.5
    assert found.bound == pytest.approx(UNIT * 4e3, rel=1e-12)


def test_no_claims_hold() -> None:
    program, _ = claim_of(times(2.0), times(2.0), X)
    assert evidence(program) == Evidence("sampled", 0.0, 0.0, True)


@pytest.mark.parametrize("one, other, ok", [(-math.inf, -math.inf, True), (-math.inf, math.inf, False)])
def test_infinite_values_have_to_be_the_same(one: float, other: float, ok: bool) -> None:
    program, claim = claim_of(lambda m, x: x + one, lambda m, x: x + other, X)
    assert evidence(program, claim).ok is ok


def test_zeros_are_the_same_although_nothing_is_allowed_for_them() -> None:
    program, claim = claim_of(times(0.0), times(-0.0), X)
    assert evidence(program, claim) == Evidence("sampled", 0.0, 0.0, True)


def test_what_is_no_number_is_never_the_same() -> None:
    program, claim = claim_of(lambda m, x: x + math.inf - math.inf, lambda m, x: x + math.inf - math.inf, X)
    assert not evidence(program, claim).ok


def test_results_are_compared_on_what_is_kept() -> None:
    """`cut` says what of the old value the new one holds."""
    program, claim = claim_of(lambda m, x: x * 2, lambda m, x: x[:, :2] * 2, X)
    kept = on(claim, result={"cut": lambda value: value[:, :2]})
    assert evidence(program, kept).ok
    shifted = on(claim, result={"cut": lambda value: value[:, 1:3]})
    assert not evidence(program, shifted).ok
    with pytest.raises(RuleError) as told:
        evidence(program, on(claim, result={"cut": lambda value: value[:, :3]}))
    name = claim.result.old.name
    assert str(told.value).startswith(f"the new value of {name} has shape (3, 2, ")
    assert "not (3, 3, " in str(told.value)


def test_the_bound_of_what_is_kept_is_that_of_its_own_elements() -> None:
    program, claim = claim_of(lambda m, x: x * 2, lambda m, x: x[:, :1] * 2, X)

    def impose(value: Tensor) -> Tensor:
        return torch.ones_like(value).index_fill(1, torch.tensor([3]), 1e6)

    found = evidence(program, on(claim, impose=impose, result={"cut": lambda value: value[:, :1]}))
    assert found.ok and found.bound == pytest.approx(EPS * 48 * 4, rel=1e-12)


def test_a_size_that_is_the_same_along_an_axis_belongs_to_each_element() -> None:
    program, claim = claim_of(lambda m, x: torch.cos(x).expand(2, 4, 6, 6), lambda m, x: torch.cos(x), X)
    assert evidence(program, claim).ok


# ---- what is said of the result --------------------------------------------------------------------------------------


@pytest.mark.parametrize("roundings, ok", [(126, True), (130, False), (-126, True), (-130, False)])
def test_what_is_said_of_a_result_holds_up_to_twice_its_rounding(roundings: int, ok: bool) -> None:
    """On values of two, whose sizes are two as well, with 32 roundings."""
    program, claim = claim_of(times(2.0), times(2.0), X)
    fact = {"impose": lambda value: value + roundings * EPS}
    found = evidence(program, on(claim, impose=torch.ones_like, result=fact))
    assert found.ok is ok and found.max_abs == 0.0


def test_what_is_said_may_be_infinite_where_the_value_is() -> None:
    program, claim = claim_of(lambda m, x: x - math.inf, lambda m, x: x - math.inf, X)
    assert evidence(program, on(claim, result={"impose": lambda value: torch.full_like(value, -math.inf)})).ok


def test_what_is_known_of_an_operand_is_made_so_on_both_sides() -> None:
    program, claim = claim_of(lambda m, x: x * x, times(3.0), X)
    assert not evidence(program, claim).ok
    assert evidence(program, on(claim, impose=lambda value: torch.full_like(value, 3.0))).ok


def test_the_new_call_reads_what_is_cut_of_the_operand() -> None:
    program, claim = claim_of(lambda m, x: x * 2, lambda m, x: x * 4, X)
    assert evidence(program, on(claim, cut=lambda value: value / 2)).ok


# ---- operands that became one ----------------------------------------------------------------------------------------


def test_of_two_values_that_became_one_the_second_is_made_to_hold_the_first() -> None:
    """By default it becomes the same."""
    program, claim = claim_of(lambda m, x, y: x - y, lambda m, x, y: x * 0.0, X, X)
    x, y = claim.operands
    merged = replace(claim, operands=(x, replace(y, new=x.new)))
    assert evidence(program, merged).ok
    assert not evidence(program, claim).ok


def test_how_the_second_is_made_so_is_up_to_the_slot() -> None:
    program, claim = claim_of(lambda m, x, y: x + y, lambda m, x, y: x * 5.0, X, X)
    x, y = claim.operands
    seen: list[tuple[Tensor, Tensor]] = []

    def put(value: Tensor, held: Tensor) -> Tensor:
        seen.append((value, held))
        return 4 * held

    known = replace(y, new=x.new, impose=torch.ones_like, put=put, cut=lambda value: value / 4)
    assert evidence(program, replace(claim, operands=(x, known))).ok
    [(value, held)] = seen
    assert torch.equal(value, torch.ones_like(value)) and not torch.equal(held, value)


# ---- other kinds of values -------------------------------------------------------------------------------------------


def test_operands_of_whole_numbers_are_read_by_both() -> None:
    """Nothing is made or cut of them."""

    def never(value: Tensor, held: Tensor | None = None) -> Tensor:
        raise AssertionError

    index = torch.tensor([1, 0])
    program, claim = claim_of(lambda m, x, i: x[:, i], lambda m, x, i: x[:, i], X, index)
    assert evidence(program, on(claim, 1, impose=never, cut=never)).ok
    other, wrong = claim_of(lambda m, x, i: x[:, i], lambda m, x, i: x[:, 1 - i], X, index)
    assert not evidence(other, wrong).ok


def test_operands_that_are_sizes_are_read_by_both() -> None:
    program, claim = _with_a_size(lambda x, n: x.reshape(n, 24))
    assert evidence(program, claim).ok


def _with_a_size(read: Callable[[Tensor, Any], Tensor]) -> tuple[Program, Claim]:
    program = program_of(Lambda(lambda m, x: read(x, x.shape[0])), torch.zeros(2, 4, 6))
    size, last = next(program.calls()), list(program.calls())[-1]
    [x] = program.placeholders
    return program, Claim((last,), (last,), (Slot(x, x), Slot(size, size)), Slot(last, last))


@pytest.mark.parametrize(
    "old, new, ok",
    [
        (lambda m, x: x.argmax(1), lambda m, x: (x * 2).argmax(1), True),
        (lambda m, x: x.argmax(1), lambda m, x: x.argmin(1), False),
        (lambda m, x: x.argmax(1), lambda m, x: x.argmax(1).int(), False),
        (lambda m, x: x > 0, lambda m, x: x * 2 > 0, True),
        (lambda m, x: x > 0, lambda m, x: x < 0, False),
    ],
)
def test_results_of_whole_numbers_have_to_be_the_same_and_of_one_type(old: Forward, new: Forward, ok: bool) -> None:
    assert evidence(*claim_of(old, new, X)) == Evidence("sampled", 0.0, 0.0, ok)


def test_results_without_elements_are_the_same() -> None:
    program, claim = claim_of(lambda m, x: x[:, 4:] * 2, lambda m, x: x[:, 4:] * 3, X)
    assert evidence(program, claim) == Evidence("sampled", 0.0, 0.0, True)


def pieces(sizes: list[int], by: float = 1.0) -> Callable[[fx.Node, Program], fx.Node]:
    """The last part of a program that splits its input."""

    def build(x: fx.Node, program: Program) -> fx.Node:
        scaled = program.call(torch.ops.aten.mul.Tensor, (x, by), like=program.output)
        return program.call(torch.ops.aten.split_with_sizes.default, (scaled, sizes, 1), like=program.output)

    return build


@pytest.mark.parametrize(
    "sizes, by, ok",
    [
        ([1, 3], 1.0, True),
        ([1, 3], 1.0 + 4 * EPS, True),
        ([1, 3], 1.0 + 1e-11, False),
        ([1, 3], 1.1, False),
        ([3, 1], 1.0, False),
        ([1, 2, 1], 1.0, False),
        ([4], 1.0, False),
    ],
)
def test_results_that_are_lists_have_to_be_the_same_piece_by_piece(sizes: list[int], by: float, ok: bool) -> None:
    program = program_of(Lambda(lambda m, x: x * 1), X, dynamic=())
    [x] = program.placeholders
    old, new = pieces([1, 3])(x, program), pieces(sizes, by)(x, program)
    calls = list(program.calls())
    sides = [tuple(n for n in calls if _reaches(n, end)) for end in (old, new)]
    found = evidence(program, Claim(sides[0], sides[1], (Slot(x, x),), Slot(old, new)))
    assert found == Evidence("sampled", 0.0, 0.0, ok)


def test_pieces_without_a_value_are_the_same_where_both_have_none() -> None:
    program = program_of(Lambda(lambda m, x: x * 1), X, dynamic=())
    [x] = program.placeholders
    old, new = pieces([2, 2], math.nan)(x, program), pieces([2, 2], math.nan)(x, program)
    calls = list(program.calls())
    sides = [tuple(n for n in calls if _reaches(n, end)) for end in (old, new)]
    assert evidence(program, Claim(sides[0], sides[1], (Slot(x, x),), Slot(old, new))).ok


@pytest.mark.parametrize("axis, ok", [(0, True), (1, False)])
def test_results_that_are_sizes_have_to_be_the_same(axis: int, ok: bool) -> None:
    program = program_of(Lambda(lambda m, x: x * 1), X, dynamic=())
    [x] = program.placeholders
    old, new = (program.call(torch.ops.aten.sym_size.int, (x, a), like=program.output) for a in (0, axis))
    claim = Claim((old,), (new,), (Slot(x, x),), Slot(old, new))
    assert evidence(program, claim) == Evidence("sampled", 0.0, 0.0, ok)


# ---- on what the calls are run ---------------------------------------------------------------------------------------


def shapes_seen(program: Program, claim: Claim) -> tuple[tuple[int, ...], ...]:
    """Of the operands."""
    seen: list[tuple[int, ...]] = []

    def look(value: Tensor) -> Tensor:
        seen.append(tuple(value.shape))
        return value

    operands = tuple(replace(s, impose=look) for s in claim.operands)
    assert evidence(program, replace(claim, operands=operands)).ok
    return tuple(seen)


def test_small_maps_are_enough_where_no_size_is_spoken_of() -> None:
    program, claim = claim_of(lambda m, x: x.relu(), lambda m, x: x.relu(), X)
    assert shapes_seen(program, claim) == ((3, 4, 1, 1),)
    assert shapes_seen(program, on(claim, sizes={1: 4})) == ((3, 4, 1, 1),)


@pytest.mark.parametrize("sizes", [{2: 6}, {1: 4, 3: 6}])
def test_an_axis_that_is_spoken_of_is_whole(sizes: dict[int, int]) -> None:
    program, claim = claim_of(lambda m, x: x.relu(), lambda m, x: x.relu(), X)
    assert shapes_seen(program, on(claim, sizes=sizes)) == ((2, 4, 6, 6),)


def test_a_value_keeps_its_number_of_axes() -> None:
    """A layer that reads rows would be checked on two axes alone."""
    parts = {"fc": nn.Linear(6, 3)}
    program, claim = claim_of(lambda m, x: m.fc(x), lambda m, x: m.fc(x), X[0], parts=parts)
    assert shapes_seen(program, claim) == ((4, 6, 6),)
    flat, rows = claim_of(lambda m, x: m.fc(x), lambda m, x: m.fc(x), doubles(5, 6), parts=parts)
    assert shapes_seen(flat, rows) == ((2, 6),)


def test_the_traced_sizes_are_run_where_the_old_calls_run_on_no_smaller_ones() -> None:
    """The two pools agree on the size of their maps at the traced size alone."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 4, 4) + F.avg_pool2d(x, 5, 5)

    program, claim = claim_of(forward, forward, torch.zeros(2, 3, 20, 20, dtype=torch.float64).narrow(2, 0, 9)[..., :9])
    assert shapes_seen(program, claim) == ((2, 3, 9, 9),)


def test_what_ties_a_call_to_its_size_is_run_at_the_traced_one() -> None:
    program, claim = claim_of(lambda m, x: x.flatten(1), lambda m, x: x.flatten(1), X)
    assert shapes_seen(program, claim) == ((2, 4, 6, 6),)


def test_values_keep_to_their_ranges() -> None:
    program, claim = claim_of(lambda m, x: x.relu(), times(1.0), X)
    assert not evidence(program, claim).ok
    positive, same = claim_of(lambda m, x: x.relu(), times(1.0), X)
    positive.inputs = tuple(replace(s, low=0.0) for s in positive.inputs)
    assert evidence(positive, same).ok


def test_values_follow_from_the_seed() -> None:
    program, claim = claim_of(times(2.0), times(3.0), X)
    first, again, other = (evidence(program, claim, seed=seed).max_abs for seed in (1, 1, 2))
    assert first == again != other


def test_layers_count_for_what_they_add_up_and_for_their_weights() -> None:
    parts = {"a": nn.Linear(6, 3, bias=False), "b": nn.Linear(6, 3, bias=False)}
    with torch.no_grad():
        parts["a"].weight.fill_(-0.5)
        parts["b"].weight.fill_(-0.5)
    program, claim = claim_of(lambda m, x: m.a(x), lambda m, x: m.b(x), doubles(5, 6), parts=parts)
    found = evidence(program, on(claim, impose=torch.ones_like))
    assert found.ok and found.bound == pytest.approx(EPS * 2 * (6 + 8) * 2 * 3.0, rel=1e-12)
    with torch.no_grad():
        parts["b"].weight[1, 2] += 1e-12
    spoiled, wrong = claim_of(lambda m, x: m.a(x), lambda m, x: m.b(x), doubles(5, 6), parts=parts)
    assert not evidence(spoiled, wrong).ok
