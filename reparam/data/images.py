"""Images as inputs: decoded, scaled, cropped and normalised."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import one_line, opened

from .preprocessing import INTERPOLATIONS, MOST_PIXELS, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_DECODERS = ("PNG", "JPEG", "WEBP", "BMP")  # pillow would hand others, such as EPS, to programs of the system


@dataclass(frozen=True)
class StoredImage:
    """One image as a sample (1, channels, height, width), decoded when it is asked for.

    name: of it, for messages. file: it, or its open content.
    """

    name: str
    file: Path | IO[bytes]
    how: Preprocessing
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, self.channels, *self.how.size)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def row(self, index: int) -> Tensor:
        """The values of the image. Raises InputError that names it where it cannot be decoded."""
        if isinstance(self.file, Path):
            with opened(self.file) as file:
                image = _decoded(file, self.name, self.channels)
        else:
            image = _decoded(self.file, self.name, self.channels)
        return _prepared(image, self.name, self.how, self.channels)


def _decoded(file: IO[bytes], name: str, channels: int) -> Image:
    return _opened(file, name, lambda image: _with_bytes(image).convert("L" if channels == 1 else "RGB"))


def _opened(file: IO[bytes], name: str, converted: Callable[[Image], Image]) -> Image:
    """What `converted` makes of the image, decoded. Raises InputError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError("reading images needs pillow; pip install pillow, or give .npy files") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(file, formats=_DECODERS) as found:
                if found.width * found.height > MOST_PIXELS:
                    raise ValueError(f"it has {found.width} x {found.height} pixels; scale it down")
                return converted(found)
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        why = "it is of no known kind, or cut off" if "cannot identify" in str(error) else one_line(str(error))[:200]
        raise InputError(f"{name} is not an image that can be read: {why}") from error


def _with_bytes(image: Image) -> Image:
    """The image; one of 16 bits, which pillow would cut off at 255, with the upper 8 of them."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))


def read_map(file: Path, how: Preprocessing) -> Tensor:
    """The label map (H, W) int64 of an image: its grey values, or the numbers of its palette, are classes.

    It is scaled and cropped like the images of `how`, by nearest neighbours. Raises InputError for an image of colours.
    """
    with opened(file) as content:
        image = _opened(content, str(file), _as_map)
    cropped = _cropped(image, str(file), how, "nearest")
    return torch.from_numpy(np.asarray(cropped).astype(np.int64))


def _as_map(image: Image) -> Image:
    if image.mode not in ("P", "L", "1", "I", "I;16"):
        raise ValueError(f"it holds {image.mode}, where a label map has one number for each pixel")
    return image.copy() if image.mode in ("P", "L") else image.convert("I")


def _prepared(image: Image, name: str, how: Preprocessing, channels: int) -> Tensor:
    """The image as (1, channels, H, W): its shorter side scaled, its centre cropped, normalised."""
    height, width = how.size
    pixels = np.asarray(_cropped(image, name, how, how.interpolation), dtype=np.float32) / 255.0
    normal = (pixels.reshape(height, width, channels) - _of(how.mean, channels)) / _of(how.std, channels)
    return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)[None]))


def _cropped(image: Image, name: str, how: Preprocessing, interpolation: str) -> Image:
    """The image with its shorter side scaled and its centre cropped; sides and corners are rounded as torchvision does.

    A side is rounded down, and half a pixel of the corner to the even one.
    """
    height, width = how.size
    short = how.resize or min(how.size)
    sides = (
        max(short * image.width // min(image.size), width),
        max(short * image.height // min(image.size), height),
    )
    if sides[0] * sides[1] > MOST_PIXELS:
        raise InputError(f"{name} is {image.width} x {image.height} pixels, too long for its width; crop it")
    image = image.resize(sides, INTERPOLATIONS.index(interpolation))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _of(values: tuple[float, ...], channels: int) -> np.ndarray[Any, Any]:
    """The values for each channel; for grey images the mean of those for red, green and blue."""
    return np.asarray(values if channels > 1 else [sum(values) / len(values)], np.float32)


def images_unknown(path: Path | str) -> InputError:
    """For images where it is not known how the network wants them."""
    return InputError(
        f"{path} holds images, but how this network wants them is not known; say it with --mean, --std and --size "
        "or --config, or give .npy files of samples"
    )
