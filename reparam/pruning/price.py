"""What a network costs with some of its channels switched off: as the smaller one that `shrink` would make of it."""

from __future__ import annotations

from typing import Literal

from torch import fx

from reparam.algebra import read_layer
from reparam.channels import ChannelPlan
from reparam.ir import MATMULS, WEIGHTED, arguments, aten, batch_one, is_call, is_float, node_macs, shape_of

Currency = Literal["macs", "params"]


def cost(plan: ChannelPlan, currency: Currency) -> float:
    """Multiply-accumulates for one sample, or weights, of the layers that are left, as large as they are then.

    Products of values, as in attention, count for multiply-accumulates.
    """
    program, total = plan.known.program, 0.0
    env = batch_one(program)
    for node in program.calls():
        if node in plan.read and currency == "macs" and is_call(node, MATMULS):
            total += node_macs(node, env) * _share_of_product(plan, node)
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


def _share_of_product(plan: ChannelPlan, node: fx.Node) -> float:
    """Of the multiply-accumulates of a product of values: queries with keys, and what that weighs with values."""
    operands = [x for x in node.args if isinstance(x, fx.Node) and is_float(x)]
    shares = [_share(plan, x) for x in operands]
    if node.target is not aten.scaled_dot_product_attention.default:
        return min(shares, default=1.0)
    q, v = (shape_of(operands[i])[-1] for i in (0, 2))
    return (q * shares[0] + v * shares[2]) / (q + v)


def _share(plan: ChannelPlan, node: fx.Node) -> float:
    """Of the channels of a value, those that are kept."""
    facts = plan.known.of(node)
    if facts is None or not facts.count:
        return 1.0
    return plan.kept[node].numel() / facts.count if node in plan.kept else 1.0
