"""Several outputs of one run appear together, or none of them does."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reparam.errors import InputError, MachineError, ReparamError

from .files import publish, refuse_existing
from .leftovers import NEW, OLD, Move, make_temporary, undo, write_plan

_current: ContextVar[Together | None] = ContextVar("outputs that appear together", default=None)


@contextlib.contextmanager
def together() -> Iterator[Together]:
    """The outputs that are staged in the block appear when it ends, or none does when it fails; older ones stay then.

    A block within another one adds its outputs to those of the outer. Between its moves a run can be killed: what it
    moved by then is taken back by the next run that writes there (see `leftovers`). The output that is staged first is
    moved last, so that whoever finds it finds all others.

    An error of the block names the outputs as they were named, and not where they are written until then.

    Raises MachineError when an output cannot be moved, InputError for one that came into being in the meantime.
    """
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    run = Together()
    token = _current.set(run)
    try:
        yield run
        run.commit()
    except ReparamError as error:
        error.args = tuple(run.as_named(a) if isinstance(a, str) else a for a in error.args)
        raise
    finally:
        _current.reset(token)
        run.discard()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the operating system in the block is a MachineError that names `path`."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}; nothing was written") from error


@dataclass(frozen=True)
class _Output:
    """One staged output. target: as it was named. temporary: the folder that holds it. name: beside that folder."""

    target: Path
    temporary: Path
    name: str
    force: bool

    @property
    def staged(self) -> Path:
        return self.temporary / NEW / self.name

    @property
    def place(self) -> Path:
        return self.temporary.parent / self.name


@dataclass
class Together:
    """Outputs under way. written: their paths, in the order in which they were staged, once they are in place."""

    written: list[Path] = field(default_factory=list)
    _outputs: list[_Output] = field(default_factory=list)
    _temporary: dict[Path, Path] = field(default_factory=dict)
    _process: int = field(default_factory=os.getpid)

    def stage(self, target: Path, *, force: bool, make_folder: bool = False) -> Path:
        """Where to write what becomes `target`: a path of the same name, in a temporary folder on the same disk.

        make_folder: whether the folder of `target` is made where it is missing. Raises InputError when `target` exists
        and `force` is false, is staged already, or would be a file and a folder; MachineError when nothing can be
        written there.
        """
        refuse_existing(target, force=force)
        place = target.absolute()
        if any(o.place == place for o in self._outputs):
            raise InputError(f"two outputs are named {target}; name another file for one of them")
        for other in self._outputs:
            inner, outer = (target, other.target) if other.place in place.parents else (other.target, target)
            if outer.absolute() in inner.absolute().parents:
                raise InputError(f"{outer} is an output and the folder of another, {inner}; name another folder")
        with writing(target):
            folder = self._folder_for(place.parent, make_folder)
            temporary = self._temporary.get(folder) or make_temporary(folder)
            self._temporary[folder] = temporary
            output = _Output(target, temporary, str(place.relative_to(folder)), force)
            output.staged.parent.mkdir(parents=True, exist_ok=True)
        self._outputs.append(output)
        return output.staged

    def as_named(self, text: str) -> str:
        """`text` with the names of the outputs in place of those of what is under way."""
        for output in self._outputs:
            text = text.replace(str(output.staged), str(output.target))
        return text

    def _folder_for(self, wanted: Path, make_folder: bool) -> Path:
        """Where the temporary folder lies: beside outputs further up, if there are some on the same disk."""
        folder = wanted
        while make_folder and not os.path.lexists(folder):
            folder = folder.parent
        device = folder.stat().st_dev  # raises where there is no such folder
        above = (f for f in self._temporary if f in wanted.parents and f.stat().st_dev == device)
        return next((f for f in above if not _mounts_between(f, wanted)), folder)

    def commit(self) -> None:
        """Moves all outputs into place, or none. Raises MachineError and InputError like `together`."""
        for output in self._outputs:
            with writing(output.target):
                publish(output.staged)
                _sync(output.staged)
            refuse_existing(output.target, force=output.force)
        alone = len(self._outputs) == 1
        folders = list(dict.fromkeys(o.temporary for o in self._outputs))[::-1]  # the first output's is the last
        moves = [_Moves.out_of(folder, self._outputs, alone=alone) for folder in folders]
        begun: list[_Moves] = []
        try:
            for move in moves:
                begun.append(move)
                move.run()
            self.written = [o.target for o in self._outputs]
        except BaseException:
            for move in reversed(begun):
                move.undo()
            raise

    def discard(self) -> None:
        """Removes the temporary folders, unless this is a copy of the process that made them."""
        if os.getpid() == self._process:
            for temporary in self._temporary.values():
                shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _Moves:
    """The moves out of one temporary folder. made: folders that they need. alone: whether there is one move in all."""

    temporary: Path
    outputs: list[_Output]
    moves: list[Move]
    made: list[str]
    alone: bool

    @classmethod
    def out_of(cls, temporary: Path, outputs: list[_Output], *, alone: bool) -> _Moves:
        """The moves in order, the first output last; noted on the disk unless one move is all that there is."""
        own = [o for o in reversed(outputs) if o.temporary == temporary]
        folder = temporary.parent
        missing = {p for o in own for p in o.place.parents if folder in p.parents and not os.path.lexists(p)}
        made = [str(p.relative_to(folder)) for p in sorted(missing, key=lambda p: len(p.parts))]
        with writing(own[-1].target):
            found = cls(temporary, own, [Move.of(o.name, o.staged) for o in own], made, alone)
            if not alone:
                write_plan(temporary, found.moves, made)
        return found

    def run(self) -> None:
        """Makes the folders and the moves. One move alone needs no second name of the older file."""
        for name in self.made:
            with writing(self.temporary.parent / name):
                (self.temporary.parent / name).mkdir(exist_ok=True)
        for output in self.outputs:
            with writing(output.target):
                if not self.alone and os.path.lexists(output.place):
                    self._keep_old(output)
                os.replace(output.staged, output.place)

    def _keep_old(self, output: _Output) -> None:
        """Gives the older file a second name, so that its own is never missing; moves it where a disk has no links."""
        old = self.temporary / OLD / output.name
        old.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(output.place, old, follow_symlinks=False)
        except (OSError, NotImplementedError):  # os.link's, on systems that follow every link
            os.replace(output.place, old)

    def undo(self) -> None:
        if self.alone:
            undo(self.temporary, [], self.made)
        else:
            undo(self.temporary, self.moves, self.made)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], *, force: bool) -> None:
    """Calls `write` with a temporary file, which then becomes `path` in one step (in `together`, with other outputs).

    Whatever fails, an interruption too, leaves nothing behind and what was there untouched.

    Raises InputError when `path` exists and `force` is false, MachineError for an error of the operating system, such
    as a full disk.
    """
    with together() as outputs:
        staged = outputs.stage(path, force=force)
        with writing(path), staged.open("wb") as file:
            write(file)


def _mounts_between(outer: Path, inner: Path) -> bool:
    """Whether a folder on the way from `outer` to `inner` is a mount, out of which no file can be moved."""
    way = {os.path.realpath(p) for p in (inner, *inner.parents) if outer in p.parents}
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return any(os.path.ismount(p) for p in way)
    return any(line.split(" ")[4].replace("\\040", " ") in way for line in lines)


def _sync(path: Path) -> None:
    """What is moved is on the disk before."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
