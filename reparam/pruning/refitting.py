"""Refits the weights of a network whose channels were switched off, layer by layer, to what the original gives.

Layers are taken in the order of the graph. Each reads what the network with its new weights gives in front of it, and
is fitted by least squares to what the original layer gives, before the activation. A layer whose result is added to
something that is known by then is fitted to (sum of the original) - (what is added here), so that errors that came
along the other branch are made good. Where the activation behind is flat (a ReLU below zero), any value there is as
good: the target is moved to what the layer gives, and the fit is repeated. Both networks run side by side, batch by
batch, each call once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import Layer, read_layer
from reparam.channels import ChannelPlan
from reparam.ir import ACTIVATIONS, ADDS, WEIGHTED, Program, arguments, is_call, op_name, place_of, shape_of

from .equations import RIDGE, Equations, as_rows, columns_of, from_rows, rows_of
from .frontier import Frontier
from .gated import Gated
from .gates import users_of
from .running import advance, feed_of

ROWS = 1 << 16  # rows of a layer's equations, at most, ...
SQUARES = 2e10  # ... as few as keep rows * columns^2 below this ...
TARGETS = 1 << 25  # ... and rows * output channels below this, ...
LEAST = 6  # ... but so many for each column
GATE = 3  # fits that follow the first where the activation has a flat part
_ROWS = ("columns", "target", "beside")  # that are kept for these


@dataclass(frozen=True)
class Fitted:
    """What refitting did to one layer. rows: of its equations. columns: its unknowns for each output channel."""

    name: str
    rows: int
    columns: int


def refit_layers(
    gated: Gated,
    batches: Callable[[], Iterable[Sequence[Tensor]]],
    *,
    ridge: float = RIDGE,
    gate: int = GATE,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> list[Fitted]:
    """Refits all layers of `gated` in place. batches: gives the same batches of inputs each time it is called."""
    layers = layers_to_fit(gated.program)
    with Frontier() as frontier:
        walk = _Walk(gated, frontier, batches())
        found = []
        for i, layer in enumerate(layers):
            tell(i, len(layers))
            found.append(walk.fit(layer, ridge, gate))
        tell(len(layers), len(layers))
        return found


def layers_to_fit(program: Program) -> list[Layer]:
    """The layers whose weights can be refitted, in the order of the graph: each with weights of its own."""
    return [layer for n in program.calls() if (layer := _fits(program, n)) is not None]


def _fits(program: Program, node: fx.Node) -> Layer | None:
    layer = read_layer(program, node) if is_call(node, WEIGHTED) else None
    if layer is None or not node.meta["data"] or not layer.x.meta["data"]:
        return None
    shared = len(users_of(layer.weight)) > 1 or (layer.bias is not None and len(users_of(layer.bias)) > 1)
    return None if shared else layer


class _Side:
    """One of the two networks, chunk by chunk at the same place of the graph."""

    def __init__(self, program: Program, frontier: Frontier, name: str) -> None:
        self.program, self.frontier, self.name = program, frontier, name
        self.nodes = [n for n in program.graph.nodes if n.op != "placeholder"]
        place = {n: i for i, n in enumerate(self.nodes)}
        self.last = {n: max((place[u] for u in n.users), default=-1) for n in program.graph.nodes}
        self.place = place
        self.done = 0
        self.kept: set[fx.Node] = set()

    def take_in(self, chunk: int, inputs: Sequence[Tensor]) -> None:
        """Keeps the inputs of a chunk."""
        for node, value in zip(self.program.placeholders, feed_of(self.program, inputs), strict=True):
            self.kept.add(node)
            self.frontier.put((self.name, chunk, node), value)

    def move(self, chunk: int, stop: int, wanted: Collection[fx.Node]) -> dict[fx.Node, Any]:
        """Computes one chunk up to place `stop`, keeps what is read there or later, and returns what is `wanted`."""
        segment = self.nodes[self.done : stop]
        env: dict[fx.Node, Any] = {}
        for node in dict.fromkeys((*(x for n in segment for x in n.all_input_nodes), *wanted)):
            if node in self.kept:
                env[node] = self.frontier.get((self.name, chunk, node))
            elif node.op == "get_attr" and self.place[node] < self.done:
                advance(self.program, (node,), env)
        for node in segment:
            advance(self.program, (node,), env)
            for x in {node, *node.all_input_nodes}:
                if self.last[x] <= self.place[node] and x not in wanted:
                    env.pop(x, None)
        for node in segment:
            if node in env and node.op == "call_function" and self.last[node] >= stop:
                self.frontier.put((self.name, chunk, node), env[node])
        for node in self.kept:
            if self.last[node] < stop:
                self.frontier.drop((self.name, chunk, node))
        return {n: env[n] for n in wanted}

    def moved(self, stop: int) -> None:
        """All chunks have come to `stop`."""
        made = {n for n in self.nodes[self.done : stop] if n.op == "call_function"}
        self.kept = {n for n in self.kept | made if self.last[n] >= stop}
        self.done = stop


@dataclass(frozen=True)
class Alive:
    """The numbers of a layer's rows and input channels (within a group) that are not switched off."""

    rows: Tensor
    columns: Tensor


def alive_in(plan: ChannelPlan, layer: Layer) -> Alive:
    """What is left of a layer: rows that somebody needs, and those equal to them; channels that are not zero."""
    rows = torch.arange(layer.out_channels)
    columns = torch.arange(layer.in_channels // layer.geometry.groups)
    if layer.geometry.groups > 1:
        return Alive(rows, columns)
    x, y = plan.known.of(layer.x), plan.known.of(layer.node)
    if x is not None and x.axes == (layer.in_axis,):
        columns = (x.constant != 0).nonzero().flatten()
    if y is not None and y.axes == (layer.axis,) and layer.node in plan.kept:
        rows = torch.isin(y.first, plan.kept[layer.node]).nonzero().flatten()
    return Alive(rows, columns)


class _Walk:
    """Both networks, layer by layer."""

    def __init__(self, gated: Gated, frontier: Frontier, batches: Iterable[Sequence[Tensor]]) -> None:
        self.gated, self.frontier, self.plan = gated, frontier, gated.plan()
        self.new, self.old = _Side(gated.program, frontier, "new"), _Side(gated.reference, frontier, "old")
        self.chunks: list[int] = []
        for i, inputs in enumerate(batches):
            self.chunks.append(len(inputs[0]))
            self.new.take_in(i, inputs)
            self.old.take_in(i, inputs)

    def fit(self, layer: Layer, ridge: float, gate: int) -> Fitted:
        """Fits what is alive of one layer; both networks move up to it."""
        alive = alive_in(self.plan, layer)
        weight, bias = self._weights(layer)
        part = weight[alive.rows][:, alive.columns]
        shift = None if bias is None else bias[alive.rows]
        if not part.numel():
            return Fitted(place_of(layer.node), 0, 0)
        groups, columns = layer.geometry.groups, part[0].numel()
        kernel = math.prod(layer.kernel)
        equations = Equations(groups, columns, len(part) // groups, kernel=kernel, bias=bias is not None)
        others, end = self._beside(layer)
        flat = _flat_parts(end)
        self._gather(layer, alive, equations, others, keep=flat is not None)
        old = equations.pack(part, shift)
        new = equations.solve(old, ridge)
        if flat is not None:
            for _ in range(gate):
                equations.retarget(self._gated_rows(equations, new, flat))
                new = equations.solve(old, ridge)
            self._forget_rows()
        part, shift = equations.unpack(new, part, shift)
        weight[alive.rows[:, None], alive.columns] = part
        self.gated.set_weight(str(layer.weight.target), from_rows(layer, weight))
        if layer.bias is not None and bias is not None and shift is not None:
            bias[alive.rows] = shift
            self.gated.set_weight(str(layer.bias.target), bias)
        return Fitted(place_of(layer.node), equations.count, columns)

    def _weights(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Copies of the weight, by its rows, and of the bias."""
        constants = self.gated.program.constants
        weight = as_rows(layer, constants[str(layer.weight.target)].value.detach()).clone()
        bias = None if layer.bias is None else constants[str(layer.bias.target)].value.detach().clone()
        return weight, bias

    def _forget_rows(self) -> None:
        for i in range(len(self.chunks)):
            for key in _ROWS:
                self.frontier.drop((key, i))

    def _gated_rows(
        self, equations: Equations, weights: Tensor, flat: tuple[float, float]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Where the activation of the original is flat, what the layer gives is right on the whole flat part."""
        low, high = flat
        for i in range(len(self.chunks)):
            x, target, beside = (self.frontier.get((key, i)) for key in _ROWS)
            made = equations.predict(x, weights) + beside
            wanted = target + beside
            if low > -math.inf:
                wanted = torch.where(wanted <= low, made.clamp_max(low), wanted)
            if high < math.inf:
                wanted = torch.where(wanted >= high, made.clamp_min(high), wanted)
            yield x, wanted - beside

    def _gather(
        self, layer: Layer, alive: Alive, equations: Equations, others: Sequence[fx.Node], *, keep: bool
    ) -> None:
        def rows(y: Tensor) -> Tensor:
            return rows_of(layer, y, places, alive.rows if len(alive.rows) < layer.out_channels else None)

        end = self.new.place[layer.node]
        generator = torch.Generator().manual_seed(end)
        wanted = max(1, -(-_rows(equations.columns, len(alive.rows)) // sum(self.chunks)))  # rows of one sample
        fewer = len(alive.columns) * layer.geometry.groups < layer.in_channels
        for i in range(len(self.chunks)):
            self.frontier.recycle()
            new = self.new.move(i, end, {layer.x, *others})
            old = self.old.move(i, end + 1, {layer.node, *others})
            count, share = old[layer.node].numel() // layer.out_channels, wanted * self.chunks[i]
            if layer.kind != "linear":  # the same places in all samples; a linear layer has rows in any order
                count, share = count // len(old[layer.node]), wanted
            places = torch.randperm(count, generator=generator)[:share] if share < count else torch.arange(count)
            x = columns_of(layer, new[layer.x], places, alive.columns if fewer else None)
            target = rows(old[layer.node])
            beside = torch.zeros(())
            for other in others:
                beside = beside + rows(new[other])
                target = target + rows(old[other])
            target = target - beside
            equations.add(x, target)
            if keep:
                for key, value in zip(_ROWS, (x, target, beside), strict=True):
                    self.frontier.put((key, i), value)
        self.new.moved(end)
        self.old.moved(end + 1)

    def _beside(self, layer: Layer) -> tuple[list[fx.Node], fx.Node]:
        """What is added to the layer's result, and known before it in both networks; and the last sum."""
        found: list[fx.Node] = []
        node = layer.node
        while True:
            users = users_of(node)
            if len(users) != 1 or not is_call(users[0], ADDS) or arguments(users[0]).get("alpha", 1) != 1:
                return found, node
            others = [o for o in users[0].all_input_nodes if o is not node]
            known = len(others) == 1 and others[0].meta["data"] and shape_of(others[0]) == shape_of(layer.node)
            if not known or self.new.place.get(others[0], -1) > self.new.place[layer.node]:
                return found, node
            found.append(others[0])
            node = users[0]


def _flat_parts(node: fx.Node) -> tuple[float, float] | None:
    """Below and above which values all readers of `node` are activations that give the same; None without."""
    users = users_of(node)
    if len(users) != 1 or not is_call(users[0], ACTIVATIONS):
        return None
    given, name = arguments(users[0]), op_name(users[0])
    if name == "relu":
        return 0.0, math.inf
    if name in ("hardtanh", "relu6", "clamp"):
        low, high = (given.get(k) for k in (("min_val", "max_val") if name == "hardtanh" else ("min", "max")))
        return (
            (0.0, 6.0)
            if name == "relu6"
            else (-math.inf if low is None else float(low), math.inf if high is None else float(high))
        )
    return None


def _rows(columns: int, outputs: int) -> int:
    return max(LEAST * columns, min(ROWS, int(SQUARES / columns**2), TARGETS // max(1, outputs)))
