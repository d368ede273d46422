"""How large the values become that onnxruntime computes while it opens a file: those that depend on constants alone.

The inference of shapes that onnx has makes a list of every vector whose length it knows, however long; the graph is
therefore walked here, node by node. Small whole numbers are computed along the way, since sizes are made of them.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from reparam.errors import InputError
from reparam.utils import one_line

if TYPE_CHECKING:
    import onnx

FREE = 1 << 26  # elements that constants alone may be computed into, beside four for each element of the weights
SMALL = 512  # elements of a value that is computed here
_GROWS = frozenset(
    {"ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Upsample", "Pad", "OneHot", "RandomNormal", "NonZero"}
    | {"RandomUniform", "EyeLike", "Unique", "Compress", "CenterCropPad", "Col2Im", "BlackmanWindow", "HannWindow"}
    | {"HammingWindow", "MelWeightMatrix", "ImageDecoder", "DFT", "STFT", "MaxUnpool", "Concat", "Gather", "GatherND"}
    | {"ConcatFromSequence", "GatherElements", "Einsum", "MatMul"}
)
_SAME_SIZE = frozenset({"QuantizeLinear", "DequantizeLinear"})  # of those that onnx has no schema of
_COMPUTED = frozenset(
    {"Add", "Sub", "Mul", "Div", "Cast", "Concat", "Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Range"}
    | {"Identity", "Min", "Max", "Equal", "Where", "ReduceProd", "Neg", "Floor", "Ceil", "Mod", "ConstantOfShape"}
    | {"Expand", "Tile"}
)


def check_folding(model: onnx.ModelProto, name: str) -> None:
    """Raises InputError for a model whose constants would become far larger than its weights."""
    graph = model.graph
    sparse = [t for t in (*graph.sparse_initializer, *(a.sparse_tensor for n in graph.node for a in n.attribute))]
    stored = sum(math.prod(t.dims) for t in graph.initializer) + sum(
        math.prod(a.t.dims) for n in graph.node for a in n.attribute if a.HasField("t")
    )
    made = sum(math.prod(t.dims) for t in sparse if t.dims)
    sizes = _sizes_of_constants(model, name)
    while made <= 4 * stored + FREE:
        size = next(sizes, None)
        if size is None:
            return
        made += size
    raise InputError(f"{name} is refused: its {stored:,} numbers would become {made:,} while it is opened")


def _sizes_of_constants(model: onnx.ModelProto, name: str) -> Iterator[int]:
    """The elements of each value that is computed of constants, one after the other."""
    walk = Walk(model)
    walk.enter(model.graph)
    for node in walk.nodes(written_out(model, name)):
        for output, size in walk.follow(node).items():
            if size is None and (node.op_type in _GROWS or (node.domain and node.op_type not in _SAME_SIZE)):
                shown = one_line(output)[:60]
                raise InputError(f"{name} is refused: how large the constant '{shown}' becomes is not known")
            yield size or 0


def written_out(model: onnx.ModelProto, name: str) -> Iterator[onnx.NodeProto]:
    """The nodes of the graph, with functions written out where they are called, as onnxruntime does it."""
    if not model.functions:
        yield from model.graph.node
        return
    import onnx
    from onnx import inliner

    light = onnx.ModelProto(ir_version=model.ir_version)  # without weights, which would be copied
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = "light"
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    weights = {t.name for t in model.graph.initializer}
    light.graph.input.extend(v for v in model.graph.input if v.name not in weights)
    light.graph.input.extend(onnx.ValueInfoProto(name=n) for n in weights)
    try:
        yield from inliner.inline_local_functions(light).graph.node
    except Exception as error:  # a damaged model, of any kind
        raise InputError(f"{name} is damaged: its functions cannot be written out; export it again") from error


class Walk:
    """What is known of the values of a graph: types of all, and the small constants themselves."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opsets = {o.domain: int(o.version) for o in model.opset_import}
        self.imports = list(model.opset_import)
        self.version = model.ir_version
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, onnx.TensorProto] = {}
        self.constants: set[str] = set()

    def enter(self, graph: onnx.GraphProto) -> None:
        """Notes what a graph begins with."""
        for value in graph.input:
            self._forget(value.name)
            self.types[value.name] = value.type
        for tensor in graph.initializer:
            self._add(tensor.name, tensor)
        for sparse in graph.sparse_initializer:
            self.constants.add(sparse.values.name)

    def nodes(self, nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """The nodes that are computed of constants, in this graph and in those within; of the others, their types."""
        for node in nodes:
            for inner in (g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)):
                self.enter(inner)
                yield from self.nodes(inner.node)
            if node.op_type == "Constant":
                self._note_constant(node)
            elif not self._is_shape(node):
                if self._is_constant(node):
                    yield node
                else:
                    self._infer(node)

    def _forget(self, name: str) -> None:
        self.types.pop(name, None)
        self.values.pop(name, None)
        self.constants.discard(name)

    def _add(self, name: str, tensor: onnx.TensorProto) -> None:
        import onnx

        self._forget(name)
        self.constants.add(name)
        self.types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
        small = math.prod(tensor.dims) <= SMALL and tensor.data_type != onnx.TensorProto.STRING
        if small and tensor.data_location != onnx.TensorProto.EXTERNAL:
            self.values[name] = tensor

    def _note_constant(self, node: onnx.NodeProto) -> None:
        import onnx

        for attribute in node.attribute:
            if attribute.name == "value":
                self._add(node.output[0], attribute.t)
                return
            if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                found = onnx.helper.get_attribute_value(attribute)
                kind = onnx.TensorProto.INT64 if "int" in attribute.name else onnx.TensorProto.FLOAT
                many = attribute.name.endswith("s")
                shape, numbers = ([len(found)], found) if many else ([], [found])
                self._add(node.output[0], onnx.helper.make_tensor("", kind, shape, numbers))
                return
        self._forget(node.output[0])
        self.constants.add(node.output[0])

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads constants alone; a choice between graphs is one of the results that these have."""
        inner = [g for a in node.attribute for g in (*([a.g] if a.HasField("g") else []), *a.graphs)]
        results = [value.name for graph in inner for value in graph.output]
        known = self.constants.issuperset(i for i in (*node.input, *results) if i)
        return known and (not inner or node.op_type == "If")

    def _is_shape(self, node: onnx.NodeProto) -> bool:
        """Notes the shape of a value where it is known, since it is a constant then; whether it was."""
        import onnx

        dims = dims_of(self.types.get(node.input[0])) if node.op_type in ("Shape", "Size") and node.input else None
        if dims is None or node.domain:
            return False
        limits = {a.name: int(a.i) for a in node.attribute}
        found = dims[limits.get("start", 0) : limits.get("end", len(dims))]
        shape = [len(found)]
        if node.op_type == "Size":
            shape, found = [], [min(math.prod(dims), 2**63 - 1)]
        self._add(node.output[0], onnx.helper.make_tensor("", onnx.TensorProto.INT64, shape, found))
        return True

    def follow(self, node: onnx.NodeProto) -> dict[str, int | None]:
        """Elements of each result of a node that depends on constants alone, None where that is not known."""
        self._infer(node)
        sizes: dict[str, int | None] = {}
        for output in (o for o in node.output if o):
            dims = dims_of(self.types.get(output))
            sizes[output] = None if dims is None else math.prod(dims)
            self.constants.add(output)
        small = all(s is not None and s <= SMALL for s in sizes.values())
        if small and node.op_type in _COMPUTED and not node.domain and all(i in self.values for i in node.input if i):
            self._compute(node)
        return sizes

    def _infer(self, node: onnx.NodeProto) -> None:
        """Notes the types of the results."""
        import onnx

        for output in node.output:
            self._forget(output)
        with contextlib.suppress(Exception):  # what cannot be inferred is not known
            schema = onnx.defs.get_schema(node.op_type, self.opsets[node.domain], node.domain)
            types = {i: self.types[i] for i in node.input if i}
            data = {i: self.values[i] for i in types if i in self.values}
            self.types |= onnx.shape_inference.infer_node_outputs(
                schema, node, types, data, opset_imports=self.imports, ir_version=self.version
            )

    def _compute(self, node: onnx.NodeProto) -> None:
        """Notes the small results of a node whose inputs are known."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        inputs = list(dict.fromkeys(i for i in node.input if i))
        infos = [onnx.ValueInfoProto(name=i, type=self.types[i]) for i in inputs]
        outputs = [onnx.ValueInfoProto(name=o, type=self.types[o]) for o in node.output if o]
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "one", infos, outputs), opset_imports=self.imports
        )
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about divisions by zero
            feed = {i: onnx.numpy_helper.to_array(self.values[i]) for i in inputs}
            results = ReferenceEvaluator(model).run(None, feed)
            for output, result in zip(outputs, results, strict=True):
                self._add(output.name, onnx.numpy_helper.from_array(result, output.name))


def dims_of(kind: onnx.TypeProto | None) -> list[int] | None:
    """The sizes of a tensor, where all are known."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return [int(d.dim_value) for d in dims] if all(d.HasField("dim_value") for d in dims) else None
