"""The rewrites, one a file. Each docstring states the equation; `rules_for` lists them in the order they run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from reparam.passes.carry_residual import CarryResidual
from reparam.passes.collect_sums import CollectSums
from reparam.passes.compose_convs import ComposeConvs
from reparam.passes.compose_maps import ComposeMaps
from reparam.passes.drop_identity import DropIdentity
from reparam.passes.equalize import Equalize
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
from reparam.rewrite.driver import Phase
from reparam.rewrite.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor


def fused_phases() -> tuple[Phase, ...]:
    """The rules of the target `fused`: clean up, fold and merge, then what may only happen when nothing else does."""
    clean = (FoldConstants(), DropIdentity(), LowerBorderFill())
    affine = (FoldBatchNorm(), FoldChannelAffine(), MergeBranches(), FoldPadding())
    fold = (*affine, ComposeConvs(), ComposeMaps(), FoldNormAffine())
    late = (LeaveShift(), RescaleSkip(), RescaleGate(), MergeSharedInputs())
    return (Phase("clean", clean), Phase("fold", clean + fold), Phase("late", late), Phase("sums", (CollectSums(),)))


def plain_phases(carry: str = "auto", max_pool: str = "keep", signed: str = "prelu") -> tuple[Phase, ...]:
    """The rules of the target `plain`: those of `fused`, then the register, which pays for what it carries."""
    return (*fused_phases(), Phase("plain", (CarryResidual(carry, max_pool, signed),), accepts_cost=True))


def equalize_phases(measured: Mapping[str, Tensor] | None = None) -> tuple[Phase, ...]:
    """What an export to int8 may do before it quantises; see `Equalize`."""
    return (Phase("equalize", (Equalize(measured),)),)


def every_rule() -> dict[str, Rule]:
    """The rules of all targets and of exports by their names, in the order in which they run."""
    return {rule.name: rule for phase in (*plain_phases(), *equalize_phases()) for rule in phase.rules}


__all__ = [
    "CarryResidual",
    "CollectSums",
    "ComposeConvs",
    "ComposeMaps",
    "DropIdentity",
    "Equalize",
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
    "equalize_phases",
    "every_rule",
    "fused_phases",
    "plain_phases",
]
