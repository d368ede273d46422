"""Which ATen operator is written in which way.

What is not in the table is spelled `torch.ops.aten.<name>.<overload>(...)`, which runs with torch alone as well.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from reparam.errors import InputError
from reparam.ir import arguments, aten

from .expressions import UNARY, Expr, call_text, infix
from .spelling import (
    Context,
    Speller,
    dropout,
    function,
    infix_speller,
    interpolate,
    method,
    sized,
    spell_batch_norm,
    spell_cast,
    spell_clone,
    spell_einsum,
    spell_elu,
    spell_embedding,
    spell_flatten,
    spell_hardtanh,
    spell_index,
    spell_neg,
    spell_reshape,
    spell_select,
    spell_size,
    spell_slice,
    value,
    windowed,
)


def spell(context: Context, node: fx.Node) -> Expr:
    """The expression of one call. Raises InputError for an operator that torch alone does not have."""
    speller = SPELLERS.get(node.target)
    if speller is not None:
        result = speller(context, node, arguments(node))
        if result is not None:
            return result
    if isinstance(node.target, torch._ops.OpOverload):
        return _fallback(context, node)
    return _python(context, node)


def _fallback(context: Context, node: fx.Node) -> Expr:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    if target.namespace not in ("aten", "prims"):
        reason = "is an operator that torch alone does not have"
        raise InputError(f"'{target}' {reason}, so the network cannot be written as source; save it as .pt2")
    args = [value(context, a).text for a in node.args]
    keywords = {k: value(context, v).text for k, v in node.kwargs.items()}
    name = str(target._schema.name).split("::")[-1]
    return Expr(call_text(f"torch.ops.{target.namespace}.{name}.{target._overloadname or 'default'}", args, keywords))


_INFIX: Mapping[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.and_: "&",
    operator.or_: "|",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}


def _python(context: Context, node: fx.Node) -> Expr:
    """A plain Python function: integer arithmetic on sizes, and indexing."""
    target: Any = node.target
    args = [value(context, a) for a in node.args]
    if target in _INFIX:
        return infix(_INFIX[target], args[0], args[1])
    if target is operator.getitem:
        return Expr(f"{args[0].atom}[{args[1].text}]")
    if target is operator.neg:
        return Expr(f"-{args[0].inside(UNARY)}", UNARY)
    if target is round:
        return Expr(call_text("round", [a.text for a, given in zip(args, node.args, strict=True) if given is not None]))
    name = getattr(target, "__name__", "")
    if getattr(math, name, None) is target:
        return Expr(call_text(f"math.{name}", [a.text for a in args]))
    if getattr(operator, name, None) is target:
        return Expr(call_text(f"operator.{name}", [a.text for a in args]))
    if getattr(torch, name, None) is target:
        return Expr(call_text(f"torch.{name}", [a.text for a in args]))
    raise InputError(f"the graph calls {target}, which has no spelling as Python source; save it as .pt2")


# ---- the table ---------------------------------------------------------------------------------------------------


def _overloads(packet: Any, names: Sequence[str], speller: Speller) -> dict[Any, Speller]:
    return {getattr(packet, name): speller for name in names}


def _table() -> dict[Any, Speller]:
    both = ("Tensor", "Scalar")
    table: dict[Any, Speller] = {}
    for packet, symbol in (
        (aten.add, "+"),
        (aten.sub, "-"),
        (aten.mul, "*"),
        (aten.div, "/"),
        (aten.remainder, "%"),
        (aten.eq, "=="),
        (aten.ne, "!="),
        (aten.lt, "<"),
        (aten.le, "<="),
        (aten.gt, ">"),
        (aten.ge, ">="),
        (aten.bitwise_and, "&"),
        (aten.bitwise_or, "|"),
        (aten.__and__, "&"),
        (aten.__or__, "|"),
    ):
        table |= _overloads(packet, both, infix_speller(symbol))
    table |= _overloads(aten.rsub, both, infix_speller("-", swapped=True))
    table[aten.matmul.default] = infix_speller("@")
    for name in ("exp", "sqrt", "rsqrt", "abs", "log", "sin", "cos", "floor", "round", "reciprocal", "square", "erf"):
        table[getattr(aten, name).default] = method(name)
    for name in (
        "relu",
        "selu",
        "silu",
        "mish",
        "hardswish",
        "hardsigmoid",
        "relu6",
        "gelu",
        "softplus",
        "leaky_relu",
        "celu",
    ):
        table[getattr(aten, name).default] = function(f"F.{name}", "self")
    for name in ("sigmoid", "tanh", "maximum", "minimum", "bmm", "mm", "zeros_like", "ones_like", "logical_not"):
        keys = [a.name for a in getattr(aten, name).default._schema.arguments if not a.has_default_value()][:2]
        table[getattr(aten, name).default] = function(
            f"torch.{name}", *(k for k in keys if k in ("self", "other", "mat2"))
        )
    for n in (1, 2, 3):
        table[getattr(aten, f"conv{n}d").default] = windowed(f"F.conv{n}d", "input", "weight", "bias")
        table[getattr(aten, f"conv{n}d").padding] = windowed(f"F.conv{n}d", "input", "weight", "bias")
        overload = "default" if n == 1 else "input"
        transposed = getattr(getattr(aten, f"conv_transpose{n}d"), overload)
        table[transposed] = windowed(f"F.conv_transpose{n}d", "input", "weight", "bias")
        table[getattr(aten, f"max_pool{n}d").default] = windowed(f"F.max_pool{n}d", "self", "kernel_size")
        table[getattr(aten, f"avg_pool{n}d").default] = windowed(f"F.avg_pool{n}d", "self", "kernel_size")
        adaptive = getattr(aten, f"adaptive_avg_pool{n}d").default
        table[adaptive] = windowed(f"F.adaptive_avg_pool{n}d", "self", "output_size")
        table[getattr(aten, f"upsample_nearest{n}d").vec] = interpolate("nearest")
        table[getattr(aten, f"_upsample_nearest_exact{n}d").vec] = interpolate("nearest-exact")
    table |= {
        aten.upsample_linear1d.vec: interpolate("linear"),
        aten.upsample_bilinear2d.vec: interpolate("bilinear"),
        aten.upsample_bicubic2d.vec: interpolate("bicubic"),
        aten.upsample_trilinear3d.vec: interpolate("trilinear"),
        aten._upsample_bilinear2d_aa.vec: interpolate("bilinear", antialias="True"),
        aten._upsample_bicubic2d_aa.vec: interpolate("bicubic", antialias="True"),
    }
    return table | _named()


def _named() -> dict[Any, Speller]:
    return {
        aten.sym_size.int: spell_size,
        aten.sym_numel.default: method("numel"),
        aten.item.default: method("item"),
        aten.neg.default: spell_neg,
        aten.slice.Tensor: spell_slice,
        aten.select.int: spell_select,
        aten.index.Tensor: spell_index,
        aten.to.dtype: spell_cast,
        aten.to.dtype_layout: spell_cast,
        aten.to.device: spell_cast,
        aten._to_copy.default: spell_cast,
        aten.reshape.default: spell_reshape,
        aten.flatten.using_ints: spell_flatten,
        aten.einsum.default: spell_einsum,
        aten.dropout.default: dropout("F.dropout"),
        aten.alpha_dropout.default: dropout("F.alpha_dropout"),
        aten.feature_dropout.default: dropout("torch.feature_dropout"),
        aten.batch_norm.default: spell_batch_norm,
        aten.instance_norm.default: spell_batch_norm,
        aten.elu.default: spell_elu,
        aten.hardtanh.default: spell_hardtanh,
        aten.embedding.default: spell_embedding,
        aten.linear.default: function("F.linear", "input", "weight", "bias"),
        aten.layer_norm.default: sized("F.layer_norm", "input", "normalized_shape"),
        aten.rms_norm.default: sized("F.rms_norm", "input", "normalized_shape"),
        aten.group_norm.default: sized("F.group_norm", "input", "num_groups"),
        aten.prelu.default: function("F.prelu", "self", "weight"),
        aten.glu.default: function("F.glu", "self"),
        aten.pad.default: sized("F.pad", "self", "pad"),
        aten.constant_pad_nd.default: sized("F.pad", "self", "pad"),
        aten.scaled_dot_product_attention.default: function("F.scaled_dot_product_attention", "query", "key", "value"),
        aten.pixel_shuffle.default: function("F.pixel_shuffle", "self", "upscale_factor"),
        aten.pixel_unshuffle.default: function("F.pixel_unshuffle", "self", "downscale_factor"),
        aten.cat.default: function("torch.cat", "tensors"),
        aten.stack.default: function("torch.stack", "tensors"),
        aten.where.self: function("torch.where", "condition", "self", "other"),
        aten.addmm.default: function("torch.addmm", "self", "mat1", "mat2"),
        aten.baddbmm.default: function("torch.baddbmm", "self", "batch1", "batch2"),
        aten.arange.default: function("torch.arange", "end"),
        aten.arange.start: function("torch.arange", "start", "end"),
        aten.arange.start_step: function("torch.arange", "start", "end", "step"),
        aten.zeros.default: sized("torch.zeros", "size"),
        aten.ones.default: sized("torch.ones", "size"),
        aten.new_zeros.default: method("new_zeros", "size", spread=True),
        aten.new_ones.default: method("new_ones", "size", spread=True),
        aten.slice_scatter.default: function("torch.slice_scatter", "self", "src"),
        aten.select_scatter.default: function("torch.select_scatter", "self", "src", "dim", "index"),
        aten.fill.Scalar: function("torch.fill", "self", "value"),
        aten.fill.Tensor: function("torch.fill", "self", "value"),
        aten.swapaxes.default: method("swapaxes", "axis0", "axis1"),
        aten.full.default: sized("torch.full", "size", "fill_value"),
        aten.linalg_vector_norm.default: function("torch.linalg.vector_norm", "self"),
        aten.mean.default: method("mean"),
        aten.mean.dim: method("mean", "dim"),
        aten.sum.default: method("sum"),
        aten.sum.dim_IntList: method("sum", "dim"),
        aten.amax.default: method("amax", "dim"),
        aten.amin.default: method("amin", "dim"),
        aten.var.correction: method("var", "dim"),
        aten.std.correction: method("std", "dim"),
        aten.softmax.int: method("softmax", "dim"),
        aten.log_softmax.int: method("log_softmax", "dim"),
        aten.permute.default: method("permute", "dims", spread=True),
        aten.expand.default: method("expand", "size", spread=True),
        aten.repeat.default: method("repeat", "repeats", spread=True),
        aten.transpose.int: method("transpose", "dim0", "dim1"),
        aten.t.default: method("t"),
        aten.squeeze.default: method("squeeze"),
        aten.squeeze.dim: method("squeeze", "dim"),
        aten.squeeze.dims: method("squeeze", "dim"),
        aten.unsqueeze.default: method("unsqueeze", "dim"),
        aten.unflatten.int: method("unflatten", "dim", "sizes"),
        aten.expand_as.default: method("expand_as", "other"),
        aten.contiguous.default: method("contiguous"),
        aten.clone.default: spell_clone,
        aten.chunk.default: method("chunk", "chunks"),
        aten.split.Tensor: method("split", "split_size"),
        aten.split_with_sizes.default: method("split", "split_sizes"),
        aten.unbind.int: method("unbind", "dim"),
        aten.clamp.default: method("clamp"),
        aten.clamp_min.default: method("clamp_min", "min"),
        aten.clamp_max.default: method("clamp_max", "max"),
        aten.pow.Tensor_Scalar: method("pow", "exponent"),
        aten.roll.default: method("roll", "shifts", "dims"),
        aten.flip.default: method("flip", "dims"),
        aten.narrow.default: method("narrow", "dim", "start", "length"),
        aten.index_select.default: method("index_select", "dim", "index"),
        aten.gather.default: method("gather", "dim", "index"),
        aten.masked_fill.Scalar: method("masked_fill", "mask", "value"),
        aten.masked_fill.Tensor: method("masked_fill", "mask", "value"),
        aten.bitwise_not.default: function("torch.bitwise_not", "self"),
        aten.type_as.default: method("type_as", "other"),
        aten.cumsum.default: method("cumsum", "dim"),
        aten.argmax.default: method("argmax", "dim"),
    }


SPELLERS: Mapping[Any, Speller] = _table()
