"""Samples of any source as batches of the inputs of a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.data import Deck, Preprocessing, open_samples
from reparam.errors import InputError
from reparam.ir import CPU, Program

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Batches:
    """Batches that can be iterated over once. samples: how many there are in all, 0 where that is not known."""

    parts: Iterator[Inputs]
    samples: int

    def __iter__(self) -> Iterator[Inputs]:
        return self.parts


def open_batches(
    data: Any, program: Program, size: int, preprocessing: Preprocessing | Mapping[str, Any] | None = None
) -> Batches:
    """Batches of `size` samples for the inputs of `program`, in the dtypes of its inputs, on the CPU.

    data: a `Deck`, or what `reparam.data.open_samples` takes; labels are left out. Where the program fixes its batch at
    B, each is of B rows. Samples of unequal sizes, where sizes are free, lie in batches of their own. What is left at
    the end of a run of equal sizes joins the batch before it where it is less than half of one, so that no batch is of
    few samples, unless there are no more.

    Raises InputError for samples that do not fit, and for a size that is no positive number.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"the size of a batch has to be a positive whole number, not {str(size)[:40]}")
    if isinstance(data, Deck):
        rows: Iterator[Inputs] = (inputs for inputs, _ in data.batches(1))
        fixed, count = data.fixed, len(data) * (data.shapes[0][0] if data.shapes else 1)
    else:
        samples = open_samples(data, program, preprocessing=preprocessing)
        rows = (sample.inputs for sample in samples)
        fixed, count = samples.inputs.fixed, (samples.count() or 0) * samples.inputs.rows
    return Batches(_typed(rows if fixed else _batched(rows, size), program), count)


def _typed(batches: Iterator[Inputs], program: Program) -> Iterator[Inputs]:
    dtypes = [spec.dtype for spec in program.inputs]
    for batch in batches:
        yield tuple(v.to(CPU, dtype) for v, dtype in zip(batch, dtypes, strict=True))


def _batched(rows: Iterator[Inputs], size: int) -> Iterator[Inputs]:
    """At most half a batch more than `size` rows are held at a time."""
    held: list[Inputs] = []
    for row in rows:
        if held and [v.shape for v in row] != [v.shape for v in held[0]]:
            yield from _parts(held, size)
            held = []
        held.append(row)
        if len(held) >= size + (size + 1) // 2:
            yield _joined(held[:size])
            held = held[size:]
    if held:
        yield from _parts(held, size)


def _parts(rows: list[Inputs], size: int) -> Iterator[Inputs]:
    """One batch, or two where the second is of half the size at least."""
    cut = size if len(rows) > size and 2 * (len(rows) - size) >= size else len(rows)
    yield _joined(rows[:cut])
    if rows[cut:]:
        yield _joined(rows[cut:])


def _joined(rows: list[Inputs]) -> Inputs:
    return tuple(torch.cat(values) for values in zip(*rows, strict=True))
