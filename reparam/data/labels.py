"""Labels that are given apart from the samples: classes by numbers or names, label maps in an array or in a folder."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import opened, size_of

from .arrays import StoredArray, open_arrays
from .block import as_labels
from .files import images_in
from .images import read_map
from .preprocessing import Preprocessing

Label = int | Tensor
TEXT = ".txt"
MOST_BYTES = 1 << 28
_NUMBER = re.compile(r"[-+.\d][-+.\deE]*")


@dataclass(frozen=True)
class Apart:
    """Labels in the order of the samples. rows: gives one reader for each, anew each time it is called.

    names: of the classes, in the order in which they are counted, where the labels were names.
    """

    count: int
    rows: Callable[[], Iterator[Callable[[], Label]]]
    names: tuple[str, ...] = ()


def held_labels(value: Any, where: str, *, maps: bool) -> Apart:
    """Labels (N,), or with `maps` also (N, H, W), that are in memory. Raises InputError."""
    found = as_labels(value, where, maps=maps)
    return Apart(len(found), lambda: (_reader(found, i) for i in range(len(found))))


def _reader(found: Tensor, index: int) -> Callable[[], Label]:
    return lambda: int(found[index]) if found.dim() == 1 else found[index]


def read_labels(path: Path, *, maps: bool) -> Apart:
    """The labels of a .npy file: (N,), or with `maps` also (N, H, W), then read a row at a time; or of a .txt file.

    Raises InputError.
    """
    if path.suffix == TEXT:
        return _of_lines(path)
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


def _of_lines(path: Path) -> Apart:
    """One class a line: numbers, or names, which are then counted in their alphabetical order, as folders are."""
    with opened(path) as file:
        if size_of(file) > MOST_BYTES:
            raise InputError(f"{path} has {size_of(file)} bytes, too many for labels as text; give a .npy")
        try:
            lines = file.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not text in UTF-8; give one class a line") from error
    texts = [line.strip() for line in lines]
    while texts and not texts[-1]:
        texts.pop()
    if "" in texts:
        raise InputError(f"{path}, line {texts.index('') + 1} is empty; give one class a line")
    numbers = [re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None for text in texts]
    if all(numbers):
        return held_labels(torch.tensor([int(text) for text in texts], dtype=torch.int64), str(path), maps=False)
    mostly = 2 * sum(numbers) > len(texts)  # numbers, so that what is none is the mistake
    like_numbers = (i for i, text in enumerate(texts) if _NUMBER.fullmatch(text))
    stray = numbers.index(False) if mostly else next(like_numbers, None)
    if stray is not None:
        raise InputError(f"{path}, line {stray + 1}: '{texts[stray][:40]}' is no class; give numbers from 0, or names")
    names = tuple(sorted(set(texts)))
    number = {name: i for i, name in enumerate(names)}
    found = held_labels(torch.tensor([number[t] for t in texts], dtype=torch.int64), str(path), maps=False)
    return replace(found, names=names)


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
