"""W*(a x + t) = (Wa)*(x + t/a), and relu(a z + t) = a*relu(z + t/a) for a > 0: the scale folds, the shift stays.

Turns a batch norm, or a constant product and sum, whose shift would be wrong on a zero-padded border or in a ReLU into
one sum.

Fires on a batch norm, or a constant product and sum, whose affine as a whole finds no way out, because the shift would
meet zero padding or a ReLU, while the scale alone does: forwards, leaving x + t/a, or backwards, leaving a sum with t.
The border stays exact, because nothing is moved across it. Of the exact forms this is the cheapest: C parameters,
against C_out*H*W for a map of biases and additional multiply-accumulates for a channel of ones.

Refuses when the scale finds no way out either, when a scale is zero, or when a negative one meets a ReLU.

Source: linearity, and positive homogeneity of ReLU.

    batch_norm -> conv(padding=1)        becomes        add(t/a) -> conv'(padding=1)
    mul(a) -> add(t) -> relu -> linear   becomes        add(t/a) -> relu -> linear'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from reparam.algebra import Affine, Pair, Route, backward, execute, forward, read_affine, write_affine
from reparam.ir import ADDS, BATCH_NORMS, Program, Refusal, aten, is_call, place_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The last call of the affine, what it reads, the way of its scale, and the shift that stays."""

    node: fx.Node
    x: fx.Node
    route: Route
    shift: Tensor


@dataclass(frozen=True)
class LeaveShift:
    """Folds the scale of a batch norm and leaves its shift as a sum."""

    name: ClassVar[str] = "leave-shift"
    pattern: ClassVar[Pattern] = op(BATCH_NORMS | ADDS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Tries the scale alone, backwards and then forwards; a product and a sum forwards only, without a remark."""
        if not is_call(match.root, BATCH_NORMS):
            return _arithmetic(program, match.root)
        affine = read_affine(program, match.root)
        if not isinstance(affine, Affine) or affine.pair.scale is None or affine.pair.shift is None:
            return None
        scale, shift = affine.pair.scale, affine.pair.shift
        back = backward(program, affine.node, affine.x, Pair(scale))
        if isinstance(back, Route):
            return Plan(match.root, affine.x, back, shift)
        if bool((scale == 0).any()):
            return Refusal(
                f"{int((scale == 0).sum())} of its scales are zero, so the shift cannot be divided by them", match.root
            )
        ahead = forward(program, affine.node, Pair(scale))
        if isinstance(ahead, Refusal):
            told = f"not even its scale folds: {back.located}; {ahead.located}"
            return Refusal(told, match.root, _other_form(ahead))
        return Plan(match.root, affine.x, ahead, shift / scale)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The re-weighted layers, and one sum."""
        node, x = plan.node, plan.x
        message = f"scale folded, the shift left standing ({plan.shift.numel()} parameters)"
        left = Pair(shift=plan.shift)
        origin = place_of(node)
        if plan.route.direction == "backward":
            made = execute(program, plan.route, {})
            total = write_affine(program, made[x], left, origin, like=node)
            return Rewrite({node: total} | {o: made[o] for o in plan.route.others}, message)
        moved = write_affine(program, x, left, origin, like=node)
        made = execute(program, plan.route, {node: moved})
        return Rewrite({s: made[s] for s in plan.route.sinks}, message)


def _other_form(ahead: Refusal) -> str:
    """What a ReLU that stands in the way, as it does of a negative scale, could become, and why it does not."""
    if not is_call(ahead.node, frozenset({aten.relu.default})):
        return ""
    return "a clamp with bounds for each channel lets it through, but takes longer than the batch norm that it saves"


def _arithmetic(program: Program, root: fx.Node) -> Plan | None:
    """A sum of a constant and a product with a constant that nothing else reads."""
    outer = read_affine(program, root)
    if not isinstance(outer, Affine) or outer.pair.scale is not None or len(outer.x.users) > 1:
        return None
    inner = read_affine(program, outer.x)
    if not isinstance(inner, Affine) or is_call(outer.x, BATCH_NORMS) or inner.pair.shift is not None:
        return None
    scale, shift = inner.pair.scale, outer.pair.shift
    assert scale is not None and shift is not None
    if bool((scale == 0).any()):
        return None
    ahead = forward(program, root, Pair(scale))
    if isinstance(ahead, Refusal):
        return None
    return Plan(root, inner.x, ahead, shift / scale)


PASS = LeaveShift
PHASE = "late"
