"""BN(W*x + b) = (aW)*x + (a(b - mu) + beta) with a = gamma / sqrt(var + eps), and W*BN(x) = (Wa)*x + (b + sum W t).

Fires on a batch norm in evaluation mode (1d, 2d, 3d) whose affine reaches a convolution, transposed convolution or
linear layer: the layers that make its input, or all the layers that use its output. In between may stand whatever
commutes with a channel affine: permutes, reshapes that keep the channels apart, concatenations, splits, sums, pools,
and ReLU or max-pool where the scale is nowhere negative.

Refuses (Missed) when the statistics are those of the batch, are not constants, or give no finite scale; when on both
sides something does not let the affine through, naming it; when the shift would meet zero padding.

Source: Ioffe & Szegedy 2015, algorithm 2, and the linearity of convolution.

    conv -> batch_norm -> relu        becomes        conv' -> relu
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reparam.absorb import Blocked, Route, execute, forward
from reparam.absorb_backward import backward
from reparam.channels import Affine, read_affine
from reparam.ops import BATCH_NORMS
from reparam.program import Program
from reparam.rule import Match, Missed, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The affine and the way it takes to the layers that absorb it."""

    affine: Affine
    route: Route


def plan_affine(program: Program, affine: Affine) -> Plan | Missed:
    """The way for `affine` to be absorbed, backwards if it can be, else forwards; Missed with both reasons."""
    node = affine.node
    back = backward(program, node, affine.x, affine.pair)
    if isinstance(back, Route):
        return Plan(affine, back)
    ahead = forward(program, node, affine.pair)
    if isinstance(ahead, Route):
        return Plan(affine, ahead)
    return Missed(node, f"before it: {_at(back)}; after it: {_at(ahead)}")


def _at(blocked: Blocked) -> str:
    where = blocked.node.meta.get("module") or blocked.node.name
    return f"{blocked.reason} (at '{where}')"


def build(program: Program, plan: Plan) -> Rewrite:
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


@dataclass(frozen=True)
class FoldBatchNorm:
    """Removes a batch norm by folding it into the layers around it."""

    name: ClassVar[str] = "fold-batch-norm"
    pattern: ClassVar[Pattern] = op(BATCH_NORMS)

    def check(self, program: Program, match: Match) -> Plan | Missed | None:
        """Looks for a way out; Missed says what is in it."""
        affine = read_affine(program, match.root)
        return plan_affine(program, affine) if isinstance(affine, Affine) else affine

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """Re-weights the layers at the end of the way."""
        return build(program, plan)
