"""W2*relu(W1*x + b1) = (W2 s)*relu((W1/s)*x + b1/s), s > 0: the ranges of a layer's channels are made alike.

Turns results of a layer's channels, and columns of the next, of unlike ranges into powers of two moved from one to the
other.

Integers of eight bits hold the weights of a layer with one scale (or one for each row), so that a channel whose weights
are a hundredth of another's loses its digits; layers into which branches were merged are like that. What one layer
gives away the next one takes. With r1 the largest weight of each row of W1 and r2 that of each column of W2, both
become sqrt(r1*r2) for s = sqrt(r1/r2). Here s is the power of two next to that towards one, so that the function stays
the same to the last bit in floating point.

Where each row has a scale of its own, its weights lose nothing, but the results of all rows share one: r1 is then the
largest result of each channel on data (`Equalize(measured)`), and what is evened out is the results against the columns
that read them.

Fires on a layer whose results reach other layers through activations that scale with their input (ReLU, LeakyReLU),
pools and flattening alone, when some s is not one.

Refuses when a channel is also read by something that does not take a scale, such as a residual sum.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019); with data, the
balance of Xiao et al., "SmoothQuant" (2023), at one half.

    conv -> relu -> conv        becomes        conv/s -> relu -> s conv
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from reparam.algebra import HOMOGENEOUS, Layer, Pair, Route, execute, forward_all, read_layer, weights, write_layer
from reparam.ir import CATS, CONVS, LINEARS, Program, Refusal, evaluate, is_call, op_name
from reparam.rewrite import Match, Pattern, Rewrite, op

TURNS = 20  # of one layer; each neighbour that changes may ask for another


@dataclass(frozen=True)
class Plan:
    """The layer, the factor that it gives away (C,), and the way to the layers that take it."""

    layer: Layer
    scale: Tensor
    route: Route


@dataclass(frozen=True)
class Equalize:
    """Moves powers of two between layers until the ranges of their channels are alike.

    measured: the largest result of each channel, (C,), by the origin of its layer's weight; without, weights decide.
    """

    measured: Mapping[str, Tensor] | None = field(default=None, compare=False)
    name: ClassVar[str] = "equalize"
    pattern: ClassVar[Pattern] = op(CONVS | LINEARS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """The factors, if any is not one; Refusal when what follows does not take them."""
        layer = read_layer(program, match.root)
        if (
            layer is None
            or _given(program).of(program, layer).count >= TURNS
            or any(u.op == "output" for u in match.root.users)
        ):
            return None
        rows = self._ranges(program, layer)
        if rows is None:
            return None
        twice = Pair(_shaped(torch.full_like(rows, 2.0), layer))
        route = forward_all(program, {match.root: twice}, swapping=False)
        if isinstance(route, Refusal):
            return Refusal(f"its ranges stay: {route.reason}", match.root)
        columns = _column_ranges(program, route, len(rows))
        if columns is None:
            return None
        scale = _powers(rows, columns)
        if bool((scale == 1).all()):
            return None
        final = forward_all(program, {match.root: Pair(_shaped(scale, layer))}, swapping=False)
        return None if isinstance(final, Refusal) else Plan(layer, scale, final)

    def _ranges(self, program: Program, layer: Layer) -> Tensor | None:
        """r1 of each channel, (C,); None for a layer that was not measured."""
        if self.measured is None:
            return _row_ranges(program, layer)
        found = self.measured.get(_origin(program, layer))
        given = _given(program).of(program, layer).given
        return None if found is None or found.shape != given.shape else found.to(given) / given

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The layer with its rows divided, and the layers after it with their columns multiplied."""
        weight, bias = weights(program, plan.layer)
        divided = weight / plan.scale.reshape(-1, *[1] * (weight.dim() - 1))
        new = write_layer(program, plan.layer, divided, None if bias is None else bias / plan.scale)
        made = execute(program, plan.route, {plan.layer.node: new})
        changed = int((plan.scale != 1).sum())
        return Rewrite(
            {s: made[s] for s in plan.route.sinks},
            f"{changed} of {len(plan.scale)} channels scaled by powers of two from {float(plan.scale.min()):g} to "
            f"{float(plan.scale.max()):g}",
            notes=(_given(program).after(program, plan.layer, plan.scale),),
        )


def measure(program: Program, feeds: Iterable[Sequence[Any]]) -> dict[str, Tensor]:
    """What `Equalize` takes: the largest result of each layer's channels, behind a ReLU where one follows.

    feeds: values for the placeholders of `program`, on which it runs in the dtype that it has.
    """
    watched: dict[fx.Node, Layer] = {}
    for node in program.calls():
        layer = read_layer(program, node) if is_call(node, CONVS | LINEARS) else None
        if layer is not None:
            (user,) = node.users if len(node.users) == 1 else (node,)
            watched[user if is_call(user, HOMOGENEOUS) else node] = layer
    found: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Any) -> None:
        layer = watched.get(node)
        if layer is not None:
            origin = _origin(program, layer)
            largest = value.abs().movedim(layer.axis, 0).flatten(1).amax(1).double()
            found[origin] = torch.maximum(found[origin], largest) if origin in found else largest

    for feed in feeds:
        evaluate(program, feed, None, observe=observe)
    return found


def _origin(program: Program, layer: Layer) -> str:
    return program.constants[str(layer.weight.target)].origin


@dataclass(frozen=True)
class _Turns:
    """Of one layer: how often it was rewritten, and what its channels gave away, (C,)."""

    given: Tensor
    count: int = 0


@dataclass(frozen=True)
class _Given:
    """The turns of every layer, by the origin of its weight."""

    turns: Mapping[str, _Turns] = field(default_factory=dict)

    def of(self, program: Program, layer: Layer) -> _Turns:
        ones = torch.ones(layer.out_channels, dtype=torch.float64)
        return self.turns.get(_origin(program, layer), _Turns(ones))

    def after(self, program: Program, layer: Layer, scale: Tensor) -> _Given:
        """What is so once the layer gave away `scale` as well."""
        own = self.of(program, layer)
        return _Given({**self.turns, _origin(program, layer): _Turns(own.given * scale, own.count + 1)})


def _given(program: Program) -> _Given:
    return program.notes.get(_Given, _Given)


def _shaped(scale: Tensor, layer: Layer) -> Tensor:
    """(C,) along the channels of the layer's result."""
    shape = [1] * layer.node.meta["val"].dim()
    shape[layer.axis] = -1
    return scale.reshape(shape)


def _row_ranges(program: Program, layer: Layer) -> Tensor:
    """The largest absolute weight behind each result, (C_out,)."""
    weight, _ = weights(program, layer)
    return weight.abs().flatten(1).amax(1)


def _column_ranges(program: Program, route: Route, channels: int) -> Tensor | None:
    """The largest absolute weight on each channel, over the layers that read it; None when its place is not kept."""
    if any(is_call(s.node, CATS) or op_name(s.node) == "getitem" for s in route.steps):
        return None
    found = torch.zeros(channels, dtype=torch.float64)
    for node in route.sinks:
        layer = read_layer(program, node)
        if layer is None or layer.kind == "transposed":  # None: a recurrent layer
            return None
        weight, _ = weights(program, layer)
        groups = layer.geometry.groups
        n_out, n_in = weight.shape[:2]
        columns = weight.abs().reshape(groups, n_out // groups, n_in, -1).amax((1, 3))
        if columns.numel() % channels:
            return None
        found = torch.maximum(found, columns.reshape(channels, -1).amax(1))
    return found


def _powers(rows: Tensor, columns: Tensor) -> Tensor:
    """The powers of two next to sqrt(rows/columns) towards one; one where either is zero."""
    able = (rows > 0) & (columns > 0)
    ratio = torch.where(able, rows, 1.0) / torch.where(able, columns, 1.0)
    return torch.exp2(torch.trunc(torch.log2(ratio) / 2))


PASS = Equalize
PHASE = "equalize"
