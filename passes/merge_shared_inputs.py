"""[W1; W2; ...] * x = (W1*x, W2*x, ...): layers of the same kind on one value are one layer and a split.

Turns separate query, key and value layers; pointwise branches of one value with the same activation into one layer and
a split.

Fires on linear layers that read the same value and whose outputs are only rearranged, scaled or multiplied as matrices
afterwards (query, key, value), and on pointwise convolutions of one stride that read the same value and whose outputs
all pass through the same activation (the 1x1 branches of Inception), which then runs once on the whole. What follows
reads a slice as well as it read a whole. The multiply-accumulates are the same; one larger product replaces several
small ones.

Refuses layers on one value whose outputs are used in ways that would turn the split into copies. Says nothing
about one layer called twice: its weight would be stored twice.

Source: block matrices; the usual fusion of query, key and value.

    q = linear(x); k = linear(x); v = linear(x)        becomes        q, k, v = split(linear'(x))
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from reparam.algebra import Layer, read_layer, weights, write_layer
from reparam.ir import ACTIVATIONS, CONVS, LINEARS, MATMULS, MOVEMENTS, Program, Refusal, aten, is_call, place_of
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Plan:
    """The layers that become one, in graph order, and their activations when the split comes after those."""

    layers: tuple[Layer, ...]
    activations: tuple[fx.Node, ...] = ()


@dataclass(frozen=True)
class MergeSharedInputs:
    """Joins linear layers, or pointwise convolutions, that read the same value."""

    name: ClassVar[str] = "merge-shared-inputs"
    pattern: ClassVar[Pattern] = op(LINEARS | CONVS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """The first layer of a group speaks for all of it."""
        first = read_layer(program, match.root)
        if first is None or not _joinable(first):
            return None
        layers = _siblings(program, first)
        tied = len({layer.weight for layer in layers}) < len(layers)
        if len(layers) < 2 or layers[0].node is not match.root or tied:
            return None
        if len({program.constants[str(layer.weight.target)].dtype for layer in layers}) > 1:
            return Refusal("the layers that read its input have weights of different dtypes", match.root)
        if first.kind == "conv":
            activations = _common_activation(layers)
            return Plan(tuple(layers), activations) if activations else _refused(match.root)
        late = next((layer.node for layer in layers if not _only_rearranged(layer.node)), None)
        return Plan(tuple(layers)) if late is None else _refused(late)

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One layer with the rows of all, the activation if there is one, and a split."""
        parts = [weights(program, layer) for layer in plan.layers]
        weight = torch.cat([w for w, _ in parts])
        bias: Tensor | None = None
        if any(b is not None for _, b in parts):
            bias = torch.cat([b if b is not None else w.new_zeros(w.shape[0]) for w, b in parts])
        first = plan.layers[0]
        value = write_layer(program, first, weight, bias)
        outputs = plan.activations or tuple(layer.node for layer in plan.layers)
        if plan.activations:
            value = program.clone(plan.activations[0], {first.node: value}, like=first.node)
        sizes = [layer.out_channels for layer in plan.layers]
        split = program.call(aten.split_with_sizes.default, (value, sizes, first.axis), like=first.node)
        made = {node: program.call(operator.getitem, (split, i), like=first.node) for i, node in enumerate(outputs)}
        return Rewrite(made, f"{len(plan.layers)} layers on one value became one")


def _joinable(layer: Layer) -> bool:
    return layer.pointwise and layer.geometry.groups == 1


def _siblings(program: Program, first: Layer) -> list[Layer]:
    """The layers that read the same value in the same way, in graph order."""
    readers = sorted(u for u in first.x.users if is_call(u, LINEARS | CONVS))
    layers = [layer for u in readers if (layer := read_layer(program, u)) is not None and layer.x is first.x]
    return [p for p in layers if p.kind == first.kind and p.geometry == first.geometry and _joinable(p)]


def _common_activation(layers: Sequence[Layer]) -> tuple[fx.Node, ...]:
    """The activations right after the layers when they are one each and all the same; else nothing."""
    users = [tuple(layer.node.users) for layer in layers]
    if any(len(u) != 1 or not is_call(u[0], ACTIVATIONS) for u in users):
        return ()
    found = tuple(u[0] for u in users)
    alike = {(str(a.target), str(a.args[1:]), str(a.kwargs)) for a in found}
    return found if len(alike) == 1 else ()


def _refused(node: fx.Node) -> Refusal:
    return Refusal(
        f"not joined with the layers beside it: the output of '{place_of(node)}' would have to be copied", node
    )


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


PASS = MergeSharedInputs
PHASE = "late"
AFTER = "rescale_gate"
