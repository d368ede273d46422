"""How images become inputs: scaled, cropped at the centre, normalised; as mappings and config files state it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reparam.errors import InputError
from reparam.utils import one_line, opened, parse_json, size_of

MOST_PIXELS = 1 << 25  # of an image, as it is and as it is scaled: each takes up to a dozen bytes on the way
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by pillow's numbers
_SPELLED = {"": "bilinear", "nearest-exact": "nearest", "nearest_exact": "nearest", "linear": "bilinear"}
_MOST_BYTES = 1 << 22  # of a config file; genuine ones have a few thousand, or the names of all classes
_ONE_STEP = 1 / 255


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a network sees it.

    mean, std: of values in [0, 1], one for each channel, or one for all. size: (height, width) in pixels of what the
    network takes. resize: the shorter side in pixels before the centre is cropped; None is the shorter side of `size`.
    interpolation: one of `INTERPOLATIONS`.

    Raises InputError for values that no images have.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    resize: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or not all(math.isfinite(v) for v in values):
                raise InputError(f"the {name} of the preprocessing has to be 1 or 3 finite numbers, not {values}")
        if min(self.std) <= 0:
            raise InputError(f"the std of the preprocessing has to be above 0, not {self.std}")
        sides = (*self.size, *(() if self.resize is None else (self.resize,)))
        if len(self.size) != 2 or min(sides) < 1 or max(sides) > MOST_PIXELS or math.prod(self.size) > MOST_PIXELS:
            raise InputError(f"the preprocessing makes images of {self.size}, scaled to {self.resize}, which none are")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"the interpolation '{one_line(self.interpolation)[:40]}' is not known; use one of "
                f"{', '.join(INTERPOLATIONS)}"
            )

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> Preprocessing:
        """What a mapping with the names of the fields says, such as that of a model card; other keys are ignored.

        Raises InputError for a mapping that lacks one, or whose values are of another kind.
        """
        missing = [key for key in ("mean", "std", "size") if key not in mapping]
        if missing:
            raise InputError(f"the preprocessing has no '{missing[0]}'; give mean, std and size")
        resize = mapping.get("resize")
        return cls(
            _floats(mapping["mean"], "mean"),
            _floats(mapping["std"], "std"),
            _pair(mapping["size"]),
            None if resize is None else _whole(resize, "resize"),
            _interpolation(mapping.get("interpolation") or ""),
        )

    def fitted(self, height: int, width: int) -> Preprocessing:
        """The same for a network that takes another size: `resize` stays in proportion."""
        if (height, width) == self.size:
            return self
        resize = None if self.resize is None else max(1, round(self.resize * min(height, width) / min(self.size)))
        return replace(self, size=(height, width), resize=resize)


def config_mapping(path: Path, instead: str) -> dict[str, Any]:
    """The mapping in a config file. instead: what the error for another value tells to do.

    Raises InputError for a file that is too large, no JSON, or no mapping.
    """
    with opened(path) as file:
        if size_of(file) > _MOST_BYTES:
            raise InputError(f"{path} has {size_of(file)} bytes, too many for a config file")
        try:
            found = parse_json(file.read())
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {one_line(str(error))[:100]}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no mapping; {instead}")
    return found


def read_config(path: Path) -> Preprocessing:
    """What a timm `config.json` or a Hugging Face `preprocessor_config.json` says.

    Of timm: `mean`, `std`, `input_size`, `crop_pct` and `interpolation`, in `pretrained_cfg` or at the top. Of Hugging
    Face: `image_mean`, `image_std`, `size`, `crop_size`, `crop_pct` and `resample`; a `size` of height and width is
    that of the crop, since images keep their proportions here. Raises InputError for any other file.
    """
    found = config_mapping(path, "give a config.json or a preprocessor_config.json")
    inner = found.get("pretrained_cfg", found)
    try:
        if isinstance(inner, dict) and "input_size" in inner:
            return _timm(inner)
        if "image_mean" in found or "size" in found:
            return _hugging_face(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    raise InputError(f"{path} does not say how images are prepared; it has neither input_size nor image_mean")


def _timm(config: Mapping[str, Any]) -> Preprocessing:
    shape = config["input_size"]
    if not isinstance(shape, list) or len(shape) != 3:
        raise InputError("input_size has to be [channels, height, width]")
    if config.get("crop_mode") not in (None, "center"):
        raise InputError(f"the crop_mode {str(config['crop_mode'])[:40]!r} is not supported; only center is")
    size = _pair(shape[1:])
    return Preprocessing(
        _floats(config.get("mean"), "mean"),
        _floats(config.get("std"), "std"),
        size,
        round(min(size) / _share(config.get("crop_pct"))),
        _interpolation(config.get("interpolation") or ""),
    )


def _hugging_face(config: Mapping[str, Any]) -> Preprocessing:
    factor = config.get("rescale_factor", _ONE_STEP)
    scaled = config.get("do_rescale", True) is True and isinstance(factor, int | float)
    if not scaled or not math.isclose(factor, _ONE_STEP, rel_tol=1e-3):
        raise InputError("values are not scaled to [0, 1]; rescale_factor has to be 1/255")
    normalised = config.get("do_normalize", True)
    resize, size = _sides(config.get("size"), "size")
    if config.get("do_center_crop", "crop_size" in config) is True and "crop_size" in config:
        side, crop = _sides(config["crop_size"], "crop_size")
        size = crop or (side, side)
    elif size is None:
        size = (resize, resize)
        resize = round(resize / _share(config.get("crop_pct")))
    resample = config.get("resample", INTERPOLATIONS.index("bilinear"))
    if isinstance(resample, bool) or not isinstance(resample, int) or not 0 <= resample < len(INTERPOLATIONS):
        raise InputError(f"resample has to be a number from 0 to 5, not {str(resample)[:40]}")
    return Preprocessing(
        _floats(config.get("image_mean"), "image_mean") if normalised else (0.0,),
        _floats(config.get("image_std"), "image_std") if normalised else (1.0,),
        size,
        resize,
        INTERPOLATIONS[resample],
    )


def _sides(value: Any, name: str) -> tuple[int, tuple[int, int] | None]:
    """The shorter side, and (height, width) where both are stated."""
    match value:
        case {"height": height, "width": width}:
            size = (_whole(height, name), _whole(width, name))
            return min(size), size
        case {"shortest_edge": side} if len(value) == 1:
            return _whole(side, name), None
        case int():
            return _whole(value, name), None
    raise InputError(f"{name} has to have height and width, or shortest_edge")


def _share(value: Any) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.01 <= value <= 1:
        raise InputError(f"crop_pct has to be a number up to 1, not {str(value)[:40]}")
    return float(value)


def _floats(value: Any, name: str) -> tuple[float, ...]:
    values = [value] if isinstance(value, int | float) else value
    plain = isinstance(values, Sequence) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e30 for v in values
    )
    if not plain:
        raise InputError(f"{name} has to be 1 or 3 finite numbers")
    return tuple(float(v) for v in values)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST_PIXELS:
        raise InputError(f"{name} has to be a positive whole number, not {str(value)[:40]}")
    return value


def _pair(value: Any) -> tuple[int, int]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError("the size of images has to be [height, width]")
    return _whole(value[0], "the height"), _whole(value[1], "the width")


def _interpolation(value: Any) -> str:
    text = str(value).lower()
    return _SPELLED.get(text, text)
