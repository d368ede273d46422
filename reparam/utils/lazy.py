"""Doors that open when they are used: names of a package whose modules are imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .garbage import no_looks


def lazy_doors(package: str, doors: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """A `__getattr__` for `package` (PEP 562): each name of `doors` comes from its module, imported when asked for.

    doors: module of the package -> the names that it gives.
    """
    home = {name: module for module, names in doors.items() for name in names}

    def getattribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        with no_looks():
            module = importlib.import_module(f"{package}.{home[name]}")
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute
