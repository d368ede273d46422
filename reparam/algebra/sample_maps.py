"""Linear maps of one sample: chains of products with weights, sums and rearrangements, and their matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from reparam.ir import (
    ADDS,
    CONVS,
    DIVS,
    FOLD_DTYPE,
    IDENTITIES,
    LINEARS,
    MULS,
    SUBS,
    Program,
    arguments,
    aten,
    call_node,
    free_shape,
    is_call,
    is_float,
    is_tensor,
    shape_of,
    size_hint,
    weight_value,
)

SUMS_OF_AXES = frozenset({aten.sum.dim_IntList, aten.mean.dim})
_MATMULS = frozenset({aten.matmul.default})
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
_LARGEST = 2**24  # values that are held at once while a matrix is computed


@dataclass(frozen=True)
class SampleMap:
    """The steps from `x` to the last, in order; `symbol` is the free size, `axes` where it is in x and the result.

    size: numbers in a sample of x and of the result.
    """

    x: fx.Node
    steps: tuple[fx.Node, ...]
    symbol: str
    axes: tuple[int, int]
    size: tuple[int, int]


def map_of(x: fx.Node, steps: Sequence[fx.Node]) -> SampleMap | None:
    """Steps from `x` to the last as a map of one sample; None where the samples cannot be told apart."""
    first, last = free_axis(x), free_axis(steps[-1])
    if first is None or last is None:
        return None
    size = (sample_size(x, first[0]), sample_size(steps[-1], last[0]))
    return SampleMap(x, tuple(steps), first[1], (first[0], last[0]), size)


def data_operand(program: Program, node: fx.Node) -> fx.Node | None:
    """The one operand that is a tensor and no constant; None when there are several, or it is no float."""
    found = [i for i in node.all_input_nodes if is_tensor(i) and program.constant(i) is None]
    return found[0] if len(found) == 1 and is_float(found[0]) else None


def free_axis(node: fx.Node) -> tuple[int, str] | None:
    """The one axis of free size, and the symbol of that size; None when there are more or fewer."""
    free = [(i, s) for i, s in enumerate(free_shape(node)) if not isinstance(s, int)]
    return (free[0][0], str(free[0][1])) if len(free) == 1 and free[0][1].is_Symbol else None


def sample_size(node: fx.Node, axis: int) -> int:
    """How many numbers one sample of a value has."""
    return math.prod(s for i, s in enumerate(shape_of(node)) if i != axis)


def keeps_samples(program: Program, node: fx.Node) -> bool:
    """True for a step that is affine in one operand and acts on each sample by itself.

    What is summed over has the size of a constant or disappears, so that it is not the axis of the samples.
    """
    x = data_operand(program, node) if node.op == "call_function" and is_float(node) else None
    if x is None:
        return False
    before, after = free_axis(x), free_axis(node)
    if before is None or after is None or before[1] != after[1]:
        return False
    if is_call(node, _PERMUTES | IDENTITIES):
        return True
    if is_call(node, _RESHAPES):
        return _leading(x, before[0]) == _leading(node, after[0])
    args = arguments(node)
    if is_call(node, SUMS_OF_AXES):
        return args.get("dtype") is None
    if is_call(node, CONVS):
        return args["input"] is x and before[0] == 0
    if is_call(node, LINEARS):
        return args["input"] is x
    return _is_arithmetic(program, node, x)


def _is_arithmetic(program: Program, node: fx.Node, x: fx.Node) -> bool:
    """x plus, minus, times or over a constant."""
    args = arguments(node)
    if any(program.constant(i) is None for i in node.all_input_nodes if i is not x):
        return False  # a size of the input
    if is_call(node, MULS | ADDS | SUBS | _MATMULS):
        return args["self"] is not args["other"]
    return is_call(node, DIVS) and args["other"] is not x


def _leading(node: fx.Node, axis: int) -> int:
    return math.prod(shape_of(node)[:axis])


def matrix_of(program: Program, plan: SampleMap) -> tuple[Tensor, Tensor | None]:
    """The (out, in) matrix and the bias of the chain: its value at zero, and its derivative, a few rows at a time."""
    with torch.inference_mode(False), torch.enable_grad():  # also where the caller wants no derivatives
        return _matrix_of(program, plan)


def _matrix_of(program: Program, plan: SampleMap) -> tuple[Tensor, Tensor | None]:
    n_in, n_out = plan.size
    widest = max(math.prod(shape_of(n, {plan.symbol: 1})) for n in (plan.x, *plan.steps))
    chunk = max(1, min(n_out, _LARGEST // widest))
    rows = []
    for begin in range(0, n_out, chunk):
        count = min(chunk, n_out - begin)
        x = torch.zeros(count, n_in, dtype=FOLD_DTYPE, requires_grad=True)
        y = _run(program, plan, x, count)
        unit = torch.zeros_like(y)
        unit[torch.arange(count), torch.arange(begin, begin + count)] = 1
        rows.append(torch.autograd.grad(y, x, unit)[0])
    bias = y[0].detach()
    return torch.cat(rows), bias if bool((bias != 0).any()) else None


def _run(program: Program, plan: SampleMap, x: Tensor, count: int) -> Tensor:
    """The chain on `count` samples: (count, in) -> (count, out)."""
    sizes = [s for i, s in enumerate(shape_of(plan.x)) if i != plan.axes[0]]
    env: dict[fx.Node, Any] = {plan.x: x.reshape(count, *sizes).movedim(0, plan.axes[0])}
    for node in plan.steps:
        for operand in node.all_input_nodes:
            if program.constant(operand) is not None:
                weight = weight_value(program, operand, FOLD_DTYPE)
                env[operand] = weight.clone() if weight.is_inference() else weight
            elif operand not in env:
                env[operand] = size_hint(operand.meta["val"], {plan.symbol: count})
        env[node] = call_node(node, env, FOLD_DTYPE)
    value: Tensor = env[plan.steps[-1]]
    return value.movedim(plan.axes[1], 0).reshape(count, -1)


def moved(program: Program, node: fx.Node, source: int, target: int, like: fx.Node) -> fx.Node:
    """The value with one axis in another place."""
    if source == target:
        return node
    order = [i for i in range(len(shape_of(node))) if i != source]
    order.insert(target, source)
    return program.call(aten.permute.default, (node, order), like=like)
