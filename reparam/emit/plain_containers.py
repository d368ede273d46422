"""Arguments and results in containers that torch alone knows, as a `.pt2` archive has to hold them.

A dataclass, or a mapping of a library, becomes a dict with the same keys; a named tuple becomes a tuple.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from torch.utils import _pytree as pytree

_KNOWN = ("builtins", "collections", "torch")  # packages whose containers need no other


def plain_containers(spec: pytree.TreeSpec | None) -> pytree.TreeSpec | None:
    """`spec` with each container of another class as a dict of its keys, or as a tuple where it has none."""
    if spec is None or spec.is_leaf():
        return spec
    children = [made for child in spec.children() if (made := plain_containers(child)) is not None]
    if spec.type is not namedtuple and str(spec.type.__module__).partition(".")[0] in _KNOWN:
        return pytree.TreeSpec(spec.type, spec.context, children)
    keys = keys_of(spec)
    return pytree.TreeSpec(tuple, None, children) if keys is None else pytree.TreeSpec(dict, keys, children)


def keys_of(spec: pytree.TreeSpec) -> list[str] | None:
    """The names of a container's parts, where its class says them: as a list, or with names of absent parts behind."""
    context: Any = spec.context
    if not isinstance(context, (list, tuple)):
        return None
    if len(context) == 2 and isinstance(context[0], (list, tuple)) and isinstance(context[1], (list, tuple)):
        context = context[0]
    named = len(context) == len(spec.children()) and all(isinstance(key, str) for key in context)
    return list(context) if named else None
