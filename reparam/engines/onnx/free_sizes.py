"""Operators that ONNX has for some sizes alone: another exact form, or a refusal by name."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from reparam.errors import InputError
from reparam.ir import (
    CONVS,
    TRANSPOSED_CONVS,
    Program,
    arguments,
    aten,
    batch_one,
    fixed_size,
    is_call,
    op_name,
    place_of,
)

from .sample_kernels import TO_THE_END, as_products, has_free_groups

_AVERAGES = frozenset(
    {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}
)
_LARGEST = frozenset(
    {aten.adaptive_max_pool1d.default, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default}
)
_REMAINDERS = frozenset({aten.remainder.Scalar})
_ROLLS = frozenset({aten.roll.default})
_PARTS = frozenset({aten.chunk.default, aten.split.Tensor})
# What a file has as numbers of a convolution, and what it is called.
_ATTRIBUTES = {n: n for n in ("stride", "padding", "dilation", "output_padding")} | {"groups": "number of groups"}


def for_free_sizes(program: Program) -> Program:
    """The program with what ONNX lacks in other words.

    Adaptive average pools to one value become means, others of free sizes matrix products; adaptive max-pools the
    largest of slices or of windows, parts of a free axis slices, and convolutions in a free number of groups matrix
    products. A size that may be negative is divided as Python divides it, remainders by a size are of a tensor, and
    what is rolled by a size becomes two slices.

    Itself where there are none.

    Raises InputError naming the call and its layer where ONNX has no form for a size that is free.
    """
    for node in program.calls():
        _refuse(program, node)
    if not any(kind(n) for n in program.calls() for kind in _KINDS):
        return program
    made = program.copy()
    for node in list(made.calls()):
        if _is_mean(node):
            axes = [-1 - i for i in range(len(_target(arguments(node)["output_size"])))]
            node.replace_all_uses_with(made.call(aten.mean.dim, (node.args[0], axes, True), like=node))
            made.erase([node])
        elif has_free_groups(node):
            node.replace_all_uses_with(as_products(made, node))
            made.erase([node])
        elif _needs_matrices(node):
            node.replace_all_uses_with(_averaged(made, node))
            made.erase([node])
        elif _needs_slices(node):
            values = _largest(made, node)
            for picked in list(node.users):
                picked.replace_all_uses_with(values)
                made.erase([picked])
            made.erase([node])
        elif _parts_of_free(node):
            _slice(made, node)
        elif _may_be_negative(node):
            _divide_down(made, node)
        elif _by_a_size(node):
            _take_remainder(made, node)
        elif _rolls_by_a_size(node):
            node.replace_all_uses_with(_rolled(made, node))
            made.erase([node])
    return made


def _may_be_negative(node: fx.Node) -> bool:
    """Whether it divides a size that is not known to be positive, or by one; ONNX rounds quotients towards zero."""
    if node.target is not operator.floordiv:
        return False
    return not all(_is_positive(n.meta["val"] if isinstance(n, fx.Node) else n) for n in node.args)


def _is_positive(size: Any) -> bool:
    return size >= 0 if isinstance(size, int) else bool(size.node.expr.is_nonnegative)


def _divide_down(program: Program, node: fx.Node) -> None:
    """floor(a / b) = (a - a mod b) / b, of which nothing is left over; a mod b has the sign of b."""
    a, b = node.args
    rest = program.call(operator.mod, (a, b), like=node)
    whole = program.call(operator.sub, (a, rest), like=node)
    node.replace_all_uses_with(program.call(operator.floordiv, (whole, b), like=node))
    program.erase([node])


def _by_a_size(node: fx.Node) -> bool:
    """Whether it is the remainder of a tensor by a size, which ONNX has by tensors alone."""
    return is_call(node, _REMAINDERS) and isinstance(arguments(node)["other"], fx.Node)


def _take_remainder(program: Program, node: fx.Node) -> None:
    args = arguments(node)
    divisor = program.call(
        aten.scalar_tensor.default, (args["other"],), {"dtype": args["self"].meta["val"].dtype}, like=node
    )
    node.replace_all_uses_with(program.call(aten.remainder.Tensor, (args["self"], divisor), like=node))
    program.erase([node])


def _rolls_by_a_size(node: fx.Node) -> bool:
    args = arguments(node) if is_call(node, _ROLLS) else {}
    return bool(args.get("dims")) and any(isinstance(s, fx.Node) for s in _target(args["shifts"]))


def _rolled(program: Program, node: fx.Node) -> fx.Node:
    """x[k:] and x[:k] behind it along each axis, with k = (size - shift) mod size."""

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    args = arguments(node)
    value: fx.Node = args["self"]
    for shift, axis in zip(_target(args["shifts"]), _target(args["dims"]), strict=True):
        size = call(aten.sym_size.int, args["self"], axis)
        first = call(operator.mod, call(operator.sub, size, shift), size)
        ends = (call(aten.slice.Tensor, value, axis, first, TO_THE_END), call(aten.slice.Tensor, value, axis, 0, first))
        value = call(aten.cat.default, list(ends), axis)
    return value


def _parts_of_free(node: fx.Node) -> bool:
    """Whether it takes an axis of free size apart, into parts that are all picked by their number."""
    if not is_call(node, _PARTS) or not all(is_call(u, frozenset({operator.getitem})) for u in node.users):
        return False
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    return fixed_size(x.meta["val"].shape[arguments(node)["dim"]]) is None


def _slice(program: Program, node: fx.Node) -> None:
    """Part i is x[i * length : (i + 1) * length]; chunks of n have length ceil(size / n). The last may be shorter."""
    args, x = arguments(node), node.args[0]
    axis, parts = args["dim"], len(node.meta["val"])
    for part in list(node.users):

        def call(target: Any, *args: Any, like: fx.Node = part) -> fx.Node:
            return program.call(target, args, like=like)

        length = args["split_size"] if is_call(node, frozenset({aten.split.Tensor})) else None
        if length is None:
            size = call(aten.sym_size.int, x, axis)
            length = call(operator.floordiv, call(operator.add, size, args["chunks"] - 1), args["chunks"])
        index: int = part.args[1] % parts  # type: ignore[operator,assignment]
        first = call(operator.mul, length, index) if index else 0
        last = call(operator.mul, length, index + 1) if index + 1 < parts else TO_THE_END
        part.replace_all_uses_with(call(aten.slice.Tensor, x, axis, first, last))
        program.erase([part])
    program.erase([node])


def _refuse(program: Program, node: fx.Node) -> None:
    args = arguments(node) if is_call(node, CONVS | TRANSPOSED_CONVS | _LARGEST) else {}
    for name, called in _ATTRIBUTES.items() if not has_free_groups(node) else ():
        given = [v for v in _target(args.get(name)) if isinstance(v, fx.Node)]
        if given:
            symbols = {str(s) for v in given for s in v.meta["val"].node.expr.free_symbols}
            left = "none" if symbols & set(batch_one(program)) else "batch"
            raise InputError(
                f"ONNX has no form of the {op_name(node)} of '{place_of(node)}', whose {called} depends on a free "
                f"size; fix the sizes (--dynamic {left})"
            )
    if is_call(node, _LARGEST) and _is_free(node) and not _needs_slices(node):
        sizes = "x".join(str(n) for n in _target(args["output_size"]))
        raise InputError(
            f"ONNX has no form of the {op_name(node)} to {sizes} of '{place_of(node)}' with its positions for free "
            "sizes; fix the sizes (--dynamic batch)"
        )


def _target(sizes: Any) -> list[Any]:
    return list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]


def _is_free(node: fx.Node) -> bool:
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    return any(fixed_size(s) is None for s in shape[len(shape) - len(_target(arguments(node)["output_size"])) :])


def _is_mean(node: fx.Node) -> bool:
    return is_call(node, _AVERAGES) and all(n == 1 for n in _target(arguments(node)["output_size"]))


def _needs_matrices(node: fx.Node) -> bool:
    if not is_call(node, _AVERAGES) or not _is_free(node):
        return False
    targets = _target(arguments(node)["output_size"])
    sizes = node.args[0].meta["val"].shape[-len(targets) :]  # type: ignore[union-attr]
    kept = [isinstance(n, int) or str(n.meta["val"]) == str(s) for n, s in zip(targets, sizes, strict=True)]
    return all(kept) and any(n != 1 for n in targets)


def _needs_slices(node: fx.Node) -> bool:
    """Whether it is an adaptive max-pool to known numbers whose values alone are read."""
    if not is_call(node, _LARGEST) or not all(
        isinstance(n, int | None) for n in _target(arguments(node)["output_size"])
    ):
        return False
    return all(is_call(u, frozenset({operator.getitem})) and u.args[1] == 0 for u in node.users)


def _largest(program: Program, node: fx.Node) -> fx.Node:
    """Each axis by itself: window i is the largest of x[floor(i*size/target) : ceil((i + 1)*size/target)]."""

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    value: fx.Node = node.args[0]  # type: ignore[assignment]
    rank, targets = value.meta["val"].dim(), _target(arguments(node)["output_size"])
    for axis, target in zip(range(rank - len(targets), rank), targets, strict=True):
        size = fixed_size(value.meta["val"].shape[axis])
        if target in (None, size):
            continue
        if size is None:
            value = _largest_of_free(program, node, value, axis, target)
            continue
        ends = [(i * size // target, -(-(i + 1) * size // target)) for i in range(target)]
        parts = [call(aten.amax.default, call(aten.slice.Tensor, value, axis, a, b), [axis], True) for a, b in ends]
        value = call(aten.cat.default, parts, axis) if len(parts) > 1 else parts[0]
    return value


def _largest_of_free(program: Program, node: fx.Node, x: fx.Node, axis: int, target: int) -> fx.Node:
    """The same along an axis of free size, in windows of size // target + 2, which repeat their last element."""

    def call(operator: Any, *args: Any) -> fx.Node:
        return program.call(operator, args, like=node)

    number = program.weight(torch.arange(target).reshape(-1, 1), f"{place_of(node)}.windows", like=node)
    size = call(aten.sym_size.int, x, axis)
    first = call(aten.floor_divide.default, call(aten.mul.Tensor, number, size), target)
    behind = call(aten.mul.Tensor, call(aten.add.Tensor, number, 1), size)
    last = call(aten.sub.Tensor, call(aten.floor_divide.default, call(aten.add.Tensor, behind, target - 1), target), 1)
    longest = call(operator.add, call(operator.floordiv, size, target), 2)
    places = call(aten.minimum.default, call(aten.add.Tensor, first, call(aten.arange.default, longest)), last)
    windows = call(aten.index.Tensor, x, [*[None] * axis, places])
    return call(aten.amax.default, windows, [axis + 1])


def _averaged(program: Program, node: fx.Node) -> fx.Node:
    """Each axis by itself: y = x A^T, with a row of A for each window, 1/length inside it and 0 outside."""
    x: fx.Node = node.args[0]  # type: ignore[assignment]
    rank = x.meta["val"].dim()
    targets = _target(arguments(node)["output_size"])
    value = x
    for axis, target in zip(range(rank - len(targets), rank), targets, strict=True):
        if isinstance(target, fx.Node):  # the size of the input
            continue
        matrix = _windows(program, node, x, axis, target)
        turned = value if axis == rank - 1 else program.call(aten.transpose.int, (value, axis, rank - 1), like=node)
        product = program.call(aten.matmul.default, (turned, matrix), like=node)
        value = product if axis == rank - 1 else program.call(aten.transpose.int, (product, axis, rank - 1), like=node)
    return value


def _windows(program: Program, node: fx.Node, x: fx.Node, axis: int, target: int) -> fx.Node:
    """A^T (size, target): window i reaches from floor(i*size/target) to ceil((i + 1)*size/target)."""

    def call(operator: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return program.call(operator, args, kwargs, like=node)

    number = program.weight(torch.arange(target), f"{place_of(node)}.windows", like=node)
    size = fixed_size(x.meta["val"].shape[axis]) or call(aten.sym_size.int, x, axis)
    first = call(aten.floor_divide.default, call(aten.mul.Tensor, number, size), target)
    behind = call(aten.mul.Tensor, call(aten.add.Tensor, number, 1), size)
    last = call(aten.floor_divide.default, call(aten.add.Tensor, behind, target - 1), target)
    where = call(aten.unsqueeze.default, call(aten.arange.default, size), 1)
    inside = call(aten.logical_and.default, call(aten.ge.Tensor, where, first), call(aten.lt.Tensor, where, last))
    dtype = x.meta["val"].dtype
    length = call(aten.to.dtype, call(aten.sub.Tensor, last, first), dtype)
    return call(aten.div.Tensor, call(aten.to.dtype, inside, dtype), length)


_KINDS = (
    _is_mean,
    has_free_groups,
    _needs_matrices,
    _parts_of_free,
    _needs_slices,
    _may_be_negative,
    _by_a_size,
    _rolls_by_a_size,
)
