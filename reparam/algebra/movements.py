"""How calls that move elements carry a scale or a shift along, of size 1 on every axis along which it is constant.

Where a size is free, elements have to move to the same channels at all sizes that are looked at, or nothing is carried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.utils import _pytree as pytree

from reparam.ir import (
    MOVEMENTS,
    PADS,
    Program,
    Refusal,
    arguments,
    aten,
    free_shape,
    is_call,
    op_name,
    shape_of,
    size_hint,
)

from .channel_affine import compress

NO_SIZES: Mapping[str, int] = {}
SMALL = (1, 2, 3, 4, 7, 12, 16, 41, 97)  # sizes at which a movement is looked at beside the traced ones
LARGEST = 2**16  # elements of a value that is looked at beside the traced one, unless that has more


def is_movement(program: Program, node: fx.Node) -> bool:
    """Whether the call moves elements of its first operand, from where to where being known.

    A pad does so that cuts, or that repeats or reflects what lies at the border.
    """
    if is_call(node, PADS):
        args = arguments(node)
        return args.get("mode", "constant") != "constant" or all(isinstance(p, int) and p <= 0 for p in args["pad"])
    known = node.target is not aten.index_select.default or program.constant(node.args[2]) is not None
    return known and is_call(node, MOVEMENTS)


def _concrete(
    program: Program, node: fx.Node, replace: dict[fx.Node, Any], env: Mapping[str, int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def value(n: fx.Node) -> Any:
        if n in replace:
            return replace[n]
        constant = program.tensor(n)
        if constant is not None:
            return constant.cpu()
        v = n.meta["val"]
        return v.new_empty(shape_of(n, env), device="cpu") if isinstance(v, Tensor) else size_hint(v, env)

    return fx.node.map_arg(node.args, value), dict(fx.node.map_arg(node.kwargs, value))


def run_on(program: Program, node: fx.Node, replace: dict[fx.Node, Any], env: Mapping[str, int] = NO_SIZES) -> Any:
    """The call `node` on real tensors at the traced sizes, those of `env` in place of its symbols.

    Operands that are neither in `replace` nor constant are only there for their shape.
    """
    args, kwargs = _concrete(program, node, replace, env)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def move_forward(program: Program, node: fx.Node, x: fx.Node, value: Tensor) -> Any:
    """Where the movement `node` puts the elements of `value`, a scale or shift of `x`. A list for split-like calls.

    A Refusal where that is not the same at all free sizes.
    """

    def moved(values: Sequence[Tensor], env: Mapping[str, int]) -> list[Tensor]:
        full = _fitted(values[0].cpu(), shape_of(x, env)).expand(shape_of(x, env))
        found = run_on(program, node, {x: full}, env)
        return [compress(m) for m in _some(found, env)]

    results = moved([value], NO_SIZES)
    if not _same_at_all_sizes(program, node, x, [value], moved):
        return _depends_on_sizes(node)
    several = isinstance(node.meta["val"], (list, tuple))
    return [r.to(value.device) for r in results] if several else results[0].to(value.device)


def move_backward(
    program: Program, node: fx.Node, x: fx.Node, value: Tensor | Sequence[Tensor], neutral: float
) -> Tensor | Refusal:
    """The scale or shift on `x` that the movement `node` turns into `value` (a list for split-like calls).

    Elements of `x` that do not reach the result get what those beside them have, so that the result varies along as few
    axes as it can, and `neutral` where that says nothing. A Refusal when two copies of an element ask for different
    values, or where the result is not the same at all free sizes.
    """
    wanted = [value] if isinstance(value, Tensor) else list(value)

    def moved(values: Sequence[Tensor], env: Mapping[str, int]) -> list[Tensor]:
        found = _moved_back(program, node, x, values, neutral, env)
        return [] if found is None else [found]

    results = moved(wanted, NO_SIZES)
    if not results:
        return Refusal(f"{op_name(node)} copies elements that need different factors", node)
    if not _same_at_all_sizes(program, node, x, wanted, moved):
        return _depends_on_sizes(node)
    return results[0].to(wanted[0].device)


def _moved_back(
    program: Program, node: fx.Node, x: fx.Node, wanted: Sequence[Tensor], neutral: float, env: Mapping[str, int]
) -> Tensor | None:
    """What `move_backward` finds at these sizes, None where copies of an element ask for different values."""
    shape = shape_of(x, env)
    labels = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    pieces = _some(run_on(program, node, {x: labels}, env), env)
    result = torch.full((labels.numel(),), math.nan, dtype=torch.float64)
    fitted = [_fitted(w.cpu(), m.shape).expand(m.shape) for m, w in zip(pieces, wanted, strict=True)]
    seen = [(m.reshape(-1).long(), w.reshape(-1)) for m, w in zip(pieces, fitted, strict=True)]
    for index, w in seen:
        result[index] = w
    if any(not torch.equal(result[index], w) for index, w in seen):
        return None
    return _filled(result.reshape(shape), neutral)


def _some(moved: Any, env: Mapping[str, int]) -> Sequence[Tensor]:
    """The results of a movement. Raises ValueError where one of them has no elements at other sizes than the traced."""
    pieces: Sequence[Tensor] = list(moved) if isinstance(moved, (list, tuple)) else [moved]
    if env and not all(p.numel() for p in pieces):
        raise ValueError("nothing is left at these sizes")
    return pieces


def _depends_on_sizes(node: fx.Node) -> Refusal:
    return Refusal(f"which channels {op_name(node)} moves where depends on the free sizes", node)


class _Known(dict[Any, bool]):
    """Of calls, and of the axes along which something varies, whether they move that alike at all free sizes."""


Moved = Callable[[Sequence[Tensor], Mapping[str, int]], Sequence[Tensor]]


def _same_at_all_sizes(program: Program, node: fx.Node, x: fx.Node, values: Sequence[Tensor], moved: Moved) -> bool:
    """Whether a call moves the entries of scales or shifts to the same places at all free sizes.

    Calls of a kind are asked once for all entries of which the same ones are equal.
    """
    if all(v.numel() == 1 for v in values) or not any(True for _ in other_sizes(node, x)):
        return True

    def told(n: fx.Node) -> Any:
        v = n.meta.get("val")
        return (str(n.target), free_shape(n)) if isinstance(v, Tensor) else str(v)

    given = fx.node.map_arg((node.args, node.kwargs), lambda n: _Text(repr(told(n))))
    numbers, labels = _numbered(values)
    shapes = tuple(v.shape for v in values)
    key = (moved.__qualname__, str(node.target), repr(given), free_shape(x), shapes, numbers)
    known = program.notes.get(_Known, _Known)
    if key not in known:
        known[key] = _same_elsewhere(node, x, labels, moved)
    return known[key]


def _numbered(values: Sequence[Tensor]) -> tuple[tuple[int, ...], list[Tensor]]:
    """A number for each different entry, in the order in which they come, and the same in place of the entries."""
    seen: dict[float, int] = {}
    numbers = tuple(seen.setdefault(v, len(seen)) for part in values for v in part.flatten().tolist())
    flat = torch.tensor(numbers, dtype=torch.float64).split([v.numel() for v in values])
    return numbers, [part.reshape(v.shape) for part, v in zip(flat, values, strict=True)]


class _Text(str):
    """What stands for a node in a key."""

    def __repr__(self) -> str:
        return str(self)


def _same_elsewhere(node: fx.Node, x: fx.Node, values: Sequence[Tensor], moved: Moved) -> bool:
    """Whether other free sizes give the same, those that the call can be made at."""
    results = moved(values, NO_SIZES)
    for env in other_sizes(node, x):
        try:
            found = moved(values, env)
        except (RuntimeError, ValueError, IndexError):
            continue
        if len(found) != len(results) or not all(_same_start(a, b) for a, b in zip(results, found, strict=True)):
            return False
    return True


def _fitted(value: Tensor, shape: Sequence[int]) -> Tensor:
    """A scale or shift at these sizes: its first entries along an axis that is shorter there.

    Raises ValueError where an axis is longer.
    """
    for axis, size in enumerate(shape):
        if 1 < value.shape[axis] < size:
            raise ValueError("more entries than were traced")
        if value.shape[axis] > size:
            value = value.narrow(axis, 0, size)
    return value


def _same_start(traced: Tensor, found: Tensor) -> bool:
    """Whether two results are the same, but for their lengths along axes along which both vary."""
    sizes = list(zip(traced.shape, found.shape, strict=True))
    if any(a != b and 1 in (a, b) for a, b in sizes):
        return False
    for axis, (a, b) in enumerate(sizes):
        traced, found = traced.narrow(axis, 0, min(a, b)), found.narrow(axis, 0, min(a, b))
    return torch.equal(traced, found)


def other_sizes(node: fx.Node, x: fx.Node) -> Iterator[dict[str, int]]:
    """A few small sizes for the free ones of a call and of what it moves, and twice the traced ones; none without any.

    None either where one size alone is free, that of the first axis, and stays there: the call does the same to each
    sample. Sizes are left out that are too large to be looked at, or at which nothing is left.
    """
    values = [n.meta.get("val") for n in (x, node, *node.all_input_nodes)]
    sizes = [s for v in pytree.tree_leaves(values) for s in (v.shape if isinstance(v, Tensor) else [v])]
    free = [s for s in sizes if isinstance(s, SymInt)]
    shapes = [s for v in pytree.tree_leaves(values[:2]) if isinstance(v, Tensor) for s in v.shape]
    symbols = {s: size.node.shape_env for size in free for s in size.node.expr.free_symbols}
    names = sorted(map(str, symbols))
    leading = {str(v.shape[0]) for v in pytree.tree_leaves(values[:2]) if isinstance(v, Tensor) and v.dim()}
    if not names or leading == set(names):
        return
    tried = [{name: small + i for i, name in enumerate(names)} for small in SMALL]
    tried.append({str(s): 2 * size_hint(env.create_symintnode(s, hint=None)) for s, env in symbols.items()})
    most = max(LARGEST, math.prod(shape_of(x)))
    for env in tried:
        if all(size_hint(s, env) > 0 for s in shapes) and math.prod(shape_of(x, env)) <= most:
            yield env


def _filled(value: Tensor, neutral: float) -> Tensor:
    """`value` with size 1 along every axis along which all its numbers are the same; NaN stands for any number."""
    for axis in range(value.dim()):
        low = value.nan_to_num(nan=math.inf).amin(axis, keepdim=True)
        high = value.nan_to_num(nan=-math.inf).amax(axis, keepdim=True)
        if bool((low >= high).all()):
            value = torch.where(low > high, math.nan, low)
    return value.nan_to_num(nan=neutral).contiguous()
