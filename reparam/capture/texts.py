"""Texts that a model makes of sizes (`f"{h}x{w}"`, `str(x.shape)`) while it is traced, and what these may be about.

torch.export writes the name of a symbol where a free size becomes a text, and notes no guard: what the model then does
with the text is unseen. The numbers that stand in the code around it are the sizes that it may ask for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

import torch

from .places import is_ours

LARGEST = 1024  # a size that is tried because the code names it
MOST = 8
_WAYS = ("__str__", "__repr__", "__format__")


@contextmanager
def texts_of_sizes() -> Iterator[set[int]]:
    """Yields the sizes that code names which makes a text of a free size within the block, as they are found."""
    found: set[int] = set()
    real: dict[str, Any] = {way: torch.SymInt.__dict__.get(way) for way in _WAYS}

    def noting(way: str) -> Any:
        def text(size: Any, *spec: Any) -> Any:
            found.update(_numbers_around(sys._getframe(1)))
            return getattr(super(torch.SymInt, size), way)(*spec) if real[way] is None else real[way](size, *spec)

        return text

    for way in _WAYS:
        setattr(torch.SymInt, way, noting(way))
    try:
        yield found
    finally:
        for way, method in real.items():
            if method is None:
                delattr(torch.SymInt, way)
            else:
                setattr(torch.SymInt, way, method)


def _numbers_around(frame: FrameType | None) -> Iterator[int]:
    """The numbers in the code of the model that asks, and in what calls it; none where torch asks."""
    if frame is None or is_ours(frame.f_code.co_filename):
        return
    while frame is not None:
        if not is_ours(frame.f_code.co_filename):
            yield from _numbers(frame.f_code)
        if frame.f_code.co_name == "forward":
            return
        frame = frame.f_back


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, CodeType):
        for constant in value.co_consts:
            yield from _numbers(constant)
    elif isinstance(value, tuple | frozenset):
        for member in value:
            yield from _numbers(member)
    elif isinstance(value, str):
        yield from (n for n in map(int, re.findall(r"(?<!\d)\d{1,4}(?!\d)", value)) if 0 < n <= LARGEST)
    elif isinstance(value, int) and 0 < value <= LARGEST:
        yield int(value)
