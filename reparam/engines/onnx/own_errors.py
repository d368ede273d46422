"""What each layer of a quantised network costs by itself: the error of the outputs when it alone is quantised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import unused_name

from .runtime import OnnxRunnable

if TYPE_CHECKING:
    import onnx

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
SAMPLES = 16  # that errors are measured on, at most


def own_errors(
    model: onnx.ModelProto, quantised: onnx.ModelProto, samples: Sequence[Sequence[Tensor]]
) -> dict[str, float]:
    """Node -> the RMS error of the outputs, relative to their size, when it alone is quantised; the worst first.

    model: in float32. quantised: made of it by `quantised`, with the same names. samples: batches of inputs.
    Raises InputError for samples on which the network does not run.
    """
    feeds = list(_limited(samples, SAMPLES))
    where = Path("model.onnx")
    truth = [_floats(OnnxRunnable(where, model), feed) for feed in feeds]
    size = _norm([v for row in truth for v in row])
    errors = {}
    for name in quantised_nodes(quantised):
        engine = OnnxRunnable(where, alone(model, quantised, name))
        apart = [
            a - b
            for feed, row in zip(feeds, truth, strict=True)
            for a, b in zip(_floats(engine, feed), row, strict=True)
        ]
        errors[name] = _norm(apart) / size if size else _norm(apart)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def quantised_nodes(quantised: onnx.ModelProto) -> list[str]:
    """The nodes that read quantised values, in the order of the graph."""
    made = {out for n in quantised.graph.node if n.op_type == DEQUANTISE for out in n.output}
    nodes = [n for n in quantised.graph.node if n.op_type not in (QUANTISE, DEQUANTISE)]
    return [n.name for n in nodes if n.name and made & set(n.input)]


def alone(model: onnx.ModelProto, quantised: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The float32 model with one node as the quantised model has it: its inputs, its weights and its result."""
    copy, source = ir.from_proto(_copy(model)), ir.from_proto(quantised)
    node = next(n for n in copy.graph if n.name == name)
    twin = next(n for n in source.graph if n.name == name)
    taken = {v.name for v in (*copy.graph.initializers.values(), *copy.graph.inputs) if v.name}
    taken |= {v.name for n in copy.graph for v in n.outputs if v.name}
    maker = _Maker(copy.graph, taken)
    for i, value in enumerate(twin.inputs):
        pair = None if value is None else value.producer()
        mine = node.inputs[i]
        if pair is not None and pair.op_type == DEQUANTISE and mine is not None:
            node.replace_input_with(i, maker.rounded(mine, pair, before=node))
    for mine, value in zip(node.outputs, twin.outputs, strict=True):
        pair = _pair_behind(value)
        if pair is not None and not mine.is_graph_output():
            users = [(u.node, u.idx) for u in mine.uses()]
            result = maker.rounded(mine, pair, after=node)
            for user, index in users:
                user.replace_input_with(index, result)
    return ir.to_proto(copy)


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


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
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
