"""W*(g*n(x) + b) + c = (Wg)*n(x) + (c + sum W b): the affine of a layer or group norm, never its statistics.

Turns the affine of a layer or group norm before linear layers into a norm without weights.

Fires on aten.layer_norm over the last axis and on aten.group_norm with weights whose affine reaches layers that absorb
it exactly, through whatever commutes with it (reshapes, permutes, window partitions; ReLU for g >= 0 and b = 0). The
norm stays, without weights.

Refuses when some user does not take the affine, naming it.

Source: linearity; Ba et al. 2016 for the norm.

    layer_norm(g, b) -> linear        becomes        layer_norm() -> linear'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from reparam.algebra import Pair, Route, compress, execute, forward
from reparam.ir import Program, Refusal, arguments, aten, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op

NORMS = frozenset({aten.layer_norm.default, aten.group_norm.default})


@dataclass(frozen=True)
class Plan:
    """The norm and the way of its affine."""

    node: fx.Node
    route: Route


def read_norm_affine(program: Program, node: fx.Node) -> Pair | None:
    """The norm's own scale and shift at the rank of its value; None when it has none or they are not constants."""
    args = arguments(node)
    rank = len(shape_of(node))
    layer_norm = node.target is aten.layer_norm.default
    if layer_norm and len(args["normalized_shape"]) != 1:
        return None
    parts: list[Tensor | None] = []
    for key, neutral in (("weight", 1.0), ("bias", 0.0)):
        value = program.tensor(args[key])
        if args[key] is not None and value is None:
            return None
        trivial = value is None or bool((value == neutral).all())
        shape = [1] * (rank - 1) + [-1] if layer_norm else [1, -1] + [1] * (rank - 2)
        parts.append(None if trivial or value is None else compress(value.reshape(shape)))
    pair = Pair(*parts)
    return None if pair.trivial else pair


@dataclass(frozen=True)
class FoldNormAffine:
    """Moves a norm's scale and shift into the layers that use it."""

    name: ClassVar[str] = "fold-norm-affine"
    pattern: ClassVar[Pattern] = op(NORMS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Looks for a way forwards; None when the norm has no affine."""
        pair = read_norm_affine(program, match.root)
        if pair is None:
            return None
        route = forward(program, match.root, pair)
        if isinstance(route, Refusal):
            return Refusal(f"its affine stays: {route.located}", match.root)
        return Plan(match.root, route)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """A norm without weights, and the re-weighted layers."""
        args = arguments(plan.node)
        count = args.get("normalized_shape", args.get("num_groups"))
        bare = program.call(plan.node.target, (args["input"], count), {"eps": args["eps"]}, like=plan.node)
        made = execute(program, plan.route, {plan.node: bare})
        return Rewrite({s: made[s] for s in plan.route.sinks}, f"affine folded into {len(plan.route.takers)} layer(s)")


PASS = FoldNormAffine
PHASE = "fold"
AFTER = "compose_maps"
