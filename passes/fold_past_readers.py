"""y = W*z + b is made as s*y + t = (sW)*z + (sb + t), and V*y as (V/s)*(s*y + t) - V*(t/s): nobody notices.

Turns a batch norm or constant factor whose value is read by others as well into nothing, where these take the inverse.

A batch norm behind a convolution does not fold into it while something else reads the convolution's output, as the
first layer of a squeeze-excite gate does, a second batch norm, or a layer beside. But these may take the inverse on
their input for nothing.

Fires on a batch norm, or a product or quotient with a constant, that would fold backwards if nobody else read the
values on the way, when every other reader takes the inverse exactly.

Refuses when a scale is zero, or so small beside its shift that the value could not be had back with all its digits; and
when the scales of a long residual stream, which multiply, would take its values out of the range of half precision.

Source: linearity; the freedom of an affine between a layer and the next.

    y = conv(z); batch_norm(y) -> relu; conv2(y)        becomes        y = conv'(z); relu(y); conv2'(y)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from reparam.algebra import (
    Affine,
    TwoWays,
    build_two_ways,
    past_readers,
    read_affine,
    read_layer,
    scale_outputs,
    weights,
)
from reparam.ir import BATCH_NORMS, DIVS, MULS, Program, Refusal, arguments, is_call, place_of
from reparam.rewrite import Match, Pattern, Rewrite, op

MOST = 100.0  # times its scale a batch norm's shift may be: two of the seven digits of float32 in that channel
LEAST_WEIGHTS, MOST_WEIGHTS = 2.0**-10, 2.0**10  # the length of a kernel, as values of float16 end at 2^-14 and 2^16


@dataclass(frozen=True)
class Plan:
    """The affine, and the ways that it and its inverse take."""

    affine: Affine
    ways: TwoWays


@dataclass(frozen=True)
class FoldPastReaders:
    """Folds a batch norm or factor backwards past other readers, which take its inverse."""

    name: ClassVar[str] = "fold-past-readers"
    pattern: ClassVar[Pattern] = op(BATCH_NORMS | MULS | DIVS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Looks for both ways; None when one is missing, of which other rules tell."""
        affine = read_affine(program, match.root)
        if not isinstance(affine, Affine):
            return None
        ways = past_readers(program, match.root, affine.x, affine.pair)
        if not isinstance(ways, TwoWays):
            return None
        told = _few_digits(program, match.root) or _out_of_range(program, ways)
        return Refusal(told, match.root) if told else Plan(affine, ways)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The layers before that take the affine, and those beside that take its inverse."""
        layers = ", ".join(f"'{place_of(s)}'" for s in plan.ways.back.takers)
        beside = ", ".join(f"'{place_of(s)}'" for s in plan.ways.ahead.takers)
        replaced = build_two_ways(program, plan.affine.node, plan.affine.x, plan.ways)
        return Rewrite(replaced, f"folded into the output of {layers}; {beside} took the inverse")


def _few_digits(program: Program, node: fx.Node) -> str:
    """Why a value could not be had back from behind a batch norm with enough digits; "" where it could."""
    if not is_call(node, BATCH_NORMS):
        return ""
    args = arguments(node)
    gamma, beta = (program.tensor(args[k]) for k in ("weight", "bias"))
    if beta is None:
        return ""
    scale = torch.ones_like(beta) if gamma is None else gamma.abs()
    worst = float((beta.abs() / scale).max())
    if worst <= MOST:
        return ""
    return f"what else reads the value would lose digits: a shift is {worst:.0f} times the scale of its channel"


def _out_of_range(program: Program, ways: TwoWays) -> str:
    """Why the layers before it would make values that half precision does not hold; "" where they would not."""
    for step in ways.back.steps:
        layer = read_layer(program, step.node) if step.action == "sink" else None
        if layer is None or step.pair.scale is None:
            continue
        rows = scale_outputs(layer.kind, *weights(program, layer), layer.geometry.groups, step.pair.scale, None)[0]
        rows = rows.transpose(0, 1) if layer.kind == "transposed" else rows
        length = float(rows.flatten(1).norm(dim=1).median())
        if not LEAST_WEIGHTS <= length <= MOST_WEIGHTS:
            name = place_of(layer.node)
            return f"scales multiply along these values: the kernels of '{name}' would be {length:.1e} long"
    return ""


PASS = FoldPastReaders
PHASE = "rest"
