"""Names in an imported network: of layers, as the file tells them in one of several ways, and of weights.

torch's exporters write the path of the module into the name of a node or beside it; in other files the names of the
weights tell it. All names come from a file, so only what is plain is kept of them.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Container, Iterable

from reparam.utils import plain_path, unused_name

from .nodes import GraphNode

MOST_PARTS = 16  # of a path
_WORDS = {"self", *(word.lower() for word in keyword.kwlist)}  # that are no names of parameters
_SCOPE = re.compile(r"'([^'\\]*)'")


def layer_path(node: GraphNode, weights: Iterable[str]) -> str:
    """The path of the layer that a node belongs to. weights: the names of those that it reads."""
    scopes = _SCOPE.findall(node.scope[:10_000])[:-1]  # the last is the call itself
    if scopes:
        found = scopes[-1]
    elif "/" in node.name:
        found = _of_scopes(node.name, node.op)
    else:
        owners = [w.rpartition(".")[0] for w in weights if "." in w]
        found = owners[0] if owners else node.name or f"{node.op}_{node.outputs[0]}"
    return as_path(found) or as_path(node.name) or as_path(node.op)


def _of_scopes(name: str, op: str) -> str:
    """`/layer1/layer1.0/conv1/Conv_1` and `layer1.0.conv1/Conv` are of the layer `layer1.0.conv1`."""
    *scopes, last = [part for part in name.split("/") if part]
    if re.sub(r"_\d+$", "", last) != op:
        scopes.append(last)
    parts: list[str] = []
    for part in scopes:
        if parts and part.startswith(f"{parts[-1]}."):  # a list's own name stands before the number of its part
            parts.pop()
        parts.append(part)
    return ".".join(parts) or last


def as_path(name: str) -> str:
    """A name as a dotted path of plain parts; "" where nothing plain is left of it."""
    parts = [p for p in plain_path(name.strip("./")).split(".") if p]
    return ".".join(parts[-MOST_PARTS:])


def free_path(path: str, taken: Container[str]) -> str:
    """A path of which neither a part of it nor the whole is among `taken`, which have no parts of their own."""
    head = ""
    for part in path.split("."):
        name = f"{head}.{part}" if head else part
        head = unused_name(name, taken)
    return head


def identifier(name: str, taken: Container[str]) -> str:
    """A name as a parameter of a method; as it is where Python and the source that is written allow it.

    In small letters, as torch spells the inputs of graphs, where two that differ in that alone would become one.
    """
    small = name.lower()
    plain = small if small.isascii() and small.isidentifier() else re.sub(r"\W", "_", small, flags=re.ASCII)[:60]
    core = plain.strip("_")
    if not core:
        plain = "input"
    elif not plain.isidentifier() or plain in _WORDS or plain.startswith("__"):
        plain = f"input_{core}"
    return unused_name(plain, taken)
