"""c*(a*x + t) + u = (c a)*x + (c t + u): affines in a row are one.

Turns products, quotients, sums and differences with constants that follow each other into at most one product and one
sum.

Fires on such calls in a row, each read by the next alone, when fewer calls do the same. The constants may be numbers
or lie along one axis.

Refuses nothing.

Source: the composition of affine functions.

    2*(x/255) - 1        becomes        x*(2/255) - 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from reparam.algebra import Affine, Pair, read_affine, trim
from reparam.ir import ADDS, DIVS, MULS, SUBS, Program, aten, is_call, place_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_ARITHMETIC = ADDS | SUBS | MULS | DIVS | {aten.neg.default}


@dataclass(frozen=True)
class Plan:
    """The last call, the value before the first, what they compute together, and how many they are."""

    node: fx.Node
    x: fx.Node
    pair: Pair
    count: int


@dataclass(frozen=True)
class JoinAffines:
    """Writes affines in a row as one."""

    name: ClassVar[str] = "join-affines"
    pattern: ClassVar[Pattern] = op(_ARITHMETIC)

    def check(self, program: Program, match: Match) -> Plan | None:
        """Collects the calls in a row that end in this one."""
        affine = read_affine(program, match.root)
        if not isinstance(affine, Affine) or _goes_on(program, match.root):
            return None
        pair, x, count = affine.pair, affine.x, 1
        while len(x.users) == 1 and is_call(x, _ARITHMETIC):
            before = read_affine(program, x)
            if not isinstance(before, Affine):
                break
            pair, x, count = before.pair.then(pair.scale, pair.shift), before.x, count + 1
        calls = int(_scales(pair)) + int(pair.shift is not None)
        if any(v is not None and sum(n > 1 for n in v.shape) > 1 for v in (pair.scale, pair.shift)):
            return None
        return Plan(match.root, x, pair, count) if count > max(calls, 1) else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One product and one sum, each only when needed."""
        value = plan.x
        if _scales(plan.pair):
            value = _emit(program, aten.mul.Tensor, value, plan.pair.scale, "scale", plan.node)
        if plan.pair.shift is not None:
            value = _emit(program, aten.add.Tensor, value, plan.pair.shift, "shift", plan.node)
        return Rewrite({plan.node: value}, f"{plan.count} products and sums in a row became fewer")


def _goes_on(program: Program, node: fx.Node) -> bool:
    """Whether the call's only reader is an affine too, which then speaks for both."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    return reader is not None and is_call(reader, _ARITHMETIC) and isinstance(read_affine(program, reader), Affine)


def _scales(pair: Pair) -> bool:
    return pair.scale is not None and not bool((pair.scale == 1).all())


def _emit(program: Program, target: object, x: fx.Node, value: Tensor | None, name: str, like: fx.Node) -> fx.Node:
    assert value is not None
    if value.numel() == 1:
        return program.call(target, (x, float(value)), like=like)
    weight = program.weight(trim(value), f"{place_of(like)}.{name}", like=like)
    return program.call(target, (x, weight), like=like)


PASS = JoinAffines
PHASE = "fold"
AFTER = "fold_channel_affine"
