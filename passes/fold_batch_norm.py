"""BN(W*x + b) = (aW)*x + (a(b - mu) + beta) with a = gamma / sqrt(var + eps), and W*BN(x) = (Wa)*x + (b + sum W t).

Turns a batch norm before or after convolutions, transposed convolutions (grouped too) and linear layers, through
reshapes, permutes, crops, concatenations, splits, pools and ReLU where that is exact into nothing.

Fires on a batch norm in evaluation mode (1d, 2d, 3d) whose affine reaches a convolution, transposed convolution or
linear layer: the layers that make its input, tables of embeddings among them, or all the layers that use its output,
recurrent ones (LSTM, GRU, RNN) among them. In between may stand whatever commutes with a channel affine: permutes,
reshapes that keep the channels apart, crops, pads that repeat what lies at the border, concatenations, splits, sums,
pools and interpolations, products with matrices along other axes; and what keeps an order, as ReLU, max-pool, `amax`
and `sort`, where the scale is nowhere negative.

Refuses when the statistics are those of the batch, are not constants, or give no finite scale; when on both
sides something does not let the affine through, naming it; when the shift would meet zero padding.

Source: Ioffe & Szegedy 2015, algorithm 2, and the linearity of convolution.

    conv -> batch_norm -> relu        becomes        conv' -> relu
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reparam.algebra import Affine, AffinePlan, build_fold, plan_fold, read_affine
from reparam.ir import BATCH_NORMS, Program, Refusal
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class FoldBatchNorm:
    """Removes a batch norm by folding it into the layers around it."""

    name: ClassVar[str] = "fold-batch-norm"
    pattern: ClassVar[Pattern] = op(BATCH_NORMS)

    def check(self, program: Program, match: Match) -> AffinePlan | Refusal | None:
        """Looks for a way out; a Refusal says what is in it."""
        affine = read_affine(program, match.root)
        return plan_fold(program, affine) if isinstance(affine, Affine) else affine

    def rewrite(self, program: Program, plan: AffinePlan) -> Rewrite:
        """Re-weights the layers at the end of the way."""
        return Rewrite(*build_fold(program, plan))


PASS = FoldBatchNorm
PHASE = "fold"
