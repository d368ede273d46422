"""Names in an ONNX graph, by which a remark of any engine's parser names the layer.

Nodes get `path.of.the.layer/Operator`, free sizes get `batch`, `height` and `width`, outputs `output` or the keys of
the dict that the network returns. The exporter keeps the names of weights. Nothing but names changes.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Container, Mapping

import onnx_ir as ir

from reparam.engines.ports import names_of_outputs
from reparam.ir import NOWHERE, Program
from reparam.utils import name_complaint

from .values import Dims, has_branches, sizes_of

SCOPES = "pkg.torch.onnx.name_scopes"  # the exporter's note on a node: the modules that it lies in, and the call


def name_nodes(graph: ir.Graph) -> None:
    """`layer1.0.conv1/Conv`, with _1, _2 where a layer has several of a kind."""
    taken: Counter[str] = Counter()
    for node in graph:
        layers = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))[:-1]  # the last is the call itself
        path = layers[-1] if layers and layers[-1] != NOWHERE else ""
        stem = f"{path}/{node.op_type}" if path else node.op_type
        taken[stem] += 1
        node.name = stem if taken[stem] == 1 else f"{stem}_{taken[stem] - 1}"


def name_by_weights(graph: ir.Graph) -> None:
    """Nodes of no known layer are called by the owner of their first weight: those of a program that has forgotten its
    modules, and those that the simplifier made of several.
    """
    taken = {str(node.name) for node in graph}
    for node in graph:
        weights = [str(v.name) for v in node.inputs if v is not None and v.is_initializer()]
        owner = next((o for w in weights if (o := w.rpartition(".")[0])), "")
        if owner and "/" not in str(node.name):
            node.name = _unused(f"{owner}/{node.op_type}", taken)
            taken.add(node.name)


def name_sizes(graph: ir.Graph) -> None:
    """Free sizes are called by their axes; what is computed from them follows."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        sizes = sizes_of(value)
        axes = {0: "batch"} | ({len(sizes) - 2: "height", len(sizes) - 1: "width"} if len(sizes) >= 4 else {})
        for i, size in enumerate(sizes):
            if isinstance(size, str) and size and size not in names:
                names[size] = _unused(axes.get(i, f"size{i}"), names.values())
    for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
        if value.shape is not None:
            value.shape = _renamed(sizes_of(value), names)


def _renamed(sizes: Dims, names: Mapping[str, str]) -> ir.Shape:
    def renamed(size: str) -> str:
        return re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), size)

    return ir.Shape(s if isinstance(s, int) else renamed(s) or None for s in sizes)


def _unused(name: str, taken: Container[str]) -> str:
    serial = 1
    unique = name
    while unique in taken:
        unique = f"{name}_{serial}"
        serial += 1
    return unique


def name_inputs(graph: ir.Graph, program: Program) -> None:
    """The inputs get the names of the file that the network came from, where it came from one and they are unused."""
    specs = {s.name: s.label for s in program.inputs if s.label and name_complaint(s.label) is None}
    inputs = list(graph.inputs)
    taken = ir.convenience.create_value_mapping(graph).keys() - {v.name for v in inputs}
    wanted = [specs.get(str(v.name), str(v.name)) for v in inputs]
    names: list[str] = []
    for value, name in zip(inputs, wanted, strict=True):
        own = str(value.name)
        names.append(name if name not in taken.union(names) else _unused(own, taken.union(names, wanted)))
    ir.convenience.rename_values(inputs, names)


def name_outputs(graph: ir.Graph, program: Program) -> None:
    """The outputs get the names that the network's result gives them, where each is a value of its own."""
    outputs = list(graph.outputs)
    own = len(set(outputs)) == len(outputs) and all(v.producer() is not None for v in outputs)
    if not own or has_branches(graph):
        return
    taken = ir.convenience.create_value_mapping(graph).keys() - {v.name for v in outputs}
    names: list[str] = []
    for wanted in names_of_outputs(program, len(outputs)):
        names.append(_unused(wanted, taken.union(names)))
    ir.convenience.rename_values(outputs, names)
