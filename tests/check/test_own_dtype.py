"""Large images: float64 on smaller ones, and the original's own dtype at the traced size where that will do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.capture import Line
from reparam.check import Judge, NetworkEvidence, PathError, check_float64, network_check
from reparam.check import own_dtype as subject
from reparam.check.evidence import OwnDtypeEvidence
from reparam.check.input_plan import EVEN, GROWN, PRIME, SMALLEST
from reparam.check.own_dtype import in_own_dtype, same_in_own_dtype
from reparam.check.values import largest_difference
from reparam.conversion import convert
from reparam.errors import MachineError, NotEquivalentError
from reparam.ir import Feed, Program, evaluate
from support.filled_borders import Filled
from support.helpers import Lambda, conv_bn, healthy, program_of

EPS = torch.finfo(torch.float32).eps
LARGE = (3, 3, 64, 64)


def network(body: Callable[[Any, Tensor], Tensor] = lambda m, x: m.block(x).relu().mean((2, 3))) -> nn.Module:
    torch.manual_seed(0)
    return healthy(Lambda(body, block=conv_bn(3, 4, padding=1))).float()


def captured(net: nn.Module, shape: Sequence[int] = LARGE) -> Program:
    return program_of(net, torch.zeros(*shape), dynamic=("batch",)).copy()


@pytest.fixture
def truths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what the judge is run on in float64."""
    found: list[tuple[int, ...]] = []
    before = Judge.truth

    def truth(judge: Judge, values: Feed) -> list[Any]:
        found.append(tuple(values[0].shape))
        return before(judge, values)

    monkeypatch.setattr(Judge, "truth", truth)
    return found


def lean(net: nn.Module, other: Program | None = None, shape: Sequence[int] = LARGE) -> NetworkEvidence:
    program = captured(net, shape)
    return check_float64(program, other or program.copy(), 0, Judge(net, program), lean=True)[0]


def test_the_traced_size_is_compared_in_the_dtype_of_the_original_alone(truths: list[tuple[int, ...]]) -> None:
    evidence = lean(network())
    assert truths == [(4, 3, 33, 33)]
    assert evidence.shapes == ((1, 3, 64, 64), (4, 3, 33, 33), (3, 3, 33, 33))
    assert evidence.trials == 8
    assert evidence.own_dtype is not None
    assert evidence.own_dtype.shapes == ((1, 3, 64, 64), (3, 3, 33, 33))
    assert evidence.own_dtype.difference <= evidence.own_dtype.allowed < 100 * EPS


def test_a_report_tells_it() -> None:
    evidence = convert(network(), torch.rand(*LARGE)).report.to_dict()["evidence"]
    assert evidence["own_dtype"]["shapes"] == [[1, 3, 64, 64], [3, 3, 33, 33]]
    assert evidence["own_dtype"]["difference"] <= evidence["own_dtype"]["allowed"]
    assert evidence["shapes"][0] == [1, 3, 64, 64]


@pytest.mark.parametrize("shape", [(3, 3, 40, 40), (3, 3, 33, 33)])
def test_float64_is_compared_at_the_traced_size_where_smaller_images_save_little(
    shape: tuple[int, ...], truths: list[tuple[int, ...]]
) -> None:
    assert lean(network(), shape=shape).own_dtype is None
    assert truths[0] == (1, *shape[1:])


def test_it_is_for_those_who_ask_and_have_a_judge(truths: list[tuple[int, ...]]) -> None:
    net = network()
    program = captured(net)
    assert check_float64(program, program.copy(), 0, Judge(net, program))[0].own_dtype is None
    assert truths[0] == (1, 3, 64, 64)
    assert check_float64(program, program.copy(), 0, lean=True)[0].own_dtype is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_another_dtype_that_is_emitted_is_measured_at_the_traced_size(dtype: torch.dtype) -> None:
    assert convert(network(), torch.rand(*LARGE), dtype=dtype).report.evidence.own_dtype is None


def test_a_captured_graph_may_take_the_traced_size_alone(truths: list[tuple[int, ...]]) -> None:
    """A write to a border is captured with the sizes of that border; the model itself takes any image."""
    net = nn.Sequential(Filled(3, 1), nn.Conv2d(3, 2, 3)).float()
    with pytest.raises(RuntimeError):
        evaluate(captured(net), [torch.rand(2, 3, 33, 33)], None)
    evidence = convert(net, torch.rand(*LARGE)).report.evidence
    assert evidence.own_dtype is not None and evidence.own_dtype.shapes[0] == (1, 3, 64, 64)
    assert truths == [(4, 3, 33, 33)]


def test_what_differs_at_the_traced_size_alone_is_found(truths: list[tuple[int, ...]]) -> None:
    """The first 40 rows and columns are all of a smaller image."""
    cropped = captured(network(lambda m, x: m.block(x[..., :40, :40]).relu().mean((2, 3))))
    with pytest.raises(NotEquivalentError, match="differs from the original: float64 error"):
        lean(network(), cropped)
    assert (1, 3, 64, 64) in truths


def test_digits_that_are_lost_at_the_traced_size_are_looked_at_in_float64(truths: list[tuple[int, ...]]) -> None:
    """A shift that is taken back rounds by its own size, and computes the same."""
    net = network(lambda m, x: m.block(x).relu().mean((2, 3)))
    other = captured(network(lambda m, x: (m.block(x).relu() + 4000).mean((2, 3)) - 4000))
    assert lean(net, other).own_dtype is None
    assert (1, 3, 64, 64) in truths


def test_a_model_that_calls_other_functions_at_the_traced_size_is_compared_there(
    truths: list[tuple[int, ...]],
) -> None:
    net = network(lambda m, x: m.block(x if x.shape[-1] < 64 else x.contiguous()).relu().mean((2, 3)))
    assert lean(net).own_dtype is None
    assert (1, 3, 64, 64) in truths


def test_a_model_that_overflows_at_the_traced_size_alone_is_compared_there() -> None:
    net = network(lambda m, x: (m.block(x).relu() * 1e37).sum((2, 3)))
    assert lean(net).own_dtype is None


def test_so_many_smaller_images_as_will_do_are_compared_in_float64(truths: list[tuple[int, ...]]) -> None:
    net = network()
    program = captured(net, (4, 3, 64, 64))
    state = torch.get_rng_state()
    evidence, rounds = check_float64(program, program.copy(), 0, Judge(net, program), lean=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert truths == [(3, 3, 33, 33)]
    assert evidence.own_dtype is not None
    assert evidence.own_dtype.shapes == ((1, 3, 64, 64), (4, 3, 33, 33))
    (one,) = rounds
    assert one.own is not None
    assert largest_difference(one.truth, one.own) < 10 * EPS
    one_alone = lean(net, shape=(1, 3, 64, 64)).own_dtype
    assert one_alone is not None
    assert one_alone.shapes == ((1, 3, 64, 64), (2, 3, 33, 33))


def test_a_batch_that_is_fixed_is_compared_one_by_one(truths: list[tuple[int, ...]]) -> None:
    net = network()
    program = program_of(net, torch.zeros(*LARGE), dynamic=())
    evidence, _ = check_float64(program, program.copy(), 0, Judge(net, program), lean=True)
    assert truths == [(3, 3, 33, 33)] * 3
    assert evidence.shapes == (LARGE, *[(3, 3, 33, 33)] * 7)
    assert evidence.trials == 8


def test_the_smallest_images_that_a_network_takes_are_compared(truths: list[tuple[int, ...]]) -> None:
    """Of 33 and 65 pixels those of 65, without a run of the model on those on which the result does not run."""
    net = Lambda(lambda m, x: m.conv(x).mean((2, 3)), conv=nn.Conv2d(3, 2, 40))
    evidence = lean(net, shape=(2, 3, 130, 130))
    assert truths == [(5, 3, 65, 65)]
    assert evidence.shapes == ((1, 3, 130, 130), (5, 3, 65, 65), (2, 3, 65, 65))


def test_a_model_that_minds_small_images_is_asked_anew_whether_it_runs_in_float64(
    truths: list[tuple[int, ...]],
) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if x.shape[-1] < 40:
            raise ValueError("too small")
        return m.block(x).mean((2, 3))  # type: ignore[no-any-return]

    evidence = lean(network(forward), shape=(2, 3, 130, 130))
    assert truths == [(5, 3, 33, 33), (5, 3, 65, 65)]
    assert evidence.own_dtype is not None


def test_nothing_is_kept_of_what_did_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Judge, "own_where_it_runs", lambda *_: None)
    evidence = lean(network())
    assert evidence.own_dtype is None
    assert evidence.shapes == ((1, 3, 64, 64), (3, 3, 33, 33), (4, 3, 33, 33))
    assert evidence.trials == 8
    assert evidence.float64_max_rel < 1e-12


class Other(Judge):
    """A model that calls another function where an image has 48 rows."""

    def _run(self, values: Feed) -> list[Any]:
        found = super()._run(values)
        self.path = (*self.path, "another") if values[0].shape[2] == 48 else self.path
        return found

    def lines_where_it_runs(self, values: Feed) -> list[Line] | None:
        code = "y = another(x)" if values[0].shape[2] == 48 else "y = x"
        return [Line("net.py", 3, "forward", code)]


def test_other_functions_at_a_free_height_are_told_beside_the_traced_shape() -> None:
    net = network()
    program = program_of(net, torch.zeros(*LARGE), dynamic=("batch", "height"))
    lines = "with 1x3x64x64 it goes on at net.py:3 `y = x`, with 2x3x48x64 at net.py:3 `y = another(x)`"
    told = f"for inputs of shape 2x3x48x64 than for 1x3x64x64: it calls other functions there; {lines}"
    with pytest.raises(PathError, match=re.escape(told)):
        check_float64(program, program.copy(), 0, Other(net, program), lean=True)


class Five(Judge):
    """A model that takes no five small images at once."""

    def truth(self, values: Feed) -> list[Any]:
        if len(values[0]) == 5 and values[0].shape[-1] < 64:
            raise ValueError("too many")
        return super().truth(values)


def test_nothing_is_kept_where_one_batch_alone_takes_smaller_images() -> None:
    net = network()
    program = captured(net, (5, 3, 64, 64))
    evidence, rounds = check_float64(program, program.copy(), 0, Five(net, program), lean=True)
    assert evidence.shapes == ((1, 3, 64, 64), (2, 3, 33, 33), (5, 3, 64, 64)) == tuple(r.shape for r in rounds)
    assert evidence.own_dtype is None


class Both(nn.Module):
    """An image of one size, and as many words as there are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12288, 2)

    def forward(self, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(image.flatten(1)), words * 2


def test_free_axes_are_tried_however_few_large_images_will_do() -> None:
    net, given = Both(), (torch.zeros(*LARGE), torch.zeros(3, 7))
    program = program_of(net, *given, dynamic=("batch", "words:1=length"))
    evidence, rounds = check_float64(program, program.copy(), 0, Judge(net, program), lean=True)
    assert {tuple(r.values[1].shape)[1] for r in rounds} == {7, 48, 3}
    assert evidence.own_dtype is not None
    assert evidence.own_dtype.shapes == tuple((n, 3, 64, 64) for n in (3, 2, 1, 1))  # beside 53, 97 and 39 words


def with_free_sizes(net: nn.Module) -> Program:
    program = program_of(net, torch.zeros(*LARGE), dynamic=("batch", "height", "width"))
    rows, columns = (str(s) for s in program.inputs[0].shape[2:])
    return replace(program, probes=({rows: 64, columns: 2},)).copy()


def test_sizes_that_are_far_are_compared_in_the_dtype_of_the_original(truths: list[tuple[int, ...]]) -> None:
    """Those that show borders of every kind are compared in float64."""
    net = network()
    program = with_free_sizes(net)
    evidence = check_float64(program, program.copy(), 0, Judge(net, program), lean=True)[0]
    assert evidence.own_dtype is not None
    sizes = [s[2:] for s in evidence.own_dtype.shapes]
    assert (
        sizes[0] == (64, 64)
        and PRIME in map(min, sizes)
        and max(map(max, sizes)) >= 64 + GROWN
        and sizes[-1] == (64, 2)
    )
    assert {min(t[2:]) for t in truths} == {33, EVEN, SMALLEST, 1}
    assert evidence.trials == 8 + 3 * 2 + 3 * 2 + 2 + 2
    full = check_float64(program, program.copy(), 0, Judge(net, program))[0]
    assert full.own_dtype is None and full.trials == evidence.trials


@pytest.mark.parametrize("axis, sizes", [(2, (64 + GROWN, 64 + GROWN + 2)), (3, (2, 2))])
def test_what_differs_at_a_size_that_is_far_alone_is_found(axis: int, sizes: tuple[int, int]) -> None:
    net = network(lambda m, x: m.block(x).relu().amax((2, 3)))

    def body(m: Any, x: Tensor) -> Tensor:
        total = torch.arange(x.shape[axis]).sum()
        here = sum((total == n * (n - 1) // 2).float() for n in sizes)
        return m.block(x).relu().amax((2, 3)) * (1 + 1e-3 * here)

    program, other = with_free_sizes(net), with_free_sizes(network(body))
    with pytest.raises(NotEquivalentError, match="float64 error"):
        check_float64(program, other, 0, Judge(net, program), lean=True)


@pytest.mark.parametrize(
    "size, expected", [(4, 0.05), (5, 0.1), (17, 0.1), (18, 0.05), (303, 0.05), (304, 0.25), (320, 0.3), (999, 0.3)]
)
def test_what_is_lost_is_the_least_on_inputs_up_to_16_times_smaller(size: int, expected: float) -> None:
    assert network_check._lost_at_most(size, [(304, 0.4), (19, 0.25), (18, 0.05), (5, 0.1), (320, 0.3)]) == expected
    assert network_check._values_of_one([torch.zeros(2, 3, 5), torch.zeros(9)]) == 15


@pytest.mark.parametrize("batch, seen", [(1, (1, 2)), (2, (1, 2)), (5, (1, 2, 5)), (40, (1, 7))])
def test_one_input_is_compared_in_float64_where_large_images_cannot_be_smaller(
    batch: int, seen: tuple[int, ...], truths: list[tuple[int, ...]]
) -> None:
    """And few others in the dtype of the original."""
    torch.manual_seed(0)
    net = Lambda(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(12288, 2))
    state = torch.get_rng_state()
    evidence = lean(net, shape=(batch, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert evidence.shapes == tuple((n, 3, 64, 64) for n in seen)
    assert evidence.trials == sum(seen)
    assert evidence.own_dtype is not None
    assert evidence.own_dtype.shapes == evidence.shapes[1:]
    assert [t for t in truths if t[-1] == 64] == [(1, 3, 64, 64)]


def test_few_inputs_of_a_fixed_batch_will_do_for_large_images_that_cannot_be_smaller() -> None:
    net = Lambda(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(12288, 2))
    fixed = program_of(net, torch.zeros(2, 3, 64, 64), dynamic=())
    evidence, _ = check_float64(fixed, fixed.copy(), 0, Judge(net, fixed), lean=True)
    assert evidence.shapes == ((2, 3, 64, 64),) * 3


def test_a_network_that_was_read_from_a_file_is_compared_at_the_traced_size(tmp_path: Path) -> None:
    """At which alone the file runs."""
    path = tmp_path / "network.onnx"
    reparam.export(network(), torch.rand(*LARGE), path=path, options=reparam.ExportOptions(format="onnx"))
    evidence = convert(path).report.evidence
    assert evidence is not None
    assert evidence.own_dtype is None
    assert evidence.shapes[0] == (1, 3, 64, 64)


# ---- the bar -----------------------------------------------------------------------------------------------------


class Known(Judge):
    """A judge that gives ones, and calls nothing."""

    def own_where_it_runs(self, values: Feed) -> list[Any] | None:
        return [torch.ones(1, 1)] if values[0].numel() else None


@pytest.mark.parametrize(
    "lost, off, fine",
    [(0.0, 4 * EPS, True), (0.0, 5 * EPS, False), (2**-17, 6 * 2**-17, True), (2**-17, 6.5 * 2**-17, False)],
)
def test_six_times_what_the_original_loses_and_four_roundings_are_allowed(lost: float, off: float, fine: bool) -> None:
    original, other = (captured(Lambda(lambda m, x, by=by: x * by), (2, 1)) for by in (1.0, 1.0 + off))
    found = same_in_own_dtype(original, other, Known(nn.Identity(), original), (), [[torch.ones(1, 1)]], lost)
    assert (found is not None) == fine
    if found is not None:
        assert found == OwnDtypeEvidence(((1, 1),), off, 6 * lost + 4 * EPS)


def test_a_network_that_loses_many_digits_is_compared_in_float64() -> None:
    original = captured(nn.Identity(), (2, 1))
    judge, feeds = Known(nn.Identity(), original), [[torch.ones(1, 1)]]
    for lost, fine in ((1.5e-5, True), (1.7e-5, False), (math.nan, False)):
        assert (same_in_own_dtype(original, original, judge, (), feeds, lost) is not None) == fine


def test_what_does_not_run_in_its_own_dtype_does_not_do() -> None:
    original = captured(nn.Identity(), (2, 1))
    other = captured(nn.Linear(1, 1), (2, 1))
    judge = Known(nn.Identity(), original)
    assert in_own_dtype(original, [torch.ones(1, 3)], other) is None
    assert same_in_own_dtype(original, other, judge, (), [[torch.ones(1, 3)]], 1.0) is None
    assert same_in_own_dtype(original, original, judge, (), [[torch.ones(1, 0)]], 1.0) is None
    assert same_in_own_dtype(original, original, judge, ("relu",), [[torch.ones(1, 1)]], 1.0) is None


def test_what_is_the_machines_fault_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MachineError("no memory is left")

    original = captured(nn.Identity(), (2, 1))
    monkeypatch.setattr(subject, "evaluate", full)
    with pytest.raises(MachineError, match="no memory"):
        in_own_dtype(original, [torch.ones(1, 1)], original)
