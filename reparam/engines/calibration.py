"""Calibration data for int8: arrays from .npy and .npz files, or images of a folder, as batches of the inputs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.ir import Program, shape_of
from reparam.utils import one_line, opened

from .arrays import load_array

BATCH = 8  # samples in one run, where the batch is free
EVERY = 5  # of so many samples, one is held out
ARRAYS = (".npy", ".npz")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP")  # pillow would hand others, such as EPS, to programs of the system
MOST_PIXELS = 1 << 25  # of an image, as it is and as it is scaled: each takes up to a dozen bytes on the way


def read_calibration(
    path: Path, program: Program, preprocessing: Mapping[str, Any] | None = None
) -> list[tuple[Tensor, ...]]:
    """Batches of samples for the inputs of `program`.

    path: a .npy of samples (N, *shape), a .npz with one such array for each input under its name, a folder of those in
    the order of their names, or a folder of images, which are scaled, cropped and normalised as `preprocessing` says
    (`model_card.preprocessing_of`). Raises InputError for anything that does not fit.
    """
    specs = [s.name for s in program.inputs]
    samples: list[list[Tensor]] = [[] for _ in specs]
    for row in _rows(path, specs, preprocessing):
        for group, value in zip(samples, row, strict=True):
            group.append(value)
    if not samples or not samples[0]:
        raise InputError(f"{path} holds no samples; give .npy files of samples, or images")
    merged = [torch.cat(group) for group in samples]
    if len({len(m) for m in merged}) != 1:
        raise InputError(f"{path} holds unequal numbers of samples for the inputs: {[len(m) for m in merged]}")
    return _batches(path, merged, program)


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


def _batched(samples: Sequence[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Samples of equal shapes that follow each other put together, `BATCH` at a time."""
    found: list[tuple[Tensor, ...]] = []
    for _, group in itertools.groupby(samples, lambda sample: [v.shape for v in sample]):
        alike = list(group)
        for i in range(0, len(alike), BATCH):
            found.append(tuple(torch.cat(values) for values in zip(*alike[i : i + BATCH], strict=True)))
    return found


def _rows(path: Path, names: Sequence[str], preprocessing: Mapping[str, Any] | None) -> Iterator[list[Tensor]]:
    if not path.is_dir():
        yield _arrays(path, names)
        return
    files = sorted(path.iterdir())
    arrays = [f for f in files if f.suffix in ARRAYS]
    if arrays:
        for file in arrays:
            yield _arrays(file, names)
        return
    images = [f for f in sorted(path.rglob("*")) if f.suffix.lower() in IMAGES]
    if images and (preprocessing is None or len(names) != 1):
        raise InputError(
            f"{path} holds images, but how this network wants them is not known; give .npy files of samples"
        )
    for file in images:
        assert preprocessing is not None
        yield [_image(file, preprocessing)]


def _arrays(path: Path, names: Sequence[str]) -> list[Tensor]:
    found = load_array(path)
    if isinstance(found, np.ndarray):
        if len(names) != 1:
            raise InputError(f"{path} holds one array, but the network takes {len(names)} inputs; save a .npz of them")
        return [torch.from_numpy(found)]
    missing = [n for n in names if n not in found]
    if missing:
        raise InputError(f"{path} has no array '{missing[0]}'; it holds {', '.join(found)}")
    return [torch.from_numpy(found[n]) for n in names]


def _batches(path: Path, merged: Sequence[Tensor], program: Program) -> list[tuple[Tensor, ...]]:
    size = BATCH
    typed: list[Tensor] = []
    specs = {s.name: s for s in program.inputs}
    nodes = [n for n in program.placeholders if str(n.target) in specs]
    for value, node in zip(merged, nodes, strict=True):
        spec = specs[str(node.target)]
        fits = value.dim() == len(spec.shape) and all(
            isinstance(s, str) or s == n for s, n in zip(spec.shape[1:], value.shape[1:], strict=False)
        )
        if not fits or value.is_floating_point() != spec.dtype.is_floating_point:
            wanted = ", ".join(["N", *(str(s) for s in shape_of(node)[1:])])
            raise InputError(
                f"{path} holds {value.dtype} samples of shape {list(value.shape)}, where the input '{spec.name}' is "
                f"{spec.dtype} of shape ({wanted})".replace("torch.", "")
            )
        if isinstance(spec.shape[0], int):
            size = spec.shape[0]
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{path} holds NaN or infinite values")
        typed.append(value.to(torch.float32) if value.is_floating_point() else value.to(spec.dtype))
    whole = len(typed[0]) if any(isinstance(s.shape[0], str) for s in program.inputs) else len(typed[0]) // size * size
    if not whole:
        raise InputError(f"{path} holds {len(typed[0])} samples, but one run of the network takes {size}")
    return [tuple(v[i : min(i + size, whole)].contiguous() for v in typed) for i in range(0, whole, size)]


def _image(path: Path, how: Mapping[str, Any]) -> Tensor:
    """One image as (1, 3, H, W): its shorter side scaled to `resize`, the centre cropped to `size`, normalised."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading images needs pillow; pip install pillow, or give .npy files") from error
    height, width = how["size"]
    modes = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    try:
        with warnings.catch_warnings(), opened(path) as file, Image.open(file, formats=_DECODERS) as found:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if found.width * found.height > MOST_PIXELS:
                raise ValueError(f"it has {found.width} x {found.height} pixels; scale it down")
            image = found.convert("RGB")
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError, Warning) as error:
        raise InputError(f"{path} is not an image that can be read: {one_line(str(error))[:200]}") from error
    scale = how["resize"] / min(image.size)
    sides = (max(round(image.width * scale), width), max(round(image.height * scale), height))
    if sides[0] * sides[1] > MOST_PIXELS:
        raise InputError(f"{path} is {image.width} x {image.height} pixels, too long for its width; crop it")
    image = image.resize(sides, modes.get(how["interpolation"], Image.Resampling.BILINEAR))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), dtype=np.float32) / 255.0
    normal = (pixels - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)[None]))
