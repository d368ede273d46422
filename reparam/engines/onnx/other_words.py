"""Operators that ONNX lacks, in the words that it has: distances, bags of equal length, running products, medians,
selections by a mask, norms and differences of two dtypes, extremes of all values, and narrow indices."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from reparam.errors import InputError
from reparam.ir import NORMS, Program, arguments, aten, fixed_size, is_call, is_tensor, place_of

_DISTANCES = frozenset({aten.cdist.default})
_BAGS = frozenset({aten.embedding_bag.default, aten.embedding_bag.padding_idx})
_RUNNING = frozenset({aten.cumprod.default})
_RANKED = frozenset({aten.median.dim, aten.kthvalue.default})
_MASKED = frozenset({aten.masked_select.default})
_LSTMS = frozenset({aten.lstm.input})
_EXTREMES = frozenset({aten.amax.default, aten.amin.default})
_LESS = frozenset({aten.rsub.Scalar})
_INDEXING = frozenset({aten.index.Tensor, aten.index_put.default})
_SUM, _MEAN = 0, 1  # what becomes of a bag; 2 is its largest


def in_other_words(program: Program) -> Program:
    """The program with distances as norms of differences, bags of equal length as embeddings that are summed, running
    products as products of all that is not later, medians and kth values as the last of the k smallest, selections by a
    mask as what lies at it, norms in the dtype of their weights, numbers less whole ones in the dtype of the result,
    extremes of all values as those of all axes, and long whole numbers for indices.

    Itself where there is nothing of these. A running product or median along an axis of free size stays.

    Raises InputError naming the layer for bags whose lengths differ, or are not known, and for an LSTM that projects
    its state.
    """
    words = _DISTANCES | _BAGS | _RUNNING | _RANKED | _MASKED
    _refuse_projections(program)
    if not any(is_call(n, words) or any(f(n) for f in _TOLD_BY_ARGUMENTS) for n in program.calls()):
        return program
    made = program.copy()
    for node in list(made.calls()):
        if is_call(node, _DISTANCES):
            node.replace_all_uses_with(_distances(made, node))
            made.erase([node])
        elif is_call(node, _BAGS):
            _unpack(made, node)
        elif is_call(node, _RUNNING):
            _multiply_up(made, node)
        elif is_call(node, _RANKED):
            _pick_smallest(made, node)
        elif is_call(node, _MASKED):
            _select(made, node)
        elif dtype := _weights_in(node):
            _normalize_in(made, node, dtype)
        elif axes := _all_axes(node):
            node.args = (node.args[0], axes, arguments(node)["keepdim"])
        elif whole := _whole_operand(node):
            node.update_arg(0, made.call(aten.to.dtype, (whole, node.meta["val"].dtype), like=node))
        elif narrow := _narrow_indices(node):
            wide = {i: made.call(aten.to.dtype, (i, torch.int64), like=node) for i in narrow}
            indices = [wide.get(i, i) for i in arguments(node)["indices"]]
            node.update_arg(1, indices)
    return made


def _narrow_indices(node: fx.Node) -> list[fx.Node]:
    """The indices of a call that have 32 bits, where ONNX wants 64, each once."""
    indices = arguments(node)["indices"] if is_call(node, _INDEXING) else ()
    return list(dict.fromkeys(i for i in indices if i is not None and i.meta["val"].dtype is torch.int32))


def _weights_in(node: fx.Node) -> torch.dtype | None:
    """The dtype of a norm's weights where its input has another one, as inside of autocast."""
    if not is_call(node, NORMS):
        return None
    x, *weights = [n.meta["val"].dtype for n in node.all_input_nodes if is_tensor(n)]
    return next((w for w in weights if w != x), None)


def _all_axes(node: fx.Node) -> list[int]:
    """All axes where an extreme is told none, which means all; none for any other call."""
    if not is_call(node, _EXTREMES) or arguments(node)["dim"]:
        return []
    return list(range(arguments(node)["self"].meta["val"].ndim))


def _whole_operand(node: fx.Node) -> fx.Node | None:
    """The whole numbers that are taken away from a number, where the result has another dtype."""
    if not is_call(node, _LESS):
        return None
    operand = arguments(node)["self"]
    return operand if operand.meta["val"].dtype is not node.meta["val"].dtype else None


_TOLD_BY_ARGUMENTS = (_narrow_indices, _weights_in, _all_axes, _whole_operand)


def _normalize_in(program: Program, node: fx.Node, dtype: torch.dtype) -> None:
    """torch computes such a norm in the dtype of its weights, and rounds what it gives to that of its input."""
    args, kwargs = list(node.args), dict(node.kwargs)
    args[0] = program.call(aten.to.dtype, (args[0], dtype), like=node)
    wide = program.call(node.target, args, kwargs, like=node)
    node.replace_all_uses_with(program.call(aten.to.dtype, (wide, node.meta["val"].dtype), like=node))
    program.erase([node])


def _distances(program: Program, node: fx.Node) -> fx.Node:
    """d[..., i, j] = |a_i - b_j|_p for rows a_i and b_j."""

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    args = arguments(node)
    a, b = call(aten.unsqueeze.default, args["x1"], -2), call(aten.unsqueeze.default, args["x2"], -3)
    return call(aten.linalg_vector_norm.default, call(aten.sub.Tensor, a, b), args["p"], [-1])


def _axis_of(node: fx.Node) -> tuple[int, int | None]:
    """The axis along which a call goes, from 0, and its size; None for a size that is free."""
    args = arguments(node)
    shape = args["self"].meta["val"].shape
    axis = args["dim"] % len(shape) if shape else 0
    return axis, fixed_size(shape[axis]) if shape else None


def _multiply_up(program: Program, node: fx.Node) -> None:
    """y_i = prod_j (x_j where j <= i, else 1)."""
    axis, size = _axis_of(node)
    value = node.meta["val"]
    if size is None or not value.dtype.is_floating_point:
        return

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    behind = [1] * (value.dim() - 1 - axis)
    earlier = torch.ones(size, size, dtype=torch.bool).tril().reshape(size, size, *behind)
    x = call(aten.unsqueeze.default, call(aten.to.dtype, node.args[0], value.dtype), axis)
    mask = program.weight(earlier, f"{node.name}_earlier", trainable=False, like=node)
    masked = call(aten.where.ScalarOther, mask, x, 1.0)
    node.replace_all_uses_with(call(aten.prod.dim_int, masked, axis + 1))
    program.erase([node])


def _pick_smallest(program: Program, node: fx.Node) -> None:
    """The kth smallest along an axis, and where it is; of n numbers the median is the one in place (n + 1)/2."""
    axis, size = _axis_of(node)
    args = arguments(node)
    if size is None:
        return

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    k = args.get("k", (size + 1) // 2)
    smallest = call(aten.topk.default, node.args[0], k, axis, False, True)
    for picked in list(node.users):
        found = call(operator.getitem, smallest, picked.args[1])
        last = call(aten.slice.Tensor, found, axis, k - 1, k)
        picked.replace_all_uses_with(last if args.get("keepdim") else call(aten.squeeze.dim, last, axis))
        program.erase([picked])
    program.erase([node])


def _select(program: Program, node: fx.Node) -> None:
    """x[m], of a value and a mask of one shape; others stay."""
    given = arguments(node)
    x, mask = given["self"], given["mask"]
    if str(x.meta["val"].shape) == str(mask.meta["val"].shape):
        node.replace_all_uses_with(program.call(aten.index.Tensor, (x, [mask]), like=node))
        program.erase([node])


def _refuse_projections(program: Program) -> None:
    """Raises InputError for an LSTM with a weight more in each direction of each layer than gates and biases need."""
    for node in program.calls():
        if not is_call(node, _LSTMS):
            continue
        given = arguments(node)
        weights = 4 if given["has_biases"] else 2
        if len(given["params"]) > weights * given["num_layers"] * (1 + given["bidirectional"]):
            raise InputError(
                f"ONNX has no LSTM that projects its state (proj_size), which '{place_of(node)}' is; a .pt2 of convert "
                "and the format aoti have it"
            )


def _unpack(program: Program, node: fx.Node) -> None:
    """The rows of each bag, times their weights, and their sum, mean or largest; a row of padding does not count.

    A bag of padding alone is zero.
    """

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    args = arguments(node)
    length = _length(program, node)
    if any(u.args[1] != 0 for u in node.users) or length is None:
        raise InputError(
            f"ONNX has no form of the embedding_bag of '{place_of(node)}', whose bags are not known to be of one "
            "length; pass indices of two axes, a bag a row"
        )
    indices = call(aten.reshape.default, args["indices"], [-1, length])
    rows = call(aten.embedding.default, args["weight"], indices)
    weights, padding, mode = args.get("per_sample_weights"), args.get("padding_idx"), args["mode"]
    if weights is not None:
        each = call(aten.reshape.default, weights, [-1, length, 1])
        rows = call(aten.mul.Tensor, rows, each)
    if padding is None or padding < 0:
        value = call(_OF_A_BAG[mode], rows, [1])
    else:
        counts = call(aten.unsqueeze.default, call(aten.ne.Scalar, indices, padding), -1)
        value = _without_padding(program, node, rows, counts, mode)
    for picked in list(node.users):
        picked.replace_all_uses_with(value)
        program.erase([picked])
    program.erase([node])


_OF_A_BAG: Any = (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default)


def _without_padding(program: Program, node: fx.Node, rows: fx.Node, counts: fx.Node, mode: int) -> fx.Node:
    """counts: which rows count (bags, length, 1)."""

    def call(target: Any, *args: Any) -> fx.Node:
        return program.call(target, args, like=node)

    dtype = rows.meta["val"].dtype
    if mode in (_SUM, _MEAN):
        ones = call(aten.to.dtype, counts, dtype)
        total = call(aten.sum.dim_IntList, call(aten.mul.Tensor, rows, ones), [1])
        if mode == _SUM:
            return total
        return call(aten.div.Tensor, total, call(aten.clamp.default, call(aten.sum.dim_IntList, ones, [1]), 1))
    lowest = call(aten.masked_fill.Scalar, rows, call(aten.logical_not.default, counts), torch.finfo(dtype).min)
    some = call(aten.any.dim, counts, 1)
    return call(aten.mul.Tensor, call(aten.amax.default, lowest, [1]), call(aten.to.dtype, some, dtype))


def _length(program: Program, node: fx.Node) -> int | None:
    """How many indices each bag has; None where that differs or is not known."""
    args = arguments(node)
    if args.get("include_last_offset"):
        return None
    offsets, indices = args["offsets"], args["indices"]
    constant = program.constant(offsets)
    if constant is not None:
        total = fixed_size(indices.meta["val"].shape[0])
        starts = [int(v) for v in constant.value.reshape(-1)]
        length = total // len(starts) if total and starts else 0
        return length if length and starts == list(range(0, total or 0, length)) else None
    if not is_call(offsets, frozenset({aten.arange.start_step})):
        return None
    start, end, step = (offsets.args[i] if i < len(offsets.args) else 1 for i in range(3))
    whole = isinstance(end, fx.Node) and str(end.meta["val"]) == str(indices.meta["val"].shape[0])
    return step if start == 0 and isinstance(step, int) and whole else None
