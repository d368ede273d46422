"""What torch's exporter writes as a sum in which numbers meet that torch keeps apart: diagonals, logarithms of running
sums, means of what is scattered."""

from __future__ import annotations

import operator

import torch
from torch import fx

from reparam.ir import aten, fixed_size

from .speaker import Speaker, log_of_sums


def diagonal(say: Speaker) -> fx.Node | None:
    """y_i = x_{i, i + k}, looked up at i (n + 1) + k in the flat rows of n numbers.

    The exporter multiplies by zero what is not on the diagonal, which is no zero where that is infinite. None for
    another diagonal than the main one where sizes are free.
    """
    rank = say.args["self"].meta["val"].dim()
    return _looked_up(say, say.args["offset"], say.args["dim1"] % rank, say.args["dim2"] % rank)


def diagonal_of_matrix(say: Speaker) -> fx.Node | None:
    """As `diagonal`. None for what makes a matrix of a diagonal."""
    is_matrix = say.args["self"].meta["val"].dim() == 2
    return _looked_up(say, say.args["diagonal"], 0, 1) if is_matrix else None


def trace(say: Speaker) -> fx.Node | None:
    """The sum of the diagonal."""
    found = _looked_up(say, 0, 0, 1)
    return None if found is None else say(aten.sum.default, found)


def _looked_up(say: Speaker, offset: int, first: int, second: int) -> fx.Node | None:
    x = say.args["self"]
    rank = x.meta["val"].dim()
    if offset < 0:
        first, second, offset = second, first, -offset
    rest = [axis for axis in range(rank) if axis not in (first, second)]
    rows, columns = (fixed_size(x.meta["val"].shape[axis]) for axis in (first, second))
    if offset and (rows is None or columns is None):
        return None
    x = say(aten.permute.default, x, [*rest, first, second])
    flat = say(aten.flatten.using_ints, x, rank - 2, rank - 1)
    if rows is not None and columns is not None:
        places = torch.arange(max(min(rows, columns - offset), 0)) * (columns + 1) + offset
        index = say.program.weight(places, f"{say.node.name}_places", trainable=False, like=say.node)
        return say(aten.index_select.default, flat, rank - 2, index)
    height, width = (
        n if n is not None else say(aten.sym_size.int, x, axis) for n, axis in ((rows, rank - 2), (columns, rank - 1))
    )
    index = say(aten.slice.Tensor, say(aten.arange.default, height), 0, 0, width)
    index = say(aten.mul.Tensor, index, say(operator.add, width, 1))
    return say(aten.index_select.default, flat, rank - 2, index)


def running_log_of_sums(say: Speaker) -> fx.Node | None:
    """y_i = log sum_j exp(x_j where j <= i, else -inf), each row by its own largest number.

    The exporter takes the logarithm of running sums of exp(x - m) with the largest number m of all, which is -inf for
    those that lie far below it. None along an axis of free size.
    """
    x, rank = say.args["self"], say.dtype.is_floating_point and say.args["self"].meta["val"].dim()
    axis = say.args["dim"] % rank if rank else 0
    size = fixed_size(x.meta["val"].shape[axis]) if rank else None
    if size is None:
        return None
    behind = [1] * (rank - 1 - axis)
    later = torch.ones(size, size, dtype=torch.bool).triu(1).reshape(size, size, *behind)
    mask = say.program.weight(later, f"{say.node.name}_later", trainable=False, like=say.node)
    each = say(aten.unsqueeze.default, say.tensor("self"), axis)
    rows = say(aten.where.ScalarSelf, mask, -torch.inf, each)
    return say(aten.squeeze.dim, log_of_sums(say, rows, [axis + 1]), axis + 1)


def scattered_mean(say: Speaker) -> fx.Node | None:
    """The sum of what goes to each place, and of what lies there if that counts, by how many they are.

    ONNX adds, multiplies and takes extremes of what is scattered, and no means. None of others, or of whole numbers.
    """
    if say.args["reduce"] != "mean" or not say.floats:
        return None
    own, axis, index, source = say.tensor("self"), say.args["dim"], say.args["index"], say.tensor("src")
    start = own if say.args["include_self"] else say(aten.zeros_like.default, own)
    one = say(aten.ones_like.default if say.args["include_self"] else aten.zeros_like.default, own)
    total = say(aten.scatter_add.default, start, axis, index, source)
    count = say(aten.scatter_add.default, one, axis, index, say(aten.ones_like.default, source))
    mean = say(aten.div.Tensor, total, say(aten.clamp.default, count, 1.0))
    return mean if say.args["include_self"] else say(aten.where.self, say(aten.eq.Scalar, count, 0.0), own, mean)
