"""What every source gives: blocks of samples, of which one row at a time is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import describe_type, dtype_name

from .preprocessing import Preprocessing

LABELS = ("labels", "y", "label")  # what labels are called among arrays


class Column(Protocol):
    """Samples (N, *shape) of one input."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def row(self, index: int) -> Tensor:
        """The values of one sample (1, *shape)."""
        ...


@dataclass(frozen=True)
class HeldColumn:
    """A column that is in memory."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def row(self, index: int) -> Tensor:
        return self.value[index : index + 1]


@dataclass(frozen=True)
class Block:
    """Samples that follow each other.

    where: they come from, for messages. labels: (N,) int64, or maps (N, H, W), where there are some.
    """

    where: str
    columns: tuple[Column, ...]
    labels: Tensor | None = None

    def __len__(self) -> int:
        return self.columns[0].shape[0]

    def name(self, row: int) -> str:
        """What a sample is called: its file, and its row where the file holds several."""
        return self.where if len(self) == 1 else f"{self.where}[{row}]"


@dataclass(frozen=True)
class Source:
    """Blocks in order. name: for messages. count: the rows in all, None where that is not known beforehand.

    blocks: gives them anew each time it is called, where what they come from can be read again. empty: what to say of a
    source that gave none. images: how they go in, of a folder of images.
    """

    name: str
    blocks: Callable[[], Iterator[Block]]
    count: Callable[[], int | None]
    empty: str = "give one at least"
    images: Preprocessing | None = None


def as_labels(value: Any, where: str, *, maps: bool = False) -> Tensor:
    """Labels (N,) int64 of a tensor, an array or a sequence (N,) or (N, 1).

    maps: whether they may also be label maps (N, H, W), of which negative values are of no class. Raises InputError for
    values that are no whole numbers of 0 and more.
    """
    try:
        found = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"the labels of {where} are {describe_type(value)}, not whole numbers") from error
    shape = list(found.shape)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype is torch.bool)
    if found.dim() == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if maps and whole and found.dim() >= 3:
        return found.to(torch.int64)
    if not whole or found.dim() != 1:
        raise InputError(
            f"the labels of {where} are {dtype_name(found.dtype)} of shape {shape}, not one whole number for each "
            "sample"
        )
    found = found.to(torch.int64)
    if len(found) and int(found.min()) < 0:
        raise InputError(f"the labels of {where} hold {int(found.min())}; classes are counted from 0")
    return found
