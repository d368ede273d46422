"""Residual blocks in a program: sums of a stream and of a branch that starts from it."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from reparam.ir import (
    ADDS,
    BATCH_NORMS,
    CASTS,
    DIVS,
    DROPOUTS,
    IDENTITIES,
    MOVEMENTS,
    MULS,
    WEIGHTED,
    Program,
    free_shape,
    is_call,
    is_float,
    is_tensor,
)

from .functions import depending

_LINEAR = MOVEMENTS | IDENTITIES | DROPOUTS | CASTS | BATCH_NORMS


@dataclass(frozen=True)
class Block:
    """add = skip + branch. source: where both come from, None where they meet in several values.

    layers: the weighted calls of the branch, in order. last: those that give its result, through nothing but norms,
    products with constants and movement; () where the branch ends in something else. identity: the skip has no layer.
    """

    add: fx.Node
    skip: fx.Node
    branch: fx.Node
    source: fx.Node | None
    layers: tuple[fx.Node, ...]
    last: tuple[fx.Node, ...]
    identity: bool


def blocks(program: Program) -> Iterator[Block]:
    """The residual blocks of a program, in execution order: sums of two values of one shape that come from a common
    one, of which one passed through more layers than the other, which passed through one at most."""
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in program.calls():
        held = depending(node)
        if not is_call(node, ADDS) or len(held) != 2 or not all(is_float(n) for n in held):
            continue
        if free_shape(held[0]) != free_shape(held[1]):
            continue
        found = _block(node, held, order)
        if found is not None:
            yield found


def _block(add: fx.Node, operands: list[fx.Node], order: dict[fx.Node, int]) -> Block | None:
    sides: dict[fx.Node, int] = {}
    heap: list[tuple[int, fx.Node]] = []

    def push(node: fx.Node, side: int) -> None:
        if node not in sides:
            heapq.heappush(heap, (-order[node], node))
            sides[node] = 0
        sides[node] |= side

    for i, operand in enumerate(operands):
        push(operand, 1 << i)
    own: tuple[list[fx.Node], list[fx.Node]] = ([], [])
    source, met = None, False
    while heap:
        _, node = heapq.heappop(heap)
        met = met or sides[node] == 3
        if sides[node] == 3 and not heap:
            source = node
            break
        if sides[node] != 3 and is_call(node, WEIGHTED):
            own[sides[node] - 1].append(node)
        for operand in depending(node):
            push(operand, sides[node])
    at = 0 if len(own[0]) > len(own[1]) else 1
    if not met or not own[at] or len(own[1 - at]) > 1 or len(own[0]) == len(own[1]):
        return None
    branch = operands[at]
    layers = tuple(sorted(own[at], key=order.__getitem__))
    return Block(add, operands[1 - at], branch, source, layers, ends_of(branch), not own[1 - at])


def ends_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """The weighted calls that a value comes from, through nothing but norms, constants, gates and movement."""
    while True:
        if is_call(node, WEIGHTED):
            return (node,)
        held = depending(node)
        if len(held) == 1 and is_call(node, _LINEAR | MULS | DIVS):
            node = held[0]
            continue
        gated = [n for n in held if is_tensor(n) and free_shape(n) == free_shape(node)]
        if len(held) == 2 and len(gated) == 1 and is_call(node, MULS):  # by a number for each channel, as in SE
            node = gated[0]
            continue
        if len(held) == 2 and is_call(node, ADDS):
            parts = [ends_of(n) for n in held]
            return parts[0] + parts[1] if all(parts) else ()
        return ()
