"""What layers read: the power of functions of normal values, also side by side, and of the largest of several."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.errors import InputError
from reparam.ir import (
    CATS,
    MOVEMENTS,
    STACKS,
    WEIGHTED,
    Program,
    arguments,
    aten,
    call_node,
    is_call,
    is_float,
    place_of,
    shape_of,
)

from .factors import Sums
from .functions import PASSIVE, depending, first_of, function_at, goes_on, passes
from .gaussian import LIMIT
from .roles import TURNS

_LARGER = frozenset({aten.maximum.default, aten.max.other})
_LARGEST = frozenset({aten.amax.default, aten.max.dim})


@dataclass(frozen=True)
class Read:
    """second: E y^2 of a value, where layers give N(0, 1). of: the calls that make it so, none of what is no function
    of one value. largest: of how many results of layers it is the largest, 1 for none."""

    second: float = 1.0
    of: tuple[fx.Node, ...] = ()
    largest: int = 1


def read_of(sums: Sums, node: fx.Node) -> Read:
    """What a value is, perhaps moved, padded, pooled or dropped from; of values side by side, the mean of E y^2 over
    what there is of each. sums: of the program."""
    while True:
        if (count := largest_of(node)) > 1:
            return Read(second_of_largest(count), (node,), count)
        if goes_on(node) and (found := function_at(sums.program, node)) is not None:
            return Read(1 / sums.gain_in_front(found), (found.result,))
        held = depending(node)
        if is_call(node, CATS | STACKS) and held and all(is_float(n) for n in held):
            parts = [(math.prod(shape_of(n)), read_of(sums, n)) for n in held]
            whole = sum(size for size, _ in parts)
            second = sum(size * part.second for size, part in parts) / whole if whole else 1.0
            return Read(second, tuple(dict.fromkeys(n for _, part in parts for n in part.of)))
        if not passes(node) or len(held) != 1:
            return Read()
        node = held[0]


def refuse_empty_layers(program: Program) -> None:
    """Raises InputError for a layer whose weight has no element, of which nothing can be said or set."""
    for node in program.calls():
        weight = arguments(node).get("weight") if is_call(node, WEIGHTED) else None
        if isinstance(weight, fx.Node) and 0 in shape_of(weight):
            size = list(shape_of(weight))
            raise InputError(f"the weight of '{place_of(node)}' is of shape {size}, with no number in it")


@functools.cache
def second_of_largest(count: int) -> float:
    """E max(X_1, ..., X_k)^2 of independent X ~ N(0, 1), of which k is `count`: 1 for one and two."""
    x = torch.linspace(-LIMIT, LIMIT, 4000, dtype=torch.float64)
    below = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    density = count * torch.exp(-x.square() / 2) * below ** (count - 1)
    return float((x.square() * density).sum() / density.sum())


def largest_of(node: fx.Node) -> int:
    """Of how many results of layers, with weights of their own, a value is the largest; 1 where it is no such."""
    if is_call(node, _LARGER):
        leaves, stack = [], [node]
        while stack:
            at = stack.pop()
            args = list(arguments(at).values()) if is_call(at, _LARGER) else []
            stack += [a for a in args[:2] if isinstance(a, fx.Node)]
            leaves += [] if args else [_unmoved(at)]
        return len(leaves) if len(set(leaves)) == len(leaves) and all(is_call(n, WEIGHTED) for n in leaves) else 1
    if is_call(node, _LARGEST | {operator.getitem}):
        return _of_parts(node)
    return 1


def _unmoved(node: fx.Node) -> fx.Node:
    while is_call(node, PASSIVE | TURNS) and len(held := depending(node)) == 1:
        (node,) = held
    return node


def _of_parts(node: fx.Node) -> int:
    """Of a maximum over an axis that counts channels of one layer, and nothing else."""
    call = node
    if not is_call(node, _LARGEST):
        parent, index = node.args[:2]
        if not isinstance(parent, fx.Node) or not is_call(parent, {aten.max.dim}) or index != 0:
            return 1
        call = parent
    args = arguments(call)
    x, dims = first_of(args), args["dim"]
    dims = [dims] if isinstance(dims, int) else list(dims)
    layer = _unmoved(x)
    if len(dims) != 1 or not is_call(layer, WEIGHTED):
        return 1
    chain = [x]
    while chain[-1] is not layer:
        chain.append(depending(chain[-1])[0])
    channels = _labels(layer, list(reversed(chain[:-1])))
    axis = dims[0] % len(shape_of(x))
    if channels is None or channels.dim() != len(shape_of(x)):
        return 1
    first = channels.narrow(axis, 0, 1)
    size = channels.shape[axis]
    apart = all(not torch.equal(channels.narrow(axis, i, 1), first) for i in range(1, size))
    return size if apart and _places_stay(layer, list(reversed(chain[:-1])), axis) else 1


def _labels(layer: fx.Node, moves: list[fx.Node], *, of_places: bool = False) -> Tensor | None:
    """The channel, or the place, that each element behind movements comes from."""
    shape = shape_of(layer)
    at = len(shape) - 1 if is_call(layer, {aten.linear.default}) else 1
    sizes = [n if (i == at) != of_places else 1 for i, n in enumerate(shape)]
    label: Tensor = torch.arange(math.prod(sizes)).reshape(sizes).expand(shape)
    for move in moves:
        if is_call(move, MOVEMENTS | TURNS):
            try:
                label = call_node(move, dict.fromkeys(move.all_input_nodes, label), None)
            except Exception:  # of any kind: its sizes may be values of the graph
                return None
    return label


def _places_stay(layer: fx.Node, moves: list[fx.Node], axis: int) -> bool:
    places = _labels(layer, moves, of_places=True)
    return places is not None and torch.equal(places, places.narrow(axis, 0, 1).expand_as(places))
