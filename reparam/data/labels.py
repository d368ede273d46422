"""Labels that are given apart from the samples: whole numbers, label maps in an array, or a folder of label maps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError

from .arrays import StoredArray, open_arrays
from .block import as_labels
from .files import images_in
from .images import read_map
from .preprocessing import Preprocessing

Label = int | Tensor


@dataclass(frozen=True)
class Apart:
    """Labels in the order of the samples. rows: gives one reader for each, anew each time it is called."""

    count: int
    rows: Callable[[], Iterator[Callable[[], Label]]]


def held_labels(value: Any, where: str, *, maps: bool) -> Apart:
    """Labels (N,), or with `maps` also (N, H, W), that are in memory. Raises InputError."""
    found = as_labels(value, where, maps=maps)
    return Apart(len(found), lambda: (_reader(found, i) for i in range(len(found))))


def _reader(found: Tensor, index: int) -> Callable[[], Label]:
    return lambda: int(found[index]) if found.dim() == 1 else found[index]


def read_labels(path: Path, *, maps: bool) -> Apart:
    """The labels of a .npy file: (N,), or with `maps` also (N, H, W), then read a row at a time. Raises InputError."""
    with open_arrays(path) as found:
        if list(found) != [""]:
            raise InputError(f"{path} holds several arrays; give the labels as one .npy")
        shape, fortran = found[""].shape, found[""].fortran
        if not maps or len(shape) < 3 or math.prod(shape[1:]) == 1 or fortran:
            return held_labels(found[""].tensor(), str(path), maps=maps)
        if found[""].dtype.is_floating_point or found[""].dtype.is_complex or found[""].dtype is torch.bool:
            as_labels(torch.empty(0, 0, dtype=found[""].dtype), str(path))  # which says what is wrong

    def rows() -> Iterator[Callable[[], Label]]:
        with open_arrays(path) as found:
            array = found[""]
            yield from (functools.partial(_row, array, i) for i in range(shape[0]))

    return Apart(shape[0], rows)


def _row(array: StoredArray, index: int) -> Label:
    return array.row(index)[0].to(torch.int64)


def folder_of_maps(folder: Path, images: Path, how: Preprocessing) -> Apart:
    """The label maps of a folder, each under the path that its image has in the folder `images`, whatever its ending.

    Raises InputError for an image that has no map.
    """
    maps = {f.relative_to(folder).with_suffix(""): f for f in images_in(folder)}
    files = images_in(images)
    for file in files:
        if file.relative_to(images).with_suffix("") not in maps:
            raise InputError(f"{folder} holds no label map for {file}; it would have its name")
    found = [maps[f.relative_to(images).with_suffix("")] for f in files]
    return Apart(len(found), lambda: (_map_reader(f, how) for f in found))


def _map_reader(file: Path, how: Preprocessing) -> Callable[[], Label]:
    return lambda: read_map(file, how)
