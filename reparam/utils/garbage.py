"""Python's collector of garbage, which looks at every object of torch again and again while a call makes new ones."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0  # of calls, behind which the next one begins with a look at everything


class _Unseen:
    """What the collector has not looked at: the seconds of all calls since it last looked at everything."""

    def __init__(self) -> None:
        self._seconds, self._looks = 0.0, -1

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


@contextmanager
def old_objects_at_rest() -> Iterator[None]:
    """The collector looks at what the block makes, and not at the objects that were there before.

    With torch loaded these are some hundred thousand, a fifth of a second each time. What the block made and dropped is
    collected at its end. What was dropped between calls is collected before a block where calls took some seconds and
    the collector had no other occasion. Objects that the caller himself froze stay frozen, and nothing is changed then.
    """
    if gc.get_freeze_count():
        yield
        return
    _unseen.look()
    start = time.perf_counter()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        _unseen.add(time.perf_counter() - start)


def _looks() -> int:
    return int(gc.get_stats()[-1]["collections"])
