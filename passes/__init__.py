"""The rewrites, one a file. Each docstring states the equation; `rules_for` lists them in the order they run."""

from __future__ import annotations

from reparam.pipeline import Phase

from .compose_convs import ComposeConvs
from .drop_identity import DropIdentity
from .fold_batch_norm import FoldBatchNorm
from .fold_channel_affine import FoldChannelAffine
from .fold_constants import FoldConstants
from .fold_norm_affine import FoldNormAffine
from .leave_shift import LeaveShift
from .merge_branches import MergeBranches


def fused_phases() -> tuple[Phase, ...]:
    """The rules of the target `fused`: clean up, fold and merge, then what may only happen when nothing else does."""
    clean = (FoldConstants(), DropIdentity())
    fold = (FoldBatchNorm(), FoldChannelAffine(), MergeBranches(), ComposeConvs(), FoldNormAffine())
    return (Phase("clean", clean), Phase("fold", clean + fold), Phase("shift", (LeaveShift(),)))


__all__ = [
    "ComposeConvs",
    "DropIdentity",
    "FoldBatchNorm",
    "FoldChannelAffine",
    "FoldConstants",
    "FoldNormAffine",
    "LeaveShift",
    "MergeBranches",
    "fused_phases",
]
