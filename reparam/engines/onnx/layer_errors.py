"""What each layer of a quantised network costs by itself: the error of the outputs when it alone is quantised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import unused_name

from .quantise import quantised
from .runtime import OnnxRunnable

if TYPE_CHECKING:
    import onnx

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
SAMPLES = 16  # that errors are measured on, at most


@dataclass(frozen=True)
class Layer:
    """A layer of a quantised network.

    name: of its first node. nodes: it, and those behind it that only pass its result on, such as activations and
    reshapes. error: the RMS error of the network's outputs, relative to their size, when this layer alone is quantised.
    """

    name: str
    nodes: tuple[str, ...]
    error: float


def own_errors(model: onnx.ModelProto, calibration: Sequence[Sequence[Tensor]]) -> list[Layer]:
    """The layers that `quantised` would quantise, the worst first.

    model: in float32. calibration: as for `quantised`; errors are measured on the first of it. Raises InputError like
    `quantised`.
    """
    whole = quantised(copied(model), calibration)  # which changes the model that it gets
    feeds = list(_limited(calibration, SAMPLES))
    where = Path("model.onnx")
    truth = [_floats(OnnxRunnable(where, model), feed) for feed in feeds]
    size = _norm([v for row in truth for v in row])
    found = []
    for nodes in quantised_layers(whole):
        engine = OnnxRunnable(where, alone(model, whole, nodes))
        given = [_floats(engine, feed) for feed in feeds]
        pairs = (p for rows in zip(given, truth, strict=True) for p in zip(*rows, strict=True))
        error = _norm([a - b for a, b in pairs])
        found.append(Layer(nodes[0], nodes, error / size if size else error))
    return sorted(found, key=lambda layer: -layer.error)


def quantised_layers(whole: onnx.ModelProto) -> list[tuple[str, ...]]:
    """The nodes that read quantised values, in the order of the graph, layer by layer.

    A node without weights that reads one value belongs to the layer that makes that value.
    """
    source = ir.from_proto(whole)
    layers: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    for node in source.graph:
        read = [p for v in node.inputs if v is not None and (p := v.producer()) is not None and p.op_type == DEQUANTISE]
        if node.op_type in (QUANTISE, DEQUANTISE) or not read or not node.name:
            continue
        maker = _maker_behind(read[0]) if len(read) == 1 else None
        first = home.get(maker.name or "", node.name) if maker is not None else node.name
        home[node.name] = first
        layers.setdefault(first, []).append(node.name)
    return [tuple(names) for names in layers.values()]


def _maker_behind(pair: ir.Node) -> ir.Node | None:
    """The node whose result a pair rounds; None for a weight and for an input."""
    stored = pair.inputs[0]
    down = None if stored is None else stored.producer()
    value = None if down is None else down.inputs[0]
    return None if value is None else value.producer()


def alone(model: onnx.ModelProto, whole: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The float32 model with some nodes as the quantised model has them: inputs, weights and results.

    whole: the quantised model, with the same names.
    """
    copy, source = ir.from_proto(copied(model)), ir.from_proto(whole)
    taken = {v.name for v in (*copy.graph.initializers.values(), *copy.graph.inputs) if v.name}
    taken |= {v.name for n in copy.graph for v in n.outputs if v.name}
    maker = _Maker(copy.graph, taken)
    mine, theirs = ({n.name: n for n in m.graph} for m in (copy, source))
    for name in names:
        _round_node(maker, mine[name], theirs[name])
    return ir.to_proto(copy)


def _round_node(maker: _Maker, node: ir.Node, twin: ir.Node) -> None:
    for i, value in enumerate(twin.inputs):
        pair = None if value is None else value.producer()
        mine = node.inputs[i]
        if pair is not None and pair.op_type == DEQUANTISE and mine is not None:
            node.replace_input_with(i, maker.rounded(mine, pair, before=node))
    for result, value in zip(node.outputs, twin.outputs, strict=True):
        pair = _pair_behind(value)
        if pair is not None and not result.is_graph_output():
            users = [(u.node, u.idx) for u in result.uses()]
            rounded = maker.rounded(result, pair, after=node)
            for user, index in users:
                user.replace_input_with(index, rounded)


class _Maker:
    """Adds quantised values to a graph in float32."""

    def __init__(self, graph: ir.Graph, taken: set[str]) -> None:
        self.graph, self.taken = graph, taken

    def rounded(
        self, value: ir.Value, pair: ir.Node, *, before: ir.Node | None = None, after: ir.Node | None = None
    ) -> ir.Value:
        """The value as `pair`, a node that makes floats of whole numbers, gives it."""
        stored = pair.inputs[0]
        assert stored is not None
        if stored.const_value is not None:
            numbers = stored.const_value.numpy().astype(np.float32)
            return self.constant(_scaled(numbers, pair))
        scale, zero = (self.constant(_constant(pair.inputs[i])) for i in (1, 2))
        down = ir.node(QUANTISE, [value, scale, zero])
        up = ir.node(DEQUANTISE, [down.outputs[0], scale, zero])
        for made in (down, up):
            made.outputs[0].name = self.name("rounded")
        if after is not None:
            self.graph.insert_after(after, [down, up])
        else:
            assert before is not None
            self.graph.insert_before(before, [down, up])
        return up.outputs[0]

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        name = self.name("constant")
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def name(self, wanted: str) -> str:
        found = unused_name(wanted, self.taken)
        self.taken.add(found)
        return found


def _pair_behind(value: ir.Value) -> ir.Node | None:
    """The node that makes floats again of what is quantised behind a value."""
    down = next((u.node for u in value.uses() if u.node.op_type == QUANTISE), None)
    if down is None:
        return None
    return next((u.node for u in down.outputs[0].uses() if u.node.op_type == DEQUANTISE), None)


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any]:
    if value is None or value.const_value is None:
        raise InputError("the quantised network has a scale that is computed, so that its layers cannot be told apart")
    return value.const_value.numpy()


def _scaled(numbers: np.ndarray[Any, Any], pair: ir.Node) -> np.ndarray[Any, Any]:
    """(numbers - zero) * scale, along the axis of the node where there is a scale for each channel."""
    scale, zero = (_constant(pair.inputs[i]).astype(np.float32) for i in (1, 2))
    if scale.ndim:
        axis = pair.attributes.get("axis")
        shape = [1] * numbers.ndim
        shape[1 if axis is None else axis.as_int()] = len(scale)
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    found: np.ndarray[Any, Any] = ((numbers - zero) * scale).astype(np.float32)
    return found


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, for what changes the model that it gets."""
    made = type(model)()
    made.CopyFrom(model)
    return made


def _limited(samples: Sequence[Sequence[Tensor]], most: int) -> Iterator[list[Tensor]]:
    """The first batches that hold at least `most` samples."""
    seen = 0
    for values in samples:
        if seen >= most:
            return
        seen += len(values[0])
        yield list(values)


def _floats(engine: OnnxRunnable, values: Sequence[Tensor]) -> list[Tensor]:
    ported = [v.to(getattr(torch, p.dtype)) for v, p in zip(values, engine.inputs, strict=True)]
    return [v.double() for v in engine.run(ported) if v.is_floating_point()]


def _norm(values: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(v.square().sum()) for v in values))
