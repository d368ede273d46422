"""What calls read that look through windows or move places: which places of an operand a box of the result needs.

Each reader takes a call and the box of its result, and gives the operands with their boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from reparam.ir import (
    AVG_POOLS,
    CATS,
    CONVS,
    FILLS,
    MAX_POOLS,
    PADS,
    SPLITS,
    STACKS,
    TRANSPOSED_CONVS,
    arguments,
    aten,
    is_call,
    pair,
    shape_of,
)

from .boxes import Axis, Box, Extent, complete, groups_of, joined, one, opened, regrouped, whole
from .roles import TURNS, order_of

Reads = Iterator[tuple[Any, Box]]
Reader = Callable[[fx.Node, Box], Reads]
_VIEWS = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as", "_unsafe_view")
_UPSAMPLES = {"nearest": (0, 0), "linear": (0, 1), "bilinear": (0, 1), "trilinear": (0, 1), "bicubic": (-1, 2)}


class UnknownReachError(Exception):
    """Of an operator for which nobody has said what it reads."""


def name_of(node: fx.Node) -> str:
    """The name of the operator, without its overload."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def first_of(node: fx.Node) -> fx.Node:
    """The first operand. Raises UnknownReachError where it is no tensor."""
    found = next(iter(arguments(node).values()))
    if not isinstance(found, fx.Node):
        raise UnknownReachError
    return found


def broadcast(sizes: Sequence[int], box: Box, result: Sequence[int]) -> Box:
    """The places of an operand of `sizes` that is broadcast to the shape `result`."""
    made = []
    for back in range(len(sizes), 0, -1):
        if sizes[-back] not in (1, result[-back]):
            raise UnknownReachError
        made.append(box[-back] if sizes[-back] == result[-back] else one(1))
    return tuple(made)


# ---- windows -----------------------------------------------------------------------------------------------------


def _conv(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    x, kernel = args["input"], shape_of(args["weight"])[2:]
    if not args["weight"].meta.get("data"):
        made = _window(node, box, x, args, kernel, transposed=is_call(node, TRANSPOSED_CONVS))
        at = -len(kernel) - 1
        read = groups_of(box[at], args["groups"], shape_of(x)[at], node)
        yield x, (*made[:at], read, *made[at + 1 :])
        return
    raise UnknownReachError


def _pool(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    x = args["self"]
    rank = int(str(name_of(node)).partition("pool")[2][0])
    kernel = pair(args["kernel_size"], rank)
    yield x, _window(node, box, x, {**args, "stride": args["stride"] or kernel}, kernel)


def _window(
    node: fx.Node, box: Box, x: fx.Node, args: Mapping[str, Any], kernel: Sequence[int], *, transposed: bool = False
) -> Box:
    """What windows read along the last axes; the axes in front of them are as they are."""
    rank, sizes = len(kernel), shape_of(x)
    stride, dilation = pair(args["stride"], rank), pair(args.get("dilation") or 1, rank)
    padding = args["padding"]
    made: list[Axis] = list(box[:-rank])
    for i, k in enumerate(kernel):
        wide, s, span = dilation[i] * (k - 1), stride[i], opened(box[i - rank])
        if isinstance(padding, str):
            p = wide // 2 if padding == "same" else 0
        else:
            p = pair(padding, rank)[i]
        if span.whole:
            low, high = span.low, span.high
        elif transposed:
            low, high = _behind_taps(span, k, s, dilation[i], p)
        else:
            low, high = span.low * s - p, span.high * s - p + wide
        made.append((Extent(sizes[i - rank], low, max(low, high), span.by),))
    return tuple(made)


def _behind_taps(span: Extent, k: int, stride: int, dilation: int, padding: int) -> tuple[float, float]:
    """What results of a transposed convolution read, o = i*stride - padding + t*dilation for some tap t. A few results
    at either end decide, since every tap meets one of `stride` results in a row."""
    first, last = int(span.low) + padding, int(span.high) + padding
    ends = {*range(first, min(first + stride, last + 1)), *range(max(first, last - stride + 1), last + 1)}
    read = [(o - t * dilation) // stride for o in ends for t in range(k) if (o - t * dilation) % stride == 0]
    return (float(min(read)), float(max(read))) if read else (first // stride, first // stride)


def _adaptive(node: fx.Node, box: Box) -> Reads:
    x, given = first_of(node), node.meta["val"]  # of maxima, values and their places
    before, after = shape_of(x), (given[0] if isinstance(given, list | tuple) else given).shape
    rank = int(name_of(node)[-2])
    made = list(box)
    for axis in range(-rank, 0):
        n, m = before[axis], after[axis]
        span = opened(box[axis])
        if m == 1 and n > 1:
            made[axis] = whole(n, node)
        elif not span.whole:
            low, high = (span.low * n) // m, -((-(span.high + 1) * n) // m) - 1
            made[axis] = (Extent(n, low, high),)
        else:
            made[axis] = (Extent(n, span.low, span.high, span.by),)
    yield x, tuple(made)


def _upsample(node: fx.Node, box: Box) -> Reads:
    x, args = first_of(node), arguments(node)
    kind = name_of(node).removeprefix("upsample_")[:-2]
    before, after = shape_of(x), shape_of(node)
    made = list(box)
    for axis in range(2, len(before)):
        n, m, span = before[axis], after[axis], opened(box[axis])
        if span.whole:
            made[axis] = (Extent(n, span.low, span.high, span.by),)
            continue
        ends = []
        for place, more in zip((span.low, span.high), _UPSAMPLES[kind], strict=True):
            if kind == "nearest":
                at = place * n / m
            elif args.get("align_corners"):
                at = place * (n - 1) / max(1, m - 1)
            else:
                at = (place + 0.5) * n / m - 0.5
            ends.append(math.floor(at) + more)
        made[axis] = (Extent(n, float(ends[0]), float(ends[1])),)
    yield x, tuple(made)


# ---- movement ----------------------------------------------------------------------------------------------------


def _view(node: fx.Node, box: Box) -> Reads:
    x = first_of(node)
    made = regrouped(box, shape_of(x))
    if made is None:
        raise UnknownReachError
    yield x, made


def _turned(node: fx.Node, box: Box) -> Reads:
    made: list[Axis] = [()] * len(box)
    for to, origin in enumerate(order_of(node) or ()):
        made[origin] = box[to]
    yield first_of(node), tuple(made)


def _expand(node: fx.Node, box: Box) -> Reads:
    x = first_of(node)
    yield x, broadcast(shape_of(x), box, shape_of(node))


def _moved(span: Extent, size: int, by: float, step: int = 1) -> Axis:
    if size == 1:
        return one(1)
    low, high = span.low * step + by, span.high * step + by
    if span.closed:
        low, high = (min(max(end, 0.0), size - 1.0) for end in (low, high))
    return (Extent(size, low, high, span.by, closed=span.closed),)


def _picked(node: fx.Node, box: Box) -> Reads:
    """slice, narrow, select."""
    x, args = first_of(node), arguments(node)
    sizes = shape_of(x)
    axis = args["dim"] % len(sizes)
    n, made = sizes[axis], list(box)
    if name_of(node) == "select":
        made.insert(axis, one(n, args["index"] % n, closed=True))
    else:
        start, step = args.get("start") or 0, args.get("step") or 1
        if not isinstance(start, int):
            raise UnknownReachError
        start = max(0, start + n) if start < 0 else start
        made[axis] = box[axis] if shape_of(node)[axis] == n else _moved(joined(box[axis]), n, start, step)
    yield x, tuple(made)


def read_item(node: fx.Node, box: Box) -> Reads:
    """One of the parts that a call gives. Raises UnknownReachError for calls that do not split a value."""
    parent, index = node.args[0], node.args[1]
    if not isinstance(index, int) or not is_call(parent, SPLITS | {aten.unbind.int}):
        raise UnknownReachError
    assert isinstance(parent, fx.Node)
    x, args = first_of(parent), arguments(parent)
    sizes = shape_of(x)
    axis = args["dim"] % len(sizes)
    made = list(box)
    if is_call(parent, SPLITS):
        start = sum(int(v.shape[axis]) for v in parent.meta["val"][:index])
        made[axis] = _moved(joined(box[axis]), sizes[axis], start)
    else:
        made.insert(axis, one(sizes[axis], index % sizes[axis], closed=True))
    yield x, tuple(made)


def _cat(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    axis, start = args["dim"] % len(box), 0
    for x in args["tensors"]:
        n, span = shape_of(x)[axis], joined(box[axis])
        low, high = max(span.low - start, 0), min(span.high - start, n - 1)
        start += n
        if low <= high:
            own = replace(span, size=n) if span.whole else Extent(n, low, high, span.by, closed=span.closed)
            yield x, (*box[:axis], (own,) if n > 1 else one(1), *box[axis + 1 :])


def _stack(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    axis = args["dim"] % len(box)
    span = joined(box[axis])
    for i, x in enumerate(args["tensors"]):
        if span.low <= i <= span.high:
            yield x, (*box[:axis], *box[axis + 1 :])


def _padded(node: fx.Node, box: Box) -> Reads:
    x, pads = first_of(node), list(arguments(node)["pad"])
    made, sizes = list(box), shape_of(x)
    for i in range(len(pads) // 2):
        axis = len(sizes) - 1 - i
        if pads[2 * i] or pads[2 * i + 1]:
            made[axis] = _moved(joined(box[axis]), sizes[axis], -pads[2 * i])
    yield x, tuple(made)


def _rolled(node: fx.Node, box: Box) -> Reads:
    x, args = first_of(node), arguments(node)
    sizes, made = shape_of(x), list(box)
    dims = args.get("dims")
    if not dims:
        raise UnknownReachError
    for axis, shift in zip(dims, args["shifts"], strict=True):
        made[axis] = _turned_round(joined(box[axis]), sizes[axis], shift)
    yield x, tuple(made)


def _turned_round(span: Extent, size: int, shift: int) -> Axis:
    """Places in front of a roll; those of a closed axis come in again at its other end."""
    if not span.closed:
        return _moved(span, size, -shift)
    low = (span.low - shift) % size
    high = low + span.high - span.low
    return (replace(span, low=low, high=high),) if high < size else complete(size, span.by)


def _flipped(node: fx.Node, box: Box) -> Reads:
    x = first_of(node)
    made = list(box)
    for axis in arguments(node)["dims"]:
        span, n = joined(box[axis]), shape_of(x)[axis]
        made[axis] = (replace(span, low=n - 1 - span.high, high=n - 1 - span.low),)
    yield x, tuple(made)


def _shuffled(node: fx.Node, box: Box) -> Reads:
    """pixel_shuffle, pixel_unshuffle, channel_shuffle: channels become places, or the other way."""
    x = first_of(node)
    before, after = shape_of(x), shape_of(node)
    made: list[Axis] = [*box[:-3], complete(before[-3], node)]
    for axis in (-2, -1):
        n, m, span = before[axis], after[axis], opened(box[axis])
        if span.whole or n == m:
            made.append((Extent(n, span.low, span.high, span.by),))
        elif m > n:
            made.append((Extent(n, span.low // (m // n), span.high // (m // n)),))
        else:
            r = n // m
            made.append((Extent(n, span.low * r, span.high * r + r - 1),))
    yield x, tuple(made)


def _nothing(node: fx.Node, box: Box) -> Reads:
    """Of calls that read the shape of a tensor alone."""
    return iter(())


BY_TARGET: tuple[tuple[Any, Reader], ...] = (
    (CONVS | TRANSPOSED_CONVS, _conv),
    (AVG_POOLS | MAX_POOLS, _pool),
    (frozenset(FILLS), _nothing),
    (CATS, _cat),
    (STACKS, _stack),
    (PADS, _padded),
    (TURNS, _turned),
)
BY_NAME: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (_VIEWS, _view),
    (("expand", "expand_as"), _expand),
    (("slice", "narrow", "select"), _picked),
    (("roll",), _rolled),
    (("flip",), _flipped),
    (("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"), _shuffled),
    (tuple(f"max_pool{n}d_with_indices" for n in (1, 2, 3)), _pool),
    (tuple(f"adaptive_{kind}_pool{n}d" for kind in ("avg", "max") for n in (1, 2, 3)), _adaptive),
    (tuple(f"upsample_{kind}{n}d" for kind in _UPSAMPLES for n in (1, 2, 3)), _upsample),
)
