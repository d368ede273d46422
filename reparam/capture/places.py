"""Which line of a model made a node, and which line of a model an error comes from."""

from __future__ import annotations

import ast
import linecache
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import fx
from torch.utils import _traceback as stack_traces

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<number>\d+), in (?P<name>\S+)(?:\n\s+(?P<code>[^\n]+))?')
_OUR_CODE = tuple(os.path.dirname(f) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))
_GENERATED = "<eval_with_key>"
_FUNCTION = os.path.join(os.path.dirname(torch.__file__), "autograd", "function.py")


@dataclass(frozen=True)
class Line:
    """A line of a model. name: of the function that it lies in, with its class where that is known."""

    file: str
    number: int
    name: str
    code: str

    @property
    def generated(self) -> bool:
        """Whether torch.fx wrote it, for a module that is made of a graph. Each copy then has a file of its own."""
        return self.file.startswith(_GENERATED)

    def is_same(self, other: Line | None) -> bool:
        """Whether another line is this one, in the same module or a copy of it."""
        if other is None or not (self.generated and other.generated):
            return self == other
        return (self.number, self.name, self.code) == (other.number, other.name, other.code)

    def __str__(self) -> str:
        if self.generated and self.code:
            return f"`{self.code.partition(';')[0]}`"  # without what it lets go of
        return f"{self.file}:{self.number}" + (f" `{self.code}`" if self.code else "")


def is_ours(file: str) -> bool:
    """Whether a source file is torch's or reparam's own."""
    return file.startswith(_OUR_CODE)


def line_of(node: fx.Node) -> Line | None:
    """The innermost line of the model that made a node, as torch noted it, in a program too; None where it noted none.

    Code that torch has generated counts only where there is no other.
    """
    found = [
        Line(m["file"], int(m["number"]), m["name"], (m["code"] or "").strip())
        for m in _FRAME.finditer(str(node.meta.get("stack_trace") or node.meta.get("stack") or ""))
    ]
    theirs = [line for line in reversed(found) if not is_ours(line.file)]
    line = next((line for line in theirs if not line.generated), next(iter(theirs), None))
    return None if line is None else Line(line.file, line.number, _enclosing(line), line.code)


@contextmanager
def frames_made_once() -> Iterator[None]:
    """In the block torch makes each frame of its stack traces once: every node has one, of some 80 frames."""
    make, made = stack_traces._extract_symbolized_tb, dict[tuple[str, int, str], traceback.FrameSummary]()

    def extract(trace: Sequence[Mapping[str, Any]], skip: int) -> traceback.StackSummary:
        found = traceback.StackSummary()
        for frame in reversed(trace[skip:]):
            place = (frame["filename"], frame["line"], frame["name"])
            if place not in made:
                made[place] = traceback.FrameSummary(*place)
            found.append(made[place])
        return found

    stack_traces._extract_symbolized_tb = extract
    try:
        yield
    finally:
        stack_traces._extract_symbolized_tb = make


def line_of_error(error: BaseException) -> Line | None:
    """The innermost line of the model: in the last forward that is not torch's own, or in what it calls directly."""
    found: Line | None = None
    inside = False
    for frame, number in _frames(error.__traceback__):
        code = frame.f_code
        theirs = not is_ours(code.co_filename)
        inside = theirs and (inside or code.co_name == "forward")
        found = line_of_frame(frame, number) if inside else found
    return found


def line_of_caller(frame: FrameType | None, runner: FrameType | None = None) -> Line | None:
    """The innermost line of the model among a frame and those that called it. runner: the frame that runs the model."""
    while frame is not None and frame is not runner:
        if not is_ours(frame.f_code.co_filename):
            return line_of_frame(frame, frame.f_lineno)
        frame = frame.f_back
    return None


def line_of_frame(frame: FrameType, number: int) -> Line:
    """A line of a frame."""
    code = frame.f_code
    text = linecache.getline(code.co_filename, number, frame.f_globals).strip()
    return Line(code.co_filename, number, _qualified(code), text)


def autograd_function_of(error: BaseException) -> type[Any] | None:
    """The torch.autograd.Function whose code raised an error; None for other code."""
    classes = (
        frame.f_locals.get("cls")
        for frame, _ in _frames(error.__traceback__)
        if frame.f_code.co_filename == _FUNCTION and frame.f_code.co_name == "apply"
    )
    return next((c for c in reversed(list(classes)) if isinstance(c, type)), None)


def _frames(trace: TracebackType | None) -> Iterator[tuple[FrameType, int]]:
    yield from traceback.walk_tb(trace)


def _qualified(code: CodeType) -> str:
    """`Net.forward`, without the functions that the class is made in."""
    return str(code.co_qualname).rpartition("<locals>.")[2]


def _enclosing(line: Line) -> str:
    """The name of the function that a line lies in, with its class, as its source tells."""
    try:
        tree = ast.parse("".join(linecache.getlines(line.file)))
    except (SyntaxError, ValueError):
        return line.name
    scopes = [
        n
        for n in ast.walk(tree)  # outer ones first
        if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and n.lineno <= line.number <= (n.end_lineno or n.lineno)
    ]
    names = [n.name for n in scopes]
    last = max((i for i, n in enumerate(scopes[:-1]) if not isinstance(n, ast.ClassDef)), default=-1)
    return ".".join(names[last + 1 :]) if names[-1:] == [line.name] else line.name
