"""The first sample of a source, looked at for its shape, where no model tells what it takes."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import Shape, as_path, dtype_name

from .arrays import open_arrays
from .files import ARRAYS, images_in, visible_in
from .images import images_unknown
from .preprocessing import Preprocessing
from .shards import is_shard

CHANNELS = (3, 1)  # of images


def first_sample(
    source: Any, names: Sequence[str], how: Preprocessing | None
) -> tuple[list[tuple[Shape, ...]] | None, Any]:
    """What shapes the inputs may have by the first sample, and the source to read in place of the given one.

    source: as `open_samples` takes it; of what can be read but once, the first batch is put back. names: of the inputs.
    how: of images, whose channels are not known before a network has seen them: a guess for each number of them. None
    for a source that does not tell: a shard, arrays under other names, nothing at all.

    Raises InputError for files that cannot be read, and for images without `how`.
    """
    if isinstance(source, str | os.PathLike):
        return _of_path(as_path(source, "the source of samples"), names, how), source
    if isinstance(source, Tensor | np.ndarray | Mapping):
        return _as_guesses(_of_batch(source, names)), source
    try:
        batches = iter(source)
    except TypeError:
        return None, source  # which its reader refuses
    try:
        first = next(batches)
    except StopIteration:
        return None, source
    back = itertools.chain([first], batches) if batches is source else source
    return _as_guesses(_of_batch(first, names)), back


def _as_guesses(shapes: tuple[Shape, ...] | None) -> list[tuple[Shape, ...]] | None:
    return None if shapes is None else [shapes]


def _of_path(path: Path, names: Sequence[str], how: Preprocessing | None) -> list[tuple[Shape, ...]] | None:
    file = path
    if path.is_dir():
        inside = visible_in(path)
        arrays = [f for f in inside if f.suffix in ARRAYS]
        if not arrays and any(map(is_shard, inside)):
            return None
        if not arrays:
            return _of_images(path, how)
        file = arrays[0]
    elif path.suffix not in ARRAYS:
        return None
    with open_arrays(file) as found:
        held = list(found.values()) if list(found) == [""] else [found[n] for n in names if n in found]
        return _as_guesses(_shapes([(v.shape, v.dtype) for v in held], names))


def _of_images(folder: Path, how: Preprocessing | None) -> list[tuple[Shape, ...]] | None:
    if not images_in(folder):
        return None
    if how is None:
        raise images_unknown(folder)
    channels = (3,) if len(how.mean) == 3 or len(how.std) == 3 else CHANNELS
    return [(Shape((c, *how.size)),) for c in channels]


def _of_batch(batch: Any, names: Sequence[str]) -> tuple[Shape, ...] | None:
    values = [batch]
    if isinstance(batch, Mapping):
        values = [batch[n] for n in names if n in batch]
    elif isinstance(batch, tuple | list):
        values = list(batch[: len(names)])
    held = [torch.from_numpy(v) if isinstance(v, np.ndarray) and v.dtype.kind in "fiub" else v for v in values]
    if not all(isinstance(v, Tensor) for v in held):
        return None
    return _shapes([(tuple(v.shape), v.dtype) for v in held], names)


def _shapes(found: Sequence[tuple[tuple[int, ...], torch.dtype]], names: Sequence[str]) -> tuple[Shape, ...] | None:
    if len(found) != len(names) or not found or not all(shape for shape, _ in found):
        return None
    if any(0 in shape[1:] for shape, _ in found):
        raise InputError(f"the first of the samples is empty: its shape is {list(found[0][0][1:])}")
    return tuple(Shape(s[1:], None if d.is_floating_point or d.is_complex else dtype_name(d)) for s, d in found)
