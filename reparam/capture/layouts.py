"""Calls that read how a tensor lies in memory, so that a rewrite in front of them could change what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from reparam.errors import CaptureError
from reparam.ir import LAYOUT_READERS, aten, op_name

from .places import line_of


def lay_out(graph: fx.Graph) -> None:
    """Gives each such call an operand that lies in rows, in place.

    `view_as_complex` and its kin give the same of every layout that they take. `as_strided` counts in memory: its
    operand gets its axes in the order in which they lie there. Raises CaptureError for one that reads a part of a
    larger tensor, which it could leave, with the line.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in LAYOUT_READERS:
            continue
        operand = node.args[0]
        order = list(range(operand.meta["val"].dim()))
        if node.target in _BY_MEMORY:
            found = _order_in_memory(operand.meta["val"])
            if found is None:
                line = line_of(node)
                raise CaptureError(
                    f"{op_name(node)} reads memory around a part of a tensor{f', at {line}' if line else ''}, which "
                    "another network need not have there; select from the tensor by its indices"
                )
            order = found
        with graph.inserting_before(node):
            if order != sorted(order):
                operand = _call(graph, aten.permute.default, operand, order)
            operand = _call(graph, aten.contiguous.default, operand)
        node.args = (operand, *node.args[1:])


_BY_MEMORY = frozenset({aten.as_strided.default, aten.as_strided_copy.default, aten.as_strided_scatter.default})


def _call(graph: fx.Graph, target: Any, operand: fx.Node, *rest: Any) -> fx.Node:
    made = graph.call_function(target, (operand, *rest))
    made.meta = {**operand.meta, "val": target(operand.meta["val"], *rest)}
    return made


def _order_in_memory(value: Tensor) -> list[int] | None:
    """The axes, those with the longest strides first, of a tensor that fills its memory; None for any other."""
    if not statically_known_true(value.storage_offset() == 0):
        return None
    order = _by_stride(value.stride(), value.shape)
    step: Any = 1
    for axis in reversed(order):
        alone = statically_known_true(value.shape[axis] == 1)
        if not alone and not statically_known_true(value.stride()[axis] == step):
            return None
        step = step * value.shape[axis]
    return order


def _by_stride(strides: Sequence[Any], sizes: Sequence[Any]) -> list[int]:
    """The axes from the longest stride to the shortest; of equal ones, the first axis first."""

    def length(value: Any) -> int:
        return value if isinstance(value, int) else int(value.node.hint)

    # an axis of size one may have any stride: it stays where it is among the others
    left = [i for i, s in enumerate(sizes) if not (isinstance(s, int) and s == 1)]
    ranked = iter(sorted(left, key=lambda i: -length(strides[i])))
    return [next(ranked) if i in left else i for i in range(len(sizes))]
