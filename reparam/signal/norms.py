"""Norms in a program: calls of norms, and norms that are spelled out, such as x*rsqrt(mean(x^2) + eps)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    DIVS,
    MULS,
    NORMS,
    SUBS,
    WEIGHTED,
    Program,
    evaluate_region,
    is_call,
    is_float,
    op_name,
    shape_of,
)

from .functions import depending

MOST_CALLS = 40
SCALES = (1e3, 3e5)  # of random numbers, beside which the eps of a norm is nothing
SHIFT = 5.0  # times the scale
SAME = 1e-3  # relative to the largest entry


@dataclass(frozen=True)
class Norm:
    """result = norm(x), with the affine behind it. kind: the operator, or "spelled out"."""

    x: fx.Node
    result: fx.Node
    kind: str


def norms_of(program: Program) -> Iterator[Norm]:
    """The norms of a program, in execution order.

    A quotient or product of a value and of statistics of its own counts as a norm where random numbers show that a
    factor in front of it does not change the result.
    """
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in program.calls():
        if not node.meta["data"]:
            continue
        if is_call(node, NORMS):
            yield Norm(node.all_input_nodes[0], node, op_name(node))
        elif is_call(node, MULS | DIVS) and is_float(node) and (found := _spelled(program, node, order)):
            yield found


def spelled_at(program: Program, node: fx.Node, order: Mapping[fx.Node, int]) -> fx.Node | None:
    """The value of which a product or quotient is a norm that is spelled out, without the affine behind it; None where
    it is none. order: of the nodes of the program."""
    found = _read(program, node, order)
    return found[0] if found else None


def _spelled(program: Program, node: fx.Node, order: Mapping[fx.Node, int]) -> Norm | None:
    found = _read(program, node, order)
    if found is None:
        return None
    x, centred = found
    return Norm(x, _with_affine(node), "spelled out, centred" if centred else "spelled out")


def _read(program: Program, node: fx.Node, order: Mapping[fx.Node, int]) -> tuple[fx.Node, bool] | None:
    """The value that a call is a norm of, and whether a shift of it leaves the result as well."""
    if len(depending(node)) != 2:
        return None
    region, x = _region(node, order)
    if x is None or not is_float(x) or not any(_reduces(n) for n in region):
        return None
    try:
        still, centred = _invariant(program, region, node, x)
        if still and not centred and is_call(x, SUBS | ADDS):  # of a difference from the mean
            more, root = _region(x, order)
            if (
                root is not None
                and is_float(root)
                and _invariant(program, [*more, *region], node, root) == (True, True)
            ):
                centred, x = True, root
    except Exception:  # of any kind: the calls need not run on random numbers of this shape
        return None
    return (x, centred) if still else None


def _reduces(node: fx.Node) -> bool:
    """Whether some result of a call has fewer numbers than some value that it reads: whether it is a statistic."""
    given = [v.numel() for v in _tensors(node)]
    read = [v.numel() for n in depending(node) for v in _tensors(n)]
    return bool(given and read) and min(given) < max(read)


def _tensors(node: fx.Node) -> list[Tensor]:
    value = node.meta.get("val")
    return [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Tensor)]


def _region(node: fx.Node, order: Mapping[fx.Node, int]) -> tuple[list[fx.Node], fx.Node | None]:
    """The calls between a call and the one value that both of its operands come from; None where there is none. Layers
    and norms are no such calls."""
    heap = [(-order[n], n) for n in depending(node)]
    heapq.heapify(heap)
    seen, region = {n for _, n in heap}, [node]
    while heap:
        _, above = heapq.heappop(heap)
        if not heap and isinstance(above.meta.get("val"), Tensor):
            return sorted(region, key=order.__getitem__), above
        if len(region) > MOST_CALLS or above.op != "call_function" or is_call(above, WEIGHTED | NORMS):
            return [], None
        region.append(above)
        for operand in depending(above):
            if operand not in seen:
                seen.add(operand)
                heapq.heappush(heap, (-order[operand], operand))
    return [], None


def _invariant(program: Program, region: list[fx.Node], node: fx.Node, x: fx.Node) -> tuple[bool, bool]:
    """Whether a factor of x leaves the result, and whether a shift does."""
    value = torch.randn(shape_of(x), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def at(scale: float, shift: float) -> Tensor:
        calls = _with_constants(region)
        made: Tensor = evaluate_region(program, calls, {x: value * scale + shift * scale})[node]
        return made

    first, *others = at(SCALES[0], 0), at(SCALES[1], 0), at(SCALES[1], SHIFT)
    size = float(first.abs().max())
    scaled, shifted = (size > 0 and float((y - first).abs().max()) <= SAME * size for y in others)
    return scaled, scaled and shifted


def _with_constants(region: list[fx.Node]) -> list[fx.Node]:
    """The calls with those that compute constants for them, in order."""
    found: dict[fx.Node, None] = {}

    def add(node: fx.Node) -> None:
        for operand in node.all_input_nodes:
            constant = not operand.meta.get("data") or not isinstance(operand.meta.get("val"), Tensor)  # such as a size
            if constant and operand not in found:
                add(operand)
        found[node] = None

    for node in region:
        add(node)
    return list(found)


def _with_affine(node: fx.Node) -> fx.Node:
    """What constants behind a norm make of it, as long as nothing else reads it."""
    while len(node.users) == 1:
        (user,) = node.users
        if not is_call(user, MULS | DIVS | ADDS | SUBS) or depending(user) != [node]:
            break
        node = user
    return node
