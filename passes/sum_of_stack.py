"""sum(stack(a, b, ...)) = a + b + ..., and mean(stack(a, b, ...)) = (a + b + ...)/n: a sum over a new axis is a sum.

Turns branches that are stacked and then summed or averaged over the new axis into additions.

Fires on a sum or mean over exactly the axis that a stack made, when nothing else reads the stack.

Refuses nothing: other reductions of a stack are no sum of its parts.

Source: the definitions of stack and sum.

    stack([conv1(x), conv2(x)], 1).sum(1)        becomes        conv1(x) + conv2(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.ir import MEANS, STACKS, SUMS, Program, arguments, aten, is_call, is_float
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The reduction, the values that were stacked, and what their sum is multiplied by."""

    node: fx.Node
    parts: tuple[fx.Node, ...]
    factor: float


@dataclass(frozen=True)
class SumOfStack:
    """Writes a sum over a stack as additions."""

    name: ClassVar[str] = "sum-of-stack"
    pattern: ClassVar[Pattern] = op(SUMS | MEANS, op(STACKS, name="stack"))

    def check(self, program: Program, match: Match) -> Plan | None:
        """The parts, when the reduction is over the stack's own axis alone and keeps no trace of it."""
        node, stack = match.root, match.nodes["stack"]
        args, made = arguments(node), arguments(stack)
        rank = stack.meta["val"].dim()
        if [d % rank for d in args["dim"] or ()] != [made["dim"] % rank] or args["keepdim"] or len(stack.users) > 1:
            return None
        parts = tuple(made["tensors"])
        if not is_float(node) or any(p.meta["val"].dtype != node.meta["val"].dtype for p in parts):
            return None
        return Plan(node, parts, 1.0 / len(parts) if is_call(node, MEANS) else 1.0)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """Additions from left to right, and the product for a mean."""
        total = plan.parts[0]
        for part in plan.parts[1:]:
            total = program.call(aten.add.Tensor, (total, part), like=plan.node)
        if plan.factor != 1.0:
            total = program.call(aten.mul.Tensor, (total, plan.factor), like=plan.node)
        return Rewrite({plan.node: total}, f"a reduction of {len(plan.parts)} stacked values became additions")


PASS = SumOfStack
PHASE = "clean"
