"""The inputs of a file: shapes and random examples of them, and which of their axes are free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import Shape, axis_name, axis_words, dtype_name, one_line

from .nodes import MOST_AXES, Port

MOST_DRAWN = 2  # an example's integers are below this


def shape_of(port: Port, sizes: Sequence[Any]) -> Shape:
    """The shape of an example without its batch."""
    return Shape((int(s) for s in sizes), None if port.dtype.is_floating_point else dtype_name(port.dtype))


def axes_of(port: Port, *, numbered: bool) -> tuple[int | str, ...]:
    """The sizes of its axes; where the file tells no shape, all that there may be, which are free.

    numbered: whether they are looked for by their numbers. By names, the batch alone is known without a shape.
    """
    return ("",) * (MOST_AXES if numbered else 1) if port.shape is None else port.shape


def sizes_of_example(port: Port, given: Sequence[int] | None, batch: int) -> tuple[int, ...]:
    """The sizes of an example of an input.

    given: those behind the first axis, where they are told. batch: that of the first axis, where the file leaves it
    free. Raises InputError where the sizes are not known, do not fit, or leave no values.
    """
    shown = one_line(port.name)[:60]
    if port.shape is None and given is None:
        raise InputError(f"the file does not tell the shape of its input '{shown}'; pass one with --input-shape")
    told = ("", *("" for _ in given or ())) if port.shape is None else port.shape
    if not told:
        return ()
    empty = next((i for i, s in enumerate(told) if s == 0), None)
    if empty is not None:
        axis = axis_words(axis_name(empty, len(told)))
        raise InputError(
            f"the file fixes {axis} of its input '{shown}' at 0, so that there is nothing to compute; export the "
            "network with another size"
        )
    first, *rest = told
    start = first if isinstance(first, int) else batch
    if given is None:
        free = [
            axis_words(axis_name(i, len(told))).removeprefix("the ")
            for i, s in enumerate(told)
            if i and isinstance(s, str)
        ]
        if free:
            axes = " and ".join(filter(None, (", ".join(free[:-1]), free[-1])))
            raise InputError(f"the file leaves {axes} of its input '{shown}' free; pass a shape with --input-shape")
        return (start, *(int(s) for s in rest))
    fits = len(given) == len(rest) and all(isinstance(s, str) or s == n for s, n in zip(rest, given, strict=True))
    if not fits:
        wanted = ",".join(str(s) if isinstance(s, int) else "any" for s in rest)
        raise InputError(
            f"the input '{shown}' has the shape {wanted} without its batch, not {','.join(map(str, given))}"
        )
    return (start, *given)


def drawn(dtype: torch.dtype, sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random numbers of a normal distribution, or integers that are 0 or 1."""
    if dtype.is_floating_point:
        return torch.randn(sizes, generator=generator).to(dtype)
    return torch.randint(MOST_DRAWN, tuple(sizes), generator=generator).to(dtype)
