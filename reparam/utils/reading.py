"""Files from strangers: opened once, of an ordinary kind, and never more of them in memory than was asked for."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from reparam.errors import InputError

MISSING = "check the name"


@contextlib.contextmanager
def opened(path: Path, missing: str = MISSING) -> Iterator[IO[bytes]]:
    """The file, opened for all that is read of it: what is checked is then what is used, whatever its name says later.

    missing: what the error for a file that is not there tells to do.

    Raises InputError for a file that is missing, empty or no ordinary file (a folder, a pipe, a device).
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}; {missing}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder; give the file in it") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    state = os.fstat(handle)
    if stat.S_ISDIR(state.st_mode):  # which Python opens no file for
        os.close(handle)
        raise InputError(f"{path} is a folder; give the file in it")
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(state.st_mode):
            raise InputError(f"{path} is not an ordinary file; copy what it gives into one")
        if state.st_size == 0:
            raise InputError(f"{path} is empty; copy or save it again")
        yield file


def path_of(file: IO[bytes]) -> str:
    """A path that leads to this very open file, for libraries that take nothing else.

    Where the system has no such paths (all but Linux) it is the file's name, which may lead elsewhere by then.
    """
    own = f"/proc/self/fd/{file.fileno()}"
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(own), os.fstat(file.fileno())):
            return own
    return str(file.name)


class Stamp(NamedTuple):
    """What tells a file from one that has taken its place, or from itself with another content."""

    device: int
    number: int
    size: int
    changed: int


def stamp_of(file: IO[bytes]) -> Stamp:
    """The stamp of an open file."""
    state = os.fstat(file.fileno())
    return Stamp(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


def size_of(file: IO[bytes]) -> int:
    """The bytes of an open file; where it is read next does not change."""
    here = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(here)
    return size


def parse_json(content: bytes, *, unique: bool = True) -> Any:
    """The value of UTF-8 JSON. unique: whether a key may stand in a mapping once only.

    Raises ValueError, in a few words, for what is not JSON, for numbers and nesting that only serve to exhaust the
    reader, and for a repeated key, which readers of JSON take in different ways.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_mapping if unique else None)
    except RecursionError as error:
        raise ValueError("its lists and mappings nest too deep") from error


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} is there twice")
    return found
