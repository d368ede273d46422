"""Runs parts of a network, and says how many samples fit into memory at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import Program, batch_one, call_node, shape_of, weight_value

DTYPE = torch.float32  # that activations are computed in, whatever the weights are kept in


def advance(program: Program, nodes: Iterable[fx.Node], env: dict[fx.Node, Any]) -> None:
    """Computes `nodes`, in the order of the graph, into `env`, which has what they read."""
    for node in nodes:
        if node.op == "get_attr":
            env[node] = weight_value(program, node, DTYPE)
        elif node.op == "call_function":
            env[node] = call_node(node, env, DTYPE)


def set_weight(program: Program, name: str, value: Tensor) -> None:
    """Puts a weight in the place of another, in the dtype of that."""
    constant = program.constants[name]
    program.constants[name] = replace(constant, value=value.to(constant.value.dtype))


def feed_of(program: Program, inputs: Sequence[Tensor]) -> list[Any]:
    """One entry for each placeholder: samples in the dtype of activations, integers as they are, and constants."""
    names, feed = {s.name for s in program.inputs}, iter(inputs)
    found: list[Any] = []
    for node in program.placeholders:
        value = next(feed) if str(node.target) in names else node.meta["val"]
        found.append(value.to(DTYPE) if isinstance(value, Tensor) and value.is_floating_point() else value)
    return found


def bytes_of_values(program: Program) -> int:
    """Of all values that depend on the input, for one sample."""
    env = batch_one(program)
    total = 0
    for node in program.calls():
        if node.meta["data"] and isinstance(node.meta.get("val"), Tensor):
            total += 4 * math.prod(shape_of(node, env))
    return total


def batch_within(size: int, program: Program, most: int) -> int:
    """How many samples, `most` at most, have values of no more than `size` bytes in all."""
    return max(1, min(most, size // max(1, bytes_of_values(program))))
