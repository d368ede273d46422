"""The end-to-end check, step by step: whose result is the truth, at which sizes, and who is to blame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture import Line
from reparam.check import Judge, PathError, check_float64
from reparam.check import network_check as subject
from reparam.check.emitted_check import check_runs
from reparam.check.network_check import agree_in_float64
from reparam.errors import CaptureError, EndedError, InputError, NotEquivalentError, RuleError
from reparam.ir import Feed, Program, aten, evaluate, typed
from support.helpers import Lambda, program_of

ROW = torch.zeros(2, 3)
Outputs = list[Any] | None
Run = Callable[[Tensor], Outputs]


def row(forward: Callable[..., Any], *, dynamic: tuple[str, ...] = ("batch",)) -> Program:
    return program_of(Lambda(forward), ROW, dynamic=dynamic)


def doubled(**options: Any) -> Program:
    return row(lambda m, x: x * 2, **options)


@dataclass
class Fake:
    """A judge that says what it is told to say. wide: in float64. own: in its own dtypes. agrees: with the graph."""

    wide: Run = lambda x: [x * 2]
    own: Run = lambda x: [x * 2]
    agrees: bool = True
    path_of: Callable[[Tensor], tuple[str, ...]] = lambda x: ("mul",)
    lines_of: Callable[[Tensor], list[Line] | None] = lambda x: []
    path: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def truth_where_it_runs(self, values: Feed) -> Outputs:
        self.path = self.path_of(values[0])
        self.asked.append("wide")
        return self.wide(values[0])

    def own_where_it_runs(self, values: Feed) -> Outputs:
        self.asked.append("own")
        return self.own(values[0])

    def lines_where_it_runs(self, values: Feed) -> list[Line] | None:
        return self.lines_of(values[0])

    def in_own_dtypes(self, values: Feed, truth: list[Any]) -> Outputs:
        self.asked.append("agrees")
        return truth if self.agrees else self.own(values[0])


def check(original: Program, converted: Program | None = None, judge: Any = None, seed: int = 0) -> Any:
    return check_float64(original, converted or original.copy(), seed, judge)


def reshaped(program: Program, rows: int) -> Program:
    """A program whose first call runs in batches of so many rows alone."""
    node = next(program.calls())
    node.target, node.args = aten.reshape.default, (node.args[0], [rows, 3])
    return program


# ---- without a judge -------------------------------------------------------------------------------------------------


def test_the_evidence_says_how_far_apart_and_on_what(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(subject._log, "info", lambda text, *given: lines.append(text % given))
    off = row(lambda m, x: torch.where(torch.arange(3) == 0, x * 2 * (1 + 1e-12), x * 2))
    evidence, rounds = check(doubled(), off, seed=7)
    each = [float((r.values[0][:, 0] * 2e-12).abs().max() / (r.values[0] * 2).abs().max()) for r in rounds]
    assert evidence.float64_max_rel == pytest.approx(max(each), rel=1e-3) and len(set(each)) == 3
    assert (evidence.trials, evidence.seed, evidence.shapes) == (8, 7, ((1, 3), (5, 3), (2, 3)))
    assert lines == [f"judged: the same function on 8 inputs, float64 difference {evidence.float64_max_rel:.3g}"]
    assert all(torch.equal(r.truth[0], r.values[0] * 2) and r.limit == 1e-10 and not r.unclaimed for r in rounds)
    assert all(r.inputs == len(r.values[0]) for r in rounds)


def test_inputs_follow_from_the_seed() -> None:
    one, same, other = (check(doubled(), seed=seed)[1] for seed in (1, 1, 2))
    assert all(torch.equal(a.values[0], b.values[0]) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a.values[0], b.values[0]) for a, b in zip(one, other, strict=True))
    default = check_float64(doubled(), doubled())
    assert default[0].seed == 0
    assert torch.equal(default[1][0].values[0], check(doubled(), seed=0)[1][0].values[0])


@pytest.mark.parametrize("off, same", [(0.99e-10, True), (1.01e-10, False)])
def test_the_bar_is_ten_digits(off: float, same: bool) -> None:
    """Both are off by the same share everywhere, and what float32 loses of a product by two is nothing."""
    other = row(lambda m, x: x * (2 * (1 + off)))
    assert agree_in_float64(doubled(), other, 0) is same
    if not same:
        with pytest.raises(NotEquivalentError) as told:
            check(doubled(), other)
        assert str(told.value) == (
            "the converted network differs from the original: float64 error 1.01e-10 exceeds 1e-10"
        )


@pytest.mark.parametrize(
    "dtype, number, beside",
    [(torch.float32, 0.1, (0.0, 1e5)), (torch.float64, 0.1, (0.0, 1e5)), (torch.bfloat16, 0.01, (1.1, 256.0))],
)
@pytest.mark.parametrize("share, same", [(0.98, True), (1.02, False)])
def test_what_the_original_loses_in_its_own_dtype_is_allowed_in_double(
    dtype: torch.dtype, number: float, beside: tuple[float, float], share: float, same: bool
) -> None:
    """256 times that, in roundings. In double it loses next to nothing, so that it is run in single precision."""
    narrow = torch.float32 if dtype == torch.float64 else dtype
    small, (a, b) = torch.tensor(number, dtype=dtype), beside
    lost = abs(float(small.to(narrow) + a + b - b - a) - float(small)) / float(small)
    bar = 256 * lost * 2.0**-52 / torch.finfo(narrow).eps
    assert 5e-10 < bar < 1e-8

    def program(factor: float) -> Program:
        net = Lambda(lambda m, x: (x * 0 + m.w + a + b - b - a) * factor, w=nn.Parameter(small.repeat(3)))
        return program_of(net, ROW.to(dtype), dynamic=())

    original, other = program(1.0), program(1 + share * bar)
    assert agree_in_float64(original, other, 0) is same
    if same:
        assert [r.limit for r in check(original, other)[1]] == pytest.approx([bar] * 8, rel=1e-3)


def test_a_model_that_overflows_in_its_own_dtype_gets_the_ordinary_bar() -> None:
    original = row(lambda m, x: x * 1e30 * 1e30 / 1e30 / 1e30)
    assert agree_in_float64(original, row(lambda m, x: x * (1 + 0.9e-10)), 0)
    assert not agree_in_float64(original, row(lambda m, x: x * (1 + 1.1e-10)), 0)


def test_whether_two_agree_is_asked_on_the_inputs_of_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(subject, "check_float64", lambda *given: asked.append(given))
    one, other = doubled(), doubled()
    assert agree_in_float64(one, other, 3) and asked == [(one, other, 3)]


def test_truth_that_is_not_finite_is_no_truth() -> None:
    with pytest.raises(InputError, match="own outputs are not finite on random inputs"):
        check(row(lambda m, x: x / 0.0))
    with pytest.raises(InputError, match="not finite"):
        check(row(lambda m, x: (x * 2, torch.where(x > 0, x, math.nan))))


def test_a_converted_network_that_does_not_run_says_why() -> None:
    text = r"the converted network does not run on inputs of shape 1x3: shape '\[4, 3\]' is invalid"
    with pytest.raises(NotEquivalentError, match=text):
        check(doubled(), reshaped(doubled(), 4))


def test_a_model_that_runs_nowhere_is_told_with_its_words() -> None:
    with pytest.raises(
        CaptureError, match=r"^the model does not run on random inputs of the traced size: shape '\[4, 3"
    ):
        check(reshaped(doubled(dynamic=()), 4))
    with pytest.raises(
        PathError, match=r"^the model does not run on inputs of shape 1x3: shape '\[4, 3\]' is inv"
    ) as told:
        check(reshaped(doubled(), 4))
    assert told.value.axes == ("batch",)


def test_larger_batches_that_the_model_does_not_take_are_left_out() -> None:
    evidence, _ = check(reshaped(doubled(), 1))
    assert evidence.shapes == ((1, 3),) and evidence.trials == 1


# ---- the judge -------------------------------------------------------------------------------------------------------


def test_what_the_model_gives_in_float64_is_the_truth() -> None:
    judge = Fake(wide=lambda x: [x * 2 * (1 + 3e-11)])
    evidence, rounds = check(doubled(), judge=judge)
    assert evidence.float64_max_rel == pytest.approx(3e-11, rel=1e-3)
    assert all(torch.equal(r.truth[0], r.values[0] * 2 * (1 + 3e-11)) for r in rounds)
    assert judge.asked == ["wide"] * 3


def test_a_converted_network_that_is_not_the_model_is_to_blame_where_the_captured_graph_is() -> None:
    with pytest.raises(NotEquivalentError, match="differs from the original"):
        check(doubled(), row(lambda m, x: x * 3), Fake())


@pytest.mark.parametrize("dynamic, told", [((), "something else when it runs on"), (("batch",), "takes another path")])
def test_a_captured_graph_that_is_not_the_model_is_to_blame_itself(dynamic: tuple[str, ...], told: str) -> None:
    judge = Fake(wide=lambda x: [x * 3], own=lambda x: [x * 3], agrees=False)
    with pytest.raises(PathError, match=f"{told}.*: the captured graph computes something else there"):
        check(doubled(dynamic=dynamic), judge=judge)


def test_so_it_is_where_the_converted_network_happens_not_to_run() -> None:
    judge = Fake(wide=lambda x: [x * 3], own=lambda x: [x * 3], agrees=False)
    with pytest.raises(PathError, match="the captured graph computes something else there"):
        check(doubled(), reshaped(doubled(), 4), judge)


def test_a_model_that_is_another_in_float64_is_judged_by_the_captured_graph_while_both_agree() -> None:
    judge = Fake(wide=lambda x: [x * 3])
    evidence, rounds = check(doubled(), judge=judge)
    assert evidence.float64_max_rel == 0.0 and all(torch.equal(r.truth[0], r.values[0] * 2) for r in rounds)
    assert judge.asked == ["wide", "agrees", "agrees", "agrees"], "this is settled on the first inputs"


def test_so_is_one_that_does_not_run_in_float64() -> None:
    judge = Fake(wide=lambda x: None)
    evidence, rounds = check(doubled(), judge=judge)
    assert evidence.float64_max_rel == 0.0 and judge.asked == ["wide", "agrees", "agrees", "agrees"]
    assert not rounds[0].unclaimed
    with pytest.raises(NotEquivalentError):
        check(doubled(), row(lambda m, x: x * 3), Fake(wide=lambda x: None))


def test_such_a_model_that_does_not_agree_is_not_the_captured_graph() -> None:
    judge = Fake(wide=lambda x: None, own=lambda x: [x * 3], agrees=False)
    with pytest.raises(PathError, match="the captured graph computes something else there"):
        check(doubled(), judge=judge)


def test_it_may_do_so_at_another_batch_alone() -> None:
    judge = Fake(wide=lambda x: None)
    judge.in_own_dtypes = lambda values, truth: truth if len(values[0]) != 5 else [values[0] * 3]  # type: ignore[method-assign]
    with pytest.raises(PathError, match=r"inputs of shape 5x3 .* computes something else there; leave batch out"):
        check(doubled(), judge=judge)


def test_where_the_captured_graph_does_not_run_at_a_size_its_line_is_told() -> None:
    with pytest.raises(PathError, match=r"shape 5x3 .*traced: the captured graph does not run there"):
        check(reshaped(doubled(), 1), reshaped(doubled(), 1), Fake())
    with pytest.raises(PathError, match=r"shape 1x3 .* the captured graph does not run there"):
        check(reshaped(doubled(), 4), reshaped(doubled(), 4), Fake())


def test_where_neither_runs_in_float64_the_models_own_results_show_it() -> None:
    judge = Fake(wide=lambda x: None)
    with pytest.raises(PathError, match=r"shape 1x3 .* the captured graph does not run there"):
        check(reshaped(doubled(), 4), judge=judge)
    assert judge.asked == ["wide", "own"]
    later = Fake(wide=lambda x: None)
    with pytest.raises(PathError, match=r"shape 5x3 .* the captured graph does not run there"):
        check(reshaped(doubled(), 1), judge=later)
    assert set(later.asked[2:]) == {"own"} and later.asked[:2] == ["wide", "agrees"]


def test_a_model_that_takes_none_of_the_inputs_cannot_be_compared() -> None:
    nothing: Run = lambda x: None  # noqa: E731  # as short as the others
    with pytest.raises(CaptureError, match=r"^the model does not run on random inputs of the traced size, so nothing"):
        check(doubled(), judge=Fake(nothing, nothing, agrees=False))


def test_batches_that_the_model_does_not_take_are_left_out() -> None:
    few: Run = lambda x: [x * 2] if len(x) < 5 else None  # noqa: E731
    assert check(doubled(), judge=Fake(few))[0].shapes == ((1, 3), (2, 3))


def test_a_graph_that_lacks_float64_is_told_as_that() -> None:
    """The captured graph runs in its own dtypes alone, and the model gives results in float64."""
    program = doubled(dynamic=())
    node = next(program.calls())
    node.target, node.args = _only_single, (node.args[0],)
    with pytest.raises(CaptureError, match=r"^the network does not run in float64, in which it is checked: no d"):
        check(program, doubled(dynamic=()), Fake(wide=lambda x: [x * 3]))


def _only_single(x: Tensor) -> Tensor:
    if x.dtype == torch.float64:
        raise RuntimeError("no doubles")
    return x * 2


# ---- the path of the model -------------------------------------------------------------------------------------------


def test_other_functions_at_a_free_size_are_another_path() -> None:
    """Some random inputs that give the same do not say that they compute the same."""
    judge = Fake(path_of=lambda x: ("mul",) if len(x) != 2 else ("mul", "relu"))
    with pytest.raises(PathError) as told:
        check(doubled(), judge=judge)
    assert str(told.value) == (
        "the model takes another path for inputs of shape 2x3 than for 1x3: it calls other functions there; leave "
        "batch out of the free axes"
    )


def test_the_lines_are_told_with_which_the_paths_part() -> None:
    lines = [Line("net.py", n, "forward", code) for n, code in ((3, "y = x * 2"), (5, "y = y.relu()"), (7, "y = -y"))]

    def told(one: list[Line] | None, two: list[Line] | None) -> str:
        judge = Fake(path_of=lambda x: ("mul",) * len(x), lines_of=lambda x: one if len(x) == 1 else two)
        with pytest.raises(PathError, match="it calls other functions there") as error:
            check(doubled(), judge=judge)
        return str(error.value).partition(" there")[2].partition("; leave")[0]

    assert told(lines, [lines[0], lines[2]]) == (
        "; with 1x3 it goes on at net.py:5 `y = y.relu()`, with 5x3 at net.py:7 `y = -y`"
    )
    assert told(lines[:1], lines) == "; with 1x3 it goes on at its end, with 5x3 at net.py:5 `y = y.relu()`"
    assert told(lines[:2], lines[:1]).endswith("at net.py:5 `y = y.relu()`, with 5x3 at its end")
    assert told(lines, lines) == told(None, lines) == told(lines, None) == ""


def test_other_functions_at_the_same_size_are_none_of_our_business() -> None:
    calls = iter(range(100))
    judge = Fake(path_of=lambda x: (f"f{next(calls)}",))
    assert check(doubled(dynamic=()), judge=judge)[0].trials == 8


def image(axes: tuple[str, ...]) -> Program:
    return program_of(Lambda(lambda m, x: x * 2), torch.zeros(2, 1, 12, 12), dynamic=axes)


def test_other_functions_on_a_smaller_image_are_looked_at_again_at_the_traced_size() -> None:
    judge = Fake(path_of=lambda x: ("mul",) if x.shape[2] == 12 else ("mul", "small"))
    evidence, rounds = check(image(("batch",)), judge=judge)
    assert evidence.shapes[1] == (5, 1, 9, 9)
    assert [r.unclaimed for r in rounds] == [False, True, True], "nothing is said of that size"
    other = Fake(path_of=lambda x: ("mul",) if len(x) == 1 else ("mul", "many"))
    with pytest.raises(PathError, match=r"shape 5x1x9x9 than for 1x1x12x12: it calls other functions there"):
        check(image(("batch",)), judge=other)


def test_the_axis_is_named_whose_size_has_changed() -> None:
    judge = Fake(path_of=lambda x: ("mul",) if x.shape[2] < 40 else ("mul", "tall"))
    with pytest.raises(PathError) as told:
        check(image(("batch", "height")), judge=judge)
    assert told.value.axes == ("height",)


def test_a_smaller_image_without_a_judge_is_claimed() -> None:
    assert [r.unclaimed for r in check(image(("batch",)))[1]] == [False, False, False]


def test_the_models_own_judge_does_all_that() -> None:
    model = Lambda(lambda m, x: F.relu(x) if len(x) > 2 else x.clamp(min=0)).eval()
    program = row(lambda m, x: F.relu(x))
    with pytest.raises(PathError, match="it calls other functions there"):
        check_float64(program, program.copy(), 0, Judge(model, program))


# ---- whether a program runs at all -----------------------------------------------------------------------------------


def test_a_program_runs_in_its_own_dtypes_or_in_float64() -> None:
    check_runs(doubled())
    single = doubled()
    node = next(single.calls())
    node.target, node.args = _only_single, (node.args[0],)
    check_runs(single)
    node.target = _only_double
    check_runs(single)


def _only_double(x: Tensor) -> Tensor:
    if x.dtype != torch.float64:
        raise RuntimeError("no singles")
    return x * 2


def test_one_that_runs_in_neither_is_told_in_the_words_of_float64() -> None:
    program = doubled()
    node = next(program.calls())
    node.target, node.args = _never, (node.args[0],)
    with pytest.raises(CaptureError, match=r"^the model does not run on .* traced size: not torch\.float64$"):
        check_runs(program)
    assert typed(program, [ROW.double()])[0].dtype == torch.float32 and evaluate(doubled(), [ROW.double()])


def _never(x: Tensor) -> Tensor:
    raise RuntimeError(f"not {x.dtype}\nand more of it")


@pytest.mark.parametrize("error", [EndedError("it has ended"), RuleError("it is broken")])
def test_errors_of_our_own_keep_their_words(error: Exception) -> None:
    def ends(x: Tensor) -> Tensor:
        raise error

    program = doubled()
    node = next(program.calls())
    node.target, node.args = ends, (node.args[0],)
    with pytest.raises(type(error), match=str(error)):
        check_runs(program)
    with pytest.raises(type(error), match=str(error)):
        check(program)
