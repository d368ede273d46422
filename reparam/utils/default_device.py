"""torch's default device: the CPU for all that is computed here, the user's own where the code of a model runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_theirs: ContextVar[Any] = ContextVar("the user's default device", default=None)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """In the block, tensors are made on the CPU where no device is named, whatever the user has set."""
    torch = sys.modules.get("torch")
    device = torch.get_default_device() if torch is not None else None
    if torch is None or device is None or device.type == "cpu":
        yield
        return
    token = _theirs.set(device)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _theirs.reset(token)


@contextmanager
def models_too() -> Iterator[None]:
    """In the block, inside of `on_the_cpu`, the code of models makes its tensors on the CPU as well."""
    token = _theirs.set(None)
    try:
        yield
    finally:
        _theirs.reset(token)


@contextmanager
def as_the_user_set() -> Iterator[None]:
    """In the block, inside of `on_the_cpu`, tensors are made where the user has set."""
    device = _theirs.get()
    if device is None:
        yield
        return
    with device:
        yield
