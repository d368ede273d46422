"""Files and folders of samples, told apart by what they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reparam.errors import InputError

from .arrays import StoredArray, open_arrays
from .block import Block, Source, as_labels
from .images import IMAGES, StoredImage, images_unknown
from .inputs import Inputs
from .preprocessing import Preprocessing
from .shards import is_shard, read_shard

ARRAYS = (".npy", ".npz", ".safetensors")
FOLDERS = "folders"  # the labels are the folders that images lie in


def open_files(
    path: Path, inputs: Inputs, how: Preprocessing | None, *, folders: bool, apart: Path | None = None
) -> Source:
    """The samples of a file or a folder.

    folders: whether the class folders of images are labels. apart: a file of the folder that holds no samples. Raises
    InputError for what is not there, and for images where it is not known how the network wants them.
    """
    if path.is_dir():
        files = [f for f in visible_in(path) if apart is None or not apart.exists() or not f.samefile(apart)]
        arrays = [f for f in files if f.suffix in ARRAYS]
        shards = [f for f in files if is_shard(f)]
        if not arrays and not shards:
            return _images(path, inputs, how, folders)
    else:
        arrays, shards = ([], [path]) if is_shard(path) else ([path], [])
    if folders:
        raise InputError(f"{path} is no folder of images, whose folders would be labels; give the labels as a .npy")
    name = str(path)
    if arrays:
        return Source(
            name,
            lambda: (block for file in arrays for block in _arrays(file, inputs)),
            lambda: _count(arrays, inputs),
        )
    return Source(
        name,
        lambda: (block for file in shards for block in read_shard(file, inputs, fitted_to(how, inputs))),
        lambda: None,
    )


def _arrays(path: Path, inputs: Inputs) -> Iterator[Block]:
    with open_arrays(path) as found:
        labels = next((found[n] for n in inputs.label_names if n in found), None)
        yield Block(
            str(path),
            _columns(path, found, inputs),
            None if labels is None else as_labels(labels.tensor(), str(path), maps=inputs.maps),
        )


def _columns(path: Path, found: dict[str, StoredArray], inputs: Inputs) -> tuple[StoredArray, ...]:
    names = inputs.names
    columns: tuple[StoredArray, ...]
    if list(found) == [""]:
        if len(names) != 1:
            raise InputError(f"{path} holds one array, but the network takes {len(names)} inputs; save a .npz of them")
        columns = (found[""],)
    else:
        missing = [n for n in names if n not in found]
        arrays = [n for n in found if n not in inputs.label_names]
        if missing and len(names) == len(arrays) == 1:  # whatever it is called
            return (found[arrays[0]],)
        if missing:
            raise InputError(f"{path} has no array '{missing[0]}'; it holds {', '.join(found) or 'none'}")
        columns = tuple(found[n] for n in names)
    if any(not column.shape for column in columns):
        raise InputError(f"{path} holds a single number, not samples")
    return columns


def _count(files: Sequence[Path], inputs: Inputs) -> int:
    total = 0
    for file in files:
        with open_arrays(file) as found:
            total += _columns(file, found, inputs)[0].shape[0]
    return total


def images_in(path: Path) -> list[Path]:
    """The images of a folder at any depth, in the order of their paths; hidden files and folders are left out."""
    found = (f for f in sorted(path.rglob("*")) if f.suffix.lower() in IMAGES)
    return [f for f in found if not any(part.startswith(".") for part in f.relative_to(path).parts)]


def visible_in(path: Path) -> list[Path]:
    """What lies in a folder, in order; hidden files and folders are left out."""
    return [f for f in sorted(path.iterdir()) if not f.name.startswith(".")]


def _folders(path: Path) -> list[str]:
    """The names of the folders in one, in order; hidden ones are left out."""
    return [f.name for f in visible_in(path) if f.is_dir()]


def holds_arrays(path: Path) -> bool:
    """Whether the samples of a file or a folder are arrays, which go in as they are."""
    if not path.is_dir():
        return path.suffix in ARRAYS
    return any(f.suffix in ARRAYS for f in visible_in(path))


def class_folders(path: Path) -> int | None:
    """How many folders hold the images of a folder, where each lies in one of its own; None where they do not.

    Files of arrays and shards come before images, so that a folder with those has no such folders.
    """
    if not path.is_dir() or any(f.suffix in ARRAYS or is_shard(f) for f in visible_in(path)):
        return None
    files = images_in(path)
    if not files or any(f.parent == path for f in files):
        return None
    return len(_folders(path))


def folder_classes(path: Path) -> list[int]:
    """The class of each image of a folder in the order of their paths: the number of the folder that it lies in."""
    label = _classes(path)
    return [int(label(file)) for file in images_in(path)]


def _images(path: Path, inputs: Inputs, how: Preprocessing | None, folders: bool) -> Source:
    files = images_in(path)
    if not files:
        raise InputError(f"{path} holds no samples; give .npy files of samples, or images")
    how = fitted_to(how, inputs)
    if how is None or inputs.image is None:
        raise images_unknown(path)
    channels, fitted = inputs.image[0], how
    label_of: Callable[[Path], Tensor | None] = _classes(path) if folders else lambda file: None

    def blocks() -> Iterator[Block]:
        for file in files:
            yield Block(str(file), (StoredImage(str(file), file, fitted, channels),), label_of(file))

    return Source(str(path), blocks, lambda: len(files), images=fitted)


def _classes(path: Path) -> Callable[[Path], Tensor]:
    """The number of the folder of `path` that a file lies in, in the order of their names, as ImageFolder counts."""
    numbers = {name: i for i, name in enumerate(_folders(path))}

    def label(file: Path) -> Tensor:
        first = file.relative_to(path).parts[0]
        if first not in numbers:
            raise InputError(f"{file} lies in no folder of its class; move it into one, or give the labels as a .npy")
        return torch.tensor([numbers[first]])

    return label


def fitted_to(how: Preprocessing | None, inputs: Inputs) -> Preprocessing | None:
    """The preprocessing for the size that the network takes, where it takes one size alone."""
    if how is None or inputs.image is None:
        return how
    _, height, width = inputs.image
    return how.fitted(height or how.size[0], width or how.size[1])
