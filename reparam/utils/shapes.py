"""Shapes of inputs as people write them. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    pass


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


def axis_name(index: int, rank: int) -> str:
    """What an axis is called: `batch`, in images `height` and `width`, else its number."""
    images = {rank - 2: "height", rank - 1: "width"} if rank >= 4 else {}
    return ({0: "batch"} | images).get(index, str(index))
