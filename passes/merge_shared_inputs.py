"""[W1; W2; ...] * x = (W1*x, W2*x, ...): layers of the same kind on one value are one layer and a split.

Fires on linear layers that read the same value and whose outputs are only rearranged, scaled or multiplied as matrices
afterwards (query, key, value): these read a slice as well as a whole. The multiply-accumulates are the same; one larger
product replaces several small ones. Convolutions are left apart: their slices would be copied before the activation
that follows, which costs more than the larger product saves.

Refuses (Missed) layers on one value whose outputs are used in ways that would turn the split into copies. Says nothing
about one layer called twice: its weight would be stored twice.

Source: block matrices; the usual fusion of query, key and value.

    q = linear(x); k = linear(x); v = linear(x)        becomes        q, k, v = split(linear'(x))
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from reparam.layers import Layer, read_layer, weights, write_layer
from reparam.ops import LINEARS, MATMULS, MOVEMENTS, aten, is_call
from reparam.program import Program, shape_of
from reparam.rule import Match, Missed, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The layers that become one, in graph order."""

    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class MergeSharedInputs:
    """Joins linear layers that read the same value."""

    name: ClassVar[str] = "merge-shared-inputs"
    pattern: ClassVar[Pattern] = op(LINEARS)

    def check(self, program: Program, match: Match) -> Plan | Missed | None:
        """The first layer of a group speaks for all of it."""
        first = read_layer(program, match.root)
        if first is None:
            return None
        readers = sorted(u for u in first.x.users if is_call(u, LINEARS))
        layers = [layer for u in readers if (layer := read_layer(program, u)) is not None and layer.x is first.x]
        tied = len({layer.weight for layer in layers}) < len(layers)
        if len(layers) < 2 or layers[0].node is not match.root or tied:
            return None
        dtypes = {program.constants[str(layer.weight.target)].dtype for layer in layers}
        if len(dtypes) > 1:
            return Missed(match.root, "the layers that read its input have weights of different dtypes")
        late = next((layer.node for layer in layers if not _only_rearranged(layer.node)), None)
        if late is not None:
            where = late.meta.get("module") or late.name
            return Missed(
                match.root, f"not joined with its siblings: the output of '{where}' would have to be copied out"
            )
        return Plan(tuple(layers))

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One layer with the rows of all, and a split."""
        parts = [weights(program, layer) for layer in plan.layers]
        weight = torch.cat([w for w, _ in parts])
        bias: Tensor | None = None
        if any(b is not None for _, b in parts):
            bias = torch.cat([b if b is not None else w.new_zeros(w.shape[0]) for w, b in parts])
        first = plan.layers[0]
        joint = write_layer(program, first, weight, bias)
        sizes = [layer.out_channels for layer in plan.layers]
        split = program.call(aten.split_with_sizes.default, (joint, sizes, len(shape_of(joint)) - 1), like=first.node)
        made: dict[fx.Node, fx.Node] = {}
        for i, layer in enumerate(plan.layers):
            made[layer.node] = program.call(operator.getitem, (split, i), like=first.node)
        return Rewrite(made, f"{len(plan.layers)} layers on one value became one")


def _only_rearranged(node: fx.Node) -> bool:
    """True when every use is a reshape, permute or matrix product, which reads a slice as well as a whole."""
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if is_call(user, MATMULS):
            continue
        if not is_call(user, MOVEMENTS | {aten.mul.Tensor}):
            return False
        stack.extend(user.users)
    return True
