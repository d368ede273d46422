"""Python's collector of garbage, which looks at every object of torch again and again while a call makes new ones."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0  # of calls, behind which the next one begins with a look at everything
SELDOM = (100_000, 20, 100)  # the thresholds of a program of ours: how many new objects, and looks at the young ones


class _Unseen:
    """What the collector has not looked at: the seconds of all calls since it last looked at everything.

    at_rest: whether a call is running. Objects that are frozen are counted one by one, which takes up to a tenth of a
    second.
    """

    def __init__(self) -> None:
        self._seconds, self._looks, self.at_rest = 0.0, -1, False

    def look(self) -> None:
        """A look at everything, where calls took long and the collector had no other occasion between them."""
        if _looks() != self._looks:
            self._seconds = 0.0
        elif self._seconds > SECONDS:
            gc.collect()
            self._seconds = 0.0

    def add(self, seconds: float) -> None:
        """Another call has ended."""
        self._seconds, self._looks = self._seconds + seconds, _looks()


_unseen = _Unseen()
_usual: list[tuple[int, int, int]] = []  # the thresholds before `seldom_looks`


@contextmanager
def old_objects_at_rest() -> Iterator[None]:
    """The collector looks at what the block makes, and not at the objects that were there before.

    With torch loaded these are some hundred thousand, a fifth of a second each time. What the block made and dropped is
    collected at its end. What was dropped between calls is collected before a block where calls took some seconds and
    the collector had no other occasion. Objects that the caller himself froze stay frozen, and nothing is changed then.
    """
    if _unseen.at_rest or gc.get_freeze_count():
        yield
        return
    _unseen.look()
    _unseen.at_rest = True
    start, thresholds = time.perf_counter(), gc.get_threshold()
    gc.freeze()
    if thresholds == SELDOM and _usual:
        gc.set_threshold(*_usual[-1])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
        gc.unfreeze()
        _unseen.at_rest = False
        _unseen.add(time.perf_counter() - start)


@contextmanager
def no_looks() -> Iterator[None]:
    """The collector does nothing in the block: for imports, whose objects stay (some 400,000 of torch).

    They are old ones behind it, at which the collector looks as seldom as at all others.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()


def seldom_looks() -> None:
    """From here on the collector looks seldom, but as often as before inside of public functions.

    For a program that is about to import torch: these looks are half a second of it.
    """
    if gc.get_threshold() != SELDOM:
        _usual.append(gc.get_threshold())
        gc.set_threshold(*SELDOM)


def _looks() -> int:
    return int(gc.get_stats()[-1]["collections"])
