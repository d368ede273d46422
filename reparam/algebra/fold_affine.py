"""Folding one channel affine: the way that it takes, and the nodes that this makes."""

from __future__ import annotations

from dataclasses import dataclass

from reparam.algebra.channel_affine import Affine
from reparam.algebra.propagate_backward import backward
from reparam.ir.program import Program
from reparam.rewrite.rule import Missed, Rewrite

from .propagate_forward import forward
from .route import Blocked, Route, execute


@dataclass(frozen=True)
class AffinePlan:
    """The affine and the way it takes to the layers that absorb it."""

    affine: Affine
    route: Route


def plan_fold(program: Program, affine: Affine) -> AffinePlan | Missed:
    """The way for `affine` to be absorbed, backwards if it can be, else forwards; Missed with both reasons."""
    node = affine.node
    back = backward(program, node, affine.x, affine.pair)
    if isinstance(back, Route):
        return AffinePlan(affine, back)
    ahead = forward(program, node, affine.pair)
    if isinstance(ahead, Route):
        return AffinePlan(affine, ahead)
    return Missed(node, f"before it: {_at(back)}; after it: {_at(ahead)}")


def _at(blocked: Blocked) -> str:
    where = blocked.node.meta.get("module") or blocked.node.name
    return f"{blocked.reason} (at '{where}')"


def build_fold(program: Program, plan: AffinePlan) -> Rewrite:
    """Builds the route of a plan and says which layers took the affine."""
    node, x = plan.affine.node, plan.affine.x
    names = [s.meta.get("module") or s.name for s in plan.route.sinks]
    where = ", ".join(f"'{n}'" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    if plan.route.direction == "backward":
        made = execute(program, plan.route, {})
        replace = {node: made[x]} | {o: made[o] for o in plan.route.others}
        return Rewrite(replace, f"folded into the output of {where}")
    made = execute(program, plan.route, {node: x})
    return Rewrite({s: made[s] for s in plan.route.sinks}, f"folded into the input of {where}")
