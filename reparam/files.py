"""Files are written whole or not at all. Needs no torch, so that the command line can use it for its reports."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from .errors import InputError, MachineError

SOURCE_FILES = ("model.py", "model.safetensors")  # what readable source is written into
TEMPORARY = ".reparam-"  # what the names of temporary files begin with


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raises InputError when `path` exists and `force` is false."""
    if not force and os.path.lexists(path):
        raise InputError(f"{path} exists already; --force overwrites it")


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], *, force: bool) -> None:
    """Calls `write` with a temporary file beside `path`, which then takes the place of `path` in one step.

    Whatever fails, an interruption too, leaves nothing behind and what was there untouched.

    Raises InputError when `path` exists and `force` is false, MachineError for an error of the operating system, such
    as a full disk.
    """
    refuse_existing(path, force=force)
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(handle)
        publish(Path(name))
        os.replace(name, path)
    except BaseException as error:
        if name:
            with contextlib.suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            raise MachineError(f"cannot write {path}: {error.strerror or error}; nothing was written") from error
        raise


def publish(path: Path) -> None:
    """Gives a temporary file the permissions that an ordinary new file has."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)
