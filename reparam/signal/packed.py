"""Layers that are several in one, such as queries, keys and values are: what reads their results, part by part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import LINEARS, MOVEMENTS, SPLITS, Program, aten, call_node, is_call, op_name, shape_of, size_hint

from .functions import PASSIVE, depending
from .roles import TURNS

_MOVES = MOVEMENTS | TURNS


def packed_parts(program: Program, node: fx.Node) -> tuple[Tensor, ...]:
    """The channels of each of the layers of equal width that a layer stands for, in order: each of its readers takes
    those of one of them. One part, of all channels, for a layer that is one, and where parts differ in width.

    They need not lie side by side: with heads that hold a query, a key and a value each, a part has a piece of each
    head.
    """
    axis = len(shape_of(node)) - 1 if is_call(node, LINEARS) else 1
    count = shape_of(node)[axis]
    one = (torch.arange(count),)
    sizes = [count if i == axis else 1 for i in range(len(shape_of(node)))]
    labels: dict[fx.Node, Any] = {node: torch.arange(count).reshape(sizes).expand(shape_of(node))}
    found: set[tuple[int, ...]] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        for user in at.users:
            several = is_call(user, SPLITS | {aten.unbind.int})
            if is_call(user, PASSIVE | TURNS) and user.users and (several or isinstance(user.meta["val"], Tensor)):
                moved = _moved(program, user, at, labels[at])
                if moved is None:
                    return one
                labels[user] = moved
                stack.append(user)
            elif at is node and op_name(user) == "glu" and count % 2 == 0:
                found |= {tuple(range(count // 2)), tuple(range(count // 2, count))}
            elif not isinstance(at.meta["val"], Tensor) or at is node:
                return one
            else:
                found.add(tuple(torch.unique(labels[at]).tolist()))
    whole = [s for s in found if not any(s != t and set(s) <= set(t) for t in found)]
    return tuple(torch.tensor(s) for s in _equal(sorted(whole), count)) or one


def _moved(program: Program, node: fx.Node, x: fx.Node, label: Any) -> Any:
    """Labels behind a call that moves them; None where it needs what is not known."""
    if not is_call(node, _MOVES):
        return label
    if depending(node) != [x]:
        return None
    env: dict[fx.Node, Any] = {x: label}
    try:
        for operand in node.all_input_nodes:
            if operand is not x:
                env[operand] = _known(program, operand)
        return call_node(node, env, None)
    except Exception:  # of any kind: sizes may depend on the values of the inputs
        return None


def _known(program: Program, node: fx.Node) -> Any:
    constant = program.constant(node)
    return constant.value if constant is not None else size_hint(node.meta["val"])


def _equal(parts: list[tuple[int, ...]], channels: int) -> list[tuple[int, ...]]:
    """The parts, where they are several of one width that make up all channels."""
    alike = len(parts) > 1 and len({len(p) for p in parts}) == 1
    return parts if alike and sorted(c for p in parts for c in p) == list(range(channels)) else []


def moved_alone(nodes: list[fx.Node]) -> bool:
    """Whether calls only take parts of a weight, or turn it."""
    return all(is_call(n, MOVEMENTS) for n in nodes if n.op == "call_function")
