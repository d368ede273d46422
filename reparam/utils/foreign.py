"""The code of a model may end the process, or leave by an exception that no handler expects.

The work was not done then, and nobody may take it for done: within `foreign_code` this is an error that names the line.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from reparam.errors import EndedError, InputError, ReparamError

from .memory import memory_told
from .streams import streams_kept_open
from .text import describe_error

_ENDS = {name: getattr(os, name) for name in ("_exit", "execv", "execve") if hasattr(os, name)}
_lock = threading.RLock()
_depth = 0
_over = False


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or another signal, and not the code of a model."""


@contextlib.contextmanager
def foreign_code(doing: str, kind: type[ReparamError] = EndedError, *, errors: bool = False) -> Iterator[None]:
    """Runs code that others wrote: what would end the process becomes an error.

    doing: what is done, such as "building mine:net". kind: of the error. errors: whether ordinary exceptions of that
    code become an InputError.

    An interruption passes, and so does what a copy of the process does that the code has made: it ends with the block.
    The current folder is that of before, so that what is written afterwards is where it was asked for, and the standard
    streams are open as before.
    """
    process = os.getpid()
    try:
        with _same_folder(), streams_kept_open(), refused_exits(), _known_interruptions(), memory_told(doing):
            yield
    except BaseException as error:
        _end_copy(process, error)
        if interruption := _interruption(error):
            raise interruption from None
        if isinstance(error, Exception):
            place = place_of_error(error, strict=True)
            if not (errors and place) or isinstance(error, ReparamError):
                raise
            raise InputError(f"{doing} failed at {place}: {describe_error(error)}") from error
        place = place_of_error(error)
        at = f" at {place}" if place else ""
        raise kind(f"{doing} was ended by {_name(error)}{at}; the code of a model must return") from error
    else:
        _end_copy(process, None)


@contextlib.contextmanager
def _same_folder() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a folder that is gone
            before = os.getcwd()
            stack.callback(_back_to, before)
        yield


def _back_to(folder: str) -> None:
    with contextlib.suppress(OSError):
        if os.getcwd() != folder:
            os.chdir(folder)


@contextlib.contextmanager
def refused_exits() -> Iterator[None]:
    """In the block, calls of this process that would end it at once raise SystemExit."""
    global _depth  # noqa: PLW0603  # the functions are those of the whole process
    with _lock:
        _depth += 1
        if _depth == 1:
            _set_ends({name: _stand_in(name, real, os.getpid()) for name, real in _ENDS.items()})
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _set_ends(_ENDS)


def ignore_exits() -> None:
    """At the end of a process, when its exit code is known: from now on, those calls do nothing."""
    global _over  # noqa: PLW0603
    _over = True
    _set_ends({name: _stand_in(name, real, os.getpid()) for name, real in _ENDS.items()})


def _set_ends(functions: dict[str, Any]) -> None:
    for module in (os, sys.modules.get("posix"), sys.modules.get("nt")):
        for name, function in functions.items():
            if module is not None and hasattr(module, name):
                setattr(module, name, function)


def _stand_in(name: str, real: Callable[..., Any], process: int) -> Callable[..., Any]:
    def refuse(*words: Any, **options: Any) -> Any:
        if os.getpid() != process:  # of a copy, which may end as it likes
            return real(*words, **options)
        if _over:
            return None
        raise SystemExit(_Call(f"os.{name}({', '.join(repr(w) for w in words)[:80]})"))

    return refuse


class _Call(str):
    """What the code called, as the `code` of a SystemExit."""


def _end_copy(process: int, error: BaseException | None) -> None:
    """A copy of the process, which the code has made, must not go on with our work."""
    if os.getpid() == process:
        return
    code = getattr(error, "code", 1) if error is not None else 0
    _ENDS["_exit"](code if isinstance(code, int) else int(code is not None))


# ---- interruptions -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _known_interruptions() -> Iterator[None]:
    """Ctrl-C raises `Interrupted`, so that it can be told from a KeyboardInterrupt of the code itself."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    if getattr(before, "tells_signals", False):
        yield
        return

    def tell(number: int, frame: FrameType | None) -> Any:
        try:
            return before(number, frame)
        except Interrupted:
            raise
        except KeyboardInterrupt as error:
            raise Interrupted(*error.args) from error

    tell.tells_signals = True  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, tell)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is tell:
            signal.signal(signal.SIGINT, before)


def _interruption(error: BaseException | None) -> Interrupted | None:
    """The interruption that an exception is, or was raised after."""
    seen: set[int] = set()
    stack = [error]
    while stack:
        item = stack.pop()
        if item is None or id(item) in seen:
            continue
        if isinstance(item, Interrupted):
            return item
        seen.add(id(item))
        stack += [item.__cause__, item.__context__]
    return None


# ---- words -------------------------------------------------------------------------------------------------------


def _name(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return str(error.code) if isinstance(error.code, _Call) else f"SystemExit({error.code!r})"[:120]
    return describe_error(error)


def place_of_error(error: BaseException, *, strict: bool = False) -> str:
    """`net.py:3 in forward` with the line: the innermost line that is not reparam's or of what it stands on.

    strict: whether there has to be such a line; otherwise torch and Python are taken where there is no other.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_OURS)]
    own = [f for f in frames if not _is_library(f.filename)]
    frame = next(reversed(own or ([] if strict else frames)), None)
    if frame is None:
        return ""
    path = Path(frame.filename)
    with contextlib.suppress(ValueError, OSError):
        path = path.relative_to(Path.cwd())
    line = f" `{frame.line}`" if frame.line else ""
    return f"{path}:{frame.lineno} in {frame.name}{line}"


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PYTHON = tuple({os.path.join(p, "") for p in map(sysconfig.get_path, ("stdlib", "platstdlib")) if p})
_PACKAGES = ("site-packages", "dist-packages")
_STANDS_ON = ("torch", "numpy", "safetensors", "sympy", "typer", "click", "rich", "onnx", "onnxruntime", "onnxscript")


def _is_library(name: str) -> bool:
    """torch, Python and the like, which call the code of a model and are called by it."""
    parts = Path(name).parts
    inside = next((parts[i + 1 :] for i, p in enumerate(parts) if p in _PACKAGES), None)
    if inside is not None:
        return inside[:1] != () and inside[0] in _STANDS_ON
    return name.startswith((*_PYTHON, "<frozen "))
