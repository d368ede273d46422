"""s*(W*x + b) + t = (sW)*x + (sb + t), and W*(s*x + t) + b = (Ws)*x + (b + sum W t), for constants s and t.

Turns LayerScale, residual gains, learned multipliers, constant scales and shifts into nothing.

Fires on a product, quotient, sum or difference with a constant that lies along one axis (or is a scalar): LayerScale,
residual gains, learned multipliers, depth scaling, survival probabilities, frozen normalisation. The affine is carried
backwards or forwards as in fold-batch-norm, also into the affine of a layer norm or group norm before it, into the
table of an embedding, and into a constant that is added.

Refuses when nothing on either side takes it exactly, naming what is in the way. Says nothing about a constant
that varies along more than one axis: that is no channel affine.

Source: linearity.

    linear -> mul(gamma) -> add(residual)        becomes        linear' -> add(residual)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reparam.algebra import Affine, AffinePlan, build_fold, plan_fold, read_affine
from reparam.ir import ADDS, DIVS, MULS, SUBS, Program, Refusal, aten
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class FoldChannelAffine:
    """Removes a constant scale or shift by folding it into the layers around it."""

    name: ClassVar[str] = "fold-channel-affine"
    pattern: ClassVar[Pattern] = op(ADDS | SUBS | MULS | DIVS | {aten.neg.default})

    def check(self, program: Program, match: Match) -> AffinePlan | Refusal | None:
        """Looks for a way out; None when the call is no channel affine."""
        affine = read_affine(program, match.root)
        return plan_fold(program, affine) if isinstance(affine, Affine) else affine

    def rewrite(self, program: Program, plan: AffinePlan) -> Rewrite:
        """Re-weights the layers at the end of the way."""
        return Rewrite(*build_fold(program, plan))


PASS = FoldChannelAffine
PHASE = "fold"
AFTER = "fold_batch_norm"
