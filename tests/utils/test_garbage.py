"""While a call runs, objects that were there before are not looked at by the collector of garbage, and then again."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from reparam.utils import garbage
from reparam.utils.garbage import SECONDS, SELDOM, no_looks, old_objects_at_rest, seldom_looks


class _Collector:
    """Python's `gc`, which writes down what it is asked for and touches nothing: a look takes as long as torch's do."""

    def __init__(self, frozen: int = 0) -> None:
        self.frozen, self.asked, self.on, self.threshold = frozen, list[str](), True, (700, 10, 10)

    def get_freeze_count(self) -> int:
        return self.frozen

    def get_stats(self) -> list[dict[str, int]]:
        return [{"collections": self.asked.count("collect")}]

    def freeze(self) -> None:
        self.frozen = 1
        self.asked.append("freeze")

    def unfreeze(self) -> None:
        self.frozen = 0
        self.asked.append("unfreeze")

    def collect(self) -> None:
        self.asked.append("collect")

    def isenabled(self) -> bool:
        return self.on

    def enable(self) -> None:
        self.on = True

    def disable(self) -> None:
        self.on = False

    def get_threshold(self) -> tuple[int, int, int]:
        return self.threshold

    def set_threshold(self, *numbers: int) -> None:
        assert len(numbers) == 3
        self.threshold = numbers


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> _Collector:
    made = _Collector()
    monkeypatch.setattr(garbage, "gc", made)
    monkeypatch.setattr(garbage, "_unseen", garbage._Unseen())
    monkeypatch.setattr(garbage, "_usual", [])
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = SimpleNamespace(now=0.0)
    monkeypatch.setattr(garbage, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


CALL = ["freeze", "collect", "unfreeze"]


def test_objects_are_frozen_in_the_block_and_its_own_collected_behind_it(collector: _Collector) -> None:
    with old_objects_at_rest():
        assert collector.asked == ["freeze"]
        with old_objects_at_rest():
            pass
        assert collector.asked == ["freeze"]
    assert collector.asked == CALL


def test_a_failure_ends_it_as_well(collector: _Collector) -> None:
    with pytest.raises(KeyError), old_objects_at_rest():
        raise KeyError
    assert collector.asked == CALL


def test_what_the_caller_froze_stays_frozen(collector: _Collector) -> None:
    collector.frozen = 7
    with old_objects_at_rest():
        pass
    assert collector.asked == [] and collector.frozen == 7


def _called(seconds: float, clock: Any) -> None:
    with old_objects_at_rest():
        clock.now += seconds


def test_what_is_dropped_between_calls_does_not_pile_up(collector: _Collector, clock: Any) -> None:
    _called(0.75 * SECONDS, clock)
    _called(0.75 * SECONDS, clock)
    assert collector.asked == CALL * 2
    _called(0.75 * SECONDS, clock)
    assert collector.asked == [*CALL * 2, "collect", *CALL]
    _called(0.0, clock)  # from the start again
    assert collector.asked == [*CALL * 2, "collect", *CALL * 2]


def test_the_collectors_own_looks_count(collector: _Collector, clock: Any) -> None:
    _called(2 * SECONDS, clock)
    collector.collect()
    _called(0.0, clock)
    assert collector.asked == [*CALL, "collect", *CALL]


def test_nothing_is_looked_at_during_imports_and_what_they_made_is_old_behind_them(collector: _Collector) -> None:
    with no_looks():
        assert not collector.on
        with no_looks():
            pass
        assert not collector.on and collector.asked == []
    assert collector.on and collector.asked == ["freeze", "unfreeze"]


def test_a_collector_that_is_off_stays_off_behind_imports(collector: _Collector) -> None:
    collector.on = False
    with no_looks():
        pass
    assert not collector.on and collector.asked == []


def test_what_the_caller_froze_stays_frozen_behind_imports(collector: _Collector) -> None:
    collector.frozen = 7
    with no_looks():
        pass
    assert collector.on and collector.asked == []


def test_an_import_that_fails_switches_the_collector_on_again(collector: _Collector) -> None:
    with pytest.raises(KeyError), no_looks():
        raise KeyError
    assert collector.on


def test_a_program_looks_seldom_but_for_inside_of_public_functions(collector: _Collector) -> None:
    collector.threshold = (500, 5, 5)
    with old_objects_at_rest():
        assert collector.threshold == (500, 5, 5)
    for _ in range(2):
        seldom_looks()
        assert collector.threshold == SELDOM
    with old_objects_at_rest():
        assert collector.threshold == (500, 5, 5)
    assert collector.threshold == SELDOM


def test_the_command_looks_seldom_while_it_starts() -> None:
    code = (
        "import atexit, gc, sys; sys.argv[1:] = ['--version']; from reparam.cli import main; "
        "atexit.register(lambda: print(gc.get_threshold(), gc.isenabled())); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == f"{SELDOM} True"


def test_public_functions_are_such_blocks() -> None:
    code = (
        "import gc; from reparam.utils.arguments import checked_call; "
        "print(checked_call(gc.get_freeze_count)() > 0, gc.get_freeze_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0"]
