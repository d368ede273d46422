"""What the rewrites ask of a graph: the sizes of a value, the constant that it is, whether there are branches."""

from __future__ import annotations

import onnx_ir as ir

Dims = tuple[int | str, ...]


def sizes_of(value: ir.Value) -> Dims:
    """The shape, a number or a name for each axis and "" for one that has neither; () where the shape is unknown."""
    return tuple(d if isinstance(d, int) else d.value or "" for d in value.shape or ())


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant of the graph, which no caller can replace."""
    fixed = value is not None and value.is_initializer() and not value.is_graph_input()
    return value.const_value if value is not None and fixed else None


def has_branches(graph: ir.Graph) -> bool:
    """Whether a node has graphs of its own, which may read any value and give it out under its name."""
    return any(True for _ in graph.subgraphs())


def without_names_of_sizes(model: ir.Model) -> None:
    """Takes the names of free sizes but the batch, in place, from all values but the inputs and outputs.

    torch takes a part of a free axis (x[:40]) for the whole of it where that was traced shorter. Engines that believe
    it put the one where the other lies.
    """
    batches = {sizes_of(v)[:1] for v in model.graph.inputs}
    for value in ir.convenience.create_value_mapping(model.graph).values():
        if value.shape is None or value.is_graph_input() or value.is_graph_output():
            continue
        sizes = sizes_of(value)
        if any(isinstance(d, str) and (d,) not in batches for d in sizes):
            value.shape = ir.Shape([d if isinstance(d, int) or (d,) in batches else None for d in sizes])


def untyped(model: ir.Model) -> ir.Model:
    """The model, in place, with nothing noted on the types of constants, which would stand beside them once more."""
    for value in model.graph.initializers.values():
        if not value.is_graph_input():
            value.type = value.shape = None
    return model
