"""The formats that a network is exported to: one file each, found by being here.

A module that defines FORMAT is a format: those of this package in the alphabetical order of the modules, then those
that installed packages name under the entry point group `reparam.formats`. Importing them is
light: what a format needs is imported when it is used.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from reparam.engines.format import Format
from reparam.errors import InputError, MachineError
from reparam.utils import opened, plugins


@functools.cache
def all_formats() -> dict[str, Format]:
    """Every format by its name. Raises MachineError for a module without FORMAT, and for two formats of one name."""
    here = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found: dict[str, Format] = {}
    for module in (*here, *plugins("reparam.formats")):
        made = getattr(module, "FORMAT", None)
        if not isinstance(made, Format):
            raise MachineError(f"{module.__name__} is no format: it has to define FORMAT, an instance of a Format")
        if found.setdefault(made.name, made) is not made:
            raise MachineError(f"two formats are called '{made.name}'; one of them is in {module.__name__}")
    return found


def find_format(name: str) -> Format:
    """The format of that name. Raises InputError that lists them."""
    if name not in all_formats():
        raise InputError(f"'{name}' is not a format; choose from {', '.join(all_formats())}")
    return all_formats()[name]


def recognise(path: Path) -> Format | None:
    """The format of a file, by its content; None when it is none of them, or cannot be read."""
    try:
        with opened(path) as file:
            head = file.read(512)
    except (InputError, OSError):  # its reader says what is wrong with it
        return None
    return next((f for f in all_formats().values() if f.recognises(path, head)), None)
