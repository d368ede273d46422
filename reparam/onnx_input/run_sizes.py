"""How large the values of a file become when it is run: told by the sizes of its inputs, before anything is computed.

A file of a few nodes can double its values until they fill the memory, and onnxruntime computes until the system ends
it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from reparam.errors import InputError
from reparam.utils import memory_available, one_line

from .folding import SMALL, Walk, dims_of, written_out
from .limits import bits_of

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


class RunSizes:
    """What is kept of a model to follow sizes by: its graph, without the numbers of weights."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._light = _without_weights(model)
        self._known: dict[tuple[tuple[int, ...], ...], bool] = {}

    def check(self, values: Mapping[str, Tensor], name: str) -> bool:
        """Whether a run on such inputs may take more memory than there is, so that it has to be watched.

        values: one for each input, of any shape; each of their shapes is looked at once. Raises InputError where what
        one node reads and makes is more than the memory that is left.
        """
        shapes = tuple(tuple(v.shape) for v in values.values())
        if shapes not in self._known:
            left = memory_available()
            self._known[shapes] = left is not None and self._total(values, name, left) > left
        return self._known[shapes]

    def _total(self, values: Mapping[str, Tensor], name: str, left: int) -> int:
        """The bytes of all values together, of those whose sizes are known."""
        walk, nodes = Walk(self._light), list(written_out(self._light, name))
        walk.enter(self._light.graph)
        held = {t.name for t in self._light.graph.initializer}
        for key, value in values.items():
            if key in walk.types:
                shape = walk.types[key].tensor_type.shape
                shape.Clear()
                shape.dim.extend(type(shape).Dimension(dim_value=n) for n in value.shape)
        for node in walk.nodes(nodes):
            walk.follow(node)
        sizes = {key: _bytes(kind) for key, kind in walk.types.items() if key not in held}
        for node in nodes:
            need = sum(sizes.get(key, 0) for key in {*node.input, *node.output})
            if need > left:
                made = one_line(next(iter(node.output), ""))[:60]
                raise InputError(
                    f"{name} is not run: on inputs of these sizes, making '{made}' would take {need:,} bytes, and "
                    f"{left:,} are left in memory"
                )
        return sum(sizes.values())


def _bytes(kind: onnx.TypeProto) -> int:
    """Of a tensor, where its shape is known, else 0."""
    dims = dims_of(kind)
    return 0 if dims is None else math.prod(dims) * (bits_of(kind.tensor_type.elem_type) or 8) // 8


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the shapes of its weights, and the numbers of small ones alone."""
    light = type(model)(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            light.graph.initializer.add().CopyFrom(tensor)
        else:
            light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light
