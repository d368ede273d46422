"""The reference architectures by name: each is registered twice, small (`NAME_small`) and as published (`NAME`).

    @register("resnet", small={"width": 8}, published={}, small_input=(3, 32, 32), published_input=(3, 224, 224))
    class ResNet(nn.Module): ...

The published sizes are those of the paper that the module's docstring names; the small ones run in seconds on a CPU.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from reparam.utils import plugins

__all__ = ["Entry", "entries", "register"]

SMALL = "_small"

_ENTRIES: dict[str, Entry] = {}
_Factory = TypeVar("_Factory", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class Entry:
    """One configuration: `build(**arguments)` makes it. inputs: the shape of each input, without the batch."""

    name: str
    build: Callable[..., nn.Module]
    arguments: Mapping[str, Any]
    inputs: tuple[tuple[int, ...], ...]


def register(
    name: str,
    *,
    small: Mapping[str, Any],
    published: Mapping[str, Any],
    small_input: Sequence[int] | Sequence[Sequence[int]],
    published_input: Sequence[int] | Sequence[Sequence[int]],
) -> Callable[[_Factory], _Factory]:
    """Registers a class or function under `name` (with the arguments `published`) and `name_small`.

    small_input, published_input: the shape of the input, or one shape for each. Raises ValueError for a name that is
    taken.
    """

    def record(build: _Factory) -> _Factory:
        for key, arguments, shapes in ((name, published, published_input), (name + SMALL, small, small_input)):
            if key in _ENTRIES:
                raise ValueError(f"the architecture '{key}' is registered twice")
            _ENTRIES[key] = Entry(key, build, dict(arguments), _shapes(shapes))
        return build

    return record


def _shapes(shapes: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    one = not shapes or isinstance(shapes[0], int)
    return (tuple(shapes),) if one else tuple(s if isinstance(s, tuple) else tuple(s) for s in shapes)


@functools.cache
def entries() -> Mapping[str, Entry]:
    """Every registered architecture, by name: imports all modules of this package, and those of installed ones.

    A package from outside names its modules under the entry point group `reparam.models`.
    """
    package = importlib.import_module("reparam.models")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"reparam.models.{module.name}")
    plugins("reparam.models")
    return dict(sorted(_ENTRIES.items()))
