"""C(B(A x)) = M x: a chain of products with weights, sums and rearrangements of each sample is one linear layer.

Turns products with weights, sums and rearrangements of each sample in a row, when that is not dearer into one linear
layer.

Fires on a matrix product with a weight, a sum or a mean that follows another one, with nothing between them but
reshapes, permutes and arithmetic with constants, each read once: the votes of a capsule layer and the coupling that
sums them, when that coupling is a constant. M is written over all numbers of one sample.

Refuses when M would cost more multiply-accumulates or store more values than its factors, if two of them are
products. Says nothing where the samples of a batch cannot be told apart: one axis must be free, and no step may mix it
with others.

Source: linearity; the matrix of a composition.

    matmul(c, permute(matmul(x, w))) -> squash        becomes        linear(flatten(x)) -> squash
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    DIVS,
    FOLD_DTYPE,
    IDENTITIES,
    LINEARS,
    MULS,
    SUBS,
    Program,
    Refusal,
    arguments,
    aten,
    batch_one,
    call_node,
    fixed_size,
    is_call,
    is_float,
    node_macs,
    shape_of,
    size_hint,
    weight_value,
)
from reparam.rewrite import Match, Pattern, Rewrite, op

_PRODUCTS = frozenset({aten.matmul.default}) | LINEARS
_SUMS = frozenset({aten.sum.dim_IntList, aten.mean.dim})
_PERMUTES = frozenset(
    {aten.permute.default, aten.transpose.int, aten.t.default, aten.movedim.int, aten.movedim.intlist}
)
_RESHAPES = frozenset(
    {
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
    }
)
_LARGEST = 2**24  # values that are held at once while the matrix is computed


@dataclass(frozen=True)
class Plan:
    """The steps from `x` to the last one, in order; `symbol` is the free size, `axes` where it is in x and the result.

    size: numbers in a sample of x and of the result.
    """

    x: fx.Node
    steps: tuple[fx.Node, ...]
    symbol: str
    axes: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class ComposeMaps:
    """Turns a chain of linear maps of one sample into one linear layer."""

    name: ClassVar[str] = "compose-maps"
    pattern: ClassVar[Pattern] = op(_PRODUCTS | _SUMS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Walks up from the last map; compares the price before any weight is touched."""
        steps = _chain(program, match.root)
        maps = [n for n in steps if is_call(n, _PRODUCTS | _SUMS)]
        if len(maps) < 2 or not any(is_call(n, _PRODUCTS) for n in maps) or _is_layers(steps):
            return None
        x = _data(program, steps[0])
        first, last = (_free_axis(n) for n in (x, match.root)) if x is not None else (None, None)
        if x is None or first is None or last is None:
            return None
        size = (_sample(x, first[0]), _sample(match.root, last[0]))
        plan = Plan(x, tuple(steps), first[1], (first[0], last[0]), size)
        dear = _too_dear(program, plan)
        if dear is not None:  # a mean beside a layer is nothing that was nearly composed
            return dear if sum(is_call(n, _PRODUCTS) for n in maps) > 1 else None
        return plan

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """The linear layer between a flattening and its undoing."""
        root = plan.steps[-1]
        weight, bias = _matrix(program, plan)
        origin = next(c.origin for n in plan.steps for i in n.all_input_nodes if (c := program.constant(i)) is not None)
        x = _moved(program, plan.x, plan.axes[0], 0, root)
        if len(shape_of(x)) > 2:
            x = program.call(aten.flatten.using_ints, (x, 1), like=root)
        parameters = [program.weight(weight, origin, like=root)]
        if bias is not None:
            parameters.append(program.weight(bias, f"{origin}.bias", like=root))
        y = program.call(aten.linear.default, (x, *parameters), like=root)
        sizes = [s for i, s in enumerate(shape_of(root)) if i != plan.axes[1]]
        if len(sizes) != 1:
            y = program.call(aten.unflatten.int, (y, 1, sizes), like=root)
        y = _moved(program, y, 0, plan.axes[1], root)
        return Rewrite({root: y}, f"{sum(is_call(n, _PRODUCTS | _SUMS) for n in plan.steps)} linear maps became one")


# ---- the chain -------------------------------------------------------------------------------------------------------


def _chain(program: Program, root: fx.Node) -> list[fx.Node]:
    """The linear steps that end in `root`, as far up as each is read once and keeps the samples apart."""
    steps: list[fx.Node] = []
    node: fx.Node | None = root
    while node is not None and _keeps_samples(program, node) and (node is root or len(node.users) == 1):
        steps.append(node)
        node = _data(program, node)
    return steps[::-1]


def _data(program: Program, node: fx.Node) -> fx.Node | None:
    """The one float operand that is no constant; None when there are several."""
    found = [i for i in node.all_input_nodes if is_float(i) and program.constant(i) is None]
    return found[0] if len(found) == 1 else None


def _free_axis(node: fx.Node) -> tuple[int, str] | None:
    """The one axis of free size, and the symbol of that size; None when there are more or fewer."""
    free = [(i, str(s)) for i, s in enumerate(node.meta["val"].shape) if fixed_size(s) is None]
    return free[0] if len(free) == 1 and free[0][1].isidentifier() else None


def _sample(node: fx.Node, axis: int) -> int:
    return math.prod(s for i, s in enumerate(shape_of(node)) if i != axis)


def _keeps_samples(program: Program, node: fx.Node) -> bool:
    """True for a step that is affine in one operand and acts on each sample by itself."""
    x = _data(program, node) if node.op == "call_function" and is_float(node) else None
    before, after = (_free_axis(x), _free_axis(node)) if x is not None else (None, None)
    if x is None or before is None or after is None or before[1] != after[1]:
        return False
    args = arguments(node)
    rank = len(shape_of(x))
    if is_call(node, LINEARS):
        return args["input"] is x and before[0] != rank - 1
    if node.target is aten.matmul.default:
        left = args["self"] is x
        other = args["other"] if left else args["self"]
        return rank > 1 and len(shape_of(other)) > 1 and before[0] != (rank - 1 if left else rank - 2)
    if is_call(node, _SUMS):
        dims = args["dim"] or []
        return bool(dims) and before[0] not in [d % rank for d in dims] and args.get("dtype") is None
    if is_call(node, _PERMUTES):
        return True
    if is_call(node, _RESHAPES):
        return _leading(x, before[0]) == _leading(node, after[0])
    return is_call(node, IDENTITIES) or _is_arithmetic(node, x)


def _is_arithmetic(node: fx.Node, x: fx.Node) -> bool:
    """x plus, minus, times or over a constant."""
    args = arguments(node)
    if is_call(node, MULS | ADDS | SUBS):
        return args["self"] is not args["other"]
    return is_call(node, DIVS) and args["self"] is x and args.get("rounding_mode") is None


def _leading(node: fx.Node, axis: int) -> int:
    return math.prod(shape_of(node)[:axis])


def _is_layers(steps: Sequence[fx.Node]) -> bool:
    """Linear layers alone are left to the rule that keeps them as such."""
    return all(is_call(n, LINEARS) for n in steps)


# ---- price and matrix ------------------------------------------------------------------------------------------------


def _too_dear(program: Program, plan: Plan) -> Refusal | None:
    env = batch_one(program)
    macs, values = sum(node_macs(n, env) for n in plan.steps), 0
    for constant in {i for n in plan.steps for i in n.all_input_nodes if program.constant(i) is not None}:
        values += math.prod(shape_of(constant))
    then = plan.size[0] * plan.size[1]
    root = plan.steps[-1]
    if then > macs:
        return Refusal(f"as one layer it would cost {then:,} multiply-accumulates instead of {macs:,}", root)
    if then > values:
        return Refusal(f"as one layer it would store {then:,} values instead of {values:,}", root)
    return None


def _matrix(program: Program, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """The (out, in) matrix and the bias of the chain: its value at zero, and its derivative, a few rows at a time."""
    n_in, n_out = plan.size
    widest = max(math.prod(shape_of(n, {plan.symbol: 1})) for n in (plan.x, *plan.steps))
    chunk = max(1, min(n_out, _LARGEST // widest))
    rows = []
    bias: Tensor | None = None
    for begin in range(0, n_out, chunk):
        count = min(chunk, n_out - begin)
        x = torch.zeros(count, n_in, dtype=FOLD_DTYPE, device=program.device, requires_grad=True)
        y = _run(program, plan, x, count)
        unit = torch.zeros_like(y)
        unit[torch.arange(count), torch.arange(begin, begin + count)] = 1
        rows.append(torch.autograd.grad(y, x, unit)[0])
        bias = y[0].detach()
    assert bias is not None
    return torch.cat(rows), bias if bool((bias != 0).any()) else None


def _run(program: Program, plan: Plan, x: Tensor, count: int) -> Tensor:
    """The chain on `count` samples: (count, in) -> (count, out)."""
    sizes = [s for i, s in enumerate(shape_of(plan.x)) if i != plan.axes[0]]
    env: dict[fx.Node, Any] = {plan.x: x.reshape(count, *sizes).movedim(0, plan.axes[0])}
    with torch.enable_grad():
        for node in plan.steps:
            for operand in node.all_input_nodes:
                if program.constant(operand) is not None:
                    env[operand] = weight_value(program, operand, FOLD_DTYPE)
                elif operand not in env:
                    env[operand] = size_hint(operand.meta["val"], {plan.symbol: count})
            env[node] = call_node(node, env, FOLD_DTYPE)
    value: Tensor = env[plan.steps[-1]]
    return value.movedim(plan.axes[1], 0).reshape(count, -1)


def _moved(program: Program, node: fx.Node, source: int, target: int, like: fx.Node) -> fx.Node:
    """The value with one axis in another place."""
    if source == target:
        return node
    order = [i for i in range(len(shape_of(node))) if i != source]
    order.insert(target, source)
    return program.call(aten.permute.default, (node, order), like=like)


PASS = ComposeMaps
PHASE = "fold"
AFTER = "compose_convs"
