"""A rule that believes anything, and what the check says of one of its rewrites."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from reparam.check import Evidence, check_region, find_region
from reparam.ir import Program, is_call, ranges_of
from reparam.rewrite import Match, Pattern, Rewrite, op
from support.helpers import program_of

Build = Callable[[Program, fx.Node], fx.Node]


@dataclass(frozen=True)
class Replace:
    """Replaces every node that `targets` call by what `build` makes of it: a rule that believes anything."""

    targets: frozenset[Any]
    build: Build
    name: str = "replace"

    @property
    def pattern(self) -> Pattern:
        return op(self.targets)

    def check(self, program: Program, match: Match) -> Any:
        return None if match.root.name.startswith("new_") else match.root

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        return Rewrite({plan: self.build(program, plan)}, "replaced")


def evidence_of(model: nn.Module, targets: frozenset[Any], build: Build, *inputs: Tensor, **options: Any) -> Evidence:
    """The evidence for replacing the last call of `targets`."""
    low, high = options.pop("range", (-math.inf, math.inf))
    program = program_of(model, *inputs, **options)
    program.inputs = tuple(dataclasses.replace(s, low=low, high=high) for s in program.inputs)
    node = [n for n in program.calls() if is_call(n, targets)][-1]
    with program.recording() as created:
        new = build(program, node)
    region = find_region({node: new}, created)
    return check_region(program, region, ranges_of(program), seed=1)
