"""The standard streams: the code of a model may close or replace its own, and what we say is still said.

The command line writes to copies that nobody else holds. After the code of a model, the numbers 1 and 2 lead somewhere,
so that no file of ours gets one of them, and what is printed with it.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_NUMBERS = {"stdout": 1, "stderr": 2}
_HIGH = 512  # number of a copy, beyond those that programs close all at once


def own_stream(stream: TextIO | None) -> TextIO:
    """A stream to where `stream` leads, which stays open when `stream`, or its number, is closed.

    It never fails on a character that it cannot encode. A stream without a number, such as one in memory, is returned
    itself; None (closed by the caller, as with `2>&-`) becomes one that leads nowhere.
    """
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        stream.flush()
        copy = os.fdopen(_copy(stream.fileno()), "wb")
    except (OSError, ValueError):
        stream.reconfigure(errors="backslashreplace")
        return stream
    return _OwnStream(copy, stream.encoding, line_buffering=stream.line_buffering)


class _OwnStream(io.TextIOWrapper):
    """Refuses to write where its number leads to another file by now. It is closed by the end of the process alone."""

    def __init__(self, file: io.BufferedWriter, encoding: str, *, line_buffering: bool) -> None:
        super().__init__(file, encoding, "backslashreplace", line_buffering=line_buffering)
        self._file = _identity(file.fileno())

    def write(self, text: str) -> int:
        """Writes text. Raises OSError where the file is not ours any more."""
        self._check()
        return super().write(text)

    def flush(self) -> None:
        """Writes what is left. Raises OSError like `write`."""
        self._check()
        super().flush()

    def close(self) -> None:
        """Keeps it open."""

    def __del__(self) -> None:
        pass

    def silence(self) -> None:
        """From now on, what is written goes nowhere, and what is left too."""
        _lead_nowhere(self.fileno())
        self._file = _identity(self.fileno())

    def _check(self) -> None:
        if _identity(self.fileno()) != self._file:
            raise OSError(errno.EBADF, "the code of a model closed it")


def silence(stream: TextIO) -> None:
    """Sends what is still buffered nowhere, so that the interpreter's own flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(stream, _OwnStream):
            stream.silence()
        else:
            _lead_nowhere(stream.fileno())


@contextlib.contextmanager
def streams_kept_open() -> Iterator[None]:
    """After the block, the standard streams and their numbers that were open before it are open."""
    streams = {name: stream for name in _NUMBERS if _is_usable(stream := getattr(sys, name, None))}
    copies = {number: _copy(number) for number in _NUMBERS.values() if _identity(number) is not None}
    try:
        yield
    finally:
        for number, copy in copies.items():
            if _identity(number) is None:
                _lead(number, copy)
            with contextlib.suppress(OSError):
                os.close(copy)
        for name, stream in streams.items():
            if not _is_usable(getattr(sys, name, None)):
                setattr(sys, name, stream if _is_usable(stream) else _opened(_NUMBERS[name]))


def drop_broken_streams() -> None:
    """At the end of a process: streams that cannot be flushed are gone, as they would change the exit code."""
    for name in _NUMBERS:
        try:
            getattr(sys, name).flush()
        except Exception:
            setattr(sys, name, None)


def _is_usable(stream: Any) -> bool:
    try:
        return stream is not None and not getattr(stream, "closed", False)
    except ValueError:  # it was detached from what it wrote to
        return False


def _opened(number: int) -> TextIO:
    try:
        return own_stream(open(number, "w", closefd=False))
    except OSError:
        return own_stream(None)


def _copy(number: int) -> int:
    try:
        import fcntl

        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except (ImportError, OSError):  # of another system, or beyond its limit
        return os.dup(number)


def _lead(number: int, copy: int) -> None:
    """Makes the number lead to where its copy does, or nowhere."""
    with contextlib.suppress(OSError):
        try:
            os.dup2(copy, number)
        except OSError:
            _lead_nowhere(number)


def _lead_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _identity(number: int) -> tuple[int, int] | None:
    """The file that a number leads to; None where it is closed."""
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino
