"""Containers of results: the names that their classes give to their parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch.utils import _pytree as pytree


def keys_of(spec: pytree.TreeSpec) -> list[str] | None:
    """The names of a container's parts, where its class says them: as a list, or with names of absent parts behind."""
    context: Any = spec.context
    if isinstance(context, type):  # of a named tuple
        context = getattr(context, "_fields", None)
    if spec.type is defaultdict:
        context = context[1]  # behind what makes a value that is not there
    if not isinstance(context, (list, tuple)):
        return None
    if len(context) == 2 and isinstance(context[0], (list, tuple)) and isinstance(context[1], (list, tuple)):
        context = context[0]
    named = len(context) == len(spec.children()) and all(isinstance(key, str) for key in context)
    return list(context) if named else None


def parts_of(spec: pytree.TreeSpec, path: str = "", first: int = 0) -> Iterator[tuple[str, range, pytree.TreeSpec]]:
    """Every part at any depth: its path (`hidden.1`), which leaves it holds, and its own structure."""
    if spec.is_leaf():
        return
    names = keys_of(spec) or [str(i) for i in range(len(spec.children()))]
    for name, child in zip(names, spec.children(), strict=True):
        here = f"{path}.{name}" if path else name
        yield here, range(first, first + child.num_leaves), child
        yield from parts_of(child, here, first)
        first += child.num_leaves
