"""Dotted names, names that nothing else has, and names that come from files."""

from __future__ import annotations

import re
from collections.abc import Container

LONGEST = 1000  # characters of a name from a file; genuine ones have a few dozen
FEW = 8  # underscores; names of files may be the same thousands of times
_QUOTING = frozenset("\"'`\\")
_PLAIN = re.compile(r"[A-Za-z0-9_@\-]+(?:\.[A-Za-z0-9_@\-]+)*")


def prefixes(name: str) -> list[str]:
    """`a` and `a.b` for `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def unused_name(name: str, taken: Container[str]) -> str:
    """`name`, with as many underscores behind it as it takes to be none of `taken`, or with a number where many are."""
    for _ in range(FEW):
        if name not in taken:
            return name
        name += "_"
    most = 1
    while f"{name}{most}" in taken:
        most *= 2
    least = most // 2  # which is taken, as those below it mostly are
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if f"{name}{middle}" in taken else (least, middle)
    return f"{name}{most}"


def name_complaint(text: str) -> str | None:
    """What is wrong with a name that comes from a file, in a few words; None when it is plain.

    A plain name is one line of visible characters of any script, spaces among them, without quotes and backslashes.
    """
    if len(text) > LONGEST:
        return f"is longer than {LONGEST} characters"
    if not text.isprintable():
        return "holds characters that are not printed"
    if not _QUOTING.isdisjoint(text):
        return "holds quotes or backslashes"
    return None


def is_plain_path(path: str) -> bool:
    """Whether a dotted path is written in ASCII letters, digits, `_`, `-` and `@` alone: it means itself anywhere."""
    return len(path) <= LONGEST and _PLAIN.fullmatch(path) is not None


def plain_path(path: str) -> str:
    """`path` where it is a plain one, else with `_` in place of what is not; "" stays what it is."""
    if not path or is_plain_path(path):
        return path
    parts = [re.sub(r"[^A-Za-z0-9_@\-]", "_", part) or "_" for part in path[:LONGEST].split(".")]
    return ".".join(parts)
