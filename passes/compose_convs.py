"""W2*(W1*x + b1) + b2 = (W2 o W1)*x + (b2 + sum W2 b1): two linear layers in a row are one.

Turns two linear layers in a row, when that is not dearer into one layer.

Fires on a convolution after a convolution, or a linear layer after a linear layer, when nothing else reads the value in
between and the composition costs no more multiply-accumulates. The composite kernel of k1 and k2 taps has
k1 + stride1*(k2 - 1); groups become their greatest common divisor.

Refuses when the composition would cost more, with the numbers; when the second layer is zero-padded and the
first is not a pointwise one; when the first one's bias would meet the second one's zero padding.

Source: associativity of convolution; Ding et al. 2021 (Diverse Branch Block, transform III).

    conv1x1 -> conv3x3        becomes        conv3x3'
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from reparam.algebra import (
    Branch,
    Layer,
    Link,
    Term,
    build_term,
    compose_windows,
    layer_window,
    read_layer,
    write_layer,
)
from reparam.ir import CONVS, LINEARS, Program, Refusal, batch_one, node_macs, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The two layers and their composition."""

    first: Layer
    second: Layer
    term: Term


@dataclass(frozen=True)
class ComposeConvs:
    """Composes two convolutions or two linear layers in a row."""

    name: ClassVar[str] = "compose-convs"
    pattern: ClassVar[Pattern] = op(CONVS | LINEARS, op(CONVS | LINEARS, name="first"))

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Compares the price first, so that no weights are touched for a composition that would not pay."""
        second, first = read_layer(program, match.root), read_layer(program, match.nodes["first"])
        if first is None or second is None or first.kind != second.kind or len(first.node.users) > 1:
            return None
        window = compose_windows(layer_window(first), layer_window(second))
        if isinstance(window, Refusal):
            return Refusal(f"not composed with '{place_of(first.node)}': {window.reason}", match.root)
        now, then = _price(program, first, second, window.size)
        if then > now:
            cost = f"would cost {then:,} multiply-accumulates instead of {now:,}"
            return Refusal(f"composing it with '{place_of(first.node)}' {cost}", match.root)
        links = (Link(first.node, layer=first), Link(second.node, layer=second))
        ndim = len(first.kernel)
        axis = 1 if ndim else len(shape_of(first.x)) - 1
        term = build_term(program, Branch(first.x, links), ndim, axis)
        if isinstance(term, Refusal):
            return Refusal(f"not composed with '{place_of(first.node)}': {term.reason}", match.root)
        return Plan(first, second, term)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One layer on the first one's input."""
        term = plan.term
        geometry = term.window.geometry(term.groups)
        new = write_layer(program, plan.second, term.weight, term.bias, x=plan.first.x, geometry=geometry)
        return Rewrite({plan.second.node: new}, f"composed with '{place_of(plan.first.node)}'")


def _price(program: Program, first: Layer, second: Layer, size: tuple[int, ...]) -> tuple[int, int]:
    env = batch_one(program)
    now = node_macs(first.node, env) + node_macs(second.node, env)
    groups = math.gcd(first.geometry.groups, second.geometry.groups)
    then = math.prod(shape_of(second.node, env)) * (first.in_channels // groups) * math.prod(size)
    return now, then


PASS = ComposeConvs
PHASE = "fold"
AFTER = "fold_padding"
