"""f(c1, c2, ...) = c for constants: a call whose operands are all weights is computed once, in float64.

Turns weight normalisation, weight standardisation, any parametrisation, computed position biases into weights.

Fires on the last constant value of each constant expression: weight normalisation, spectral norm, weight
standardisation, any parametrisation, proxy statistics, learned multipliers, a kernel that is repeated for each channel.
This pass alone bakes them; nothing else knows their names.

Refuses a call that draws random numbers, and a mere gather (a table of position biases, read by index) that
would be stored larger than the table, unless it is the weight of layers alone. Says nothing about integer sizes or
about a constant that is an output of the network.

Source: evaluation mode makes a weight's expression a constant.

    conv(x, g * v / norm(v))        becomes        conv(x, w)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from reparam.ir import (
    IDENTITIES,
    MOVEMENTS,
    RANDOM,
    WEIGHTED,
    Program,
    Refusal,
    arguments,
    aten,
    evaluate_region,
    is_call,
    is_tensor,
    op_name,
    place_of,
    shape_of,
    upstream,
)
from reparam.rewrite import Match, Pattern, Rewrite

_GATHERS = MOVEMENTS | IDENTITIES | {aten.index.Tensor, aten.gather.default, aten.embedding.default}


@dataclass(frozen=True)
class Plan:
    """A constant value that something else needs, and the expression behind it in execution order."""

    node: fx.Node
    expression: tuple[fx.Node, ...]


@dataclass(frozen=True)
class FoldConstants:
    """Computes constant expressions of the weights once."""

    name: ClassVar[str] = "fold-constants"
    pattern: ClassVar[Pattern] = Pattern()

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """The whole constant expression that ends here; None when it goes on or depends on the input."""
        node = match.root
        if not _is_constant(node) or not is_tensor(node):
            return None
        if all(_is_constant(u) for u in node.users):
            return None
        expression = upstream([node])
        random = next((n for n in expression if n.op == "call_function" and op_name(n).startswith(RANDOM)), None)
        if random is not None and _draws(random):
            return Refusal(f"{op_name(random)} draws random numbers", node)
        now, then = _stored(program, expression), math.prod(shape_of(node))
        gathers = all(n.op == "get_attr" or is_call(n, _GATHERS) for n in expression)
        if then > now and gathers and not all(_is_weight_of(n, node) for n in node.users):
            return Refusal(f"this only gathers: computed once it would store {then:,} values instead of {now:,}", node)
        return Plan(node, tuple(expression))

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One weight in place of the expression, named after the first weight in it."""
        value = evaluate_region(program, plan.expression, {}, torch.float64)[plan.node]
        assert isinstance(value, Tensor)
        constants = [c for n in plan.expression if (c := program.constant(n)) is not None]
        same = next((c for c in constants if c.value.shape == value.shape and c.trainable), None)
        floating = next((c for c in constants if c.value.is_floating_point()), None)
        origin = same or floating or (constants[0] if constants else None)
        name = origin.origin if origin is not None else (place_of(plan.node)) + ".constant"
        weight = program.weight(
            value.clone(),
            name,
            dtype=plan.node.meta["val"].dtype,
            trainable=any(c.trainable for c in constants),
            like=plan.node,
        )
        calls = sum(n.op == "call_function" for n in plan.expression)
        return Rewrite({plan.node: weight}, f"{calls} constant operation(s) computed once")


def _is_weight_of(layer: fx.Node, node: fx.Node) -> bool:
    """Whether a layer has the value for its weight, which has to be in memory as a whole while it runs."""
    return is_call(layer, WEIGHTED) and arguments(layer)["weight"] is node


def _stored(program: Program, expression: list[fx.Node]) -> int:
    """The floating values in the weights of an expression."""
    constants = [c.value for n in expression if (c := program.constant(n)) is not None]
    return sum(v.numel() for v in constants if v.is_floating_point())


def _draws(node: fx.Node) -> bool:
    return "dropout" not in op_name(node) or bool(node.args[2:] and node.args[2])


def _is_constant(node: fx.Node) -> bool:
    return node.op == "call_function" and not node.meta["data"]


PASS = FoldConstants
PHASE = "clean"
