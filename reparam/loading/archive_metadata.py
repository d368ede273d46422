"""Which notes of a `.pt2` archive are harmless: where values come from, which modules made them, what users wrote.

torch evaluates none of these, but they travel: into the names of layers, into reports, into generated source. Each
function returns a complaint (a few words), or None, like those of `archive_grammar`.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_NOTE = 200_000  # characters of one note; a stack trace of a deep network has some ten thousand
MAX_DEPTH = 50
MAX_STRING = 400  # characters of a text that an operator gets, such as the equation of an einsum

_STRING = re.compile(r"[A-Za-z0-9_ .,;:\-+>()\[\]/=]*")
_QUALIFIED = re.compile(r"[A-Za-z0-9_.@\-]{0,4000}")
_TYPE = re.compile(r"[\w.<>@\[\], \-]{0,1000}")
_FUNCTIONS = re.compile(r"[\w.,;:<>()\[\] \-]*", re.ASCII)
_VERSION = re.compile(r"[\w.+\-<>= ]{0,80}", re.ASCII)
_NOT_PRINTED = "holds characters that are not printed"


def string(text: str) -> str | None:
    """A text among an operator's arguments, or an input that is a text."""
    return None if len(text) <= MAX_STRING and _STRING.fullmatch(text) else "is not a plain text"


def version(text: str) -> str | None:
    """A version such as 2.13.0+cpu."""
    return None if _VERSION.fullmatch(text) else "is not a version"


def functions(text: str) -> str | None:
    """A list of names of functions."""
    return None if len(text) <= MAX_NOTE and _FUNCTIONS.fullmatch(text) else "is not a list of names"


def module_stack(text: str) -> str | None:
    """`key,path,type;…`: the modules that a value was made in, from the outermost to the innermost."""
    if len(text) > MAX_NOTE:
        return f"is longer than {MAX_NOTE} characters"
    for part in text.split(";"):
        pieces = _split(part)
        if len(pieces) != 3 or not _QUALIFIED.fullmatch(pieces[0]) or not _QUALIFIED.fullmatch(pieces[1]):
            return "is not a stack of modules"
        if not _TYPE.fullmatch(pieces[2]):
            return "is not a stack of modules"
    return None


def _split(text: str) -> list[str]:
    """The parts between commas that stand outside of brackets, as torch splits them."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[(") - (character in ")]")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def stack_trace(text: str) -> str | None:
    """The lines of source that a value was made in: many lines, of visible characters."""
    return _lines(text)


def note(text: str) -> str | None:
    """A text that no code reads: lines of visible characters."""
    return _lines(text)


def _lines(text: str) -> str | None:
    if len(text) > MAX_NOTE:
        return f"is longer than {MAX_NOTE} characters"
    return None if all(line.replace("\t", " ").isprintable() for line in text.split("\n")) else _NOT_PRINTED


def json_note(text: str) -> str | None:
    """What users wrote beside a node, and where its node came from: JSON, of lines of visible characters."""
    if len(text) > MAX_NOTE:
        return f"is longer than {MAX_NOTE} characters"
    try:
        return _json(json.loads(text), 0)
    except (ValueError, RecursionError):
        return "is not JSON"


def plain(value: Any) -> str | None:
    """A value of JSON that nothing reads."""
    return _json(value, 0)


def _json(value: Any, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"nests deeper than {MAX_DEPTH} levels"
    if isinstance(value, str):
        return _lines(value)
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((c for part in parts if (c := _json(part, depth + 1)) is not None), None)
