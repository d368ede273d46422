"""Temporary folders for outputs under way, and what a killed run left of them.

A folder is named `.reparam-PLACE-PID-RANDOM` and lies beside the outputs. PLACE stands for the machine, its boot and
its process namespace, in which PID names the process. In `new` are the files that are to be moved, in `old` second
names of those that they take the place of, in `moves.json` the list of moves. A folder whose process is gone is removed
by the next run that writes there, and what it had moved by then is taken back, unless all of it was.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from reparam.errors import InputError

from .reading import opened, parse_json

TEMPORARY = ".reparam-"  # what the names of temporary folders begin with
NEW, OLD, MOVES = "new", "old", "moves.json"
LONG_AGO = 24 * 3600.0  # seconds; a folder of another machine that nobody touched for so long is left over
_NAME = re.compile(re.escape(TEMPORARY) + r"([0-9a-f]{8})-([0-9]{1,10})-[0-9a-f]{8}")


def make_temporary(folder: Path) -> Path:
    """A new temporary folder in `folder`, named after this process. Raises OSError."""
    while True:
        path = folder / f"{TEMPORARY}{_place()}-{os.getpid()}-{secrets.token_hex(4)}"
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            return path


@dataclass(frozen=True)
class Move:
    """One file on its way. name: below the folder that holds the temporary one. stamp: what tells it from others."""

    name: str
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, name: str, staged: Path) -> Move:
        """The move of a staged file."""
        return cls(name, _stamp(staged))


def write_plan(temporary: Path, moves: Sequence[Move], made: Sequence[str]) -> None:
    """Notes what is about to be moved, in order. made: the folders that are made for it, outer ones first."""
    rows = {"moves": [[m.name, list(m.stamp)] for m in moves], "made": list(made)}
    with (temporary / MOVES).open("w", encoding="utf-8") as file:
        json.dump(rows, file)
        file.flush()
        os.fsync(file.fileno())


def undo(temporary: Path, moves: Sequence[Move], made: Sequence[str]) -> None:
    """Takes moves back: older files return, new ones go, and so do folders that were made. What fails is left."""
    folder = temporary.parent
    for move in reversed(moves):
        target, old = folder / move.name, temporary / OLD / move.name
        with contextlib.suppress(OSError):
            ours = os.path.lexists(target) and _stamp(target) == move.stamp
            if os.path.lexists(old) and (ours or not os.path.lexists(target)):
                os.replace(old, target)
            elif ours:
                target.unlink()
    for name in reversed(made):
        with contextlib.suppress(OSError):
            (folder / name).rmdir()


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left in `folder`: this user's own temporary folders, by their names. Raises nothing."""
    with contextlib.suppress(OSError, ValueError):
        found = [Path(e.path) for e in os.scandir(folder) if e.name.startswith(TEMPORARY)]
        for path in found:
            if _is_left_over(path):
                with contextlib.suppress(OSError):
                    _take_back(path)
                shutil.rmtree(path, ignore_errors=True)


def _take_back(temporary: Path) -> None:
    """Undoes the moves of a run that was killed between two of them."""
    moves, made = _read_plan(temporary)
    if any(os.path.lexists(temporary / NEW / m.name) for m in moves):
        undo(temporary, moves, made)


def _read_plan(temporary: Path) -> tuple[list[Move], list[str]]:
    """What `write_plan` wrote; nothing where it is missing, cut short or names a place outside of the folder."""
    try:
        with opened(temporary / MOVES) as file:
            row = parse_json(file.read())
        moves = [Move(str(name), tuple(int(n) for n in stamp)) for name, stamp in row["moves"]]
        made = [str(name) for name in row["made"]]
    except (InputError, OSError, ValueError, OverflowError, TypeError, KeyError):
        return [], []
    names = [*(m.name for m in moves), *made]
    inside = all(_is_inside(temporary.parent, n) and _is_inside(temporary, os.path.join(OLD, n)) for n in names)
    return (moves, made) if inside else ([], [])


def _is_inside(folder: Path, name: str) -> bool:
    """Whether a name leads to a place below `folder`, over no link: the plan may have come with files of others."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    path = PurePath(name)
    if not path.parts or path.anchor or ".." in path.parts or "\0" in name:
        return False
    return not any((folder / above).is_symlink() for above in path.parents if above.name)


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _is_left_over(path: Path) -> bool:
    """Whether a temporary folder is this user's, and its process is gone."""
    name = _NAME.fullmatch(path.name)
    try:
        found = path.lstat()
    except OSError:
        return False
    if name is None or path.is_symlink() or not path.is_dir():
        return False
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return False
    if name[1] == _place() and sys.platform != "win32":  # where no signal is only a question
        return not _lives(int(name[2]))
    return time.time() - found.st_mtime > LONG_AGO


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@functools.cache
def _place() -> str:
    """The machine since it was started, and the process namespace: where a number names one process."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
