"""IN(x) with running statistics is BN(x): y = gamma*(x - mu)/sqrt(var + eps) + beta, whatever the sample.

Turns an instance norm that keeps running statistics into a batch norm, which folds.

Fires on an instance norm in evaluation mode with track_running_stats=True: it reads no statistics of its input.

Refuses nothing. An instance norm without running statistics depends on each sample, and stays.

Source: the definition of instance norm (Ulyanov et al. 2016) in evaluation mode.

    conv -> instance_norm(running)        becomes        conv -> batch_norm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.ir import Program, arguments, aten
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The norm."""

    node: fx.Node


@dataclass(frozen=True)
class InstanceNormAsBatchNorm:
    """Calls an instance norm with statistics a batch norm."""

    name: ClassVar[str] = "instance-norm-as-batch-norm"
    pattern: ClassVar[Pattern] = op(frozenset({aten.instance_norm.default}))

    def check(self, program: Program, match: Match) -> Plan | None:
        """Whether it uses the statistics that it keeps; torch has it keep some where it does."""
        return None if arguments(match.root)["use_input_stats"] else Plan(match.root)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The batch norm with the same numbers."""
        args = arguments(plan.node)
        names = ("input", "weight", "bias", "running_mean", "running_var")
        rest = (False, args["momentum"], args["eps"], args["cudnn_enabled"])
        made = program.call(aten.batch_norm.default, (*(args[n] for n in names), *rest), like=plan.node)
        return Rewrite({plan.node: made}, "its running statistics make it a batch norm")


PASS = InstanceNormAsBatchNorm
PHASE = "clean"
