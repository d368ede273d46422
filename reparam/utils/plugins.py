"""Modules that packages from outside bring: passes, formats and architectures, by their entry points."""

from __future__ import annotations

import functools
import importlib
from importlib import metadata
from types import ModuleType

from reparam.errors import MachineError

from .foreign import foreign_code
from .text import first_line


@functools.cache
def plugins(group: str) -> tuple[ModuleType, ...]:
    """The modules that installed packages name in an entry point group, by the names of the entry points.

    Raises MachineError for one that does not import, naming the package that brings it.
    """
    found = []
    for point in sorted(metadata.entry_points(group=group), key=lambda p: (p.name, p.value)):
        owner = point.dist.name if point.dist is not None else "an installed package"
        try:
            with foreign_code(f"importing {point.value}", MachineError):
                found.append(importlib.import_module(point.module))
        except Exception as error:
            reason = first_line(error)
            raise MachineError(f"{owner} brings {point.value} for {group}, which does not import: {reason}") from error
    return tuple(found)
