"""A model that keeps state in Python is refused by its name; one that writes and is none the worse for it is not."""

from __future__ import annotations

import functools
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam.capture import capture, next_run
from reparam.errors import CaptureError
from support.helpers import EXACT, doubles, module_rel

total = 0.0
MEAN: dict[str, Tensor] = {}


class Box:
    """An object with attributes."""

    def __init__(self) -> None:
        self.kept: Any = None


class Slotted:
    """An object that has slots in place of a dictionary."""

    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept: Any = None


class Net(nn.Module):
    """A linear layer, and what a step computes of its result, with attributes."""

    shared: ClassVar[list[Tensor]] = []
    runs: ClassVar[int] = 0

    def __init__(self, step: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.step = step
        vars(self).update(attributes)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self, self.layer(x))


def _queue(m: Any, y: Tensor) -> Tensor:
    m.past.append(y)
    return sum(list(m.past)[-2:])  # type: ignore[return-value]


def _hidden(m: Any, y: Tensor) -> Tensor:
    y = y if m.past is None else y + 0.5 * m.past
    m.past = y
    return y


def _in_dict(m: Any, y: Tensor) -> Tensor:
    y = y + m.past["h"] if "h" in m.past else y
    m.past["h"] = y
    return y


def _counts(m: Any, y: Tensor) -> Tensor:
    m.past += 1
    return y * m.past


def _in_object(m: Any, y: Tensor) -> Tensor:
    old, m.past.kept = m.past.kept, y
    return y if old is None else y - old


def _in_nested(m: Any, y: Tensor) -> Tensor:
    m.past["a"][0].append(y)
    return torch.stack(m.past["a"][0]).sum(0)


def _counter(m: Any, y: Tensor) -> Tensor:
    return y * next(m.past)


def _of_numpy(m: Any, y: Tensor) -> Tensor:
    m.past[0] += 1
    return y * float(m.past[0])


def _average(m: Any, y: Tensor) -> Tensor:
    """For inputs that stay the same, so does the result."""
    m.past = y if m.past is None else 0.9 * m.past + 0.1 * y
    return m.past


def _largest(m: Any, y: Tensor) -> Tensor:
    """A second input may be smaller than the first, and leave no trace."""
    m.past = y.amax() if m.past is None else torch.maximum(m.past, y.amax())
    return y / m.past


def _once(m: Any, y: Tensor) -> Tensor:
    """Raises when it is called again."""
    m.past.pop()
    return y


@pytest.mark.parametrize("inner", [False, True], ids=["the module's own", "in a submodule"])
@pytest.mark.parametrize(
    "step, start",
    [
        (_queue, list),
        (_queue, lambda: deque(maxlen=4)),
        (_hidden, lambda: None),
        (_in_dict, dict),
        (_counts, lambda: 0),
        (_in_object, Box),
        (_in_object, Slotted),
        (_in_nested, lambda: {"a": ([], 1)}),
        (_counter, lambda: itertools.count(1)),
        (_of_numpy, lambda: np.zeros(2)),
        (_average, lambda: None),
        (_largest, lambda: None),
        (_once, lambda: [1]),
    ],
)
def test_state_in_python_is_refused_by_name(step: Any, start: Callable[[], Any], inner: bool) -> None:
    torch.manual_seed(0)
    net: nn.Module = Net(step, past=start()).double()
    model = nn.Sequential(net) if inner else net
    with pytest.raises(CaptureError) as told:
        capture(model, (doubles(4, 3),))
    assert str(told.value) == (
        f"the model writes to its own '{'0.' if inner else ''}past' while it runs, which changes its next results, so "
        "it is not a function of its inputs; remove the write from its evaluation path"
    )


def test_the_attribute_at_fault_is_found_among_others() -> None:
    def step(m: Any, y: Tensor) -> Tensor:
        m.last_shape, m.calls, m.a_map = y.shape, m.calls + 1, y
        return _hidden(m, y)

    with pytest.raises(CaptureError, match="writes to its own 'past' while"):
        capture(Net(step, past=None, calls=0).double(), (doubles(4, 3),))


def test_an_attribute_that_is_made_on_the_first_run() -> None:
    def step(m: Any, y: Tensor) -> Tensor:
        m.other = y
        y = y + m.late if hasattr(m, "late") else y
        m.late = y
        return y

    with pytest.raises(CaptureError, match="writes to its own 'late' while"):
        capture(Net(step).double(), (doubles(4, 3),))


def test_several_attributes_that_are_at_fault_together() -> None:
    def step(m: Any, y: Tensor) -> Tensor:
        m.a, m.b, m.c, m.d = m.a + 1, m.b + 1, m.c + 1, m.d + 1
        return y * (m.a + m.b + m.c + m.d)

    with pytest.raises(CaptureError, match=r"writes to its own 'a', 'b', 'c' and 1 more while"):
        capture(Net(step, a=0, b=0, c=0, d=0).double(), (doubles(4, 3),))


def _of_a_global(m: Any, y: Tensor) -> Tensor:
    globals()["total"] += 1.0
    return y * total


def _of_a_global_dict(m: Any, y: Tensor) -> Tensor:
    MEAN["mean"] = 0.5 * (MEAN.get("mean", y) + y)
    return y - MEAN["mean"]


def _of_the_class(m: Any, y: Tensor) -> Tensor:
    type(m).runs += 1
    return y * type(m).runs


def _of_a_list_of_the_class(m: Any, y: Tensor) -> Tensor:
    m.shared.append(y)
    return torch.stack(m.shared).mean(0) * len(m.shared)


def _of_a_closure() -> Callable[[Any, Tensor], Tensor]:
    runs = 0

    def step(m: Any, y: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        return y * runs

    return step


@pytest.mark.parametrize(
    "step", [_of_a_global, _of_a_global_dict, _of_the_class, _of_a_list_of_the_class, _of_a_closure()]
)
def test_state_outside_of_the_model_is_refused(step: Any) -> None:
    net = Net(step).double()
    with pytest.raises(CaptureError, match="writes to something outside of it, such as a global variable or what a f"):
        capture(net, (doubles(4, 3),))
    assert total == 0.0 and not MEAN and not Net.shared and not Net.runs


# ---- what is no state --------------------------------------------------------------------------------------------


def _keeps_a_shape(m: Any, y: Tensor) -> Tensor:
    m.past = y.shape
    return y


def _counts_for_itself(m: Any, y: Tensor) -> Tensor:
    m.past = (m.past or 0) + 1
    return y


def _keeps_a_map(m: Any, y: Tensor) -> Tensor:
    m.past = y.softmax(1)
    return y * m.past


def _makes_a_grid_once(m: Any, y: Tensor) -> Tensor:
    if m.past is None:
        m.past = torch.linspace(0, 1, 3, dtype=y.dtype)
    return y + m.past


def _keeps_grids(m: Any, y: Tensor) -> Tensor:
    if m.past is None:
        m.past = {}
    if y.shape[1] not in m.past:
        m.past[y.shape[1]] = torch.arange(y.shape[1], dtype=y.dtype)
    return y + m.past[y.shape[1]]


def _lists_what_it_saw(m: Any, y: Tensor) -> Tensor:
    m.past = [*(m.past or []), y]
    return y / y.amax(1, keepdim=True)


def _fuses_on_the_first_run(m: Any, y: Tensor) -> Tensor:
    """The next results differ by roundings."""
    first = m.past is None
    m.past = y.new_tensor([0.1]) * 3 if first else m.past
    return y * 3 * 0.1 if first else y * m.past


def _gives_no_numbers(m: Any, y: Tensor) -> Tensor:
    m.past = y
    return (y - 1e3).log()


HARMLESS = [
    _keeps_a_shape,
    _counts_for_itself,
    _keeps_a_map,
    _makes_a_grid_once,
    _keeps_grids,
    _lists_what_it_saw,
    _fuses_on_the_first_run,
    _gives_no_numbers,
]


@pytest.mark.parametrize("step", HARMLESS)
def test_what_is_written_and_changes_nothing_is_no_state(step: Any) -> None:
    net = Net(step, past=None).double()
    program = capture(net, (doubles(4, 3),)).program
    assert net.past is None
    if step is not _gives_no_numbers:
        assert module_rel(net, program, [doubles(5, 3)]) <= EXACT


def _draws(m: Any, y: Tensor) -> Tensor:
    return y * float(m.past.random())


def _largest_batch(m: Any, y: Tensor) -> Tensor:
    m.past = max(m.past, y.shape[0])
    return y * m.past


def _warms_up(m: Any, y: Tensor) -> Tensor:
    m.past += 1
    return y * min(m.past, 4) if m.past >= 4 else y


def _counts_far_below(m: Any, y: Tensor) -> Tensor:
    held = m.past
    for _ in range(8):
        held = held["in"]
    held["n"] += 1
    return y * held["n"]


def _nested(depth: int) -> dict[str, Any]:
    return {"in": _nested(depth - 1)} if depth else {"n": 0}


LATE: list[tuple[Any, Callable[[], Any]]] = [
    (_draws, lambda: random.Random(0)),
    (_draws, lambda: np.random.default_rng(0)),
    (_draws, lambda: np.random.RandomState(0)),
    (_largest_batch, lambda: 0),
    (_warms_up, lambda: 0),
    (_counts_far_below, lambda: _nested(8)),
]


@pytest.mark.parametrize(("step", "start"), LATE)
def test_generators_and_state_that_shows_late(step: Any, start: Callable[[], Any]) -> None:
    with pytest.raises(CaptureError, match="writes to its own 'past' while it runs, which changes its next results"):
        capture(Net(step, past=start()).double(), (doubles(4, 3),))


def test_of_what_is_too_large_the_length_is_compared() -> None:
    def step(m: Any, y: Tensor) -> Tensor:
        m.past.append(y)
        return y * len(m.past)

    with pytest.raises(CaptureError, match="writes to its own 'past'"):
        capture(Net(step, past=list(range(50_000))).double(), (doubles(4, 3),))
    words = {i: [i] for i in range(50_000)}
    capture(Net(lambda m, y: y * len(m.words), words=words, past=None).double(), (doubles(4, 3),))


def test_chance_is_no_state() -> None:
    """It is told where the network is compared with the original."""

    def step(m: Any, y: Tensor) -> Tensor:
        m.past = y
        return y * random.random()

    capture(Net(step).double(), (doubles(4, 3),))


def test_a_network_that_writes_nothing_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("run")

    monkeypatch.setattr(next_run, "fresh_copy", never)
    block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))
    capture(block, (torch.randn(2, 3, 2, 2),))
    capture(nn.TransformerEncoderLayer(8, 2, batch_first=True), (torch.randn(2, 5, 8),))
    capture(nn.LSTM(6, 5, batch_first=True), (torch.randn(2, 7, 6),))
    cached = functools.lru_cache(lambda width: torch.linspace(0, 1, width))
    capture(Net(lambda m, y: y * cached(3)), (torch.randn(4, 3),))
    with pytest.raises(AssertionError, match="run"):
        capture(Net(_keeps_a_shape, past=None), (torch.randn(4, 3),))


def test_other_inputs_are_of_the_same_kinds() -> None:
    zeros, ids, part = torch.zeros(2, 3), torch.arange(4), torch.tensor([1.0, 2.0])
    others: Any = next_run._others((zeros, [ids, 7], {"a": part}))
    assert torch.equal(others[0], torch.full((2, 3), 0.5))
    assert torch.equal(others[1][0], torch.tensor([3, 2, 1, 0])) and others[1][1] == 7
    assert torch.equal(others[2]["a"], torch.tensor([1.5, 0.75]))


def test_results_are_the_same_but_for_roundings() -> None:
    nan, same = float("nan"), next_run._same
    x = torch.tensor([1.0, nan])
    assert same([x, 1, None, nan], [x.clone(), 1, None, nan]) and same(None, None)
    others: list[Any] = [None, [], [x[:1]], [x.double()], [torch.tensor([1.0 + 2**-16, nan])]]
    assert not any(same([x], other) for other in others)
    assert same([x], [torch.tensor([1.0 + 2**-18, nan])]) and not same([x], [torch.tensor([1.0, 1.0])])
    assert not same([torch.arange(2)], [torch.arange(2) + 1]) and same(
        [torch.tensor([1e-9, 1.0])], [torch.tensor([2e-9, 1.0])]
    )
    infinite = torch.tensor([float("inf"), 1.0])
    assert same([infinite], [infinite + 2**-20]) and not same([infinite], [-infinite])
    assert not same([torch.full((2,), nan)], [torch.zeros(2)]) and same([x + 1j], [x + 1j + 2**-20])
    assert not same([1], [True]) and not same([1], [2]) and not same([x], [1])
