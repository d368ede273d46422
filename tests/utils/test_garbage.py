"""While a call runs, objects that were there before are not looked at by the collector of garbage, and then again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from reparam.utils import garbage
from reparam.utils.arguments import checked_call
from reparam.utils.garbage import old_objects_at_rest


class _Ring:
    """Garbage that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _nothing_collected_by_itself(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "_unseen", garbage._Unseen())
    gc.disable()
    gc.unfreeze()  # what all tests freeze
    yield
    gc.freeze()
    gc.enable()


def _dropped() -> weakref.ref[_Ring]:
    return weakref.ref(_Ring())


def test_objects_are_frozen_while_a_public_function_runs() -> None:
    inside = checked_call(gc.get_freeze_count)()
    assert inside > 0 and gc.get_freeze_count() == 0


def test_they_are_not_frozen_behind_a_failure() -> None:
    with pytest.raises(KeyError), old_objects_at_rest():
        raise KeyError
    assert gc.get_freeze_count() == 0


def test_what_a_block_drops_is_gone_behind_it() -> None:
    with old_objects_at_rest(), old_objects_at_rest():
        found = _dropped()
        assert found() is not None
    assert found() is None


def test_what_was_dropped_before_a_block_is_left_to_the_collector() -> None:
    found = _dropped()
    with old_objects_at_rest():
        gc.collect()
    assert found() is not None
    gc.collect()
    assert found() is None


def test_what_is_dropped_between_long_blocks_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "SECONDS", -1.0)
    with old_objects_at_rest():
        pass
    found = _dropped()
    with old_objects_at_rest():
        assert found() is None


def test_the_collectors_own_looks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "SECONDS", -1.0)
    with old_objects_at_rest():
        pass
    gc.collect()
    found = _dropped()
    with old_objects_at_rest():
        assert found() is not None


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with old_objects_at_rest():
            pass
        assert gc.get_freeze_count() == before
    finally:
        gc.unfreeze()
