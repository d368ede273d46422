"""y = f(x), z = f(x)  =>  z = y: a call that was made before on the same operands is not made again.

Turns equal calls on the same value into one call.

Fires on a call of an operator whose operands, numbers and weights are those of an earlier call: pooled statistics that
two branches ask for, an activation written in each of them, a layer that is called twice on one value.

Refuses nothing. Says nothing about calls that draw random numbers.

Source: the same operands give the same result (common subexpressions).

    f(mean(x)) + g(mean(x))        becomes        m = mean(x); f(m) + g(m)
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from reparam.ir import RANDOM, Program, is_tensor, op_name, place_of
from reparam.rewrite import ANY, Match, Pattern, Rewrite


@dataclass(frozen=True)
class Plan:
    """A call, and the first one that is the same."""

    node: fx.Node
    first: fx.Node


@dataclass(frozen=True)
class ShareCalls:
    """Reads the result of an equal call in place of another one."""

    name: ClassVar[str] = "share-calls"
    pattern: ClassVar[Pattern] = ANY

    def check(self, program: Program, match: Match) -> Plan | None:
        """The first call on the same operands."""
        node = match.root
        if node.op != "call_function" or not node.meta["data"] or op_name(node).startswith(RANDOM):
            return None
        if node.target is operator.getitem or not (is_tensor(node) or _is_list(node)):
            return None  # a piece comes with the call that it is of, and numbers cost nothing
        rarest = min(node.all_input_nodes, key=lambda n: (_is_size(n), len(n.users)))
        twins = [u for u in rarest.users if u < node and _is_same(u, node)]
        first = min(twins, default=node)
        if _is_list(node):
            return Plan(node, first) if _is_taken_apart(node, first) and (twins or _repeats(node)) else None
        return Plan(node, first) if twins else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The result of the first call for both."""
        made = program.clone(plan.first, {})
        replaced = dict.fromkeys((plan.first, plan.node), made)
        if not is_tensor(made):
            taken = {u: u.args[1] for n in (plan.first, plan.node) for u in n.users}
            pieces = {
                i: program.call(operator.getitem, (made, i), like=plan.first) for i in dict.fromkeys(taken.values())
            }
            replaced = {u: pieces[i] for u, i in taken.items()}
        return Rewrite(replaced, f"the same as '{place_of(plan.first)}'")


def _is_list(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], list | tuple)


def _is_taken_apart(*nodes: fx.Node) -> bool:
    return all(u.target is operator.getitem for n in nodes for u in n.users)


def _repeats(node: fx.Node) -> bool:
    """Whether a piece is taken twice."""
    return len({u.args[1] for u in node.users}) < len(node.users)


def _is_same(a: fx.Node, b: fx.Node) -> bool:
    return a.target is b.target and _is_equal(a.args, b.args) and _is_equal(a.kwargs, b.kwargs)


def _is_equal(a: Any, b: Any) -> bool:
    """Of arguments. 1, 1.0 and True are not the same; numbers that are made of sizes are, where their formulas are."""
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        return a is b or (_is_size(a) and _is_size(b) and str(a.meta["val"]) == str(b.meta["val"]))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_is_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_is_equal, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], torch.SymInt | torch.SymFloat | torch.SymBool)


PASS = ShareCalls
PHASE = "clean"
AFTER = "scatter_as_cat"
