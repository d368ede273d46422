"""conv(pad(x), padding=p) = conv(x, padding=p+q): a zero pad in front of a convolution is its own padding.

Turns a zero pad before a convolution into its padding.

Fires on a constant zero pad of the spatial axes, as much before as behind on each axis, that only a convolution reads.

Refuses an uneven pad, which a convolution cannot express. Says nothing about other padding modes.

Source: the definition of zero padding.

    pad([1, 1, 1, 1]) -> conv3x3        becomes        conv3x3(padding=1)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from reparam.algebra import Layer, conv_call, read_layer, zero_padding
from reparam.ir import CONVS, PADS, Program, Refusal, arguments, op_name
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The convolution, the padded value, and the padding on both ends of each spatial axis."""

    layer: Layer
    x: fx.Node
    padding: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FoldPadding:
    """Moves a zero pad into the convolution after it."""

    name: ClassVar[str] = "fold-padding"
    pattern: ClassVar[Pattern] = op(CONVS, op(PADS, name="pad"))

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Adds up both paddings."""
        layer, pad = read_layer(program, match.root), match.nodes["pad"]
        if layer is None:
            return None
        extra = zero_padding(pad)
        if extra is None:
            return None
        total = tuple((a + c, b + d) for (a, b), (c, d) in zip(layer.geometry.padding, extra, strict=True))
        if any(low != high or low < 0 for low, high in total):
            return Refusal(
                f"the {op_name(pad)} before it is uneven ({extra}), which a convolution cannot express", match.root
            )
        return Plan(layer, arguments(pad)["self"], total)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The same weights with another padding."""
        layer = plan.layer
        geometry = replace(layer.geometry, padding=plan.padding)
        new = conv_call(program, plan.x, layer.weight, layer.bias, geometry, like=layer.node)
        return Rewrite({layer.node: new}, "took over the zero pad before it")


PASS = FoldPadding
PHASE = "fold"
AFTER = "merge_branches"
