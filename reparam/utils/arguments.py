"""Arguments of the public functions, checked before anything is done with them. Nothing here needs torch."""

from __future__ import annotations

import functools
import inspect
import os
import threading
import warnings
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from reparam.errors import InputError

from .default_device import on_the_cpu
from .garbage import old_objects_at_rest
from .memory import memory_told
from .notebook import in_notebook, notebook_bars
from .spoken import in_words_of_python
from .text import describe_type

P = ParamSpec("P")
R = TypeVar("R")

_SIMPLE: Mapping[object, tuple[tuple[type, ...], str]] = {  # what annotations of keywords ask for, and in words
    "bool": ((int,), "True or False"),  # 0 and 1 too
    "str | None": ((str, type(None)), "a text"),
    "Mapping[str, Any] | None": ((abc.Mapping, type(None)), "a mapping"),
}
LAST_SEED = 2**63 - 1
_turn = threading.RLock()  # torch traces one model at a time, and default dtypes are those of all threads


def checked_call(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with errors of ours for what it is called with, and for memory that runs out.

    Threads take turns. In a notebook, the progress of a function that takes `progress` and was given none is shown
    below the cell. Errors name keywords, and not the options of the command line, unless that has called it.

    Arguments that it does not have, or that are missing, are an InputError that names those it has.
    """
    signature = inspect.signature(function)
    simple = {n: _SIMPLE[p.annotation] for n, p in signature.parameters.items() if p.annotation in _SIMPLE}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            names = [n for n, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY]
            positional = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
            how = "; the model's inputs are given by position" if positional else ""
            raise InputError(
                f"{function.__name__}() {error}{how}; the keywords that it takes are {', '.join(names)}"
            ) from None
        for name in simple.keys() & kwargs.keys():
            kinds, wanted = simple[name]
            if not isinstance(kwargs[name], kinds):
                raise InputError(f"{name} is {describe_type(kwargs[name])}, not {wanted}")
        named = in_words_of_python(function.__name__, signature.parameters)
        quietly = _without_warnings_of_torch()
        with named, _OwnErrors(kwargs), _turn, quietly, memory_told(), on_the_cpu(), old_objects_at_rest():
            if "progress" not in signature.parameters or kwargs.get("progress") is not None or not in_notebook():
                return function(*args, **kwargs)
            with notebook_bars() as tell:
                return function(*args, **{**kwargs, "progress": tell})  # type: ignore[arg-type]  # as it has one

    return call


class _OwnErrors:
    """What the caller's own `progress` raises reaches him as it is, whatever was made of it on the way."""

    def __init__(self, kwargs: dict[str, Any]) -> None:
        self.progress = kwargs.get("progress")
        self.raised: BaseException | None = None
        if callable(self.progress):
            kwargs["progress"] = self.tell

    def tell(self, *words: Any) -> None:
        """Calls the caller's function."""
        assert callable(self.progress)
        try:
            self.progress(*words)
        except BaseException as error:
            self.raised = self.raised or error
            raise

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.raised is not None and error is not self.raised:
            raise self.raised


@contextmanager
def _without_warnings_of_torch() -> Iterator[None]:
    """torch warns of its own code whenever a program of it is copied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


def check_seed(seed: Any) -> None:
    """Raises InputError unless `seed` is a whole number that a generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LAST_SEED:
        raise InputError(f"the seed {str(seed)[:40]} is not a whole number from 0 to 2**63 - 1")


def check_kind(value: Any, kind: type, name: str) -> None:
    """Raises InputError unless `value` is None or of that kind."""
    if value is not None and not isinstance(value, kind):
        raise InputError(f"{name} is {describe_type(value)}, not {kind.__name__}")


def check_callable(value: Any, name: str) -> None:
    """Raises InputError unless `value` is None or can be called."""
    if value is not None and not callable(value):
        raise InputError(f"{name} is {describe_type(value)}, not a function")


def as_path(value: Any, what: str) -> Path:
    """The path that a caller or a command line names. what: of it, such as "the output".

    Raises InputError for what names no path: an empty text, a NUL, characters that file names cannot have.
    """
    try:
        text = os.fspath(value)
    except TypeError:
        raise InputError(f"{what} is {describe_type(value)}, not a path") from None
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if not text:
        raise InputError(f"{what} has no name; name a file")
    if complaint := path_complaint(text):
        raise InputError(f"{what} {text[:60]!r} {complaint}; name another file")
    return Path(text)


def path_complaint(text: str) -> str:
    """Why no file can have this path; "" where one can."""
    if "\0" in text:
        return "has a NUL in its name"
    try:
        os.fsencode(text)
    except UnicodeError:
        return "has characters that file names cannot have here"
    if any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        return "has a name of more than 255 bytes"
    return ""
