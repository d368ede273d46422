"""A graph of a converted module as values that pickle takes, and back.

fx pickles the code of a module instead, and traces that again. Where a call reads no tensor but sizes alone (the zeros
that an LSTM starts from), nothing tells it that it is traced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class _Read:
    """The value of an earlier node of the graph."""

    number: int


@dataclass(frozen=True)
class _Operator:
    """An operator of torch, or of a library, by its names."""

    namespace: str
    name: str
    overload: str

    def found(self) -> Any:
        """The operator; raises AttributeError where its library is not loaded."""
        return getattr(getattr(getattr(torch.ops, self.namespace), self.name), self.overload)


@dataclass(frozen=True)
class PickledGraph:
    """Nodes in their order (operation, name, target, arguments, keywords), and how inputs and outputs are nested."""

    nodes: Sequence[tuple[str, str, Any, Any, Any]]
    nesting: Any

    @classmethod
    def of(cls, graph: fx.Graph) -> PickledGraph:
        """What is left of a graph without its metadata."""
        numbers = {node: i for i, node in enumerate(graph.nodes)}

        def read(node: fx.Node) -> Any:
            return _Read(numbers[node])

        nodes = [
            (n.op, n.name, _named(n.target), fx.node.map_arg(n.args, read), fx.node.map_arg(n.kwargs, read))
            for n in graph.nodes
        ]
        return cls(nodes, getattr(graph._codegen, "pytree_info", None))

    def graph(self) -> fx.Graph:
        """The graph, with the same names of nodes."""
        graph = fx.Graph()
        made: list[fx.Node] = []

        def value(told: Any) -> Any:
            return made[told.number] if isinstance(told, _Read) else told

        for op, name, target, args, kwargs in self.nodes:
            called = target.found() if isinstance(target, _Operator) else target
            given = fx.node.map_aggregate(args, value), fx.node.map_aggregate(kwargs, value)
            made.append(graph.create_node(op, called, *given, name=name))
        if self.nesting is not None:
            graph.set_codegen(fx.graph._PyTreeCodeGen(self.nesting))
        return graph


def _named(target: Any) -> Any:
    if not isinstance(target, torch._ops.OpOverload):
        return target
    namespace, name = target._schema.name.split("::")
    return _Operator(namespace, name, target._overloadname)
