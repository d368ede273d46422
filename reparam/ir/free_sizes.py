"""What torch takes for granted of free sizes while it finds shapes: that a one stays one, and what operators ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

_OPEN: WeakSet[Any] = WeakSet()  # torch's records of the sizes of those programs that are traced with ones left open


@contextmanager
def ones_left_open() -> Iterator[None]:
    """Inside, a free size that happens to be one in the example is traced as any other.

    Otherwise torch takes it for one: a map of one position (32 x 32 pixels behind strides of 32) that is multiplied by
    a gate of one position would have one position at all sizes.
    """
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield


def leave_ones_open(mode: FakeTensorMode) -> None:
    """Has the shapes of new calls be found in the same way, in the program that was traced in this mode."""
    _OPEN.add(mode.shape_env)


@contextmanager
def unnoted(mode: FakeTensorMode) -> Iterator[None]:
    """Inside, what an operator asks about a size of a program of this mode (whether a batch is below 16) fixes none."""
    if mode.shape_env is None:  # no size is free
        yield
        return
    with mode.shape_env.suppress_guards():
        yield


@contextmanager
def as_traced(mode: FakeTensorMode | None) -> Iterator[None]:
    """Inside, free sizes that are one are taken as they were when the program of this mode was traced."""
    if mode is None or mode.shape_env not in _OPEN:
        yield
        return
    with ones_left_open():
        yield
