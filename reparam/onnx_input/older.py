"""Operators of the opsets 7 to 10 in the form of opset 11, which is the oldest that they are written for.

Bounds, paddings, parts and counts were attributes before they became inputs, and two operators had other names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .nodes import GraphNode

Keep = Callable[[str, Tensor], str]
Lift = Callable[[GraphNode, Keep], GraphNode]

SIMPLE = "simple"  # the rounding of opset 10: down, but up along an axis that shrinks
_RESIZED = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": SIMPLE}


def lifted(node: GraphNode, opset: int, keep: Keep) -> GraphNode:
    """The node as opset 11 has it. A node that lacks what it needs stays as it is, for its operator to refuse.

    opset: that it is of. keep: keeps a constant of a name as the one given, and tells the name.
    """
    until, lift = _LIFTS.get(node.op, (0, None))
    return node if lift is None or opset >= until else lift(node, keep)


def _with_inputs(**dtypes: torch.dtype) -> Lift:
    """Makes inputs, in this order, of attributes: of their names, and of the dtypes that the inputs have."""

    def lift(node: GraphNode, keep: Keep) -> GraphNode:
        given = {name: node.attributes.get(name) for name in dtypes}
        if not all(_is_of(dtypes[k], v) for k, v in given.items()):
            return node
        names = ["" if v is None else keep(k, torch.tensor(v, dtype=dtypes[k])) for k, v in given.items()]
        rest = {name: value for name, value in node.attributes.items() if name not in dtypes}
        return replace(node, inputs=(*node.inputs[:1], *names), attributes=rest)

    return lift


def _is_of(dtype: torch.dtype, value: Any) -> bool:
    """Whether an attribute is left out, or is a number or numbers of the dtype's kind."""
    kinds = (int, float) if dtype.is_floating_point else (int,)
    return value is None or all(isinstance(v, kinds) for v in (value if isinstance(value, tuple) else (value,)))


def _upsample(node: GraphNode, keep: Keep) -> GraphNode:
    scales = node.attributes.get("scales")
    if not _is_of(torch.float32, scales):
        return node
    named = node.inputs[1:2] if scales is None else (keep("scales", torch.tensor(scales)),)
    return _resize(replace(node, op="Resize", inputs=(*node.inputs[:1], *named)), keep)


def _resize(node: GraphNode, keep: Keep) -> GraphNode:
    mode = {"mode": node.attributes["mode"]} if "mode" in node.attributes else {}
    return replace(node, inputs=(*node.inputs[:1], "", *node.inputs[1:]), attributes={**mode, **_RESIZED})


def _scatter(node: GraphNode, keep: Keep) -> GraphNode:
    return replace(node, op="ScatterElements")


_LIFTS: dict[str, tuple[int, Lift]] = {  # the opset up to which each is needed
    "Clip": (11, _with_inputs(min=torch.float32, max=torch.float32)),
    "Pad": (11, _with_inputs(pads=torch.int64, value=torch.float32)),
    "Slice": (10, _with_inputs(starts=torch.int64, ends=torch.int64, axes=torch.int64)),
    "TopK": (10, _with_inputs(k=torch.int64)),
    "Upsample": (10, _upsample),
    "Resize": (11, _resize),
    "Scatter": (11, _scatter),
}
