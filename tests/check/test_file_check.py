"""A network that was read from a file against the file: what is run, what may differ, and what is told of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.check import IN_ORDER, FileEvidence, check_file
from reparam.check.input_plan import Plan
from reparam.check.rounds import Round
from reparam.errors import InputError, NotEquivalentError
from reparam.ir import Program, aten, evaluate, filled
from support.helpers import Lambda, program_of

EPS = torch.finfo(torch.float32).eps
Change = Callable[[list[Tensor]], list[Tensor]]


@dataclass
class Fake:
    """A file that computes what the program does, in its own dtypes, but for a change. takes: which shapes it runs."""

    program: Program
    change: Change = lambda outputs: outputs
    takes: Callable[[tuple[int, ...]], bool] = lambda shape: True
    seen: list[list[Tensor]] = field(default_factory=list)
    runtime: str = "Runner 1.2"

    def run(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        if not self.takes(tuple(values[0].shape)):
            return None
        self.seen.append(list(values))
        return self.change(evaluate(self.program, filled(self.program, values), None))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(v[0].shape) for v in self.seen]


def program(forward: Callable[..., Any], *inputs: Any, dynamic: Sequence[str] = ("batch",)) -> Program:
    return program_of(Lambda(forward), *(inputs or (torch.zeros(2, 4),)), dynamic=dynamic)


def doubled(**options: Any) -> Program:
    """Exact in every dtype, so that only the roundings that each network is granted are allowed."""
    return program(lambda m, x: x * 2, **options)


def times(factor: float) -> Change:
    return lambda outputs: [o.double() * factor for o in outputs]


def inputs_of(made: Program) -> list[Tensor]:
    """What a file with one input is run on."""
    file = Fake(made)
    check_file(made, file)
    return [x for (x,) in file.seen]


def known(values: Tensor, truth: Tensor) -> Round:
    return Round([values], [truth], Plan({}, len(values)), 0.0)


# ---- what is run ---------------------------------------------------------------------------------------------------


def test_the_file_is_run_in_three_batches_in_its_own_dtype_on_other_inputs_each() -> None:
    made = doubled()
    file = Fake(made)
    assert check_file(made, file) == FileEvidence("Runner 1.2", 0.0, 0.0, 8)
    assert file.shapes == [(1, 4), (2, 4), (5, 4)]
    assert all(v.dtype == torch.float32 for (v,) in file.seen)
    assert not torch.equal(file.seen[0][0], file.seen[1][0][:1])


def test_the_inputs_follow_from_the_seed() -> None:
    made = doubled()
    runs = [Fake(made) for _ in range(3)]
    for file, seed in zip(runs, (5, 5, 6), strict=True):
        check_file(made, file, seed=seed)
    same, other = ([torch.equal(a[0], b[0]) for a, b in zip(runs[0].seen, r.seen, strict=True)] for r in runs[1:])
    assert all(same) and not any(other)


def test_a_fixed_batch_is_one_trial_and_is_run_three_times() -> None:
    made = doubled(dynamic=())
    file = Fake(made)
    assert check_file(made, file).trials == 3
    assert file.shapes == [(2, 4)] * 3
    assert not torch.equal(file.seen[0][0], file.seen[1][0])


def test_other_free_axes_are_as_they_were_traced_and_then_of_three_sizes_more() -> None:
    """One, which is never traced, and two of which decimal fractions are whole numbers."""
    made = program(lambda m, x: x * 2, torch.zeros(2, 1, 6, 7), dynamic=("batch", "height", "width"))
    file = Fake(made)
    check_file(made, file)
    assert file.shapes[:3] == [(1, 1, 6, 7), (2, 1, 6, 7), (5, 1, 6, 7)]
    assert [(s[:2], sorted(s[2:])) for s in file.shapes[3:]] == [((2, 1), [n, 2 * n]) for n in (1, 10, 30)]


@dataclass
class Stopping(Fake):
    """A file that stops on some shapes. stops: on which."""

    stops: Callable[[tuple[int, ...]], bool] = lambda shape: False

    def run(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        if self.stops(tuple(values[0].shape)):
            raise InputError("net.onnx does not run on these inputs")
        return super().run(values)


def test_other_sizes_at_which_the_file_stops_are_left_out() -> None:
    made = program(lambda m, x: x * 2, torch.zeros(2, 6), dynamic=("inputs_0:1=length",))
    found = check_file(made, Stopping(made, stops=lambda shape: shape[1] == 10))
    assert found.trials == 3 + 2  # the batch is fixed
    with pytest.raises(InputError, match="does not run on these"):
        check_file(made, Stopping(made, stops=lambda shape: shape[1] == 6))


class Taking(Fake):
    """A file that takes short inputs as well."""

    def run(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        return [torch.zeros(2, 1)] if values[0].shape[1] < 4 else super().run(values)


def test_other_sizes_at_which_what_was_read_stops_are_left_out() -> None:
    made = program(lambda m, x: F.pad(x, (3, 3), mode="reflect"), torch.zeros(2, 6), dynamic=("inputs_0:1=length",))
    assert check_file(made, Taking(made)).trials == 3 + 2  # the batch is fixed


def test_other_sizes_that_give_no_number_are_left_out() -> None:
    made = program(lambda m, x: x.var(1), torch.zeros(2, 6), dynamic=("inputs_0:1=length",))
    file = Fake(made)
    assert check_file(made, file).trials == 3 + 2
    assert (2, 1) in file.shapes, "the variance of one number"


def test_what_was_read_has_to_run_on_what_was_traced() -> None:
    made = program(lambda m, x: x.reshape(-1, 4) * 2, torch.zeros(2, 4))
    node = next(n for n in made.calls() if n.target is aten.reshape.default or "view" in str(n.target))
    node.args = (node.args[0], [-1, 3])
    with pytest.raises(RuntimeError, match="invalid for input of size 4"):
        check_file(made, Zeros(made))


class Zeros(Fake):
    """A file that takes all sizes."""

    def run(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        return [torch.zeros_like(values[0])]


def test_inputs_whose_truth_is_known_are_run_first() -> None:
    made = doubled()
    file = Fake(made)
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3, dtype=torch.float64)
    assert check_file(made, file, [known(values, 2 * values)]).trials == 3 + 8
    assert file.shapes == [(3, 4), (1, 4), (2, 4), (5, 4)]
    assert torch.equal(file.seen[0][0], values.float())
    off = check_file(made, Fake(made), [known(values, 2 * values + 10)])
    assert off.own_error == off.error == pytest.approx(10 * math.sqrt(3 / 11)), "the truth is the one that is given"


class Shuffling(Fake):
    """A file that takes images of all sizes."""

    def run(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        self.seen.append(list(values))
        [x] = values
        return [x.flip(1) if x.shape[2] == 4 else x.flip(1).flatten(2)]


@pytest.mark.parametrize("side", [3, 8])
def test_smaller_images_than_what_was_read_takes_are_left_out(side: int) -> None:
    made = program(lambda m, x: x.reshape(-1, 2, 4, 4).flip(1), torch.zeros(2, 2, 4, 4))
    values = torch.ones(3, 2, side, side, dtype=torch.float64)
    rounds = [Round([values], [values.flip(1).flatten(2)], Plan({}, 3), 0.0, unclaimed=True)]
    file = Shuffling(made)
    found = check_file(made, file, rounds)
    assert file.shapes[0] == (3, 2, side, side), "at eight it gives another shape than the network"
    assert (found.trials, found.error) == (8, 0.0)


def test_sizes_that_the_file_does_not_take_are_left_out() -> None:
    made = doubled()
    file = Fake(made, takes=lambda shape: shape[0] != 2)
    assert check_file(made, file).trials == 1 + 5
    assert file.shapes == [(1, 4), (5, 4)]


def test_a_file_that_takes_none_of_the_sizes_cannot_be_compared() -> None:
    made = doubled()
    with pytest.raises(NotEquivalentError, match=r"^Runner 1\.2 takes the file at none of the sizes"):
        check_file(made, Fake(made, takes=lambda shape: False))


def test_only_tensors_are_given_to_the_file() -> None:
    made = program(lambda m, x, factor, y: x * factor + y, torch.zeros(2, 4), 3, torch.zeros(2, 4))
    file = Fake(made)
    assert check_file(made, file).trials == 8
    assert [len(v) for v in file.seen] == [2, 2, 2]


@pytest.mark.parametrize("first", [torch.zeros(()), torch.zeros(3)])
def test_samples_are_counted_by_a_first_input_that_has_a_batch(first: Tensor) -> None:
    """A single number has none, so that each run counts once."""
    made = program(lambda m, s, x: x * s.sum(), first, torch.zeros(2, 4))
    assert check_file(made, Fake(made)).trials == (3 if first.dim() == 0 else 8)


def test_outputs_that_the_network_does_without_are_not_compared() -> None:
    made = doubled()
    made = dataclasses.replace(made, kept=(1,))
    check_file(made, Fake(made, lambda outputs: [torch.full((7,), math.nan), *outputs, torch.zeros(3)]))


# ---- what may differ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, most", [(torch.float32, 4 * EPS), (torch.float64, 1e-10)])
def test_an_exact_network_allows_four_roundings_or_the_bar_of_its_depth(dtype: torch.dtype, most: float) -> None:
    made = program(lambda m, x: x * 2, torch.zeros(2, 4, dtype=dtype))
    found = check_file(made, Fake(made, times(1 + 0.98 * most)))
    assert found.error > 0.0 and found.own_error == 0.0
    with pytest.raises(NotEquivalentError, match=r"what Runner 1\.2 computes: output 0 differs by .* is allowed"):
        check_file(made, Fake(made, times(1 + 1.02 * most)))


def test_four_times_the_own_rounding_is_allowed_beside_that() -> None:
    """Both errors are measured against the truth, which is the network in float64."""
    made = program_of(
        Lambda(lambda m, x: x * m.w, w=nn.Parameter(torch.tensor([0.3, 0.7, 1.1, 1.3]))), torch.zeros(2, 4)
    )
    feeds = inputs_of(made)
    truth = [evaluate(made, [x.double()])[0] for x in feeds]
    own = float((torch.cat([evaluate(made, [x], None)[0] for x in feeds]) - torch.cat(truth)).square().mean().sqrt())
    bar = 4 * own + 4 * EPS * float(torch.cat(truth).square().mean().sqrt())

    def off(by: float) -> Change:
        exact = iter(truth)
        return lambda outputs: [next(exact) + by]

    found = check_file(made, Fake(made, off(0.98 * bar)))
    assert (found.error, found.own_error) == pytest.approx((0.98 * bar, own), rel=1e-6)
    with pytest.raises(NotEquivalentError, match="output 0"):
        check_file(made, Fake(made, off(1.02 * bar)))


def test_the_first_output_that_differs_is_named() -> None:
    made = program(lambda m, x: (x * 2, x * 3, x * 4))
    spoiled = Fake(made, lambda outputs: [outputs[0], outputs[1] * 1.1, outputs[2] * 1.1])
    with pytest.raises(NotEquivalentError, match="computes: output 1 differs"):
        check_file(made, spoiled)


def test_a_difference_in_one_batch_alone_is_found() -> None:
    made = doubled()
    with pytest.raises(NotEquivalentError, match="output 0 differs"):
        check_file(made, Fake(made, lambda outputs: [o * 1.01 if len(o) == 1 else o for o in outputs]))


def test_the_output_that_comes_nearest_to_its_bar_is_reported() -> None:
    """Neither the one with the largest error nor the one with the largest bar; one of zeros has neither."""
    made = program(lambda m, x: (x * 4096, x * 2, x * 0))
    roundings = (1, 3, 0)
    found = check_file(
        made, Fake(made, lambda o: [v.double() * (1 + n * EPS) for v, n in zip(o, roundings, strict=True)])
    )
    values = torch.cat(inputs_of(made)).double()
    assert found.error == pytest.approx(3 * EPS * 2 * float(values.square().mean().sqrt()))


def test_whole_numbers_have_to_be_the_same() -> None:
    made = program(lambda m, x: ((x > 0).long(), x * 2))
    assert check_file(made, Fake(made, lambda o: [o[0].to(torch.int32), o[1]])).trials == 8, "in another type of them"
    with pytest.raises(NotEquivalentError, match="gives other whole numbers than the file does"):
        check_file(made, Fake(made, lambda o: [1 - o[0], o[1]]))
    with pytest.raises(NotEquivalentError, match="other whole numbers"):
        check_file(made, Fake(made, lambda o: [o[0] + (len(o[0]) == 5), o[1]]))


@pytest.mark.parametrize("other", [torch.tensor(0.7), torch.tensor(-1)])
def test_numbers_that_another_type_would_make_the_same_are_not(other: Tensor) -> None:
    """0.7 is not 0, and -1 is not true."""
    made = program(lambda m, x: x.bool() if other < 0 else x.bool().long() * 0)
    with pytest.raises(NotEquivalentError, match="other whole numbers"):
        check_file(made, Fake(made, lambda o: [other.expand(o[0].shape)]))


def test_whole_numbers_may_be_those_of_the_files_own_dtype_or_of_float64() -> None:
    """Where the two differ by rounding, either is right."""
    made = program(lambda m, x: ((x + 256) - 256 != x).long())  # float32 does not hold the sum
    own = evaluate(made, [torch.ones(2, 4) / 3], None)[0]
    assert bool(own.any()) and not bool(evaluate(made, [torch.ones(2, 4) / 3])[0].any())
    check_file(made, Fake(made))
    check_file(made, Fake(made, lambda o: [torch.zeros_like(o[0])]))
    with pytest.raises(NotEquivalentError, match="other whole numbers"):
        check_file(made, Fake(made, lambda o: [o[0] + 2]))


def test_a_network_of_whole_numbers_alone_has_no_error() -> None:
    made = program(lambda m, x: (x > 0).long())
    assert check_file(made, Fake(made)) == FileEvidence("Runner 1.2", 0.0, 0.0, 8)


@pytest.mark.parametrize("change, told", [(lambda o: [o[0][:, :3], o[1]], "1x3, a number"), (lambda o: o[:1], "1x4")])
def test_other_shapes_and_fewer_outputs_are_told_by_their_shapes(change: Change, told: str) -> None:
    made = program(lambda m, x: (x * 2, x.sum()))
    with pytest.raises(NotEquivalentError) as found:
        check_file(made, Fake(made, change))
    assert str(found.value) == f"the file gives {told}, and what was read from it 1x4, a number"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_of_the_file_that_are_not_finite_are_told(bad: float) -> None:
    made = doubled()
    with pytest.raises(NotEquivalentError, match="the file's outputs are not finite where"):
        check_file(made, Fake(made, lambda outputs: [torch.where(o == o.max(), bad, o) for o in outputs]))


def in_order(read: Program) -> Change:
    """What a runtime gives that adds the numbers of norms and sums one after the other."""
    return lambda outputs: evaluate(read, [LONG], None, by=IN_ORDER)


LONG = torch.rand(2, 3, 260, 260, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.linalg.vector_norm(x, 2, [2, 3]),
        lambda m, x: x.sum([2, 3]),
        lambda m, x: x.mean([2, 3], keepdim=True),
    ],
)
def test_sums_that_a_runtime_adds_in_order(forward: Any) -> None:
    read = program(forward, torch.rand(2, 3, 260, 260), dynamic=())
    truth = evaluate(read, [LONG])
    rounds = [Round([LONG], truth, Plan({}, 2), 1e-9)]
    file = Fake(read, in_order(read), takes=lambda shape: not file.seen)
    check_file(read, file, rounds)
    off = Fake(read, lambda outputs: [1.001 * o for o in in_order(read)(outputs)], takes=lambda shape: not off.seen)
    with pytest.raises(NotEquivalentError, match="differs by"):
        check_file(read, off, rounds)
