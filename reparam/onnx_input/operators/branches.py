"""Branches whose condition is known beforehand: a constant, or computed of sizes alone."""

from __future__ import annotations

from reparam.onnx_input.call import Call
from reparam.onnx_input.known import Results


def _if(call: Call) -> Results:
    """One of the two networks. A condition on sizes holds for the sizes that are looked at, as any other in a model."""
    holds = bool(call.number(0, "condition"))
    return call.node.branches[0 if holds else 1](call.inputs[1:])


OPERATORS = {"If": _if}
