"""One run of the judge: in which dtype each step is computed, what is kept of the results, and what is told of it."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.capture import capture
from reparam.check import Judge
from reparam.check import judge as subject
from reparam.errors import CaptureError, EndedError, MachineError
from reparam.ir import Program
from support.helpers import Lambda, program_of

X = torch.tensor([[0.1, -0.7, 1.3], [2.1, 0.3, -1.9]], dtype=torch.float64)
AGAIN = 10
PLAIN = program_of(Lambda(lambda m, x: x * 1), X.float())  # with one input


def judge_of(forward: Callable[..., Any], program: Program = PLAIN, **parts: Any) -> Judge:
    return Judge(Lambda(forward, **parts), program)


def floats(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


# ---- float64 ---------------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "plus": lambda m, x: m.w + m.v,
    "minus": lambda m, x: m.w - m.v,
    "times": lambda m, x: m.w * m.v,
    "by": lambda m, x: m.w / m.v,
    "whole": lambda m, x: m.w * 9 // m.v,
    "rest": lambda m, x: m.w % m.v,
    "power": lambda m, x: m.v**2.5,
    "matrix": lambda m, x: m.w @ m.v,
    "reversed plus": lambda m, x: 0.1 + m.w,
    "reversed minus": lambda m, x: 0.1 - m.w,
    "reversed times": lambda m, x: 0.1 * m.w,
    "reversed by": lambda m, x: 0.1 / m.w,
    "reversed rest": lambda m, x: 0.1 % m.w,
    "reversed power": lambda m, x: 1.7**m.w,
    "a function": lambda m, x: torch.sin(m.w),
    "a method": lambda m, x: m.w.exp(),
    "mixed": lambda m, x: x * m.w,
    "a layer": lambda m, x: F.linear(x, m.k, m.w),
    "by name": lambda m, x: F.linear(input=x, weight=m.k, bias=m.w),
    "half by name": lambda m, x: torch.add(input=m.h, other=m.h, alpha=3) / 7,
    "joined": lambda m, x: torch.cat([m.w, m.h, x[0]]) / 3,
    "stacked": lambda m, x: torch.stack((m.w, m.v)).softmax(0),
    "a half": lambda m, x: m.h / 3,
    "a narrow half": lambda m, x: m.b.exp(),
    "a cast": lambda m, x: x.float() / 3,
    "a cast by name": lambda m, x: x.to(dtype=torch.float16) / 3,
    "made narrow": lambda m, x: torch.full((3,), 0.1, dtype=torch.float32),
    "made narrow as another": lambda m, x: torch.zeros_like(x, dtype=torch.bfloat16) + 0.1,
    "made without a dtype": lambda m, x: torch.full((3,), 0.1),
    "made of integers": lambda m, x: torch.arange(3) / 7,
    "in place": lambda m, x: torch.zeros(3, dtype=torch.float32).add_(m.w).div_(m.v),
    "written": lambda m, x: _written(x, m.w),
    "written into": lambda m, x: torch.sub(m.w, m.v, out=torch.zeros(3, dtype=torch.float64)),
    "where": lambda m, x: torch.where(m.w > 0, m.w, m.h) / 3,
    "complex": lambda m, x: torch.view_as_real(m.z * m.z),
    "a spectrum": lambda m, x: torch.view_as_real(torch.fft.fft(m.w)),
    "expanded": lambda m, x: m.w.expand(2, 3) / 3,
    "softmax in single": lambda m, x: F.softmax(x, 1, dtype=torch.float32),
    "what compares dtypes": lambda m, x: torch.tensordot(x, m.k, 1),
    "what compares them with a narrow first": lambda m, x: torch.tensordot(m.k, x, ([1], [1])),
    "a list": lambda m, x: torch.cat([m.w, m.v]),
    "a size by name": lambda m, x: x * x.size(dim=1) / m.w.size(dim=0),
    "a norm": lambda m, x: F.layer_norm(x, (3,), m.w, m.v),
}


def _written(x: Tensor, w: Tensor) -> Tensor:
    made = torch.zeros(2, 3)
    made[0] = w
    made[1] = x[1]
    return made / 3


def weights() -> dict[str, Any]:
    return {
        "w": floats(0.1, 0.7, -0.3),
        "v": floats(0.3, 0.9, 0.11),
        "h": floats(0.1, 0.7, -0.3, dtype=torch.float16),
        "b": floats(0.1, 0.7, -0.3, dtype=torch.bfloat16),
        "z": nn.Parameter(torch.tensor([0.1 + 0.3j, 0.7 - 0.2j], dtype=torch.complex64)),
        "k": nn.Parameter(torch.linspace(-0.7, 0.9, 9).reshape(3, 3)),
    }


@pytest.mark.parametrize("name", STEPS)
def test_every_step_is_computed_in_float64(name: str) -> None:
    """It gives the very numbers of a model that is float64 itself, but for the casts that stand in the model."""
    step = STEPS[name]
    [found] = judge_of(step, **weights()).truth([X])
    wide = Lambda(step, **{k: nn.Parameter(_double(v.detach())) for k, v in weights().items()})
    with torch.no_grad(), _Wide():
        expected = wide(X.clone())
    assert found.dtype == torch.float64 and torch.equal(found, expected), (found, expected)


def _double(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)


class _Wide(torch.overrides.TorchFunctionMode):
    """What asks for a narrow dtype by name gets float64."""

    def __enter__(self) -> Any:
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.set_default_dtype(torch.float32)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: torch.float64 if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return args[0] if getattr(func, "__name__", "") == "float" else func(*args, **kwargs)


def test_whole_numbers_and_decisions_keep_their_types() -> None:
    found = judge_of(lambda m, x: (x.argmax(1), x > 0, (x > 0).to(torch.uint8), torch.tensor([1, 2]).int())).truth([X])
    assert [f.dtype for f in found] == [torch.int64, torch.bool, torch.uint8, torch.int32]


def test_what_is_asked_of_a_weight_is_answered_as_it_is() -> None:
    """A model may do something else where its weights are of another dtype, and they are not."""
    judge = judge_of(lambda m, x: x * m.w.element_size() * (2 if m.w.dtype == torch.float32 else 3), **weights())
    assert torch.equal(judge.truth([X])[0], X * 8)


def test_what_is_written_to_a_buffer_is_there_afterwards() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            self.last.copy_(x)
            return self.last * 3

    assert torch.equal(Judge(Writing(), PLAIN).truth([X])[0], X.float().double() * 3)


def test_inputs_are_not_written_to() -> None:
    given = X.clone()
    assert torch.equal(judge_of(lambda m, x: x.mul_(2)).truth([given])[0], X * 2)
    assert torch.equal(given, X)


def test_the_default_dtype_is_that_of_before() -> None:
    judge_of(lambda m, x: x * 2).truth([X])
    assert torch.get_default_dtype() == torch.float32
    assert judge_of(lambda m, x: x * 0 / 0 if m.missing else x).truth_where_it_runs([X]) is None
    assert torch.get_default_dtype() == torch.float32


def test_a_weight_that_is_repeated_is_not_written_out() -> None:
    """It is as large as what is stored of it."""
    wide = subject._widen(torch.ones(1, 3).expand(100_000, 3))
    assert wide.shape == (100_000, 3) and wide.dtype == torch.float64
    assert wide.untyped_storage().nbytes() == 3 * 8


class Halves(Tensor):
    """A tensor of a kind of its own, whose numbers are twice what it holds."""

    held: Tensor

    @classmethod
    def of(cls, held: Tensor) -> Halves:
        made: Halves = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*(2 * a.held if isinstance(a, Halves) else a for a in args), **(kwargs or {}))


def test_tensors_of_a_kind_of_their_own_cast_themselves() -> None:
    wide = subject._widen(Halves.of(torch.tensor([1.0, 2.5])))
    assert wide.dtype == torch.float64 and wide.tolist() == [2, 5]


def test_a_weight_is_given_back_when_it_was_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(subject, "give_back", given.append)
    weight = torch.ones(3)
    subject._widen(weight)
    assert [g is weight for g in given] == [True]
    subject._widen(torch.ones(3, dtype=torch.float64))
    assert len(given) == 1, "nothing was read"


# ---- what is run, and what is kept of it -----------------------------------------------------------------------------


def test_outputs_are_flat_and_in_their_order() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        return {"a": x * 2, "b": [x * 3, (x * 4, 5)]}

    found = judge_of(forward).truth([X])
    assert [torch.equal(f, X * n) for f, n in zip(found[:3], (2, 3, 4), strict=True)] == [True] * 3 and found[3] == 5
    some = judge_of(forward, replace(PLAIN, kept=(2, 0))).truth([X])
    assert len(some) == 2 and torch.equal(some[0], X * 4) and torch.equal(some[1], X * 2)


def test_arguments_are_given_as_the_model_takes_them() -> None:
    def forward(m: Any, pair: tuple[Tensor, Tensor], scale: float) -> Tensor:
        return pair[0] - pair[1] * scale

    program = program_of(Lambda(forward), (X.float(), X.float()), 3.0)
    [found] = Judge(Lambda(forward), program).truth([X, 2 * X, 3.0])
    assert torch.equal(found, X - 2 * X * 3.0)
    one = replace(PLAIN, in_spec=None)
    assert torch.equal(judge_of(lambda m, a, b: a - b, one).truth([X, 3 * X])[0], X - 3 * X)


def test_arguments_by_name_are_given_by_name() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor, *, by: Tensor) -> Tensor:
            return x - by

    spec = pytree.tree_structure(((0,), {"by": 0}))
    assert torch.equal(Judge(Named(), replace(PLAIN, in_spec=spec)).truth([X, 2 * X])[0], X - 2 * X)


def test_the_model_runs_in_evaluation_mode_and_stays_as_it_is() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.drop = 0, nn.Dropout(0.9)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            return self.drop(x) * self.seen

    model = Counting().train()
    judge = Judge(model, PLAIN)
    for _ in range(2):
        assert torch.equal(judge.truth([X])[0], X), "each run is that of a fresh copy"
    assert model.training and model.seen == 0


def test_results_have_no_history() -> None:
    assert not judge_of(lambda m, x: x * m.w, w=floats(1, 2, 3)).truth([X])[0].requires_grad


def test_inputs_are_given_in_the_models_own_dtypes_where_those_are_asked_for() -> None:
    judge = judge_of(lambda m, x: x * m.w, w=floats(1, 2, 3))
    found = judge.own_where_it_runs([X])
    assert found is not None and found[0].dtype == torch.float32
    assert torch.equal(found[0], X.float() * torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("run", ["truth_where_it_runs", "own_where_it_runs"])
def test_what_a_model_does_not_take_gives_nothing_and_what_ends_the_work_is_told(run: str) -> None:
    def failing(error: BaseException) -> Any:
        def forward(m: Any, x: Tensor) -> Tensor:
            raise error

        return getattr(judge_of(forward), run)

    for error in (ValueError("no"), RuntimeError("no"), KeyError("no")):
        assert failing(error)([X]) is None
    with pytest.raises(MachineError):
        failing(MachineError("the disk is full"))([X])
    with pytest.raises(EndedError, match="running Lambda was ended by SystemExit"):
        failing(SystemExit(0))([X])
    with pytest.raises(CaptureError, match="draws random numbers"):
        getattr(judge_of(lambda m, x: x * random.random()), run)([X])


def test_a_copy_that_ends_the_process_is_told_with_the_models_name() -> None:
    class Ends(nn.Module):
        def __deepcopy__(self, memo: Any) -> nn.Module:
            raise SystemExit

        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(EndedError, match="copying Ends was ended by SystemExit"):
        Judge(Ends(), PLAIN).truth([X])


# ---- the path --------------------------------------------------------------------------------------------------------


def test_the_path_lists_what_is_called_and_not_what_is_asked() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        assert x.dim() == 2 and x.size(0) == x.shape[0] and x.numel() and x.is_floating_point() and x.dtype
        return F.relu(F.linear(x, m.k)).add_(1)

    judge = judge_of(forward, k=weights()["k"])
    assert judge.path == ()
    for run in (judge.truth, judge.own_where_it_runs):
        run([X])
        assert judge.path == ("linear", "relu", "add_"), "of the last run alone"


# ---- the captured graph in the models own dtypes ---------------------------------------------------------------------


@pytest.mark.parametrize("off, agrees", [(999.9, True), (1000.5, False)])
def test_a_thousand_roundings_apart_is_the_same(off: float, agrees: bool) -> None:
    """The truth is then what the captured graph gives in float64, and else what the model gives."""
    eps = torch.finfo(torch.float32).eps
    judge, truth = judge_of(lambda m, x: x.double() * (1 + off * eps)), [X.float().double()]
    found = judge.in_own_dtypes([X.float().double()], truth)
    assert found is not None and (found is truth) is agrees
    assert agrees or torch.allclose(found[0], X.float().double() * (1 + off * eps), rtol=1e-12)


@pytest.mark.parametrize("off, agrees", [(0.0398, True), (0.0402, False)])
def test_so_is_four_times_what_the_graph_loses_in_its_own_dtypes(off: float, agrees: bool) -> None:
    judge, truth = judge_of(lambda m, x: x / (1 - off)), [X / 1.01]  # a truth that is one hundredth off
    found = judge.in_own_dtypes([X], truth)
    assert (found is truth) is agrees


def test_the_graph_is_run_in_the_models_own_dtypes_where_it_loses_the_same_digits() -> None:
    def loses(m: Any, x: Tensor) -> Tensor:
        return (x + 1e6) - 1e6

    judge, truth = judge_of(loses, program_of(Lambda(loses), X.float())), [X]
    assert judge.in_own_dtypes([X], truth) is truth


def test_what_the_model_does_not_take_cannot_be_compared() -> None:
    assert judge_of(lambda m, x: x * m.missing).in_own_dtypes([X], [X]) is None


# ---- random numbers --------------------------------------------------------------------------------------------------

GENERATORS: dict[str, Callable[[], float]] = {"python": random.random, "numpy": lambda: float(np.random.rand())}


@pytest.mark.parametrize("name", GENERATORS)
def test_a_model_that_draws_has_to_agree_with_itself_once_in_ten_more_runs(name: str) -> None:
    counter = itertools.count()
    draw = GENERATORS[name]

    def forward(m: Any, x: Tensor) -> Tensor:
        next(counter)
        return x * (1 + 1e-10 * draw())

    judge = judge_of(forward)
    judge.truth([X])
    assert next(counter) == 1 + AGAIN
    judge.truth([X])
    assert next(counter) == 1 + AGAIN + 1 + 1, "that it does was seen"


def test_a_model_runs_where_numpy_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy.random")
    assert torch.equal(judge_of(lambda m, x: x * 2).truth([X])[0], X * 2)


def test_a_model_that_draws_nothing_runs_once() -> None:
    counter = itertools.count()
    judge_of(lambda m, x: x * (1 + 0 * next(counter))).truth([X])
    assert next(counter) == 1


@pytest.mark.parametrize("last, refused", [(AGAIN, True), (AGAIN + 1, False)])
def test_one_run_that_differs_is_enough(last: int, refused: bool) -> None:
    counter = itertools.count()

    def forward(m: Any, x: Tensor) -> Tensor:
        return x + random.random() * 0 + (1e-6 if next(counter) == last else 0.0)

    judge = judge_of(forward)
    if not refused:
        judge.truth([X])
        return
    with pytest.raises(CaptureError, match=r"by Python's random or numpy\.random"):
        judge.truth([X])


def test_captured_models_take_the_same_feeds() -> None:
    model = Lambda(lambda m, x: F.linear(x, m.k), **weights())
    program = capture(model, (X.float(),)).program
    assert torch.equal(Judge(model, program).truth([X])[0], F.linear(X, weights()["k"].detach().double()))
