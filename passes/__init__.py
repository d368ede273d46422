"""The rewrites, one a file. Each docstring states the equation; `rules_for` lists them in the order they run."""

from __future__ import annotations

from reparam.passes.carry_residual import CarryResidual
from reparam.passes.collect_sums import CollectSums
from reparam.passes.compose_convs import ComposeConvs
from reparam.passes.drop_identity import DropIdentity
from reparam.passes.fold_batch_norm import FoldBatchNorm
from reparam.passes.fold_channel_affine import FoldChannelAffine
from reparam.passes.fold_constants import FoldConstants
from reparam.passes.fold_norm_affine import FoldNormAffine
from reparam.passes.fold_padding import FoldPadding
from reparam.passes.leave_shift import LeaveShift
from reparam.passes.lower_border_fill import LowerBorderFill
from reparam.passes.merge_branches import MergeBranches
from reparam.passes.merge_shared_inputs import MergeSharedInputs
from reparam.passes.rescale_gate import RescaleGate
from reparam.passes.rescale_skip import RescaleSkip
from reparam.pipeline import Phase


def fused_phases() -> tuple[Phase, ...]:
    """The rules of the target `fused`: clean up, fold and merge, then what may only happen when nothing else does."""
    clean = (FoldConstants(), DropIdentity(), LowerBorderFill())
    fold = (FoldBatchNorm(), FoldChannelAffine(), MergeBranches(), FoldPadding(), ComposeConvs(), FoldNormAffine())
    late = (LeaveShift(), RescaleSkip(), RescaleGate(), MergeSharedInputs())
    return (Phase("clean", clean), Phase("fold", clean + fold), Phase("late", late), Phase("sums", (CollectSums(),)))


def plain_phases(carry: str = "auto", max_pool: str = "keep", signed: str = "prelu") -> tuple[Phase, ...]:
    """The rules of the target `plain`: those of `fused`, then the register, which pays for what it carries."""
    return (*fused_phases(), Phase("plain", (CarryResidual(carry, max_pool, signed),), accepts_cost=True))


__all__ = [
    "CarryResidual",
    "CollectSums",
    "ComposeConvs",
    "DropIdentity",
    "FoldBatchNorm",
    "FoldChannelAffine",
    "FoldConstants",
    "FoldNormAffine",
    "FoldPadding",
    "LeaveShift",
    "LowerBorderFill",
    "MergeBranches",
    "MergeSharedInputs",
    "RescaleGate",
    "RescaleSkip",
    "fused_phases",
    "plain_phases",
]
