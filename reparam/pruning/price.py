"""What a network costs with some of its channels switched off: as the smaller one that `shrink` would make of it."""

from __future__ import annotations

from typing import Literal

from torch import fx

from reparam.algebra import read_layer
from reparam.channels import ChannelPlan
from reparam.ir import WEIGHTED, arguments, batch_one, is_call, node_macs

Currency = Literal["macs", "params"]


def cost(plan: ChannelPlan, currency: Currency) -> float:
    """Multiply-accumulates for one sample, or weights, of the layers that are left, as large as they are then."""
    program, total = plan.known.program, 0.0
    env = batch_one(program)
    for node in program.calls():
        if node not in plan.read or not is_call(node, WEIGHTED):
            continue
        full = float(node_macs(node, env))
        layer = read_layer(program, node)
        if currency == "params":
            given = arguments(node)
            full = float(given["weight"].meta["val"].numel())
        share = _share(plan, node)
        if layer is not None and not (layer.geometry.groups == layer.in_channels > 1):
            share *= _share(plan, layer.x)
        total += full * share
    return total / (program.samples if currency == "macs" else 1)


def _share(plan: ChannelPlan, node: fx.Node) -> float:
    """Of the channels of a value, those that are kept."""
    facts = plan.known.of(node)
    if facts is None or not facts.count:
        return 1.0
    return plan.kept[node].numel() / facts.count if node in plan.kept else 1.0
