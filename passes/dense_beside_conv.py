"""D x + W * x = (D + T(W)) x: a convolution beside a dense layer over the same patch is part of that layer.

Turns a dense layer over all positions of a map, and convolutions of the same map into one dense layer, when that costs
less.

Over a map of fixed size a convolution is a matrix as well, T(W), with the kernel in each row. Where the dense layer is
grouped, and the convolution has the same groups, so has their sum.

Fires on a sum of two chains of convolutions, linear layers, reshapes, permutes and arithmetic with constants, each read
once and both from one value of fixed size, of which one is a dense layer over positions.

Refuses nothing: where one dense layer costs more than both, they stay.

Source: linearity; Ding et al., "RepMLP" (2021).

    view(linear(flatten(x))) + conv3x3(x)        becomes        view(linear'(flatten(x)))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from reparam.algebra import SampleMap, data_operand, keeps_samples, map_of, matrix_of
from reparam.ir import (
    CONVS,
    LINEARS,
    MATMULS,
    Program,
    arguments,
    aten,
    batch_one,
    free_shape,
    is_call,
    is_float,
    node_macs,
    shape_of,
)
from reparam.rewrite import Match, Pattern, Rewrite, op

_PRODUCTS = CONVS | LINEARS | MATMULS
_MOST_VALUES = 2**23  # of the matrix of the sum


@dataclass(frozen=True)
class Plan:
    """The sum with both chains as one map, its matrix, bias and groups."""

    map: SampleMap
    weight: Tensor
    bias: Tensor | None
    groups: int


@dataclass(frozen=True)
class DenseBesideConv:
    """Merges convolutions into a dense layer over the same patch."""

    name: ClassVar[str] = "dense-beside-conv"
    pattern: ClassVar[Pattern] = op(frozenset({aten.add.Tensor}))

    def check(self, program: Program, match: Match) -> Plan | None:
        """Both chains, their matrix, and whether it is cheaper."""
        root = match.root
        found = _both_chains(program, root)
        if found is None:
            return None
        x, steps = found
        made = map_of(x, steps) if math.prod(shape_of(x)[2:]) > 1 else None
        if made is None or made.axes != (0, 0) or math.prod(made.size) > _MOST_VALUES:
            return None
        env = batch_one(program)
        before = sum(node_macs(n, env) for n in steps)
        most = max(_groups(n) for n in steps)
        if math.prod(made.size) > most * before:
            return None
        weight, bias = matrix_of(program, made)
        groups = _blocks(weight, most)
        return Plan(made, weight, bias, groups) if math.prod(made.size) <= groups * before else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The dense layer between a flattening and its undoing; a pointwise convolution where it has groups."""
        root, x = plan.map.steps[-1], plan.map.x
        origin = next(
            c.origin for n in plan.map.steps for i in n.all_input_nodes if (c := program.constant(i)) is not None
        )
        flat = program.call(aten.flatten.using_ints, (x, 1), like=root)
        weight, groups = plan.weight, plan.groups
        if groups > 1:
            rows = weight.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
            weight = torch.stack([rows[g, :, g] for g in range(groups)]).flatten(0, 1)[..., None, None]
            flat = program.call(aten.unflatten.int, (flat, 1, [plan.map.size[0], 1, 1]), like=root)
        parameters = [program.weight(weight, origin, like=root)]
        if plan.bias is not None:
            parameters.append(program.weight(plan.bias, f"{origin}.bias", like=root))
        if groups > 1:
            bias = parameters[1] if len(parameters) > 1 else None
            geometry = ([1, 1], [0, 0], [1, 1], groups)
            y = program.call(aten.conv2d.default, (flat, parameters[0], bias, *geometry), like=root)
            y = program.call(aten.flatten.using_ints, (y, 1), like=root)
        else:
            y = program.call(aten.linear.default, (flat, *parameters), like=root)
        y = program.call(aten.unflatten.int, (y, 1, list(shape_of(root)[1:])), like=root)
        count = sum(is_call(n, _PRODUCTS) for n in plan.map.steps)
        return Rewrite({root: y}, f"{count} layers over one patch became one dense layer")


def _both_chains(program: Program, root: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    """The value that both sides come from, and the steps of both with the sum, in order."""
    args = arguments(root)
    sides = [args["self"], args["other"]]
    if args["alpha"] != 1 or not all(map(is_float, sides)):
        return None
    shape, *others = (free_shape(n) for n in (root, *sides))
    if len(shape) < 3 or any(other != shape for other in others):
        return None
    ways = [_chain(program, side) for side in sides]
    shared = next((x for x in ways[0] if x in ways[1]), None)
    if shared is None:
        return None
    chains = [way[: way.index(shared)] for way in ways]
    if not any(_is_dense(n) for c in chains for n in c) or not all(
        any(is_call(n, _PRODUCTS) for n in c) for c in chains
    ):
        return None
    return shared, [*sorted(n for c in chains for n in c), root]


def _chain(program: Program, node: fx.Node) -> list[fx.Node]:
    """The value, and what it comes from by linear steps of one sample, each read once; the last is read as it is."""
    found = [node]
    while keeps_samples(program, found[-1]) and len(found[-1].users) == 1:
        before = data_operand(program, found[-1])
        assert before is not None
        found.append(before)
    return found


def _is_dense(node: fx.Node) -> bool:
    """A linear layer, or a pointwise convolution of a map of one position."""
    if is_call(node, LINEARS):
        return True
    return is_call(node, CONVS) and all(n == 1 for n in shape_of(node)[2:])


def _groups(node: fx.Node) -> int:
    return int(arguments(node)["groups"]) if is_call(node, CONVS) else 1


def _blocks(weight: Tensor, most: int) -> int:
    """How many equal blocks on its diagonal hold all of the matrix, at most `most`."""
    for groups in range(most, 1, -1):
        if weight.shape[0] % groups or weight.shape[1] % groups:
            continue
        rows = weight.unflatten(0, (groups, -1)).unflatten(2, (groups, -1))
        outside = 1 - torch.eye(groups, dtype=weight.dtype, device=weight.device)
        if not bool((rows * outside[:, None, :, None]).any()):
            return groups
    return 1


PASS = DenseBesideConv
PHASE = "fold"
AFTER = "compose_maps"
