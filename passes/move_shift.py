"""(x + t) + f(y) = x + (f(y) + t): a constant on one operand of a sum moves to the layer that makes the other.

Turns a constant sum that stays in front of an addition into nothing.

Fires on the sum of a value with a constant along its channels, read by an addition of the same shape alone, when the
layers that make the other operand take the constant.

Refuses nothing: what is in the way is said by fold-channel-affine.

Source: the associativity of addition.

    add(add(x, t), conv(y))        becomes        add(x, conv'(y))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.algebra import Affine, Pair, Route, backward, execute, read_affine
from reparam.ir import Program, arguments, aten, is_float, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_SUMS = frozenset({aten.add.Tensor})


@dataclass(frozen=True)
class Plan:
    """The addition, what the constant sum reads, the other operand, and the constant's way into it."""

    node: fx.Node
    x: fx.Node
    other: fx.Node
    route: Route


@dataclass(frozen=True)
class MoveShift:
    """Moves a constant to the other side of an addition."""

    name: ClassVar[str] = "move-shift"
    pattern: ClassVar[Pattern] = op(_SUMS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """A side with a constant, and the other side's layers that take it."""
        node = match.root
        args = arguments(node)
        sides = (args["self"], args["other"])
        if args["alpha"] != 1 or not all(is_float(s) and shape_of(s) == shape_of(node) for s in sides):
            return None
        for shifted, other in (sides, sides[::-1]):
            affine = read_affine(program, shifted)
            if not isinstance(affine, Affine) or affine.pair.scale is not None or len(shifted.users) > 1:
                continue
            route = backward(program, node, other, Pair(shift=affine.pair.shift))
            if isinstance(route, Route):
                return Plan(node, affine.x, other, route)
        return None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The addition without the constant, of re-weighted layers."""
        made = execute(program, plan.route, {})
        total = program.call(aten.add.Tensor, (plan.x, made[plan.other]), like=plan.node)
        others = {o: made[o] for o in plan.route.others}
        layers = ", ".join(f"'{place_of(s)}'" for s in plan.route.takers)
        return Rewrite({plan.node: total} | others, f"the constant moved to {layers}")


PASS = MoveShift
PHASE = "late"
AFTER = "norm_by_parts"
