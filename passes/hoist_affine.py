"""cat(a*x + t, a*y + t) = a*cat(x, y) + t: an affine that every part of a concatenation has comes after it once.

Turns equal products, sums and batch norms in front of a concatenation along another axis than theirs into one behind
it, where it may fold.

Fires when every part is the same affine of another value, which nothing else reads, and its constants do not vary along
the axis of the concatenation.

Refuses nothing.

Source: linearity.

    cat([a/255, b/255], 0) -> conv        becomes        cat([a, b], 0)/255 -> conv
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.algebra import Affine, read_affine, same, write_affine
from reparam.ir import CATS, Program, arguments, aten, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The concatenation, and the affines that are its parts."""

    node: fx.Node
    affines: tuple[Affine, ...]


@dataclass(frozen=True)
class HoistAffine:
    """Moves equal affines behind a concatenation."""

    name: ClassVar[str] = "hoist-affine"
    pattern: ClassVar[Pattern] = op(CATS)

    def check(self, program: Program, match: Match) -> Plan | None:
        """The affines, if they are one and the same."""
        args = arguments(match.root)
        axis = args["dim"] % match.root.meta["val"].dim()
        parts = [read_affine(program, p) for p in args["tensors"]]
        affines = [a for a in parts if isinstance(a, Affine)]
        if len(affines) < len(parts) or len(parts) < 2 or any(len(a.node.users) > 1 for a in affines):
            return None
        first = affines[0].pair
        if any(not same(a.pair.scale, first.scale) or not same(a.pair.shift, first.shift) for a in affines[1:]):
            return None
        if any(v is not None and v.shape[axis] > 1 for v in (first.scale, first.shift)):
            return None
        alike = len({a.node.meta["val"].dtype for a in affines} | {a.x.meta["val"].dtype for a in affines}) == 1
        return Plan(match.root, tuple(affines)) if alike else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The concatenation of what the affines read, and one of them behind it."""
        axis = arguments(plan.node)["dim"]
        whole = program.call(aten.cat.default, ([a.x for a in plan.affines], axis), like=plan.node)
        first = plan.affines[0]
        if _has_axis(first, axis % whole.meta["val"].dim()):
            made = write_affine(program, whole, first.pair, place_of(first.node), like=plan.node)
        else:
            made = program.clone(first.node, {first.x: whole}, like=plan.node)
        return Rewrite({plan.node: made}, f"{len(plan.affines)} equal affines became one behind the concatenation")


def _has_axis(affine: Affine, axis: int) -> bool:
    """Whether a constant of the call has an entry, each the same, for each position along the axis."""
    rank = affine.node.meta["val"].dim()
    constants = [shape_of(n) for n in affine.node.all_input_nodes if n is not affine.x]
    return any(len(shape) >= rank - axis and shape[axis - rank] > 1 for shape in constants)


PASS = HoistAffine
PHASE = "fold"
AFTER = "join_affines"
