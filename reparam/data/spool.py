"""Samples in flat files of a temporary folder: passed over once, then read as often as they are needed."""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError, MachineError
from reparam.utils import opened, writing

from .samples import EVERY, Samples, bytes_of, digest

PIECE = 1 << 20  # bytes that are read at once


@dataclass(frozen=True)
class Deck:
    """Samples in files, each read from the disk when it is asked for; valid within the block of `spool`.

    files: one for each input, whose samples have `shapes` and `dtypes`. labels: the file of their labels, if any.
    fixed: whether a sample is a whole batch. count: how many samples the files hold. taken: the numbers of those that
    belong to a part, None for all; see `part`.
    """

    files: tuple[Path, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    labels: Path | None
    fixed: bool
    count: int
    taken: frozenset[int] | None = None

    def __len__(self) -> int:
        return self.count if self.taken is None else len(self.taken)

    def part(self, every: int, *, others: bool = False) -> Deck:
        """The first of each `every` samples that differ, with all that are the same, or the others."""
        known: dict[int, int] = {}
        whole = replace(self, taken=None)
        numbers = [known.setdefault(digest(inputs), len(known)) for inputs, _ in whole.batches(1)]
        return replace(self, taken=frozenset(i for i, n in enumerate(numbers) if (n % every == 0) != others))

    @property
    def rows(self) -> int:
        """How many samples there are in all, each row of a fixed batch counted."""
        return len(self) * (self.shapes[0][0] if self.shapes else 1)

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    def contents(self) -> Iterator[bytes]:
        """All that the files hold, labels last, piece by piece; of a part too."""
        labels = [] if self.labels is None else [self.labels]
        for path in (*self.files, *labels) if self.count else ():
            with _reading(path) as file:
                while piece := file.read(PIECE):
                    yield piece

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """The samples in order, at most `size` at a time: inputs (n, *shape), and labels (n,) int64 or None.

        Where the program fixes its batch at B, each is of B rows, whatever `size` is. Every call opens the files for
        itself. Raises InputError for a size that is no positive number, and after the end of the block of `spool`.
        """
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"the size of a batch has to be a positive whole number, not {str(size)[:40]}")
        return self._batches(1 if self.fixed else size)

    def _batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        if not self.count:
            return
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(_reading(path)) for path in self.files]
            labels = stack.enter_context(_reading(self.labels)) if self.labels is not None else None
            rows = self.shapes[0][0]
            for begin in range(0, self.count, size):
                count = min(size, self.count - begin)
                inputs = tuple(
                    _read(file, (count * shape[0], *shape[1:]), dtype)
                    for file, shape, dtype in zip(files, self.shapes, self.dtypes, strict=True)
                )
                classes = None if labels is None else _read(labels, (count * rows,), torch.int64)
                taken = [i for i in range(count) if self.taken is None or begin + i in self.taken]
                if 0 < len(taken) < count:
                    inputs, classes = tuple(v[taken] for v in inputs), None if classes is None else classes[taken]
                if taken:
                    yield inputs, classes


@dataclass(frozen=True)
class Spooled:
    """fit: the samples that choices are made on. held: those that were held out, which figures are taken from."""

    fit: Deck
    held: Deck


@contextlib.contextmanager
def spool(samples: Samples, *, limit: int | None = None, folder: Path | None = None) -> Iterator[Spooled]:
    """Writes samples to files of a temporary folder, of which they are read in the block; it is removed at its end.

    One sample is in memory at a time. Where all but one side would be empty, the sample with the smallest hash moves,
    and all that are the same; of samples that are all the same none does, as no side would be new to the other.
    limit: at most so many samples to fit, and a quarter of that held out (one at least); where a sample is a batch, its
    rows count, and the last batch is whole. Of more, where their number is known, they are taken at a random place of
    each of as many equal stretches of the source; where it is not, and where too many fall on one side, by a reservoir,
    in which every sample has the same chance. Both draw the same samples every time. folder: where the temporary folder
    is made (default: where the system keeps such).

    Raises InputError for samples that do not fit, or have several shapes, and MachineError where the disk is full.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"the limit of samples has to be a positive whole number, not {str(limit)[:40]}")
    most = None if limit is None else -(-limit // samples.inputs.rows)
    place = Path(tempfile.gettempdir()) if folder is None else folder
    with contextlib.ExitStack() as stack:
        with writing(place):
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reparam-", dir=place)))
        fit = _Side(temporary, "fit", most)
        held = _Side(temporary, "held", None if most is None else max(1, most // (EVERY - 1)))
        with contextlib.closing(fit), contextlib.closing(held):
            _fill(samples if most is None else samples.drawn(_enough(most)), fit, held)
        like = fit if fit.seen else held
        yield Spooled(_deck(fit, like, samples), _deck(held, like, samples))


def _enough(most: int) -> int:
    """Of so many samples nearly always at least `most` are not held out: more by a few standard deviations."""
    wanted = most * EVERY / (EVERY - 1)
    return math.ceil(wanted + 3 * math.sqrt(wanted) + 8)


def _fill(samples: Samples, fit: _Side, held: _Side) -> None:
    first: tuple[torch.Size, ...] | None = None
    for inputs, label, out, _ in samples:
        shapes = tuple(value.shape for value in inputs)
        if first is not None and shapes != first:
            one, other = next((list(a), list(b)) for a, b in zip(first, shapes, strict=True) if a != b)
            raise InputError(f"{samples.source.name} holds samples of shapes {one} and {other}; make them one size")
        first = shapes
        (held if out else fit).add(inputs, label)
    for full, empty in ((fit, held), (held, fit)):
        if not empty.count and full.count > 1:
            for inputs, label in full.pop():
                empty.add(inputs, label)


@dataclass
class _Side:
    """One side while it is written. most: samples that it keeps; one more is kept where one may have to move."""

    folder: Path
    name: str
    most: int | None
    count: int = 0
    seen: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    labelled: bool = False
    _files: list[IO[bytes]] = field(default_factory=list)
    _draw: random.Random = field(default_factory=lambda: random.Random(0))

    @property
    def labels(self) -> Path:
        return self.folder / f"{self.name}-labels"

    def add(self, inputs: tuple[Tensor, ...], label: int | Tensor | None) -> None:
        """Writes a sample, perhaps over another one. Raises MachineError."""
        if not self._files:
            self.shapes, self.dtypes = tuple(tuple(v.shape) for v in inputs), tuple(v.dtype for v in inputs)
            self.labelled = label is not None
            paths = [self.folder / f"{self.name}-{i}" for i in range(len(inputs))]
            with writing(self.folder):
                self._files += [path.open("w+b") for path in (*paths, *([self.labels] if self.labelled else []))]
        self.seen += 1
        slot = self.count
        if self.most is not None and slot >= max(self.most, 2):
            slot = self._draw.randrange(self.seen)
            if slot >= self.count:
                return
        self.count = max(self.count, slot + 1)
        self._write(slot, self._parts(inputs, label))

    def pop(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Takes out the sample with the smallest hash, and all like it, unless all are alike. Raises MachineError."""
        digests = [digest(self._read(slot)[0]) for slot in range(self.count)]
        least = min(digests)
        slots = [i for i, d in enumerate(digests) if d == least]
        for slot in reversed(slots) if len(slots) < self.count else ():
            found, last = self._read(slot), self._read(self.count - 1)
            self._write(slot, self._parts(*last))
            self.count -= 1
            yield found

    def close(self) -> None:
        """Writes what is still in memory. Raises MachineError."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(writing(self.folder))
            for file in self._files:
                stack.callback(file.close)

    def _parts(self, inputs: tuple[Tensor, ...], label: int | Tensor | None) -> list[memoryview]:
        labels = [] if label is None else [torch.as_tensor(label, dtype=torch.int64).reshape(-1)]
        return [bytes_of(value) for value in (*inputs, *labels)]

    def _write(self, slot: int, parts: Sequence[memoryview]) -> None:
        with writing(self.folder):
            for file, part in zip(self._files, parts, strict=True):
                if file.tell() != slot * len(part):
                    file.seek(slot * len(part))
                file.write(part)

    def _read(self, slot: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        values = []
        kinds = [*zip(self.shapes, self.dtypes, strict=True), ((self.shapes[0][0],), torch.int64)]
        with writing(self.folder):
            for file, (shape, dtype) in zip(self._files, kinds, strict=False):
                file.flush()
                file.seek(slot * math.prod(shape) * dtype.itemsize)
                values.append(_read(file, shape, dtype))
        return tuple(values[: len(self.shapes)]), values[-1] if self.labelled else None


def _deck(side: _Side, like: _Side, samples: Samples) -> Deck:
    """What was written. like: a side that holds samples, since the other one may be empty."""
    return Deck(
        tuple(side.folder / f"{side.name}-{i}" for i in range(len(like.shapes))),
        like.shapes,
        like.dtypes,
        side.labels if like.labelled else None,
        samples.inputs.fixed,
        side.count if side.most is None else min(side.count, side.most),
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    with opened(path, "samples are read within the block that spooled them") as file:
        yield file


def _read(file: IO[bytes], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    wanted = math.prod(shape) * dtype.itemsize
    content: np.ndarray[Any, Any] = np.fromfile(file, np.uint8, wanted)
    if len(content) < wanted:
        raise MachineError(f"{file.name} is cut short; something else wrote to it")
    return torch.from_numpy(content).view(dtype).reshape(shape)
