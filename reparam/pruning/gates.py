"""Where channels of a network can be switched off: gates, found from the graph.

A gate is the channels of one value, or of all depths of a stream, each with a factor of one or zero. It stands where
a layer's channels are made: behind a layer, and behind what works on each of its channels by itself (an activation, a
depthwise convolution, a pool); behind a sum, whose channels are a stream's at this depth; behind attention; and in
front of a layer that reads a concatenation, where a depth may do without channels that others need.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from reparam.algebra import Layer, read_layer
from reparam.channels import Channels, is_glu, plan_channels
from reparam.ir import (
    ADDS,
    CATS,
    MATMULS,
    MULS,
    SUBS,
    WEIGHTED,
    Program,
    aten,
    is_call,
    op_name,
    place_of,
)

_TOGETHER = frozenset({"layer_norm", "group_norm", "instance_norm", "softmax", "_softmax"})


@dataclass(frozen=True)
class Gate:
    """Channels that can be switched off.

    name: of the layer or the sum that makes them. masks: the weights that hold their factors, one for each value;
    count: of the channels. parts: equal runs of channels that have to lose as many each, as the groups of a
    convolution and the heads of an attention do.
    """

    name: str
    masks: tuple[str, ...]
    count: int
    parts: int = 1


@dataclass(frozen=True)
class Place:
    """A value that gets a gate, the axis of its channels, and the call that makes them."""

    value: fx.Node
    axis: int
    root: fx.Node


class Finder:
    """Finds the places of gates in a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.facts: Mapping[fx.Node, Channels] = plan_channels(program).known.facts
        self.places: dict[fx.Node, Place] = {}

    def find(self) -> list[Place]:
        """The places, in the order of the graph."""
        for node in self.program.calls():
            if self.makes_channels(node):
                self._place(node)
        for node in self.program.calls():
            layer = dense_layer(self.program, node)
            if layer is not None and layer.x not in self.places:
                self._place_reader(layer)
        order = {n: i for i, n in enumerate(self.program.graph.nodes)}
        return sorted(self.places.values(), key=lambda p: order[p.value])

    def makes_channels(self, node: fx.Node) -> bool:
        if node not in self.facts:
            return False
        if dense_layer(self.program, node) is not None or node.target is aten.scaled_dot_product_attention.default:
            return True
        return is_glu(node) or (is_call(node, ADDS | SUBS | MULS) and len(self.operands(node)) > 1)

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """The operands that depend on the inputs."""
        return [x for x in node.all_input_nodes if x.meta["data"] and isinstance(x.meta.get("val"), Tensor)]

    def _place(self, root: fx.Node) -> None:
        end = last = root
        readers = users_of(last)
        while len(readers) == 1 and self.keeps_apart(last, readers[0]):
            last = readers[0]
            readers = users_of(last)
            if len(self.facts[last].axes) == 1:
                end = last
        if len(self.facts[end].axes) != 1 or any(self._covers(u) for u in readers if len(readers) == 1):
            return
        if is_call(root, MULS) and any(self._made_by(x) in self.places for x in self.operands(root)):
            return
        if not self._reaches_output(end):
            self.places[end] = Place(end, self.facts[end].axes[0], root)

    def _covers(self, user: fx.Node) -> bool:
        """Whether the only reader of a value is one that gets a gate for the same channels."""
        return user in self.facts and self.makes_channels(user) and not is_call(user, WEIGHTED)

    def _made_by(self, x: fx.Node) -> fx.Node:
        """The nearest value with a gate that the channels of `x` are made from, `x` itself without one."""
        start = x
        while x not in self.places:
            operands = [o for o in self.operands(x) if o in self.facts]
            if len(operands) != 1 or self.makes_channels(x) or not self.keeps_apart(operands[0], x):
                return start
            x = operands[0]
        return x

    def keeps_apart(self, x: fx.Node, user: fx.Node) -> bool:
        """Whether the call makes each channel of its one operand into one channel."""
        if user not in self.facts or self.makes_channels(user) or is_call(user, CATS):
            return False
        return self.operands(user) == [x] and self.facts[user].count == self.facts[x].count

    def _place_reader(self, layer: Layer) -> None:
        """In front of a layer that reads a concatenation through calls of its own."""
        x, first = layer.x, layer.x
        while not is_call(first, CATS):
            operands = self.operands(first) if first in self.facts else []
            if len(operands) != 1 or operands[0] not in self.facts or not self.keeps_apart(operands[0], first):
                return
            first = operands[0]
        if x in self.facts and self.facts[x].axes == (layer.in_axis,):
            self.places[x] = Place(x, layer.in_axis, first)

    def layers_of(self, place: Place) -> set[str]:
        """The names of the layers that make the channels of a place, through sums, or that read them."""
        return {place_of(n) for n in (place.root, place.value, *self._layers_around(place))}

    def _layers_around(self, place: Place) -> list[fx.Node]:
        found = []
        for forwards in (False, True):
            stack, seen = [place.value if forwards else place.root], {place.value, place.root}
            while stack:
                node = stack.pop()
                if read_layer(self.program, node) is not None:
                    found.append(node)
                    if dense_layer(self.program, node) is not None:
                        continue
                following = users_of(node) if forwards else self.operands(node)
                stack += [n for n in following if n not in seen and n.op == "call_function"]
                seen.update(following)
        return found

    def parts_of(self, place: Place) -> int:
        """How many runs of channels have to lose as many each: heads, and groups of the layers around the place."""
        facts = self.facts[place.root]
        found = facts.sizes[0] if len(facts.axes) > 1 else 1
        for node in self._layers_around(place):
            layer = read_layer(self.program, node)
            groups = layer.geometry.groups if layer is not None else 1
            if layer is not None and dense_layer(self.program, node) is not None and groups > 1:
                found = math.lcm(found, groups)
        return found

    def _reaches_output(self, value: fx.Node) -> bool:
        """Whether an output has the channels of `value`, or what is made of each by itself."""
        stack, seen = [value], {value}
        while stack:
            for user in stack.pop().users:
                if user.op == "output":
                    return True
                mixes = (
                    dense_layer(self.program, user) is not None or is_call(user, MATMULS) or op_name(user) in _TOGETHER
                )
                if user not in seen and not mixes:
                    seen.add(user)
                    stack.append(user)
        return False


def users_of(node: fx.Node) -> list[fx.Node]:
    """The calls that read a value, and not its sizes alone."""
    return [u for u in node.users if isinstance(u.meta.get("val"), Tensor) or u.op == "output"]


def dense_layer(program: Program, node: fx.Node) -> Layer | None:
    """A layer that mixes channels; None for a depthwise one, and for what is no layer with constant weights."""
    layer = read_layer(program, node) if is_call(node, WEIGHTED) else None
    if layer is None or layer.geometry.groups == layer.in_channels > 1:
        return None
    return layer
