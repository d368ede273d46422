"""Files are written whole or not at all. Needs no torch, so that the command line can use it for its reports."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from reparam.errors import InputError, MachineError

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


@contextlib.contextmanager
def staging_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, gone afterwards; for files that are moved into place once all are right.

    Raises MachineError for an error of the operating system in the block, such as a full disk.
    """
    folder: Path | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
        yield folder
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}; nothing was written") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def move_into_place(staging: Path, folder: Path, names: Iterable[str]) -> None:
    """Moves the staged files into `folder`, the old ones aside; moves the old ones back when one move fails."""
    moved: list[Path] = []
    try:
        for name in names:
            target, aside = folder / name, staging / f"old-{name}"
            if os.path.lexists(target):
                os.replace(target, aside)
            moved.append(target)
            os.replace(staging / name, target)
    except BaseException:
        for target in moved:
            aside = staging / f"old-{target.name}"
            with contextlib.suppress(OSError):
                if aside.exists():
                    os.replace(aside, target)
                else:
                    target.unlink(missing_ok=True)
        raise
