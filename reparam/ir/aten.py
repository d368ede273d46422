"""What the compiler knows about single ATen operators: their families, their arguments, how they alias."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten

CONVS = frozenset(
    {
        aten.conv1d.default,
        aten.conv2d.default,
        aten.conv3d.default,
        aten.conv1d.padding,
        aten.conv2d.padding,
        aten.conv3d.padding,
    }
)
TRANSPOSED_CONVS = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input})
LINEARS = frozenset({aten.linear.default})
WEIGHTED = CONVS | TRANSPOSED_CONVS | LINEARS
MATMULS = frozenset(
    {
        aten.matmul.default,
        aten.mm.default,
        aten.bmm.default,
        aten.addmm.default,
        aten.baddbmm.default,
        aten.scaled_dot_product_attention.default,
        aten.einsum.default,
    }
)
BATCH_NORMS = frozenset({aten.batch_norm.default})
NORMS = frozenset(
    {
        aten.batch_norm.default,
        aten.layer_norm.default,
        aten.group_norm.default,
        aten.instance_norm.default,
        aten.rms_norm.default,
    }
)
# Fills like a tensor, of which they read the shape alone, by what they are filled with; None: by an argument.
FILLS: dict[Any, float | None] = {
    aten.new_zeros.default: 0,
    aten.zeros_like.default: 0,
    aten.new_ones.default: 1,
    aten.ones_like.default: 1,
    aten.new_full.default: None,
    aten.full_like.default: None,
}
ZEROS = frozenset({aten.zeros.default}) | {target for target, value in FILLS.items() if value == 0}
ADDS = frozenset({aten.add.Tensor, aten.add.Scalar})
SUBS = frozenset({aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.rsub.Tensor})
MULS = frozenset({aten.mul.Tensor, aten.mul.Scalar})
DIVS = frozenset({aten.div.Tensor, aten.div.Scalar})
CATS = frozenset({aten.cat.default})
STACKS = frozenset({aten.stack.default})
SLICES = frozenset({aten.slice.Tensor, aten.narrow.default})
SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default})
SUMS = frozenset({aten.sum.dim_IntList})
MEANS = frozenset({aten.mean.dim})
EXTREMES = frozenset({aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other})
EINSUMS = frozenset({aten.einsum.default})
RECURRENT = frozenset({aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input})
AVG_POOLS = frozenset({aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default})
MAX_POOLS = frozenset({aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default})
PADS = frozenset({aten.pad.default, aten.constant_pad_nd.default})

# Pure data movement: every element of the result is an element of the first operand.
MOVEMENTS = frozenset(
    {
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.view.default,
        aten.reshape.default,
        aten.reshape_as.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.narrow.default,
        aten.expand.default,
        aten.expand_as.default,
        aten.repeat.default,
        aten.roll.default,
        aten.flip.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.chunk.default,
        aten.unbind.int,
        aten.index_select.default,
        aten.channel_shuffle.default,
        aten.pixel_shuffle.default,
        aten.pixel_unshuffle.default,
        aten.upsample_nearest1d.vec,
        aten.upsample_nearest2d.vec,
        aten.upsample_nearest3d.vec,
        aten._upsample_nearest_exact1d.vec,
        aten._upsample_nearest_exact2d.vec,
        aten._upsample_nearest_exact3d.vec,
        aten.repeat_interleave.self_int,
        aten.unfold.default,
        aten.diagonal.default,
        operator.getitem,
    }
)

# Values come out as they went in, in evaluation mode (the shape is checked where it could differ).
RANDOM = (
    "rand",
    "bernoulli",
    "multinomial",
    "normal",
    "poisson",
    "dropout",
    "uniform",
    "exponential",
)  # names begin so
IDENTITIES = frozenset(
    {
        aten.clone.default,
        aten.contiguous.default,
        aten.alias.default,
        aten.lift_fresh_copy.default,
        aten.lift_fresh.default,
        aten.positive.default,
        aten.resolve_conj.default,
        aten.resolve_neg.default,
    }
)
BIT_VIEWS = frozenset({aten.view.dtype, aten.view_copy.dtype})  # the same bits as another dtype
LAYOUT_READERS = BIT_VIEWS | frozenset(  # they read how their first operand lies in memory
    {
        aten.as_strided.default,
        aten.as_strided_copy.default,
        aten.as_strided_scatter.default,
        aten.view_as_complex.default,
        aten.view_as_complex_copy.default,
    }
)
DROPOUTS = frozenset(
    {
        aten.dropout.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.feature_alpha_dropout.default,
        aten.native_dropout.default,
    }
)
RRELUS = frozenset({aten.rrelu.default})
CASTS = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten.to.prim_Device,
        aten.type_as.default,
        aten._to_copy.default,
    }
)

# Elementwise activations of one source. |f(x)| <= LIPSCHITZ * |x| + |f(0)| with the constant given.
ACTIVATIONS: Mapping[Any, float] = {
    aten.relu.default: 1.0,
    aten.relu6.default: 1.0,
    aten.hardtanh.default: 1.0,
    aten.clamp.default: 1.0,
    aten.clamp_min.default: 1.0,
    aten.clamp_max.default: 1.0,
    aten.leaky_relu.default: 1.0,
    aten.elu.default: 2.0,
    aten.selu.default: 2.0,
    aten.celu.default: 2.0,
    aten.gelu.default: 1.2,
    aten.silu.default: 1.2,
    aten.mish.default: 1.2,
    aten.hardswish.default: 1.5,
    aten.hardsigmoid.default: 1.0,
    aten.sigmoid.default: 1.0,
    aten.tanh.default: 1.0,
    aten.erf.default: 1.2,
    aten.softplus.default: 1.0,
    aten.neg.default: 1.0,
    aten.abs.default: 1.0,
}

# Results of these never share storage with an operand, so an in-place write to one touches nothing else.
FRESH_PREFIXES = (
    "conv",
    "linear",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
    "relu",
    "relu6",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
    "mish",
    "sigmoid",
    "tanh",
    "softmax",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "cat",
    "stack",
    "index",
    "gather",
    "scatter",
    "where",
    "masked_fill",
    "cumsum",
    "amax",
    "amin",
    "argmax",
    "argmin",
    "topk",
    "mean",
    "sum",
    "max_pool",
    "avg_pool",
    "upsample",
    "scaled_dot_product_attention",
    "pow",
    "sqrt",
    "rsqrt",
    "exp",
    "neg",
    "clamp",
    "roll",
    "clone",
    "zeros",
    "ones",
    "full",
    "arange",
    "embedding",
    "repeat",
    "kron",
    "pad",
    "tile",
    "outer",
    "cdist",
    "tensordot",
    "take_along_dim",
)
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def op_name(node: fx.Node) -> str:
    """`conv2d` for a call of aten.conv2d.default; the function's own name for a Python function."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return getattr(target, "__name__", str(target))


SIZE_READERS = frozenset(  # what reads the size of its first operand alone
    ("sym_size", "sym_numel", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
)


def reads_size_alone(reader: fx.Node, value: fx.Node) -> bool:
    """Whether a call reads nothing of a value but its size (and its dtype and device)."""
    if op_name(reader) not in SIZE_READERS or reader.args[0] is not value:
        return False
    return value not in pytree.tree_leaves((reader.args[1:], reader.kwargs))


@cache
def _defaults(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((a.name, a.default_value if a.has_default_value() else None) for a in target._schema.arguments)


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an ATen call by their schema's names, with the defaults that the graph leaves out."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(i): a for i, a in enumerate(node.args)} | dict(node.kwargs)
    names = _defaults(node.target)
    values = dict(names)
    for (name, _), value in zip(names, node.args, strict=False):
        values[name] = value
    values.update(node.kwargs)
    return values


def is_call(node: Any, targets: Container[Any]) -> bool:
    """True when `node` is a graph node that calls one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_inplace(node: fx.Node) -> bool:
    """True for ATen calls that write to their first operand (relu_, add_, copy_, ...)."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and bool(target._schema.is_mutable)


def functional_form(target: Any) -> Callable[..., Any] | None:
    """The overload without the in-place write (relu_ -> relu), or None when ATen has none."""
    name = str(target._schema.name).split("::")[-1]
    if not name.endswith("_"):
        return None
    packet = getattr(aten, name[:-1], None)
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    if overload is None or overload._schema.is_mutable:
        return None
    wanted = [a.name for a in target._schema.arguments]
    return overload if [a.name for a in overload._schema.arguments] == wanted else None


def may_alias(node: fx.Node) -> bool:
    """True when the result may share storage with an operand.

    Operators with kernels of their own declare it. Those that are made of others need not: a dropout that is off gives
    its operand, and einsum may be a transpose. Of these, all that are not known to be fresh are assumed to.
    """
    name = op_name(node)
    if name.startswith("expand"):  # is a view, where exp is not
        return True
    if name.startswith(FRESH_PREFIXES):
        return False
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or any(r.alias_info is not None for r in target._schema.returns):
        return True
    return target.has_kernel_for_dispatch_key(_COMPOSITE)


def shared_operands(node: fx.Node) -> list[fx.Node]:
    """The operands with which the result may share storage.

    Where the operator declares them, as expand_as does of its first, these alone; all operands where it declares none.
    """
    target = node.target
    declared = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else []
    names = [a.name for a in declared if a.alias_info is not None]
    if not names:
        return node.all_input_nodes
    given = arguments(node)
    found: list[fx.Node] = []
    fx.node.map_arg([given.get(name) for name in names], found.append)
    return found


def pair(value: Any, ndim: int) -> tuple[int, ...]:
    """An int-or-list argument as a tuple of `ndim` ints (ATen repeats a single entry)."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return tuple(int(v) for v in (items * ndim if len(items) == 1 else items))
