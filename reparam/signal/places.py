"""What the calls of a program are called in tables: after their modules, or after their weights where none is known."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from reparam.ir import ADDS, NORMS, WEIGHTED, Program, is_call, is_float, module_of, op_name, place_of

from .functions import activations
from .running import PRODUCTS


def call_after_weights(program: Program) -> None:
    """Gives the calls of a program that knows no modules the paths that its weights tell.

    A converted network in memory is such a program. A call that reads no weight is called after the last layer in
    front of it.
    """
    calls = [n for n in program.calls() if n.meta["data"]]
    if any(module_of(n) for n in calls):
        return
    order = {node: i for i, node in enumerate(calls)}
    paths: dict[fx.Node, str] = {}
    made_by: dict[fx.Node, fx.Node] = {}  # of each call, the last layer that it comes from
    for node in calls:
        names = [program.constants[str(n.target)].origin for n in node.all_input_nodes if n.op == "get_attr"]
        path = names[0].rpartition(".")[0] if names else ""
        above = [made_by[n] for n in node.all_input_nodes if n in made_by]
        if path:
            paths[node], made_by[node] = path, node
        elif above:
            made_by[node] = max(above, key=order.__getitem__)
            path = paths[made_by[node]]
        node.meta = {**node.meta, "module": path}


def stations(program: Program) -> list[fx.Node]:
    """Layers, norms, activations and sums: the calls whose values are worth a row. What is a part of an activation, as
    the sums of a polynomial are, is none."""
    found = list(activations(program))
    functions = {f.result for f in found}
    inside = {call for f in found for call in f.calls} - functions
    return [
        n
        for n in program.calls()
        if n.meta["data"]
        and is_float(n)
        and ((is_call(n, WEIGHTED | NORMS | ADDS | PRODUCTS) and n not in inside) or n in functions)
    ]


def names_of(nodes: Sequence[fx.Node]) -> list[str]:
    """A name for each node: its module, with the operator where several share it and it is not their only layer."""
    places = [place_of(n) for n in nodes]
    layers = [p for n, p in zip(nodes, places, strict=True) if is_call(n, WEIGHTED)]
    names = [
        p if places.count(p) == 1 or (is_call(n, WEIGHTED) and layers.count(p) == 1) else f"{p}: {op_name(n)}"
        for n, p in zip(nodes, places, strict=True)
    ]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if names.count(name) == 1 else f"{name} {seen[name]}")
    return unique
