"""Names of outputs and their permissions. Needs no torch, so that the command line can use it for its reports."""

from __future__ import annotations

import os
from pathlib import Path

from reparam.errors import InputError

from .leftovers import remove_leftovers

SOURCE_FILES = ("model.py", "model.safetensors")  # what readable source is written into


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raises InputError when `path` exists and `force` is false. What killed runs left beside it is removed first."""
    remove_leftovers(path.parent)
    if not force and os.path.lexists(path):
        raise InputError(f"{path} exists already; --force overwrites it")


def publish(path: Path) -> None:
    """Gives a temporary file the permissions that an ordinary new file has."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
