"""What is known of a result where no integral is at hand: nothing, or what the operator gives on random tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import DROPOUTS, IDENTITIES, arguments, aten, is_call

from .functions import is_pointwise
from .gaussian import at_points
from .power import Roles, drawn, measured
from .roles import broadcast, usual
from .values import Value
from .walk import Walk

MOST_KEPT = 4_000_000  # numbers of a tensor of random softmax weights


def values_read(walk: Walk, node: fx.Node) -> list[tuple[fx.Node, Value]]:
    """The operands that depend on the inputs, with what is known of them."""
    return [(n, v) for n in node.all_input_nodes if isinstance(v := walk.values[n], Value)]


def first_read(walk: Walk, node: fx.Node) -> Value:
    """The first of them."""
    return values_read(walk, node)[0][1]


def unknown(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """A result, or several, of which nothing but the shape is known."""
    val = node.meta["val"]
    if not isinstance(val, Tensor):
        count = len(val) if isinstance(val, list | tuple) else 0
        return [Value((), (), None)] * count
    shape = walk.shape(node)
    alike = next((v for _, v in values_read(walk, node) if len(v.shape) == len(shape)), None)
    return Value(shape, alike.roles if alike else usual(len(shape), channels_last=len(shape) == 3), None)


def by_drawing(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """The operator itself, on random tensors of the powers of its operands."""
    nothing = unknown(walk, node)
    if isinstance(nothing, list):
        return nothing
    made = _operands(walk, node)

    try:
        result = _run(walk, node, made)
    except Exception:
        return nothing
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.dim() < 1:
        return nothing
    walk.drawn.add(node)
    walk.samples.clear()
    if is_call(node, {aten.softmax.int, aten.matmul.default, aten.bmm.default}) and result.numel() <= MOST_KEPT:
        walk.samples[node] = result
    roles = _attended(walk, node) or _reduced(walk, node, tuple(result.shape)) or nothing.roles
    return Value(tuple(result.shape), roles, measured(result, roles))


def _operands(walk: Walk, node: fx.Node) -> dict[fx.Node, Tensor]:
    """Random tensors for the operands. Functions of one value are given the same one."""
    made: dict[fx.Node, Tensor] = {}
    roots: dict[fx.Node, Tensor] = {}
    for operand, value in values_read(walk, node):
        kept = _sample(walk, operand)
        if kept is not None and tuple(kept.shape) == value.shape:
            made[operand] = kept
            continue
        law = value.law_at(operand)
        root = walk.values[law.root]
        if law.root not in roots:
            roots[law.root] = drawn(root.known, value.roles, value.shape, walk.generator)
        x = roots[law.root]
        if tuple(x.shape) != value.shape:
            x = drawn(root.known, value.roles, value.shape, walk.generator)
        made[operand] = x if law.root is operand else at_points(law.values, root.known, x)
    return made


def _sample(walk: Walk, node: fx.Node) -> Tensor | None:
    """The random tensor that stands for a value already: it knows of rows that sum to one, which no moments tell."""
    if node in walk.samples:
        return walk.samples[node]
    held = values_read(walk, node) if node.op == "call_function" else []
    if len(held) != 1:
        return None
    if is_call(node, DROPOUTS | IDENTITIES):
        return _sample(walk, held[0][0])
    if not is_pointwise(node) or (inner := _sample(walk, held[0][0])) is None:
        return None
    try:
        found = _run(walk, node, {held[0][0]: inner})
    except Exception:
        return None
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def _run(walk: Walk, node: fx.Node, made: dict[fx.Node, Tensor]) -> Any:
    """The operator on random tensors."""

    def pick(a: Any) -> Any:
        if isinstance(a, fx.Node):
            return made[a] if a in made else walk.values[a]
        return torch.float64 if isinstance(a, torch.dtype) and a.is_floating_point else a

    args: Any = fx.node.map_aggregate(node.args, pick)
    kwargs: Any = fx.node.map_aggregate(node.kwargs, pick)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _attended(walk: Walk, node: fx.Node) -> Roles | None:
    """Of products of matrices: the rows of the first operand and the columns of the second."""
    if not is_call(node, {aten.matmul.default, aten.bmm.default, aten.scaled_dot_product_attention.default}):
        return None
    names = list(arguments(node).values())
    first, last = (walk.values[n] for n in (names[0], names[2] if "scaled" in str(node.target) else names[1]))
    if not isinstance(first, Value) or not isinstance(last, Value) or len(first.shape) != len(last.shape):
        return None
    batch = broadcast([first.roles[:-2], last.roles[:-2]], [first.shape[:-2], last.shape[:-2]])
    return (*batch, first.roles[-2], last.roles[-1])


def _reduced(walk: Walk, node: fx.Node, shape: tuple[int, ...]) -> Roles | None:
    """Of a reduction: the roles of the axes that stay."""
    x, args = first_read(walk, node), arguments(node)
    dims = args.get("dim")
    if len(shape) >= len(x.shape) or dims is None:
        return None
    axes = {d % len(x.shape) for d in (dims if isinstance(dims, list | tuple) else [dims])}
    return tuple(r for i, r in enumerate(x.roles) if i not in axes)
