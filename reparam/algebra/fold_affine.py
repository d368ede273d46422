"""Folding one channel affine: the way that it takes, and the nodes that this makes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from reparam.ir import Program, Refusal, place_of

from .channel_affine import Affine
from .propagate_backward import backward
from .propagate_forward import forward
from .route import Route, execute


@dataclass(frozen=True)
class AffinePlan:
    """The affine and the way it takes to the layers that absorb it."""

    affine: Affine
    route: Route


def plan_fold(program: Program, affine: Affine) -> AffinePlan | Refusal:
    """The way for `affine` to be absorbed, backwards if it can be, else forwards; Refusal with both reasons."""
    node = affine.node
    back = backward(program, node, affine.x, affine.pair)
    if isinstance(back, Route):
        return AffinePlan(affine, back)
    ahead = forward(program, node, affine.pair)
    if isinstance(ahead, Route):
        return AffinePlan(affine, ahead)
    return Refusal(f"before it: {back.located}; after it: {ahead.located}", node)


def build_fold(program: Program, plan: AffinePlan) -> tuple[dict[fx.Node, fx.Node], str]:
    """Builds the route of a plan: the replacement of each old value, and a sentence on which layers took the affine."""
    node, x = plan.affine.node, plan.affine.x
    names = [place_of(s) for s in plan.route.takers]
    where = ", ".join(f"'{n}'" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if plan.route.direction == "backward":
        made = execute(program, plan.route, {})
        replace = {node: made[x]} | {o: made[o] for o in plan.route.others}
        return replace, f"folded into the output of {where}"
    made = execute(program, plan.route, {node: x})
    return {s: made[s] for s in plan.route.sinks}, f"folded into the input of {where}"
