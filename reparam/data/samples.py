"""Samples of any source, one at a time, each on the side that its own values decide."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.ir import InputSpec, Program
from reparam.utils import as_path

from .batches import open_batches
from .block import Block, Source
from .files import FOLDERS, fitted_to, images_in, open_files
from .inputs import Inputs
from .labels import Apart, folder_of_maps, held_labels, read_labels
from .preprocessing import Preprocessing

EVERY = 5  # of so many samples, one is held out on average


class Sample(NamedTuple):
    """One sample: its inputs, each (1, *shape) or (B, *shape), its label or labels (B,), and the side it falls on.

    A label map is (H, W), or (B, H, W). name: of the file that it is from, with the row where that holds several; of B
    rows, the first.
    """

    inputs: tuple[Tensor, ...]
    label: int | Tensor | None
    held_out: bool
    name: str = ""


@dataclass(frozen=True)
class Samples:
    """Samples of a source, read while they are iterated over, and never all in memory.

    Where the batch of the program is fixed at B, a sample is B consecutive rows; rows that fill no batch are left out.
    source: it. labels: those that were given apart. chosen: the numbers of the samples that are read,
    None for all.
    """

    inputs: Inputs
    source: Source
    labels: Apart | None = None
    chosen: frozenset[int] | None = None

    def count(self) -> int | None:
        """The samples in all, None where that is not known before they are read. Raises InputError."""
        rows = self.source.count()
        return None if rows is None else rows // self.inputs.rows

    def drawn(self, most: int) -> Samples:
        """These samples, or `most` of them where it is known that there are more.

        One is taken at a random place of each of `most` equal stretches, the same ones every time.
        """
        count = self.count()
        if count is None or count <= most:
            return self
        draw, edges = random.Random(0), [i * count // most for i in range(most + 1)]
        return replace(self, chosen=frozenset(draw.randrange(a, b) for a, b in itertools.pairwise(edges)))

    def __iter__(self) -> Iterator[Sample]:
        """Each sample in order. Raises InputError for one that does not fit, and where there is none."""
        rows, seen, given, labelled = self.inputs.rows, 0, 0, False
        parts: list[tuple[Tensor, ...]] = []
        labels: list[int | Tensor] = []
        apart, name = None if self.labels is None else self.labels.rows(), ""
        for block in self.source.blocks():
            self.inputs.check(block)
            for i in range(len(block)):
                index, seen = seen, seen + 1
                given_label = None if apart is None else next(apart, None)
                if apart is not None and given_label is None:
                    raise _unequal(self.source, index, None)
                if self.chosen is not None and index // rows not in self.chosen:
                    continue
                label = given_label() if given_label is not None else _label_of(block, i)
                if (label is not None) != labelled and (given or parts):
                    one, other = ("no label", "one") if label is None else ("a label", "none")
                    raise InputError(f"{block.where} has {one}, where the samples before it have {other}")
                labelled = label is not None
                name = name if parts else block.name(i)
                parts.append(self.inputs.typed([c.row(i) for c in block.columns], block.where))
                labels += [] if label is None else [label]
                if len(parts) == rows:
                    given += 1
                    yield _sample(parts, labels, name)
                    parts, labels = [], []
        if self.labels is not None and seen != self.labels.count:
            raise _unequal(self.source, self.labels.count, seen)
        if not given:
            what = f"but one run of the network takes {rows}" if seen else self.source.empty
            raise InputError(f"{self.source.name} holds {seen} samples{',' if seen else ';'} {what}")


def _label_of(block: Block, row: int) -> int | Tensor | None:
    if block.labels is None:
        return None
    return int(block.labels[row]) if block.labels.dim() == 1 else block.labels[row]


def open_samples(
    source: Any,
    program: Program | Sequence[InputSpec],
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    labels: Any = None,
    maps: bool = False,
) -> Samples:
    """The samples of a source, for the inputs of `program`, or for inputs as they are specified.

    source: a path, or batches from Python. A path is a `.npy` (N, *shape); a `.npz` or `.safetensors` with such an
    array for each input under its name, and perhaps `labels` (N,); a webdataset `.tar`; a folder of those in the order
    of their names; or a folder of images at any depth, in the order of their paths. Batches are an iterable of tensors
    (N, *shape), of tuples with one for each input and perhaps labels (N,), of pairs (inputs, labels), or of mappings by
    name.
    preprocessing: of images; a mapping has the names of the fields of `Preprocessing`. It is fitted to the size that
    the network takes. labels: N whole numbers, a `.npy` of them, or a `.txt` with a
    number or a name of a class on each line, in place of those in the source; "folders" takes
    the folders of images in the order of their names, as ImageFolder does. maps: whether labels may be label maps too:
    (N, H, W), or a folder with an image of each map under the name that the image of the sample has in its own folder.

    Raises InputError, here or while the samples are read, for what does not fit the inputs (kind of dtype, shape,
    values that are not finite), for labels that are no whole numbers from 0 or not as many as the samples, and for an
    empty source.
    """
    inputs = Inputs.of(program, maps=maps)
    how = preprocessing if preprocessing is None or isinstance(preprocessing, Preprocessing) else None
    if how is None and preprocessing is not None:
        if not isinstance(preprocessing, Mapping):
            raise InputError("the preprocessing has to be a Preprocessing or a mapping with mean, std and size")
        how = Preprocessing.of(preprocessing)
    folders = isinstance(labels, str) and labels == FOLDERS
    apart = as_path(labels, "the file of labels") if isinstance(labels, str | os.PathLike) and not folders else None
    if isinstance(source, str | os.PathLike):
        found = open_files(as_path(source, "the source of samples"), inputs, how, folders=folders, apart=apart)
    elif folders:
        raise InputError('labels="folders" is for a folder of images; give the labels in the batches, or apart')
    else:
        found = open_batches(source, inputs)
    given = None
    if apart is not None and maps and apart.is_dir():
        given = folder_of_maps(apart, *_image_folder(source, fitted_to(how, inputs)))
    elif labels is not None and not folders:
        given = read_labels(apart, maps=maps) if apart is not None else held_labels(labels, found.name, maps=maps)
    count = found.count()
    if given is not None and count is not None and count != given.count:
        raise _unequal(found, given.count, count)
    return Samples(inputs, found, given)


def _image_folder(source: Any, how: Preprocessing | None) -> tuple[Path, Preprocessing]:
    """The folder of images that a folder of label maps is for."""
    folder = as_path(source, "the source of samples") if isinstance(source, str | os.PathLike) else None
    if folder is None or how is None or not (folder.is_dir() and images_in(folder)):
        raise InputError("a folder of label maps is for a folder of images; give the maps as a .npy (N, H, W)")
    return folder, how


def _unequal(source: Source, labels: int, samples: int | None) -> InputError:
    held = "more samples" if samples is None else f"{samples} samples"
    return InputError(f"there are {labels} labels, but {source.name} holds {held}; give one label for each sample")


def _sample(parts: Sequence[tuple[Tensor, ...]], labels: Sequence[int | Tensor], name: str) -> Sample:
    if len(parts) == 1:
        return Sample(parts[0], labels[0] if labels else None, held_out(parts[0]), name)
    inputs = tuple(torch.cat(values) for values in zip(*parts, strict=True))
    stacked = torch.stack([torch.as_tensor(label) for label in labels]) if labels else None
    return Sample(inputs, stacked, held_out(inputs), name)


def held_out(inputs: Sequence[Tensor]) -> bool:
    """Whether a sample is held out: figures are taken from it, and no choice is made on it.

    inputs: of one sample, each (1, *shape) or (B, *shape). The hash of their bytes decides: the same sample falls on
    the same side whatever lies beside it, and one in `EVERY` is held out on average.
    """
    return digest(inputs) % EVERY == 0


def digest(inputs: Sequence[Tensor]) -> int:
    """64 bits of the hash of a sample's bytes and shapes."""
    found = hashlib.blake2b(digest_size=8)
    for value in inputs:
        found.update(f"{tuple(value.shape)}".encode())
        found.update(bytes_of(value))
    return int.from_bytes(found.digest(), "little")


def bytes_of(value: Tensor) -> memoryview:
    """The values of a tensor (N, *shape) as bytes, in order."""
    return value.detach().cpu().contiguous().view(torch.uint8).numpy().data.cast("B")
