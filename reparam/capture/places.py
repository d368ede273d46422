"""Which line of a model made a node, and which line of a model an error comes from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<number>\d+), in (?P<name>\S+)(?:\n\s+(?P<code>[^\n]+))?')
_OUR_CODE = tuple(os.path.dirname(f) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))


@dataclass(frozen=True)
class Line:
    """A line of a model. name: of the function that it lies in, with its class where that is known."""

    file: str
    number: int
    name: str
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" + (f" `{self.code}`" if self.code else "")


def is_ours(file: str) -> bool:
    """Whether a source file is torch's or reparam's own."""
    return file.startswith(_OUR_CODE)


def line_of(node: fx.Node) -> Line | None:
    """The innermost line of the model that made a node, as torch noted it; None where it noted none."""
    found = [
        Line(m["file"], int(m["number"]), m["name"], (m["code"] or "").strip())
        for m in _FRAME.finditer(str(node.meta.get("stack_trace") or ""))
    ]
    return next((line for line in reversed(found) if not is_ours(line.file)), None)
