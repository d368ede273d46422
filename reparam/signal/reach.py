"""The theoretical receptive field: from which places of an input a unit can take anything, whatever the weights are.

It follows from kernels, strides and dilations, call by call from the unit back to the input, and does not end at the
border of the image. A mean over all places, a group norm or attention among all tokens makes it the whole image. The
statistics of batch norms count as constants, as in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from reparam.ir import (
    BATCH_NORMS,
    CASTS,
    DROPOUTS,
    IDENTITIES,
    LINEARS,
    SPLITS,
    Program,
    arguments,
    aten,
    is_call,
    op_name,
    place_of,
    shape_of,
)

from .boxes import Box, complete, groups_of, one, united, whole
from .functions import is_pointwise
from .masks import masked, masks_of
from .reads import BY_NAME, BY_TARGET, Reader, Reads, UnknownReachError, broadcast, first_of, name_of, read_item

_SAME = IDENTITIES | DROPOUTS | CASTS | BATCH_NORMS
_REDUCTIONS = ("mean", "sum", "amax", "amin", "var", "std", "prod", "logsumexp", "linalg_vector_norm", "max", "min")
_WHY = (
    (("grid_sample", "grid_sampler"), ": it looks where another value tells, on other inputs elsewhere"),
    (("gather", "index", "take_along_dim", "index_select"), ": it picks places, which need not lie in an interval"),
    (("col2im", "im2col", "unfold"), ": it lays windows into channels, where no interval tells them apart"),
    (("stft", "istft"), ": Fourier transforms of windows are laid out in axes of their own"),
)
_ALONG = ("softmax", "log_softmax", "_softmax", "_safe_softmax", "cumsum", "glu")


def reach_of(program: Program, unit: fx.Node, start: Box, source: fx.Node) -> Box | str:
    """The places of `source` on which the places `start` of `unit` depend, or what is not known, in words."""
    boxes: dict[fx.Node, Box] = {unit: start}
    masks = masks_of(program)
    for node in reversed(list(program.graph.nodes)):
        if node not in boxes or node is source:
            continue
        box = boxes.pop(node)
        if node.op != "call_function":
            continue
        try:
            steps = list(_steps(node, box, masks.get(node)))
        except UnknownReachError:
            reason = next((why for names, why in _WHY if name_of(node).startswith(names)), "")
            return f"what '{place_of(node)}' ({op_name(node)}) reads is not known{reason}"
        for operand, part in steps:
            boxes[operand] = united(boxes[operand], part) if operand in boxes else part
    return boxes.get(source, tuple(one(n) for n in shape_of(source)))


def _steps(node: fx.Node, box: Box, mask: Tensor | None) -> Iterator[tuple[fx.Node, Box]]:
    """What a call reads of its operands that depend on the inputs. mask: of attention, see `masks_of`."""
    for operand, part in _reader(node)(node, box):
        if isinstance(operand, fx.Node) and operand.meta.get("data") and isinstance(operand.meta.get("val"), Tensor):
            if len(part) != len(shape_of(operand)):
                raise UnknownReachError
            yield operand, part if mask is None else masked(node, operand, box, part, mask)


def _reader(node: fx.Node) -> Reader:
    name = name_of(node)
    if name == "getitem":
        return _item
    for targets, reader in (*BY_TARGET, (LINEARS, _linear), (_SAME, _same)):
        if is_call(node, targets):
            return reader
    for names, reader in (*BY_NAME, *_BY_NAME):
        if name in names:
            return reader
    if is_pointwise(node):
        return _pointwise
    raise UnknownReachError


def _item(node: fx.Node, box: Box) -> Reads:
    """A part of a value, or the first result of another call."""
    parent, index = node.args[0], node.args[1]
    if isinstance(parent, fx.Node) and index == 0 and not is_call(parent, SPLITS | {aten.unbind.int}):
        return _reader(parent)(parent, box)
    return read_item(node, box)


def _same(node: fx.Node, box: Box) -> Reads:
    yield first_of(node), box


# ---- products, norms, reductions ---------------------------------------------------------------------------------


def _pointwise(node: fx.Node, box: Box) -> Reads:
    for operand in node.all_input_nodes:
        if operand.meta.get("data") and isinstance(operand.meta.get("val"), Tensor):
            yield operand, broadcast(shape_of(operand), box, shape_of(node))


def _linear(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    if args["weight"].meta.get("data"):
        raise UnknownReachError
    x = args["input"]
    yield x, (*box[:-1], complete(shape_of(x)[-1], node))


def _product(node: fx.Node, box: Box) -> Reads:
    args = list(arguments(node).values())
    added = name_of(node) in ("addmm", "baddbmm")
    a, b = args[1:3] if added else args[:2]
    if added:
        yield args[0], broadcast(shape_of(args[0]), box, shape_of(node))
    sizes, others, result = shape_of(a), shape_of(b), shape_of(node)
    if len(sizes) < 2 or len(others) < 2:
        raise UnknownReachError
    yield a, (*broadcast(sizes[:-2], box[:-2], result[:-2]), box[-2], whole(sizes[-1], node))
    yield b, (*broadcast(others[:-2], box[:-2], result[:-2]), whole(others[-2], node), box[-1])


def _attention(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    for name in ("query", "key", "value", "attn_mask"):
        x = args.get(name)
        if isinstance(x, fx.Node):
            sizes = shape_of(x)
            heads = tuple(axis if n > 1 else one(1) for axis, n in zip(box[:-2], sizes[:-2], strict=False))
            rows = box[-2] if name in ("query", "attn_mask") else whole(sizes[-2], node)
            yield x, (*heads[-len(sizes) + 2 :], rows, whole(sizes[-1], node))


def _einsum(node: fx.Node, box: Box) -> Reads:
    args = arguments(node)
    left, _, right = args["equation"].replace(" ", "").partition("->")
    if "." in left or not right:
        raise UnknownReachError
    axes = dict(zip(right, box, strict=True))
    for letters, x in zip(left.split(","), args["tensors"], strict=True):
        sizes = shape_of(x)
        yield x, tuple(axes.get(c, whole(n, node)) for c, n in zip(letters, sizes, strict=True))


def _norm(node: fx.Node, box: Box) -> Reads:
    """Statistics of the normalised axes, or of all but the samples."""
    x = first_of(node)
    sizes, args = shape_of(x), arguments(node)
    count = len(args["normalized_shape"]) if "normalized_shape" in args else len(sizes) - 1
    if name_of(node) == "instance_norm":
        if not args["use_input_stats"]:
            yield x, box
            return
        yield x, (*box[:2], *(whole(n, node) for n in sizes[2:]))
        return
    made = [*box[: len(sizes) - count], *(whole(n, node) for n in sizes[len(sizes) - count :])]
    if name_of(node) == "group_norm":
        made[1] = groups_of(box[1], args["num_groups"], sizes[1], node)
    yield x, tuple(made)


def _reduction(node: fx.Node, box: Box) -> Reads:
    x, args = first_of(node), arguments(node)
    if isinstance(args.get("other"), fx.Node):
        yield from _pointwise(node, box)
        return
    sizes = shape_of(x)
    dims = args.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(len(sizes)))
    gone = {d % len(sizes) for d in dims}
    left = iter(() if args.get("keepdim") else box)
    made = []
    for axis, n in enumerate(sizes):
        if axis in gone:
            made.append(whole(n, node))
        else:
            made.append(box[axis] if args.get("keepdim") else next(left))
    yield x, tuple(made)


def _along(node: fx.Node, box: Box) -> Reads:
    x = first_of(node)
    made = list(box)
    axis = arguments(node)["dim"]
    made[axis] = whole(shape_of(x)[axis], node)
    yield x, tuple(made)


def _fourier(node: fx.Node, box: Box) -> Reads:
    """All along each axis that is transformed."""
    x, dims = first_of(node), arguments(node).get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    made = list(box)
    for axis in range(len(made)) if dims is None else dims:
        made[axis] = whole(shape_of(x)[axis], node)
    yield x, tuple(made)


def _of_complex(node: fx.Node, box: Box) -> Reads:
    """The real and imaginary parts, as one axis more of the result, or of what is read."""
    x = first_of(node)
    yield x, box[:-1] if name_of(node) == "view_as_real" else (*box, complete(2, node))


_BY_NAME: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("matmul", "mm", "bmm", "addmm", "baddbmm"), _product),
    (("scaled_dot_product_attention",), _attention),
    (("einsum",), _einsum),
    (("layer_norm", "rms_norm", "group_norm", "instance_norm"), _norm),
    (_REDUCTIONS, _reduction),
    (_ALONG, _along),
    (tuple(f"fft_{kind}fft{n}" for kind in ("", "i", "r", "ir", "h", "ih") for n in ("", "2", "n")), _fourier),
    (("real", "imag", "conj", "_conj", "angle"), _same),
    (("view_as_real", "view_as_complex"), _of_complex),
)
