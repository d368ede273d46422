"""Sums in one spelling, so that residual blocks are found however they are written.

x - f  =  x + (-1)*f        x.add(f, alpha=a)  =  x + a*f        lerp(x, f, w)  =  (1 - w)*x + w*f
addcmul(x, f, c, value=v)  =  x + v*f*c
stack([x, f]).sum(0)  =  cat([x, f]).unflatten(0, (2, -1)).sum(0)  =  einsum("kbc->bc", stack([x, f]))  =  x + f
einsum("kbc,k->bc", stack([x, f]), w)  =  w[0]*x + w[1]*f
x + f + f/2  =  x + 1.5*f
"""

from __future__ import annotations

from typing import Any

from torch import fx

from reparam.ir import (
    ADDS,
    CATS,
    EINSUMS,
    MEANS,
    MOVEMENTS,
    MULS,
    STACKS,
    SUBS,
    SUMS,
    Program,
    arguments,
    aten,
    free_shape,
    is_call,
    is_float,
    shape_of,
)
from reparam.passes import every_rule
from reparam.rewrite import Driver, Phase

from .functions import first_of

_LERPS = frozenset({aten.lerp.Scalar, aten.lerp.Tensor})
_PRODUCTS = frozenset({aten.addcmul.default, aten.addcdiv.default})
Term = tuple[Any, Any]  # a value and its factor: a number, a node, or what `_Rest` and `_Part` stand for


def spell_sums(program: Program) -> None:
    """Writes sums of floating values of one shape that depend on the inputs as additions of products, in place."""
    if any(is_call(n, STACKS) for n in program.calls()):
        stacks = Phase("stacks", (every_rule()["sum-of-stack"],))
        Driver(program, allow_cost=False).run([stacks])
    for read in (_of_cat, _of_einsum, _of_products, _of_pair, _of_repeated):
        for node in list(program.calls()):
            if not program.erased(node) and (terms := read(node)) is not None:
                _write(program, node, terms)


def _write(program: Program, node: fx.Node, terms: tuple[Term, ...]) -> None:
    """The sum of the terms in place of a call, and of what only it read."""
    after = node.next
    total: fx.Node | None = None
    for value, factor in terms:
        term = _times(program, value, factor, node, after)
        total = term if total is None else _call(program, aten.add.Tensor, (total, term), node, after)
    assert total is not None
    node.replace_all_uses_with(total)
    stack = [node]
    while stack:
        dead = stack.pop()
        if dead.op == "call_function" and not dead.users:
            operands = list(dead.all_input_nodes)
            program.erase([dead])
            stack += operands


def _is_sum(node: fx.Node, values: tuple[Any, ...]) -> bool:
    """Whether values could be added up to a result as they are."""
    shape, dtype = free_shape(node), node.meta["val"].dtype
    return all(
        isinstance(n, fx.Node)
        and n.meta.get("data")
        and is_float(n)
        and free_shape(n) == shape
        and n.meta["val"].dtype == dtype
        for n in values
    )


# ---- one call ----------------------------------------------------------------------------------------------------


def _of_pair(node: fx.Node) -> tuple[Term, ...] | None:
    """The two values of a sum with their factors, where the sum is spelled in another way."""
    if not is_call(node, ADDS | SUBS | _LERPS):
        return None
    args = arguments(node)
    first, second = first_of(args), args.get("end" if is_call(node, _LERPS) else "other")
    if not _is_sum(node, (first, second)):
        return None
    if is_call(node, _LERPS):
        weight = args["weight"]
        if isinstance(weight, fx.Node) and weight.meta.get("data"):
            return None
        return (first, _Rest(weight)), (second, weight)
    alpha = args.get("alpha", 1)
    if not isinstance(alpha, int | float) or (is_call(node, ADDS) and alpha == 1):
        return None
    if is_call(node, ADDS):
        return (first, 1), (second, alpha)
    if is_call(node, {aten.rsub.Tensor}):
        return (first, -alpha), (second, 1)
    return (first, 1), (second, -alpha)


def _of_products(node: fx.Node) -> tuple[Term, ...] | None:
    """x + v*f*c, and x + v*f/c."""
    if not is_call(node, _PRODUCTS):
        return None
    args = arguments(node)
    first, f, c, v = args["self"], args["tensor1"], args["tensor2"], args.get("value", 1)
    if is_call(node, {aten.addcmul.default}) and not (isinstance(f, fx.Node) and f.meta.get("data")):
        f, c = c, f
    if not _is_sum(node, (first, f)) or not isinstance(v, int | float):
        return None
    return (first, 1), (f, _Quotient(c, v) if is_call(node, {aten.addcdiv.default}) else _Product(c, v))


# ---- values side by side -----------------------------------------------------------------------------------------


def _of_cat(node: fx.Node) -> tuple[Term, ...] | None:
    """A sum or mean over the first factor of an axis that was made by a concatenation."""
    if not is_call(node, SUMS | MEANS) or arguments(node).get("keepdim"):
        return None
    args = arguments(node)
    view, dims = first_of(args), args.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if not is_call(view, MOVEMENTS) or len(view.all_input_nodes) != 1 or len(dims) != 1:
        return None
    (joined,) = view.all_input_nodes
    if not is_call(joined, CATS):
        return None
    values = tuple(arguments(joined)["tensors"])
    axis, rank = dims[0] % len(shape_of(view)), len(shape_of(joined))
    whole, n = shape_of(joined), len(values)
    split = (*whole[:axis], n, whole[axis] // n, *whole[axis + 1 :]) if axis < rank else ()
    if shape_of(view) != split or arguments(joined)["dim"] % rank != axis or not _is_view(view):
        return None
    return tuple((v, 1 / n if is_call(node, MEANS) else 1) for v in values) if _is_sum(node, values) else None


def _is_view(node: fx.Node) -> bool:
    return is_call(node, {aten.view.default, aten.reshape.default, aten.unflatten.int})


def _of_einsum(node: fx.Node) -> tuple[Term, ...] | None:
    """A sum over the axis that a stack made, perhaps with a constant factor for each part."""
    if not is_call(node, EINSUMS):
        return None
    args = arguments(node)
    left, _, right = args["equation"].replace(" ", "").partition("->")
    letters, operands = left.split(","), list(args["tensors"])
    at = next((i for i, x in enumerate(operands) if is_call(x, STACKS)), None)
    if at is None or len(operands) > 2 or "." in left:
        return None
    made = arguments(operands[at])
    axis = made["dim"] % len(letters[at])
    new, rest = letters[at][axis], letters[at][:axis] + letters[at][axis + 1 :]
    values = tuple(made["tensors"])
    if rest != right or new in right or not _is_sum(node, values):
        return None
    if len(operands) == 1:
        return tuple((v, 1) for v in values)
    weights = operands[1 - at]
    if letters[1 - at] != new or not isinstance(weights, fx.Node) or weights.meta.get("data"):
        return None
    return tuple((v, _Part(weights, i)) for i, v in enumerate(values))


# ---- values that are added more than once ------------------------------------------------------------------------


def _of_repeated(node: fx.Node) -> tuple[Term, ...] | None:
    """The terms of a sum of sums in which some value is added more than once, each once."""
    if not _is_addition(node) or any(_is_addition(u) for u in node.users if len(node.users) == 1):
        return None
    terms: dict[fx.Node, float] = {}
    count = 0
    stack: list[tuple[Any, float]] = [(node, 1.0)]
    while stack:
        value, factor = stack.pop()
        inside = value is node or len(value.users) == 1
        args = arguments(value) if value.op == "call_function" else {}
        first, second = first_of(args), args.get("other")
        if inside and _is_addition(value):
            stack += [(second, factor), (first, factor)]
        elif inside and is_call(value, MULS) and isinstance(second, int | float) and isinstance(first, fx.Node):
            stack.append((first, factor * second))
        else:
            terms[value] = terms.get(value, 0.0) + factor
            count += 1
    return tuple(terms.items()) if count > len(terms) > 1 else None


def _is_addition(node: fx.Node) -> bool:
    if not is_call(node, ADDS):
        return False
    args = arguments(node)
    return args.get("alpha", 1) == 1 and _is_sum(node, (first_of(args), args["other"]))


# ---- writing -----------------------------------------------------------------------------------------------------


class _Rest:
    """One minus a weight."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight


class _Product:
    """A value times a number."""

    def __init__(self, value: fx.Node, number: float) -> None:
        self.value, self.number = value, number


class _Quotient(_Product):
    """A number over a value."""


class _Part:
    """One entry of a vector."""

    def __init__(self, vector: fx.Node, index: int) -> None:
        self.vector, self.index = vector, index


def _times(program: Program, value: fx.Node, factor: Any, node: fx.Node, after: fx.Node) -> fx.Node:
    if isinstance(factor, _Product):
        target = aten.div.Tensor if isinstance(factor, _Quotient) else aten.mul.Tensor
        return _times(program, _call(program, target, (value, factor.value), node, after), factor.number, node, after)
    if isinstance(factor, _Part):
        factor = _call(program, aten.select.int, (factor.vector, 0, factor.index), node, after)
    if isinstance(factor, _Rest):
        w = factor.weight
        factor = _call(program, aten.rsub.Scalar, (w, 1), node, after) if isinstance(w, fx.Node) else 1 - w
    if not isinstance(factor, fx.Node) and factor == 1:
        return value
    return _call(program, aten.mul.Tensor, (value, factor), node, after)


def _call(program: Program, target: Any, args: tuple[Any, ...], node: fx.Node, after: fx.Node) -> fx.Node:
    made = program.call(target, args, like=after)
    made.meta["module"] = node.meta.get("module", "")
    return made
