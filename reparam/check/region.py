"""Regions of a rewrite, and the smallest inputs on which one can be checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.errors import RuleError
from reparam.ir import (
    ACTIVATIONS,
    ADDS,
    AVG_POOLS,
    BATCH_NORMS,
    CATS,
    CONVS,
    DIVS,
    DROPOUTS,
    FILLS,
    IDENTITIES,
    LINEARS,
    MAX_POOLS,
    MULS,
    PADS,
    SUBS,
    TRANSPOSED_CONVS,
    WEIGHTED,
    arguments,
    aten,
    is_call,
    is_float_cast,
    pair,
    shape_of,
    upstream,
)

AFFINE = WEIGHTED | BATCH_NORMS | ADDS | SUBS | MULS | DIVS | CATS | AVG_POOLS | {aten.neg.default, aten.pad.default}
_POINTWISE = frozenset({aten.prelu.default, aten.clamp.Tensor})
_SAME = IDENTITIES | DROPOUTS
_ROW_NORMS = frozenset({aten.layer_norm.default, aten.rms_norm.default})  # each row by itself, over its last axis
_SIZE_FREE = AFFINE | MAX_POOLS | frozenset(ACTIVATIONS) | _POINTWISE | _SAME | _ROW_NORMS
_ROWS, _NORMED_ROWS = 2, 64  # the rows on which linear layers are checked, alone and where the rows are normalised


@dataclass(frozen=True)
class Region:
    """The old and the new computation of the same values from the same inputs, each in execution order."""

    inputs: tuple[fx.Node, ...]
    old: tuple[fx.Node, ...]
    new: tuple[fx.Node, ...]
    outputs: tuple[tuple[fx.Node, fx.Node], ...]


def _is_size(node: fx.Node) -> bool:
    """A size of some tensor: an int as far as the region is concerned, not data."""
    return node.op == "call_function" and isinstance(node.meta["val"], (int, torch.SymInt))


def _reads_more(node: fx.Node, is_input: Callable[[fx.Node], bool]) -> bool:
    """Whether the value depends on more of the network's inputs than the region's own."""
    return any(n.op == "placeholder" for n in upstream([node], is_input))


def whole_region(replace: Mapping[fx.Node, fx.Node], created: Sequence[fx.Node]) -> Region:
    """The region of a rewrite that may do without inputs and sizes that the old values read: all that it replaces."""
    made = set(created)
    read = {x for n in created for x in n.all_input_nodes} | set(replace.values())
    inputs = {n for n in read if n not in made and n.op != "get_attr"}
    before = upstream(replace.keys(), lambda n: n in inputs or n.op == "placeholder")
    after = upstream(replace.values(), lambda n: n in inputs)
    return Region(tuple(sorted(inputs)), tuple(before), tuple(after), tuple(replace.items()))


def find_region(
    replace: Mapping[fx.Node, fx.Node], created: Sequence[fx.Node], unread: Sequence[fx.Node] = ()
) -> Region:
    """The region of a rewrite: from the old values that the new nodes read to the replaced ones.

    unread: more inputs, which the old nodes read and which are said to change nothing; the check draws them as well.
    Raises RuleError when the old values depend on something that the new ones do not read.
    """
    made = set(created)
    inputs: dict[fx.Node, None] = {}
    for node in created:
        for operand in node.all_input_nodes:
            if operand not in made and operand.op != "get_attr":
                inputs[operand] = None
    for new in (*replace.values(), *unread):
        if new not in made and new.op != "get_attr":
            inputs[new] = None
    stop = set(inputs)

    def is_input(node: fx.Node) -> bool:
        return node in stop or _is_size(node)

    for fill in [n for n in upstream(replace.keys(), is_input) if n.target in FILLS]:  # of which only the shape is read
        shapes = [i for i in fill.all_input_nodes if not _is_size(i) and _reads_more(i, is_input)]
        inputs |= dict.fromkeys(shapes)
        stop |= set(shapes)
    before, after = upstream(replace.keys(), is_input), upstream(replace.values(), is_input)
    dropped = next((n for n in before if n.op == "placeholder"), None)
    if dropped is not None:
        raise RuleError(
            f"the rewrite dropped an input: the old value depends on '{dropped.name}', the new one does not"
        )
    sizes = dict.fromkeys(i for n in (*before, *after) for i in n.all_input_nodes if _is_size(i))
    return Region((*inputs, *sizes), tuple(before), tuple(after), tuple(replace.items()))


def _reduced_size(region: Sequence[fx.Node], ndim: int) -> list[int]:
    """The smallest map that shows the interior and every border class of all sliding windows of the region.

    Along each axis it has room for what one value reads through all windows, and one step more: whatever the padding,
    some value then reads nothing but what is inside.
    """
    fields: dict[fx.Node, _Field] = {}
    for node in region:
        fields[node] = _widest([fields[i] for i in node.all_input_nodes if i in fields], ndim)
        if is_call(node, CONVS | AVG_POOLS | MAX_POOLS | TRANSPOSED_CONVS | PADS):
            fields[node] = _field(node, fields[node], ndim)
    widest = _widest(list(fields.values()), ndim)
    return [1 if r == s == 1 else r + s for r, s in widest]


_Field = Sequence[tuple[int, int]]  # along each axis: how many inputs a value reads, and how far its neighbour's lie


def _widest(fields: Sequence[_Field], ndim: int) -> _Field:
    return [tuple(map(max, (1, 1), *axis)) for axis in zip(*fields, strict=True)] if fields else [(1, 1)] * ndim


def _field(node: fx.Node, before: _Field, ndim: int) -> _Field:
    """What a value behind a window, or behind a pad that crops, reads; `before` is what the values before it read."""
    if is_call(node, TRANSPOSED_CONVS | PADS):
        return [(r + more * s, s) for (r, s), more in zip(before, _inner_reach(node, ndim), strict=True)]
    args = arguments(node)
    stride = pair(args["stride"] or args["kernel_size"], ndim)
    kernel = shape_of(args["weight"])[2:] if is_call(node, CONVS) else pair(args["kernel_size"], ndim)
    spans = [d * (k - 1) for k, d in zip(kernel, pair(args.get("dilation", 1), ndim), strict=True)]
    return [(r + span * s, s * step) for (r, s), span, step in zip(before, spans, stride, strict=True)]


def _inner_reach(node: fx.Node, ndim: int) -> list[int]:
    """What a transposed convolution or a cropping pad adds: what one output reads, and what is cut off."""
    args = arguments(node)
    if is_call(node, PADS):
        flat = list(args["pad"]) + [0] * (2 * ndim - len(args["pad"]))
        return [-min(flat[2 * i], 0) - min(flat[2 * i + 1], 0) for i in reversed(range(ndim))]
    spans = [d * (k - 1) for k, d in zip(shape_of(args["weight"])[2:], pair(args["dilation"], ndim), strict=True)]
    steps = zip(spans, pair(args["stride"], ndim), pair(args["padding"], ndim), strict=True)
    return [2 * (-(-span // stride) + -(-padding // stride)) for span, stride, padding in steps]


def _reads_a_map(node: fx.Node) -> bool:
    """True when an elementwise call reads a constant that varies over space or the batch, and so has one size alone."""
    if not is_call(node, ADDS | SUBS | MULS | DIVS | CATS | _POINTWISE):
        return False
    rank, shapes = len(shape_of(node)), [shape_of(i) for i in node.all_input_nodes if i.op == "get_attr"]
    beside = len(shapes) < len(node.all_input_nodes)  # data
    return any(math.prod(s[2:]) > 1 or (beside and len(s) == rank > 2 and s[0] > 1) for s in shapes)


def _joins_batches(node: fx.Node) -> bool:
    """Whether a concatenation is along the batch, so that samples do not stand alone."""
    return is_call(node, CATS) and arguments(node)["dim"] % len(shape_of(node)) == 0


@dataclass(frozen=True)
class RegionShapes:
    """Input shapes to check a region on. `free` regions may use any batch, and any map size unless `parity`."""

    sizes: tuple[tuple[int, ...], ...]
    free: bool
    parity: bool = False


def _is_size_free(node: fx.Node) -> bool:
    return is_float_cast(node) or (is_call(node, _SIZE_FREE) and not _reads_a_map(node) and not _joins_batches(node))


def small_shapes(region: Region) -> RegionShapes:
    hints = tuple(shape_of(n) if isinstance(n.meta["val"], Tensor) else () for n in region.inputs)
    fixed = RegionShapes(hints, False)
    if not all(isinstance(n.meta["val"], Tensor) and n.meta["val"].is_floating_point() for n in region.inputs):
        return fixed
    calls = [n for n in (*region.old, *region.new) if n.op == "call_function"]
    if not all(_is_size_free(n) for n in calls):
        return fixed
    ranks = {len(h) for h in hints}
    if any(is_call(n, LINEARS | _ROW_NORMS) for n in calls):
        rows = _NORMED_ROWS if any(is_call(n, _ROW_NORMS) for n in calls) else _ROWS
        return RegionShapes(tuple((rows, h[-1]) for h in hints), True) if _all_rowwise(calls) else fixed
    if len(ranks) != 1 or len({h[2:] for h in hints}) != 1:
        return fixed
    rank = ranks.pop()
    if rank < 3:
        return RegionShapes(hints, rank == 2)
    small = _reduced_size(region.old, rank - 2), _reduced_size(region.new, rank - 2)
    unit = _common_stride(region.old, rank - 2) if _needs_parity(region.old) else [1] * (rank - 2)
    space = tuple(
        min(least + (full - least) % u, full)
        for least, full, u in zip(map(max, *small), hints[0][2:], unit, strict=True)
    )
    batch = 3 if math.prod(space) == 1 else 2  # of larger maps, a third sample is drawn at a size of its own
    return RegionShapes(tuple((batch, h[1], *space) for h in hints), True, _needs_parity(region.old))


def _needs_parity(region: Sequence[fx.Node]) -> bool:
    """True when a window may be cut off at the border, so that a rewrite can be right for even sizes alone."""
    return any(is_call(n, AVG_POOLS) and arguments(n)["ceil_mode"] for n in region)


def _common_stride(region: Sequence[fx.Node], ndim: int) -> list[int]:
    """The strides of all sliding windows of the region multiplied."""
    total = [1] * ndim
    for node in region:
        if is_call(node, CONVS | AVG_POOLS | MAX_POOLS):
            args = arguments(node)
            stride = pair(args["stride"] or args["kernel_size"], ndim)
            total = [t * s for t, s in zip(total, stride, strict=True)]
    return total


def _all_rowwise(calls: Sequence[fx.Node]) -> bool:
    """True when every call treats the rows of a matrix independently, so that (N, C) stands for (..., C)."""
    rowwise = LINEARS | ADDS | SUBS | MULS | DIVS | frozenset(ACTIVATIONS) | _SAME | _ROW_NORMS
    return all(is_float_cast(n) or (is_call(n, rowwise) and _constants_are_rows(n)) for n in calls)


def _constants_are_rows(node: fx.Node) -> bool:
    if is_call(node, LINEARS):
        return True
    if is_call(node, _ROW_NORMS) and len(arguments(node)["normalized_shape"]) != 1:
        return False
    return all(i.op != "get_attr" or math.prod(shape_of(i)[:-1]) == 1 for i in node.all_input_nodes)
