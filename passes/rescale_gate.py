"""a*(g(x)*x) with x = W*z + b is g'(x')*x' with x' = (aW)*z + ab, where g' reads its input divided by a.

Turns a constant factor behind a squeeze-excite gate into nothing.

A constant factor behind a gate has no way out: the value that it scales is also what the gate is computed from. But the
first layer of the gate takes 1/a on its input for nothing, so the layer before the gate takes a.

Fires on a product (or quotient) with a constant whose operand comes from a layer, through products with data, when
everything else that reads that layer takes the inverse factor exactly.

Refuses when some user does not take it, naming it, or when a factor is zero.

Source: linearity; the freedom of scale between a layer and the next.

    y = conv(z); mul(mul(y, gate(mean(y))), 0.2)        becomes        y = conv'(z); mul(y, gate'(mean(y)))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, fx

from reparam.algebra import (
    Affine,
    Layer,
    Pair,
    Route,
    along,
    execute,
    forward_all,
    read_affine,
    read_layer,
    scale_outputs,
    weights,
    write_layer,
)
from reparam.ir import DIVS, MULS, Program, Refusal, is_call, is_float, place_of, shape_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The product, the layer that takes the factor, the products in between (the last first), and the others' way."""

    root: fx.Node
    layer: Layer
    between: tuple[fx.Node, ...]
    scale: Tensor
    route: Route


@dataclass(frozen=True)
class RescaleGate:
    """Moves a constant factor behind a gate into the layer before it."""

    name: ClassVar[str] = "rescale-gate"
    pattern: ClassVar[Pattern] = op(MULS | DIVS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Climbs to the layer; Refusal when what else reads it does not take the inverse."""
        affine = read_affine(program, match.root)
        if not isinstance(affine, Affine):
            return None
        scale, found = affine.pair.scale, _layer_behind(program, affine.x)
        if scale is None or found is None:
            return None
        layer, between = found
        if bool((scale == 0).any()):
            return Refusal("a factor of zero cannot be taken back from the gate", match.root)
        try:
            along(scale, layer.axis)
        except ValueError:
            return None
        route = forward_all(program, {layer.node: Pair(scale.reciprocal())}, leaving=between[-1:])
        if isinstance(route, Refusal):
            return Refusal(f"the factor stays behind its gate: {route.located}", match.root)
        return Plan(match.root, layer, between, scale, route)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The scaled layer, the products on it, and the layers that take the inverse."""
        layer = plan.layer
        scale = along(plan.scale, layer.axis)
        assert scale is not None
        scale = scale.expand(layer.out_channels)
        weight, bias = scale_outputs(layer.kind, *weights(program, layer), layer.geometry.groups, scale, None)
        made = {layer.node: write_layer(program, layer, weight, bias)}
        for node in reversed(plan.between):
            made[node] = program.clone(node, made)
        product = made[plan.between[0]]
        execute(program, plan.route, made)
        sinks = {s: made[s] for s in plan.route.sinks}
        return Rewrite({plan.root: product} | sinks, f"folded into '{place_of(layer.node)}' before the gate")


def _layer_behind(program: Program, x: fx.Node) -> tuple[Layer, tuple[fx.Node, ...]] | None:
    """The layer with several users that makes `x`, and the products with data on the way, the last first."""
    if not is_call(x, MULS) or len(x.users) > 1 or not all(is_float(i) and i.meta["data"] for i in x.args):  # type: ignore[union-attr]
        return None
    for side in x.all_input_nodes:
        if shape_of(side) != shape_of(x):
            continue
        layer = read_layer(program, side)
        if layer is not None and len(side.users) > 1:
            return layer, (x,)
        found = _layer_behind(program, side)
        if found is not None:
            return found[0], (x, *found[1])
    return None


PASS = RescaleGate
PHASE = "late"
AFTER = "rescale_skip"
