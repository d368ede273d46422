"""Calibration data for int8: samples of any source as batches of the inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.data import EVERY, open_samples
from reparam.errors import InputError
from reparam.ir import Program

BATCH = 8  # samples in one run, where the batch is free


def read_calibration(
    source: Any, program: Program, preprocessing: Mapping[str, Any] | None = None
) -> list[tuple[Tensor, ...]]:
    """Batches of samples for the inputs of `program`: `BATCH` at a time, or as many as the program fixes.

    source: what `reparam.data.open_samples` takes. preprocessing: of images, which are scaled, cropped and normalised
    as it says (`model_card.card_of`). Samples of unequal sizes, where sizes are free, lie in batches of their own.
    Raises InputError for anything that does not fit.
    """
    samples = open_samples(source, program, preprocessing=preprocessing)
    rows = (sample.inputs for sample in samples)
    return list(rows) if samples.inputs.fixed else _batched(rows)


def hold_out(
    program: Program, data: Sequence[Sequence[Tensor]]
) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, ...]]]:
    """The samples to calibrate on and those to measure on: every fifth, one at least where there are two.

    Where the batch is fixed, whole entries of `data` are taken in place of samples. Raises InputError for entries that
    are no tensors for the inputs.
    """
    count = len(program.inputs)
    if not isinstance(data, list | tuple) or not all(_is_entry(e, count) for e in data):
        raise InputError(f"calibration data are batches, each a list of {count} tensors, one for each input")
    entries = [tuple(e) for e in data]
    free = all(s.shape and isinstance(s.shape[0], str) for s in program.inputs)
    free = free and all(len({v.shape[0] if v.dim() else 0 for v in e} - {0}) == 1 for e in entries)
    if free:
        entries = [tuple(v[i : i + 1] for v in e) for e in entries for i in range(len(e[0]))]
    held = range(EVERY - 1, len(entries), EVERY) or range(max(1, len(entries) - 1), len(entries))
    kept = [e for i, e in enumerate(entries) if i not in held]
    rest = [entries[i] for i in held]
    return (_batched(kept), _batched(rest)) if free else (kept, rest)


def _is_entry(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count and all(isinstance(v, Tensor) for v in value)


def _batched(samples: Iterable[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Samples of equal shapes that follow each other put together, `BATCH` at a time."""
    found: list[tuple[Tensor, ...]] = []
    for _, group in itertools.groupby(samples, lambda sample: [v.shape for v in sample]):
        alike = list(group)
        for i in range(0, len(alike), BATCH):
            found.append(tuple(torch.cat(values) for values in zip(*alike[i : i + BATCH], strict=True)))
    return found
