"""Moments through a program: how large each value is, predicted without data.

Every operator is given the powers of its operands and gives the power of its result: by an exact integral where there
is one (layers with independent weights, pointwise functions, sums, products, concatenations, norms, means), else by
running the operator on random tensors of those powers.

Source: Bingham & Miikkulainen 2021, "AutoInit: analytic signal-preserving weight initialization for neural networks",
arXiv 2109.08958, which carries a mean and a variance; here the variance is kept in three parts (`Power`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reparam.ir import (
    Program,
    call_node,
    default_dtype,
    size_hint,
    weight_value,
)

from .operators import carry
from .power import Power
from .roles import of_input
from .values import Value
from .walk import Policy, Walk, as_it_is

SAMPLES = 8  # that a free batch counts while operators are run on random tensors


@dataclass(frozen=True)
class Predicted:
    """What a walk found. values: of each node that depends on the inputs; unknown ones have no power.

    drawn: nodes whose operator was run on random tensors.
    """

    values: Mapping[fx.Node, Value]
    drawn: frozenset[fx.Node]

    def power(self, node: fx.Node) -> Power | None:
        """The power of a node's value; None where it is not known."""
        value = self.values.get(node)
        return None if value is None else value.power


def predict(
    program: Program,
    *,
    policy: Policy = as_it_is,
    training: bool = False,
    inputs: Mapping[str, Power] | None = None,
    seed: int = 0,
) -> Predicted:
    """Carries moments through `program`.

    policy: gives the scale of the weights of each weighted call, in execution order. training: batch norms take the
    statistics of the batch, dropouts drop. inputs: the power of an input by its name, that of N(0, 1) where none is
    given. seed: of what is run on random tensors.
    """
    sizes = {s.shape[0]: SAMPLES for s in program.inputs if s.shape and isinstance(s.shape[0], str)}
    generator = torch.Generator().manual_seed(seed)
    walk = Walk(program, policy, training, generator, sizes)
    with torch.no_grad(), default_dtype(torch.float64):
        for node in program.graph.nodes:
            if node.op == "placeholder":
                walk.values[node] = _input(walk, node, inputs or {})
            elif node.op == "get_attr":
                walk.values[node] = weight_value(program, node, torch.float64)
            elif node.op == "call_function":
                walk.values[node] = _call(walk, node)
    found = {n: v for n, v in walk.values.items() if isinstance(v, Value)}
    return Predicted(found, frozenset(walk.drawn))


def _input(walk: Walk, node: fx.Node, given: Mapping[str, Power]) -> Any:
    spec = next((s for s in walk.program.inputs if s.name == str(node.target)), None)
    if spec is None:
        return node.meta["val"]
    shape = walk.shape(node)
    roles = of_input(node, len(shape))
    power = given.get(spec.name, Power(place=1.0)) if spec.dtype.is_floating_point else None
    return Value(shape, roles, power).settled()


def _call(walk: Walk, node: fx.Node) -> Any:
    found = node.meta.get("val")
    if isinstance(found, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool):
        return size_hint(found, walk.sizes) if isinstance(found, torch.SymInt) else found
    held = [walk.values[n] for n in node.all_input_nodes]
    if not any(isinstance(v, Value | list) for v in held):  # of weights and sizes alone
        return call_node(node, walk.values, torch.float64)
    result = carry(walk, node)
    if isinstance(result, Value):
        return result.settled()
    return [v.settled() if isinstance(v, Value) else v for v in result]
