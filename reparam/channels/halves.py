"""Gated linear units, which make each channel of two: one is multiplied by the sigmoid of the other.

    y_c = x_c sigmoid(x_(c + n))    for n of the 2 n channels:    zero where x_c is, a constant where both are

Source: Dauphin et al., Language Modeling with Gated Convolutional Networks, ICML 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import arguments, aten, shape_of

from .family import Ask, Builder, Known, Request
from .value import Channels, first_of, unique


def is_glu(node: fx.Node) -> bool:
    """Whether the call is a gated linear unit."""
    return node.target is aten.glu.default


class Halves:
    """Gated linear units along the axis of the channels. Along others nothing is known of them."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        x, axis = _operand(node)
        facts = known.along(x, axis)
        if facts is None or facts.count % 2:
            return None
        (value, gate), (same, as_gate) = facts.constant.chunk(2), facts.first.chunk(2)
        constant = torch.where(value == 0, 0.0, value * gate.sigmoid())  # NaN unless both are known
        return Channels(facts.axes, (len(value),), constant, first_of(same, as_gate))

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        kept = unique(wanted)
        return Ask(kept, {_operand(node)[0]: Request(_both(known, node, kept), ordered=True)})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        x, axis = _operand(node)
        source = torch.arange(builder.known.facts[node].count).repeat(2)
        value = builder.take(x, _both(builder.known, node, kept), like=node, source=source)
        return builder.call(node.target, (value, axis), like=node)


def _operand(node: fx.Node) -> tuple[fx.Node, int]:
    """The value whose halves are multiplied, and along which axis they lie."""
    given = arguments(node)
    return given["self"], int(given["dim"]) % len(shape_of(node))


def _both(known: Known, node: fx.Node, kept: Tensor) -> Tensor:
    """The channels of the operand that these are made of: the factors, then their gates."""
    return torch.cat([kept, kept + known.facts[node].count])
