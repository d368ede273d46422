"""What a network costs with some of its channels switched off: as the smaller one that `shrink` would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import fx

from reparam.algebra import read_layer
from reparam.channels import ChannelPlan
from reparam.ir import MATMULS, WEIGHTED, arguments, aten, batch_one, is_call, is_float, node_macs, shape_of

from .gated import is_mask

Currency = Literal["macs", "params"]


def cost(plan: ChannelPlan, currency: Currency) -> float:
    """Multiply-accumulates for one sample, or weights, of what is left, as large as it is then.

    Recurrent layers and embeddings, which keep all their channels, count; so do products of values, as in attention.
    """
    return sum(price.left for price in prices(plan, currency))


@dataclass(frozen=True)
class Price:
    """What one call costs: with the channels that are left, and with all."""

    node: fx.Node
    left: float
    whole: float


def prices(plan: ChannelPlan, currency: Currency) -> list[Price]:
    """What the calls cost of which `cost` is the sum; those that cost nothing are left out."""
    program = plan.known.program
    calls = [node for node in program.calls() if node in plan.read]
    if currency == "params":
        return _of_weights(plan, calls)
    env, found = batch_one(program), []
    for node in calls:
        full = node_macs(node, env) / program.samples
        if full:
            share = _share_of_product(plan, node) if is_call(node, MATMULS) else _share_of_layer(plan, node)
            found.append(Price(node, full * share, full))
    return found


def _of_weights(plan: ChannelPlan, calls: Sequence[fx.Node]) -> list[Price]:
    """Of each call the weights that it is the first to read, but for the factors of gates."""
    program, seen, found = plan.known.program, set(), []
    for node in calls:
        if is_mask(program, node):
            continue
        weight = arguments(node)["weight"] if is_call(node, WEIGHTED) else None
        left = full = 0.0
        for read in node.all_input_nodes:
            if read.op != "get_attr" or read.target in seen or not is_float(read):
                continue
            seen.add(read.target)
            count = read.meta["val"].numel()
            full += count
            left += count * (_share_of_layer(plan, node) if read is weight else _share(plan, node))
        if full:
            found.append(Price(node, left, full))
    return found


def _share_of_layer(plan: ChannelPlan, node: fx.Node) -> float:
    """Of the weights of a convolution or linear layer; 1 of other calls, whose channels stay."""
    if not is_call(node, WEIGHTED):
        return 1.0
    layer, share = read_layer(plan.known.program, node), _share(plan, node)
    if layer is not None and not (layer.geometry.groups == layer.in_channels > 1):
        share *= _share(plan, layer.x)
    return share


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
