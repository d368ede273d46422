"""Moments through a program: how large each value is, predicted without data.

Every operator is given the powers of its operands and gives the power of its result: by an exact integral where there
is one (layers with independent weights, pointwise functions, sums, products, concatenations, norms, means), else by
running the operator on random tensors of those powers.

Source: Bingham & Miikkulainen 2021, "AutoInit: analytic signal-preserving weight initialization for neural networks",
arXiv 2109.08958, which carries a mean and a variance; here the variance is kept in three parts (`Power`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from reparam.ir import (
    CASTS,
    DROPOUTS,
    IDENTITIES,
    NORMS,
    RRELUS,
    Program,
    aten,
    call_node,
    default_dtype,
    is_call,
    op_name,
    place_of,
    size_hint,
    weight_value,
)

from .functions import STACKED_PRODUCTS, is_pointwise
from .operators import carry
from .power import Power, Roles
from .roles import of_input
from .sources import WHOLE, Track, united
from .values import Value
from .walk import Policy, Walk, as_it_is

MOST_NAMED = 3
LOOSE = 0.01  # two standard errors, from which on it is told
_SHARES = frozenset({aten.softmax.int, aten.log_softmax.int, aten.cumsum.default})
SAMPLES = 8  # that a free batch counts while operators are run on random tensors


@dataclass(frozen=True)
class Predicted:
    """What a walk found. values: of each node that depends on the inputs; unknown ones have no power.

    drawn: nodes whose operator was run on random tensors, with the standard error of E y^2 over itself. dependent:
    nodes whose operands depend on one another and were taken as independent, in execution order.
    """

    values: Mapping[fx.Node, Value]
    drawn: Mapping[fx.Node, float]
    dependent: tuple[fx.Node, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence where some of those that were run are known to no 1 %, one where their error is not known, and one
        where there are dependent ones."""
        said = []
        loose = {n: 2 * e for n, e in self.drawn.items() if 2 * e > LOOSE}
        if loose:
            most = max(loose, key=loose.__getitem__)
            said.append(
                f"of {len(self.drawn)} values that are predicted from random numbers, {len(loose)} may be off by more "
                f"than {LOOSE:.0%} (two standard errors), that of {_named([most])} by {loose[most]:.1%}"
            )
        once = [n for n, e in self.drawn.items() if math.isnan(e)]
        if once:
            said.append(f"{_named(once)}: so many numbers were drawn once alone, and how far off they are is not known")
        if self.dependent:
            what = _named(self.dependent)
            said.append(f"what {what} read depends on one another, and its moments are predicted as if it did not")
        return tuple(said)

    def power(self, node: fx.Node) -> Power | None:
        """The power of a node's value; None where it is not known."""
        value = self.values.get(node)
        return None if value is None else value.power


def _named(nodes: Sequence[fx.Node]) -> str:
    names = list(dict.fromkeys(f"'{place_of(n)}' ({op_name(n)})" for n in nodes))
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


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
    walk.order.update({node: i for i, node in enumerate(program.graph.nodes)})
    first: dict[Any, fx.Node] = {}
    with torch.no_grad(), default_dtype(torch.float64):
        for node in program.graph.nodes:
            if node.op == "placeholder":
                walk.values[node] = _input(walk, node, inputs or {})
            elif node.op == "get_attr":
                walk.values[node] = weight_value(program, node, torch.float64)
            elif node.op == "call_function":
                walk.values[node] = _call(walk, node)
            if _is_same(walk, node):
                walk.same[node] = walk.rep(node.all_input_nodes[0])
                walk.values[node] = walk.values[walk.same[node]]
            elif (key := _key(walk, node)) is not None:
                walk.same[node] = first.setdefault(key, node)
                walk.values[node] = walk.values[walk.same[node]]
    found = {n: v for n, v in walk.values.items() if isinstance(v, Value)}
    return Predicted(found, walk.drawn, tuple(dict.fromkeys(walk.dependent)))


def _is_same(walk: Walk, node: fx.Node) -> bool:
    """Whether a call gives what it reads."""
    value = walk.values.get(node)
    return is_call(node, IDENTITIES | CASTS) and isinstance(value, Value) and node.meta["val"].is_floating_point()


def _key(walk: Walk, node: fx.Node) -> Any:
    """What nodes of the same value have in common; None where it may differ in training."""
    if node.op == "get_attr":
        return str(node.target)
    if node.op != "call_function" or is_call(node, DROPOUTS | RRELUS):
        return None
    named = fx.node.map_aggregate((node.args, node.kwargs), lambda a: walk.rep(a) if isinstance(a, fx.Node) else a)
    return node.target, str(named)


def _input(walk: Walk, node: fx.Node, given: Mapping[str, Power]) -> Any:
    spec = next((s for s in walk.program.inputs if s.name == str(node.target)), None)
    if spec is None:
        return node.meta["val"]
    shape = walk.shape(node)
    roles = of_input(node, len(shape))
    power = given.get(spec.name, Power(place=1.0)) if spec.dtype.is_floating_point else None
    track = Track(node, shape, shape_axis) if (shape_axis := _channels(roles)) is not None else None
    return Value(shape, roles, power, sources={node: WHOLE}, track=track).settled()


def _channels(roles: Roles) -> int | None:
    return next((i for i, r in enumerate(roles) if r == frozenset("c")), None)


def _call(walk: Walk, node: fx.Node) -> Any:
    found = node.meta.get("val")
    if isinstance(found, int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool):
        return size_hint(found, walk.sizes) if isinstance(found, torch.SymInt) else found
    held = [walk.values[n] for n in node.all_input_nodes]
    if not any(isinstance(v, Value | list) for v in held):  # of weights and sizes alone
        return call_node(node, walk.values, torch.float64)
    result = carry(walk, node)
    if isinstance(result, Value):
        return _traced(walk, node, result).settled()
    return [_traced(walk, node, v).settled() if isinstance(v, Value) else v for v in result]


def _traced(walk: Walk, node: fx.Node, value: Value) -> Value:
    """With what it is made of, where the operator has not told."""
    held = [v for v in (walk.values[n] for n in node.all_input_nodes) if isinstance(v, Value)]
    if not value.sources:
        lists = [v for n in node.all_input_nodes if isinstance(w := walk.values[n], list) for v in w]
        own = united(v.sources for v in (*held, *lists) if isinstance(v, Value))
        value = replace(value, sources=own or {node: WHOLE})
    kept = is_pointwise(node) or is_call(node, NORMS | DROPOUTS)
    if kept and node not in walk.drawn:
        value = replace(value, woven=value.woven.union(*(v.woven for v in held)))
    if kept and len(held) == 1 and held[0].shape == value.shape:
        value = replace(value, track=held[0].track)
    scores = is_call(node, STACKED_PRODUCTS) and len(value.roles) > 1 and value.roles[-1] == value.roles[-2]
    if scores or is_call(node, _SHARES):  # rows have factors, or a sum, in common
        value = replace(value, woven=value.woven | {"c", "p"})
    return value
