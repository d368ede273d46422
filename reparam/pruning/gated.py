"""A network with gates: the original's graph, factors of one or zero at its gates, and weights that may be refitted."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from reparam.channels import ChannelPlan, plan_channels
from reparam.errors import InputError
from reparam.ir import ADDS, WEIGHTED, Program, aten, is_call, module_of, place_of, shape_of

from .gates import Finder, Gate, Place, users_of
from .running import set_weight

GATE = ".gate"  # what the names of masks end with
TOLD = 8  # names of layers that are told where a pattern matches none


@dataclass(frozen=True)
class Spot:
    """The product of a value with a mask, the call that makes its channels, and the axis that they lie along.

    parts: how many runs of channels have to lose as many each.
    """

    product: fx.Node
    root: fx.Node
    axis: int
    parts: int


@dataclass
class Gated:
    """The network under way.

    program: its graph with a product at every gate; the weights in it change as channels go. original: the weights that
    it began with, by name. gates: in the order of the graph. spots: where each mask is.
    """

    program: Program
    original: Mapping[str, Tensor]
    gates: tuple[Gate, ...]
    spots: Mapping[str, Spot]

    def mask(self, gate: Gate) -> Tensor:
        """(count,), the factors of a gate."""
        return self.program.constants[gate.masks[0]].value.flatten()

    def set_mask(self, gate: Gate, factors: Tensor) -> None:
        """Sets the factors, (count,), of all values of a gate."""
        for name in gate.masks:
            constant = self.program.constants[name]
            value = factors.to(constant.value.dtype).reshape(constant.value.shape)
            self.program.constants[name] = replace(constant, value=value)

    def masks(self) -> dict[Gate, Tensor]:
        """The factors of all gates, as they are."""
        return {g: self.mask(g).clone() for g in self.gates}

    def put_back(self, masks: Mapping[Gate, Tensor]) -> None:
        """Sets the factors of gates to what they were."""
        for gate, mask in masks.items():
            self.set_mask(gate, mask)

    def set_weight(self, name: str, value: Tensor) -> None:
        """Puts a weight in the place of another."""
        set_weight(self.program, name, value)

    @property
    def reference(self) -> Program:
        """The network as it began, over the same graph."""
        constants = {n: replace(c, value=self.original[n]) for n, c in self.program.constants.items()}
        return replace(self.program, constants=constants)

    @property
    def apart(self) -> bool:
        """Whether samples lie along the first axis of the values of all gates."""
        first = self.program.placeholders[0].meta["val"].shape[0]
        sizes = [s.product.meta["val"].shape[0] for s in self.spots.values()]
        return all(str(n) == str(first) for n in sizes)

    def plan(self) -> ChannelPlan:
        """What every value keeps with the masks as they are."""
        return plan_channels(self.program)

    def masked(self) -> Program:
        """The network by itself: a copy with products only where a channel is switched off."""
        out = self.program.copy()
        drop_open_gates(out)
        return out


def with_gates(program: Program, *, coupled: bool = False, keep: str | None = None) -> Gated:
    """A copy of the program with gates wherever channels can be switched off.

    coupled: whether the channels of a stream go at all its depths together, or at each depth by themselves. keep: a
    pattern; layers whose name it matches lose no channels. Raises InputError where it matches none.
    """
    out = program.copy()
    finder = Finder(out)
    places = finder.find()
    if keep is not None:
        names = {p.value: finder.layers_of(p) for p in places}
        _check_matches(keep, [place_of(n) for n in out.calls() if is_call(n, WEIGHTED)], set().union(*names.values()))
        places = [p for p in places if not any(re.search(keep, name) for name in names[p.value])]
    parts = {p.value: finder.parts_of(p) for p in places}
    streams = _streams(finder, places) if coupled else {p.value: p.value for p in places}
    spots: dict[str, Spot] = {}
    members: dict[fx.Node, list[str]] = {}
    for place in places:
        name, product = _insert(out, place)
        spots[name] = Spot(product, place.root, place.axis, parts[place.value])
        members.setdefault(streams[place.value], []).append(name)
    gates = []
    for masks in members.values():
        first = spots[masks[0]]
        count = shape_of(first.product)[first.axis]
        runs = math.lcm(*(spots[m].parts for m in masks))
        gates.append(Gate(place_of(first.root), tuple(masks), count, runs if count % runs == 0 else count))
    original = {n: c.value for n, c in out.constants.items()}
    return Gated(out, original, tuple(gates), spots)


def is_mask(program: Program, node: fx.Node) -> bool:
    """Whether a call is the product of a value with the factors of a gate."""
    mask = program.constant(node.args[1]) if len(node.args) > 1 else None
    return mask is not None and mask.origin.endswith(GATE)


def drop_open_gates(program: Program) -> None:
    """Takes the products with factors that are all one out of a program."""
    for node in list(program.calls()):
        if not is_mask(program, node):
            continue
        value, mask = node.args[:2]
        assert isinstance(value, fx.Node)
        assert isinstance(mask, fx.Node)
        if bool((program.constants[str(mask.target)].value == 1).all()):
            node.replace_all_uses_with(value)
            program.erase([node, mask] if len(mask.users) == 1 else [node])


def _check_matches(pattern: str, layers: Sequence[str], others: Collection[str]) -> None:
    """others: sums and the like, whose names may be given too."""
    if not any(re.search(pattern, name) for name in (*layers, *others)):
        more = ", ..." if len(layers) > TOLD else ""
        raise InputError(f"keep is '{pattern}', which matches no layer; there are {', '.join(layers[:TOLD])}{more}")


def _insert(program: Program, place: Place) -> tuple[str, fx.Node]:
    """Puts a product with ones behind a value; the name of the ones, and the product."""
    sizes = [1] * len(shape_of(place.value))
    sizes[place.axis] = shape_of(place.value)[place.axis]
    behind, users = place.value.next, users_of(place.value)
    mask = program.weight(torch.ones(sizes), f"{place_of(place.root)}{GATE}", trainable=False, like=behind)
    name = str(mask.target)
    constant = program.constants[name]  # ones and zeros are exact in every dtype
    program.constants[name] = replace(constant, value=constant.value.to(constant.dtype))
    product = program.call(aten.mul.Tensor, (place.value, mask), like=behind)
    product.meta["module"] = module_of(place.value)
    for user in users:
        user.replace_input_with(place.value, product)
    return name, product


def _streams(finder: Finder, places: Sequence[Place]) -> dict[fx.Node, fx.Node]:
    """For each place the first of its stream: of those that sums connect, and whose channels are as many."""
    roots = {p.root: p.value for p in places}
    made = {p.value: p.root for p in places}
    first: dict[fx.Node, fx.Node] = {p.value: p.value for p in places}

    def find(x: fx.Node) -> fx.Node:
        while first[x] is not x:
            x = first[x]
        return x

    def back(x: fx.Node) -> fx.Node | None:
        """The place whose channels an operand of a sum has."""
        while x not in first:
            if finder.makes_channels(x):
                return roots.get(x)
            operands = finder.operands(x)
            if len(operands) != 1 or not finder.keeps_apart(operands[0], x):
                return None
            x = operands[0]
        return x

    for value, root in made.items():
        if not is_call(root, ADDS):
            continue
        for operand in root.all_input_nodes:
            other = back(operand) if operand.meta["data"] else None
            if other is not None and finder.facts[other].count == finder.facts[value].count:
                first[find(value)] = find(other)
    return {v: find(v) for v in first}
