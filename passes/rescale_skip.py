"""W*(a u + b + r) = (Wa)*(u + r/a) + W b, and r's own affine takes the 1/a: a scale leaves one side of a sum.

Turns one of two batch norms around a residual sum into nothing.

A batch norm on one operand of a residual sum has no way out: its scale does not pass through the sum, because the other
operand is not scaled. But when the other operand is itself the result of a batch norm (or a scale), that one can be
divided by a for nothing, and everything that reads the two values takes a as a scale on its input. One batch norm fewer
for each such block.

Fires on a sum of a batch norm that only the sum reads and of a second batch norm or product, when all users of the sum
take a (and b) and all other users of the second take a, exactly.

Refuses when some user does not take the scale, naming it, or when a scale is zero.

Source: linearity; the freedom of scale between a layer and the next.

    add(batch_norm(u), batch_norm'(r)) -> conv        becomes        add(u, batch_norm''(r)) -> conv'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from reparam.algebra import Affine, Pair, Route, execute, forward_all, read_affine
from reparam.ir import BATCH_NORMS, Program, Refusal, arguments, aten, is_call, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The sum, the affine that goes, the one that is rescaled, the scale (C,), and its way."""

    root: fx.Node
    gone: Affine
    kept: Affine
    scale: Tensor
    route: Route


@dataclass(frozen=True)
class RescaleSkip:
    """Removes a batch norm before a sum by rescaling the batch norm on the other side."""

    name: ClassVar[str] = "rescale-skip"
    pattern: ClassVar[Pattern] = op(frozenset({aten.add.Tensor}))

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Tries either side as the one that goes; Refusal when both are batch norms and neither can."""
        args = arguments(match.root)
        left, right = args["self"], args["other"]
        if args["alpha"] != 1 or not all(is_call(s, BATCH_NORMS) for s in (left, right)):
            return None
        if left is right or shape_of(left) != shape_of(right):
            return None
        plans = [_plan(program, match.root, gone, kept) for gone, kept in ((left, right), (right, left))]
        found = next((p for p in plans if isinstance(p, Plan)), None)
        return found or next((p for p in plans if isinstance(p, Refusal)), None)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The sum of the bare value and of the rescaled one, and the layers that take the scale."""
        rescaled = _divided(program, plan.kept.node, plan.scale)
        total = program.call(aten.add.Tensor, (plan.gone.x, rescaled), like=plan.root)
        made = execute(program, plan.route, {plan.root: total, plan.kept.node: rescaled})
        names = place_of(plan.gone.node)
        return Rewrite({s: made[s] for s in plan.route.sinks}, f"'{names}' left the sum, the other side was rescaled")


def _plan(program: Program, root: fx.Node, gone: fx.Node, kept: fx.Node) -> Plan | Refusal | None:
    a, c = read_affine(program, gone), read_affine(program, kept)
    if not isinstance(a, Affine) or not isinstance(c, Affine) or len(gone.users) > 1:
        return None
    scale = a.pair.scale
    if scale is None or bool((scale == 0).any()):
        return Refusal("a scale of zero cannot be taken out of the sum", root)
    route = forward_all(program, {root: a.pair, kept: Pair(scale)})
    if isinstance(route, Refusal):
        return Refusal(f"no batch norm leaves this sum: {route.located}", root)
    return Plan(root, a, c, scale.reshape(-1), route)


def _divided(program: Program, node: fx.Node, scale: Tensor) -> fx.Node:
    """The batch norm `node` over the same statistics, with gamma/a and beta/a."""
    args = dict(arguments(node))
    origin = place_of(node)
    gamma, beta = (program.tensor(args[k]) for k in ("weight", "bias"))
    divided = scale.reciprocal() if gamma is None else gamma / scale
    args["weight"] = program.weight(divided, f"{origin}.weight", like=node)
    args["bias"] = None if beta is None else program.weight(beta / scale, f"{origin}.bias", like=node)
    return program.call(node.target, tuple(args.values()), like=node)


PASS = RescaleSkip
PHASE = "late"
AFTER = "leave_shift"
