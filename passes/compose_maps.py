"""C(B(A x)) = M x: a chain of products with weights, sums and rearrangements of each sample is one linear layer.

Turns products with weights, sums and rearrangements of each sample in a row, when that is not dearer into one linear
layer.

Fires on a matrix product with a weight, a sum or a mean that follows another one, with nothing between them but
reshapes, permutes and arithmetic with constants, each read once: the votes of a capsule layer and the coupling that
sums them, when that coupling is a constant. M is written over all numbers of one sample.

Refuses when M would cost more multiply-accumulates or store more values than its factors, if two of them are
products. Says nothing where the samples of a batch cannot be told apart: one axis must be free, and no step may mix it
with others.

Source: linearity; the matrix of a composition.

    matmul(c, permute(matmul(x, w))) -> squash        becomes        linear(flatten(x)) -> squash
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.algebra import (
    SUMS_OF_AXES,
    SampleMap,
    data_operand,
    keeps_samples,
    map_of,
    matrix_of,
    moved,
)
from reparam.ir import CONVS, LINEARS, Program, Refusal, aten, batch_one, is_call, node_macs, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op

_PRODUCTS = frozenset({aten.matmul.default}) | LINEARS


@dataclass(frozen=True)
class ComposeMaps:
    """Turns a chain of linear maps of one sample into one linear layer."""

    name: ClassVar[str] = "compose-maps"
    pattern: ClassVar[Pattern] = op(_PRODUCTS | SUMS_OF_AXES)

    def check(self, program: Program, match: Match) -> SampleMap | Refusal | None:
        """Walks up from the last map; compares the price before any weight is touched."""
        steps = _chain(program, match.root)
        maps = [n for n in steps if is_call(n, _PRODUCTS | SUMS_OF_AXES)]
        if len(maps) < 2 or not any(is_call(n, _PRODUCTS) for n in maps) or _is_layers(steps):
            return None
        x = data_operand(program, steps[0])
        assert x is not None
        plan = map_of(x, steps)
        assert plan is not None  # as each step keeps the samples apart
        dear = _too_dear(program, plan)
        if dear is not None:  # a mean beside a layer is nothing that was nearly composed
            return dear if sum(is_call(n, _PRODUCTS) for n in maps) > 1 else None
        return plan

    def rewrite(self, program: Program, plan: SampleMap) -> Rewrite:
        """The linear layer between a flattening and its undoing."""
        root = plan.steps[-1]
        weight, bias = matrix_of(program, plan)
        origin = next(c.origin for n in plan.steps for i in n.all_input_nodes if (c := program.constant(i)) is not None)
        x = moved(program, plan.x, plan.axes[0], 0, root)
        if len(shape_of(x)) > 2:
            x = program.call(aten.flatten.using_ints, (x, 1), like=root)
        parameters = [program.weight(weight, origin, like=root)]
        if bias is not None:
            parameters.append(program.weight(bias, f"{origin}.bias", like=root))
        y = program.call(aten.linear.default, (x, *parameters), like=root)
        sizes = [s for i, s in enumerate(shape_of(root)) if i != plan.axes[1]]
        if not sizes:
            y = program.call(aten.squeeze.dim, (y, 1), like=root)
        elif len(sizes) > 1:
            y = program.call(aten.unflatten.int, (y, 1, sizes), like=root)
        y = moved(program, y, 0, plan.axes[1], root)
        return Rewrite(
            {root: y}, f"{sum(is_call(n, _PRODUCTS | SUMS_OF_AXES) for n in plan.steps)} linear maps became one"
        )


# ---- the chain -------------------------------------------------------------------------------------------------------


def _chain(program: Program, root: fx.Node) -> list[fx.Node]:
    """The linear steps that end in `root`, as far up as each is read once and keeps the samples apart."""
    steps: list[fx.Node] = []
    node: fx.Node | None = root
    while (
        node is not None
        and not is_call(node, CONVS)
        and keeps_samples(program, node)
        and (node is root or len(node.users) == 1)
    ):
        steps.append(node)
        node = data_operand(program, node)
    return steps[::-1]


def _is_layers(steps: Sequence[fx.Node]) -> bool:
    """Linear layers alone are left to the rule that keeps them as such."""
    return all(is_call(n, LINEARS) for n in steps)


# ---- price and matrix ------------------------------------------------------------------------------------------------


def _too_dear(program: Program, plan: SampleMap) -> Refusal | None:
    env = batch_one(program)
    macs, values = sum(node_macs(n, env) for n in plan.steps), 0
    for constant in {i for n in plan.steps for i in n.all_input_nodes if program.constant(i) is not None}:
        values += math.prod(shape_of(constant))
    then = plan.size[0] * plan.size[1]
    if then > macs:
        return Refusal(f"as one layer it would cost {then:,} multiply-accumulates instead of {macs:,}")
    if then > values:
        return Refusal(f"as one layer it would store {then:,} values instead of {values:,}")
    return None


PASS = ComposeMaps
PHASE = "fold"
AFTER = "compose_convs"
