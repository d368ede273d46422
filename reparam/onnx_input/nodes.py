"""What an ONNX model is to the importer: its inputs, constants and nodes, with the branches that a node may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import one_line

MOST_AXES = 8  # of an input


@dataclass(frozen=True)
class Port:
    """An input: its name, its sizes, with a text (or "") for one that is free, and its dtype.

    shape: None where the file does not tell it.
    """

    name: str
    shape: tuple[int | str, ...] | None
    dtype: torch.dtype


@dataclass(frozen=True)
class GraphNode:
    """A node: its operator, its name ("" for none), the names of what it reads and gives, attributes, its scope.

    branches: of an If, what it computes where its condition holds, and where not. What they read from outside stands
    behind the condition among the inputs. refusal: of a node in a branch that cannot be read, which may not be chosen.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    scope: str = ""
    branches: tuple[Branch, ...] = ()
    refusal: InputError | None = None

    @property
    def shown(self) -> str:
        """What messages call it."""
        return one_line(self.name or self.outputs[0])[:80]


@dataclass(frozen=True)
class Branch:
    """A graph within a node: its own nodes, and the names of what it gives."""

    nodes: tuple[GraphNode, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A whole model. opset: the version of its operators. constants: by name."""

    opset: int
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]
    nodes: tuple[GraphNode, ...]
