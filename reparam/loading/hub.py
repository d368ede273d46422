"""The config.json of a hub's folder: which architecture the weights are of, with which arguments, and for which images.

timm writes `architecture`, `model_args` and `pretrained_cfg`; transformers writes `architectures` and `model_type`. The
file comes from a stranger. It names a network of an installed library and gives it numbers, names and lists of these;
what would fetch or run anything is refused or left out, and numbers that no network has are refused before it is built.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reparam.data import Preprocessing, config_mapping, read_config
from reparam.errors import InputError
from reparam.utils import Shapes, one_line

from .fit import ShapeMap
from .shards import find_file
from .transformers_zoo import TRANSFORMERS, load_transformers, meta_transformers, plain_config
from .zoo import Architecture, meta_module, meta_state, shapes_of_network, timm_config

CONFIG = "config.json"
_PREPROCESSOR = "preprocessor_config.json"
_INSTEAD = "give the folder as the hub has it, or the weights with --arch"
_MOST = 1024  # of a number that is no axis of a tensor in the file
_MOST_ITEMS = 256  # of all arguments together
_MOST_TEXT = 200
_DEEPEST = 4
_LARGE = 1 << 31
_FETCHING = re.compile(r"pretrained|checkpoint_path|cache_dir|(^|\.)(file|url)$|hf_hub")
_DEPTHS = re.compile(r"layers|depth|blocks|stages|repeat|scales|levels")
_SHARE = 4  # times the values in the file that the network may have


@dataclass(frozen=True)
class HubConfig:
    """What a config file says.

    spec: timm/NAME or transformers/CLASS. given: its arguments, unchecked. input_shapes, preprocessing, labels: where
    they are told.
    """

    path: Path
    spec: str
    given: Mapping[str, Any] = field(default_factory=dict)
    input_shapes: Shapes | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()

    def arguments(self, found: ShapeMap) -> dict[str, Any]:
        """The arguments of the architecture, checked against the shapes of the weights; none for transformers.

        Raises InputError for arguments that no network has, and for a network far larger than the file.
        """
        foreign = self.spec.startswith(TRANSFORMERS)
        axes = {n for shape in found.values() for n in shape}
        _check_values(self.given, axes, self.path, _LARGE if foreign else _MOST)
        expected = self._meta_state()
        if _size(expected) > _SHARE * _size(found) + (1 << 20):
            raise InputError(
                f"{self.path} asks for a network of {_size(expected)} values, and the weights are {_size(found)}"
            )
        return {} if foreign else dict(self.given)

    def _meta_state(self) -> ShapeMap:
        if not self.spec.startswith(TRANSFORMERS):
            return meta_state(self.spec, self.given)
        return shapes_of_network(meta_transformers(self.spec, self.given, self.path))

    def load(self, state: Mapping[str, Tensor]) -> Architecture | None:
        """The network with these weights where its own library puts them in; None for one of timm."""
        if self.spec.startswith(TRANSFORMERS):
            return load_transformers(self.spec, self.given, state, self.path)
        return None


def _size(shapes: ShapeMap) -> int:
    return sum(map(math.prod, shapes.values()))


def read_hub(folder: Path) -> HubConfig | None:
    """What the config file of a folder says; None where there is none, or one that names no architecture.

    Raises InputError for a file that is no JSON, and for an architecture or arguments of a kind that none has.
    """
    path = folder / CONFIG
    if not (path.exists() or path.is_symlink()):
        return None
    config = config_mapping(find_file(folder, CONFIG), _INSTEAD)
    images = _preprocessing(folder)
    if "architecture" in config:
        return _of_timm(path, config, images)
    if "architectures" in config or "model_type" in config:
        return _of_transformers(path, config, images)
    return None


def _preprocessing(folder: Path) -> Preprocessing | None:
    """What the config files say of images; None where none does, or not in a way that is known."""
    for name in (_PREPROCESSOR, CONFIG):
        try:
            if (folder / name).is_file():
                return read_config(find_file(folder, name))
        except InputError:
            continue
    return None


# ---- timm --------------------------------------------------------------------------------------------------------


def _of_timm(path: Path, config: Mapping[str, Any], images: Preprocessing | None) -> HubConfig:
    name, inner, args = config["architecture"], config.get("pretrained_cfg", config), config.get("model_args") or {}
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,100}", name):
        raise InputError(f"{path} names the architecture {str(name)[:60]!r}, which is none of timm's; give --arch")
    if not isinstance(inner, dict) or not isinstance(args, dict):
        raise InputError(f"{path} gives its arguments in a form that timm does not write; give --arch")
    own = timm_config(name)
    found = dict(args)
    classes = config.get("num_classes", inner.get("num_classes"))
    if classes is not None and classes != own.get("num_classes"):
        found.setdefault("num_classes", classes)
    size, usual = inner.get("input_size"), own.get("input_size")
    if isinstance(size, list) and len(size) == 3 and usual is not None:
        if size[0] != usual[0]:
            found.setdefault("in_chans", size[0])
        if size[1:] != list(usual[1:]) and inner.get("fixed_input_size") is True:
            found.setdefault("img_size", size[1:])
    pool = config.get("global_pool")
    if isinstance(pool, str) and not args and _pool_of(meta_module(f"timm/{name}")) not in ("", pool):
        found["global_pool"] = pool  # older versions of timm give no model_args
    sides = size if isinstance(size, list) and len(size) == 3 and "img_size" not in found else [0]
    whole = all(isinstance(n, int) and 0 < n <= 8 * _MOST for n in sides)
    shapes = (tuple(sides),) if whole else None
    return HubConfig(path, f"timm/{name}", found, shapes, images, _labels(config, inner))


def _pool_of(module: nn.Module) -> str:
    """How a network of timm pools at its end; "" where that is not known."""
    pool = getattr(module, "global_pool", None)
    pool = pool if pool is not None else getattr(getattr(module, "head", None), "global_pool", None)
    kind = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    return kind if isinstance(kind, str) else ""


def _labels(config: Mapping[str, Any], inner: Mapping[str, Any]) -> tuple[str, ...]:
    names = config.get("label_names", inner.get("label_names", inner.get("labels")))
    told = config.get("label_descriptions") or inner.get("label_descriptions")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return ()
    return tuple(str(told.get(n, n)) if isinstance(told, dict) else n for n in names)


# ---- transformers ------------------------------------------------------------------------------------------------


def _of_transformers(path: Path, config: Mapping[str, Any], images: Preprocessing | None) -> HubConfig:
    classes, kind = config.get("architectures"), config.get("model_type")
    name = classes[0] if isinstance(classes, list) and classes else None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,100}", name):
        raise InputError(f"{path} names no class of transformers under 'architectures'; give --arch")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,100}", kind):
        raise InputError(f"{path} has no model_type of transformers; give --arch")
    if "auto_map" in config:
        raise InputError(f"{path} wants code that comes with the weights, which is not run; give --arch")
    if importlib.util.find_spec("transformers") is None:
        raise InputError(
            f"{path} names {name} of transformers, which is not installed; install it with: "
            "pip install 'reparam[transformers]'"
        )
    names = config.get("id2label")
    labels = [str(v) for v in names.values()] if isinstance(names, dict) else []
    given = {"architectures": [name], **plain_config(config)}
    return HubConfig(path, TRANSFORMERS + name, given, None, images, tuple(labels))


# ---- values ------------------------------------------------------------------------------------------------------


def check_arguments(given: Mapping[str, Any], path: Path) -> None:
    """Raises InputError for arguments of an architecture, out of the file `path`, that would fetch or that none has."""
    _check_values(given, set(), path, _MOST)


def _check_values(given: Mapping[str, Any], axes: set[int], path: Path, most: int) -> None:
    """Raises InputError for arguments that would fetch something, that no network has, or that are of no plain kind.

    most: of a number that is no axis of a tensor in the file and counts no layers.
    """
    leaves = list(_leaves(given, path))
    if len(leaves) > _MOST_ITEMS:
        raise InputError(f"{path} gives {len(leaves)} arguments, which no network takes; give --arch")
    for name, value in leaves:
        shown = one_line(name)[:60]
        if _FETCHING.search(name) and value not in (None, False, ""):
            raise InputError(f"{path} has '{shown}' among the arguments, which fetches weights; give --arch")
        if isinstance(value, str) and not (len(value) <= _MOST_TEXT and value.isprintable()):
            raise InputError(f"{path} has a text for '{shown}' that no network takes; give --arch")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        bound = _MOST if _DEPTHS.search(name) else most
        if not (abs(value) <= bound or value in axes):
            raise InputError(f"{path} asks for {shown} of {_short(value)}, which no network has; give --arch")


def _short(value: float) -> str:
    text = str(value) if isinstance(value, float) or abs(value) < 1 << 64 else f"2**{abs(value).bit_length()}"
    return text[:24]


def _leaves(value: Any, path: Path, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value that is no list or mapping, with its name."""
    if depth > _DEEPEST:
        raise InputError(f"{path} nests the arguments of the network too deep; give --arch")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, path, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, path, name, depth + 1)
    else:
        yield name, value
