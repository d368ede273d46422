"""Dotted names, and names that nothing else has."""

from __future__ import annotations

from collections.abc import Container


def prefixes(name: str) -> list[str]:
    """`a` and `a.b` for `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def unused_name(name: str, taken: Container[str]) -> str:
    """`name`, with as many underscores behind it as it takes to be none of `taken`."""
    while name in taken:
        name += "_"
    return name
