"""An ONNX model as the importer reads it: ports, constants and nodes, with functions written out.

Everything that has no place in a network of tensors is refused here, with the node's name: loops, sequences, texts,
operators of other domains, and versions that the operators were not written for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError, MachineError
from reparam.utils import one_line, unused_name

from .known import known_tensor
from .nodes import MOST_AXES, Branch, Graph, GraphNode, Port
from .older import lifted

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OLDEST, NEWEST = 7, 25  # versions of the standard operators (opsets)

STANDARD = ("", "ai.onnx")
SCOPES = "pkg.torch.onnx.name_scopes"  # what torch's exporter notes on a node: the modules that it lies in

_DTYPES = {
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "FLOAT16": torch.float16,
    "BFLOAT16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT16": torch.int16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


def read_graph(proto: onnx.ModelProto, path: Path) -> Graph:
    """The graph of a model whose limits were checked. Raises InputError naming the node that is not read."""
    try:
        import onnx_ir as ir
        from onnx_ir.passes.common import InlinePass
    except ImportError as error:
        raise MachineError("importing ONNX needs onnx-ir; pip install 'reparam[onnx]'") from error
    damaged = f"{path} is damaged or no ONNX model; export it again"
    if proto.graph.sparse_initializer:
        raise InputError(f"{path} has sparse weights, which are not read; export it with dense ones")
    try:
        model = ir.from_proto(proto)
        if model.functions:
            model = InlinePass()(model).model
    except Exception as error:  # of any kind: the file is not what it should be
        raise InputError(damaged) from error
    opset = _opset(model, path)
    graph = model.graph
    reader = _Reader(path, opset)
    constants = reader.constants
    constants |= {str(n): _tensor(v.const_value, str(n), path) for n, v in graph.initializers.items()}
    inputs = tuple(_port(v, path) for v in graph.inputs if v.name not in constants)
    reader.taken = {*constants, *(p.name for p in inputs), *(str(o.name) for n in graph for o in n.outputs)}
    defined = {*constants, *(p.name for p in inputs)}
    nodes = reader.nodes(graph, defined)
    outputs = tuple(str(v.name) for v in graph.outputs)
    unknown = next((o for o in outputs if o not in defined), None)
    twice = next((o for i, o in enumerate(outputs) if o in outputs[:i]), None)
    if twice is not None:
        raise InputError(f"{path.name} has two outputs of the name '{one_line(twice)[:60]}'")
    if unknown is not None or not outputs:
        raise InputError(damaged)
    return Graph(opset, inputs, outputs, constants, nodes)


def _opset(model: ir.Model, path: Path) -> int:
    imports = model.graph.opset_imports
    opset = next((int(imports[d]) for d in STANDARD if imports.get(d) is not None), None)
    if opset is None:
        raise InputError(f"{path} does not say which version of ONNX's operators it uses; export it again")
    if not OLDEST <= opset <= NEWEST:
        raise InputError(
            f"{path} uses opset {opset}, where {OLDEST} to {NEWEST} are read; convert it with onnx.version_converter"
        )
    return opset


def dtype_of(number: Any) -> torch.dtype | None:
    """The dtype that ONNX has a number for; None for one that networks are not computed in."""
    import onnx_ir as ir

    try:
        return _DTYPES.get(ir.DataType(number).name)
    except ValueError:
        return None


def _dtype(kind: Any, what: str, path: Path) -> torch.dtype:
    label = getattr(kind, "name", None)
    found = _DTYPES.get(str(label))
    if found is None:
        raise InputError(f"{path} is not read: {what} is of the type {str(label).lower()}")
    return found


def _tensor(stored: Any, name: str, path: Path) -> Tensor:
    """A constant. Its numbers are those of the file, in memory of their own."""
    what = f"the constant '{one_line(name)[:60]}'"
    if stored is None:
        raise InputError(f"{path} is damaged: {what} has no value")
    dtype = _dtype(stored.dtype, what, path)
    array = np.array(stored.numpy(), order="C")  # a copy
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _port(value: ir.Value, path: Path) -> Port:
    name = str(value.name)
    what = f"the input '{one_line(name)[:60]}'"
    if value.dtype is None:
        raise InputError(f"{path} is not read: {what} is no tensor of a known type")
    if value.shape is None:
        return Port(name, None, _dtype(value.dtype, what, path))
    if len(value.shape) > MOST_AXES:
        raise InputError(f"{path} is not read: {what} has more than {MOST_AXES} axes")
    shape = tuple(int(d) if isinstance(d, int) else str(d.value or "") for d in value.shape)
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise InputError(f"{path} is damaged: {what} has a negative size")
    return Port(name, shape, _dtype(value.dtype, what, path))


class _Reader:
    """A file being read. constants: of all graphs, by name. taken: the names that stand for something."""

    def __init__(self, path: Path, opset: int) -> None:
        self.path, self.opset = path, opset
        self.constants: dict[str, Tensor] = {}
        self.taken: set[str] = set()
        self.inner: dict[ir.Value, str] = {}  # what the values of graphs within nodes are called, each once in the file

    def nodes(self, graph: ir.Graph, defined: set[str], *, chosen: bool = True) -> tuple[GraphNode, ...]:
        """The nodes but for the constants, which are kept. defined: what can be read, to which they are added.

        chosen: whether they surely run, so that one that cannot be read is told at once.
        """
        nodes: list[GraphNode] = []
        for node in graph:
            found = lifted(self._node(node, defined), self.opset, functools.partial(self._keep, node, defined))
            if chosen and found.refusal is not None:
                raise found.refusal
            missing = next((i for i in found.inputs if i and i not in defined), None)
            if missing is not None:
                told = f"the node '{found.shown}' reads '{one_line(missing)[:60]}' too early"
                raise InputError(f"{self.path} is damaged: {told}")
            defined.update(o for o in found.outputs if o)
            if found.op == "Constant":
                self.constants[found.outputs[0]] = _constant(node, found, self.path)
            else:
                nodes.append(found)
        return tuple(nodes)

    def _keep(self, node: ir.Node, defined: set[str], label: str, value: Tensor) -> str:
        """Keeps a constant that a node has as an attribute; its name."""
        name = unused_name(f"{node.name or node.outputs[0].name}.{label}", self.taken)
        self.taken.add(name)
        defined.add(name)
        self.constants[name] = value
        return name

    def _called(self, value: ir.Value | None) -> str:
        return "" if value is None else self.inner.get(value) or str(value.name or "")

    def _node(self, node: ir.Node, defined: set[str]) -> GraphNode:
        if node.op_type == "" or not node.outputs or not any(o.name for o in node.outputs):
            raise InputError(f"{self.path} is damaged: a node gives nothing")
        first = node.outputs[0]
        found = GraphNode(
            node.op_type,
            node.name or (str(first.name) if first in self.inner else ""),
            tuple(map(self._called, node.inputs)),
            tuple(map(self._called, node.outputs)),
            {},
            str(node.metadata_props.get(SCOPES, "")),
        )
        refusal = _refusal(node, found)
        if refusal is not None:
            return replace(found, refusal=refusal)
        if found.op == "If":
            return self._with_branches(node, found, defined)
        return found if found.op == "Constant" else replace(found, attributes=dict(_attributes(node, self.path)))

    def _with_branches(self, node: ir.Node, found: GraphNode, defined: set[str]) -> GraphNode:
        """An If with its branches, which read what is defined by then, and those of its inputs."""
        import onnx_ir as ir

        damaged = InputError(f"{self.path} is damaged: the branches of '{found.shown}' are not those of an If")
        branches = []
        for name in ("then_branch", "else_branch"):
            attribute = node.attributes.get(name)
            if attribute is None or attribute.type != ir.AttributeType.GRAPH or len(found.inputs) != 1:
                raise damaged
            branches.append(self._branch(attribute.as_graph(), defined))
            if len(branches[-1].outputs) != len(found.outputs) or attribute.as_graph().inputs:
                raise damaged
        read = dict.fromkeys(i for b in branches for n in b.nodes for i in n.inputs if i)
        read |= dict.fromkeys(o for b in branches for o in b.outputs)
        made = {o for b in branches for n in b.nodes for o in n.outputs}
        return replace(found, inputs=(*found.inputs, *(i for i in read if i not in made)), branches=tuple(branches))

    def _branch(self, graph: ir.Graph, defined: set[str]) -> Branch:
        """What a branch makes is called as in the file, or otherwise where that name stands for something else."""
        for value in (*graph.initializers.values(), *(o for n in graph for o in n.outputs)):
            if value.name:
                self.inner[value] = unused_name(value.name, self.taken)
                self.taken.add(self.inner[value])
        for name, value in graph.initializers.items():
            self.constants[self._called(value)] = _tensor(value.const_value, str(name), self.path)
            defined.add(self._called(value))
        nodes = self.nodes(graph, defined, chosen=False)
        outputs = tuple(map(self._called, graph.outputs))
        unknown = next((o for o in outputs if o not in defined), None)
        if unknown is not None:
            raise InputError(f"{self.path} is damaged: nothing gives '{one_line(unknown)[:60]}' of a branch")
        defined.difference_update(o for n in nodes for o in n.outputs)  # which nothing outside of it may read
        return Branch(nodes, outputs)


def _refusal(node: ir.Node, found: GraphNode) -> InputError | None:
    """Why a node is none that can be read: by its domain, or for a graph that it holds."""
    import onnx_ir as ir

    named = f"the node '{found.shown}' ({one_line(node.op_type)[:60]})"
    if node.domain not in STANDARD:
        return InputError(
            f"{named} cannot be read: it is of the domain '{one_line(node.domain)[:60]}'; export the network with "
            "standard operators"
        )
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if found.op != "If" and any(a.type in graphs and not a.is_ref() for a in node.attributes.values()):
        return InputError(
            f"{named} holds a graph of its own, which is not read: a network with loops is no single function of "
            "tensors"
        )
    return None


def _attributes(node: ir.Node, path: Path) -> Iterator[tuple[str, Any]]:
    import onnx_ir as ir

    shown = one_line(node.name or str(node.outputs[0].name))[:80]
    for name, attribute in node.attributes.items():
        kind = attribute.type
        if attribute.is_ref():
            raise InputError(f"{path} is damaged: an attribute of '{shown}' refers to nothing")
        if kind == ir.AttributeType.TENSOR:
            value = _tensor(attribute.as_tensor(), f"{shown}.{name}", path)
            yield name, known_tensor(value) or value
        elif kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            yield name, attribute.value
        elif kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
            yield name, tuple(attribute.value)
        else:
            raise InputError(f"{path} is not read: the attribute {name} of '{shown}' is of a kind that networks lack")


def _constant(node: ir.Node, found: GraphNode, path: Path) -> Tensor:
    """The value of a Constant."""
    numbers = {"value_float": torch.float32, "value_floats": torch.float32}
    numbers |= {"value_int": torch.int64, "value_ints": torch.int64}
    for name, attribute in node.attributes.items():
        if name == "value":
            return _tensor(attribute.as_tensor(), found.outputs[0], path)
        if name in numbers:
            value = attribute.value
            return torch.tensor(list(value) if name.endswith("s") else value, dtype=numbers[name])
    raise InputError(f"{path} is not read: the constant '{found.shown}' is no dense tensor of numbers")
