"""What is known of a result where no integral is at hand: nothing, or what the operator gives on random tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import arguments, aten, call_node, default_dtype, is_call

from .functions import is_pointwise
from .gaussian import at_points
from .power import Power, Roles, drawn, measured
from .roles import broadcast, usual
from .running import in_training
from .values import Value
from .walk import Walk

CLOSE = 0.004  # standard error of E y^2, over itself, at which enough has been drawn
FEWEST, MOST = 10, 128  # pairs of draws of which a standard error is taken, and pairs
NUMBERS = 1 << 22  # of all draws together, where a pair does not have more


def values_read(walk: Walk, node: fx.Node) -> list[tuple[fx.Node, Value]]:
    """The operands that depend on the inputs, with what is known of them; of the same values, the first."""
    return [(n, v) for n in walk.read(node) if isinstance(v := walk.values[n], Value)]


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
    """The operator itself, on random tensors of the powers of its operands, which are taken as independent, but for
    functions of one value."""
    nothing = unknown(walk, node)
    if isinstance(nothing, list):
        return nothing
    size = sum(math.prod(v.shape) for _, v in values_read(walk, node))
    return drawn_often(walk, node, lambda: run_call(walk, node, _operands(walk, node)), size) or nothing


def part_by_drawing(walk: Walk, node: fx.Node) -> Value | list[Value]:
    """One of several results of a call, such as the values of `max`, on random tensors as in `by_drawing`."""
    whole, index = node.args[0], node.args[1]
    if not isinstance(whole, fx.Node) or any(v.power is None for _, v in values_read(walk, whole)):
        return unknown(walk, node)
    size = sum(math.prod(v.shape) for _, v in values_read(walk, whole))
    made = drawn_often(walk, node, lambda: run_call(walk, whole, _operands(walk, whole))[index], size)
    return made or unknown(walk, node)


def drawn_often(walk: Walk, node: fx.Node, once: Callable[[], Any], size: int = 0) -> Value | None:
    """The value of a call from random results, of which as many are drawn as it takes to know E y^2, two at a time with
    opposite signs; None where they cannot be had.

    size: how many numbers are computed for one, where they are more than its own.
    """
    found: list[Power] = []
    result: Tensor | None = None
    roles: Roles = ()
    numbers, close = 0, False
    while result is None or not (close or numbers > NUMBERS or len(found) >= MOST):
        pair: list[Power] = []
        state = walk.generator.get_state()
        for sign in (1.0, -1.0):
            walk.generator.set_state(state)
            result = _drawn_once(walk, once, sign)
            if result is None:
                return None
            roles = roles or roles_of(walk, node, tuple(result.shape))
            pair.append(measured(result, roles))
            numbers += max(size, result.numel())
        found.append(joined(pair))
        if not found[-1].finite:
            return None
        close = len(found) >= FEWEST and _error(found) < CLOSE
    walk.drawn[node] = _error(found)
    return Value(tuple(result.shape), roles, joined(found))


def _drawn_once(walk: Walk, once: Callable[[], Any], sign: float) -> Tensor | None:
    walk.sign = sign
    try:
        result = once()
    except Exception:  # of any kind: the operator need not run on random numbers
        return None
    finally:
        walk.sign = 1.0
    fits = isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 0
    return result if fits else None


def _error(found: list[Power]) -> float:
    """The standard error of E y^2, over itself, or a third of that of the mean, over the root of E y^2."""
    seconds, means = (
        torch.tensor(v, dtype=torch.float64) for v in zip(*((p.second, p.mean) for p in found), strict=True)
    )
    second = float(seconds.mean())
    if not second > 0:
        return 0.0
    if len(found) < 2:
        return math.nan
    return max(float(seconds.std()) / second, float(means.std()) / math.sqrt(second) / 3) / math.sqrt(len(found))


def joined(found: list[Power]) -> Power:
    """The power of a value from those of several draws: what draws differ by in their means is power of channels."""
    n = len(found)
    mean = sum(p.mean for p in found) / n
    scatter = sum((p.mean - mean) ** 2 for p in found) / n
    parts = [sum(getattr(p, name) for p in found) / n for name in ("channel", "sample", "place")]
    return Power(mean, parts[0] + scatter, parts[1], parts[2])


def _operands(walk: Walk, node: fx.Node) -> dict[fx.Node, Tensor]:
    """Random tensors for the operands. Functions of one value are given the same one."""
    made: dict[fx.Node, Tensor] = {}
    roots: dict[fx.Node, Tensor] = {}
    for operand, value in values_read(walk, node):
        law = value.law_at(operand)
        root = walk.values[law.root]
        if law.root not in roots:
            roots[law.root] = drawn(root.known, value.roles, value.shape, walk.generator, sign=walk.sign)
        x = roots[law.root]
        if tuple(x.shape) != value.shape:
            x = drawn(root.known, value.roles, value.shape, walk.generator, sign=walk.sign)
        made[operand] = x if law.root is operand else at_points(law.values, root.known, x)
    return made


def run_call(walk: Walk, node: fx.Node, made: Mapping[fx.Node, Any]) -> Any:
    """The operator on random tensors; in training, as `in_training` has it."""
    env = {n: made.get(walk.rep(n), walk.values[n]) for n in node.all_input_nodes}
    with default_dtype(torch.float64):
        return in_training(node, env, walk.generator) if walk.training else call_node(node, env, torch.float64)


# ---- roles -------------------------------------------------------------------------------------------------------


def roles_of(walk: Walk, node: fx.Node, shape: tuple[int, ...]) -> Roles:
    """What the axes of a result count, which is of that shape."""
    if is_call(node, {operator.getitem}) and isinstance(parent := node.args[0], fx.Node):
        node = parent
    held = [v for _, v in values_read(walk, node)]
    if is_pointwise(node) and all(len(v.shape) <= len(shape) for v in held):
        return broadcast([v.roles for v in held], [v.shape for v in held], len(shape))
    found = _attended(walk, node) or _reduced(walk, node, shape)
    alike = next((v for v in held if len(v.shape) == len(shape)), None)
    return found or (alike.roles if alike else usual(len(shape), channels_last=len(shape) == 3))


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


def remarked(walk: Walk, node: fx.Node, value: Value | list[Value]) -> Value | list[Value]:
    """What is known of a call whose operands depend on one another and were taken as independent; it is told."""
    if isinstance(value, Value) and value.power is not None:
        walk.dependent.append(node)
    return value
