"""Shapes of inputs as people write them. Nothing here needs torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "bool")


class Shape(tuple[int, ...]):
    """The sizes of one input, without the batch.

    dtype: the name of the input's integer dtype; None for numbers of the dtype that the model's weights have.
    """

    dtype: str | None

    def __new__(cls, sizes: Iterable[int], dtype: str | None = None) -> Self:
        shape = super().__new__(cls, sizes)
        shape.dtype = dtype
        return shape

    def __str__(self) -> str:
        return ",".join(map(str, self)) + (f":{self.dtype}" if self.dtype else "")


Shapes = tuple[tuple[int, ...], ...]

AXES = ("batch", "height", "width")  # whose sizes may stay free


class Unasked(str):
    """The name of an axis that nobody asked for: it stays free where the model leaves it so, and is fixed elsewhere."""

    __slots__ = ()


DEFAULT_AXES: tuple[str, ...] = (Unasked("batch"),)


def batch_is_unasked(dynamic: Iterable[str]) -> bool:
    """Whether nobody asked for a free batch."""
    return all(isinstance(d, Unasked) for d in dynamic if is_batch(d))


_NAMED = re.compile(r"([A-Za-z_]\w{0,99}):([0-9])=([A-Za-z_]\w{0,29})")


class NamedAxis(NamedTuple):
    """An axis of one input, under a name of the user's: `x:1=sequence`."""

    input: str
    axis: int
    name: str


def read_named_axis(text: object) -> NamedAxis | None:
    """`x:1=sequence`; None for a text of another form."""
    found = _NAMED.fullmatch(text.strip()) if isinstance(text, str) else None
    return None if found is None else NamedAxis(found[1], int(found[2]), found[3])


def is_batch(name: str) -> bool:
    """Whether a free axis is that of the samples: `batch`, or axis 0 of an input called so."""
    named = read_named_axis(name)
    return name == "batch" if named is None else named.axis == 0 and named.name == "batch"


def axis_name(index: int, rank: int) -> str:
    """What an axis is called: `batch`, in images `height` and `width`, else its number."""
    images = {rank - 2: "height", rank - 1: "width"} if rank >= 4 else {}
    return ({0: "batch"} | images).get(index, str(index))


def axis_words(name: str) -> str:
    """An axis in a sentence: `the batch`, `the height`, `axis 1`, or `axis 'seq'` for a name of the user's."""
    if name in AXES:
        return f"the {name}"
    return f"axis {name}" if name.isdigit() else f"axis '{name}'"
