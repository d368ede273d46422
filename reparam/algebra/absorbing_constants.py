"""Constants, beside the weights of layers, that take an affine of what is computed of them.

a E[i] + t = (a E + t)[i]                    the table of an embedding takes it, in every row
a (x + c) + t = a x + (a c + t)              a constant that is added takes its part, and all of the shift

The constant is written anew. The old one stays for whatever else reads it, but for a table, which may be most of a
model: that is not kept twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.ir import SUBS, Program, Refusal, arguments, aten, is_call, is_float, shape_of

from .channel_affine import Pair, along, lift, trim
from .layer import renewed

TABLES = frozenset({aten.embedding.default})


def table_takes(program: Program, node: fx.Node, wanted: Pair) -> Pair | Refusal:
    """`wanted`, an affine of what the embedding `node` gives, as vectors (features,) that its table takes."""
    table = program.constant(arguments(node)["weight"])
    if table is None or not table.value.is_floating_point():
        return Refusal("the table of this embedding is computed", node)
    if len(arguments(node)["weight"].users) > 1:
        return Refusal("the table of this embedding is read elsewhere as well, and would be kept twice", node)
    axis = len(shape_of(node)) - 1
    try:
        return Pair(along(wanted.scale, axis), along(wanted.shift, axis))
    except ValueError:
        return Refusal("the affine does not lie along the features of this embedding", node)


def write_table(program: Program, node: fx.Node, pair: Pair) -> fx.Node:
    """The embedding `node` with a new float64 table a E + t; `pair` as from `table_takes`."""
    table = arguments(node)["weight"]
    made = program.tensor(table)
    assert made is not None
    return program.clone(node, {table: renewed(program, table, _applied(pair, made), like=node)})


@dataclass(frozen=True)
class Term:
    """The sum factor * constant + (data as it is, or times a number), in any order and with any signs."""

    data: fx.Node
    constant: fx.Node
    factor: float


def term_takes(program: Program, node: fx.Node, wanted: Pair) -> Term | Refusal | None:
    """The sum or difference `node`, where its constant takes `wanted`, and its data have to take the scale alone.

    wanted: of the rank of the result. None where it is no sum of a constant and of data of the shape of the result.
    Refusal where the constant would grow, or is infinite somewhere.
    """
    term = _term(program, node)
    if term is None:
        return None
    value = program.tensor(term.constant)
    assert value is not None
    if not bool(torch.isfinite(value).all()):
        return Refusal("the constant that is added is not finite", node)
    sizes = lift(value, len(shape_of(node))).shape
    parts = [p for p in (wanted.scale, wanted.shift) if p is not None]
    if any(n not in (1, most) for p in parts for n, most in zip(p.shape, sizes, strict=True)):
        return Refusal("the constant that is added would become larger", node)
    return term


def write_term(program: Program, node: fx.Node, pair: Pair, substitution: Mapping[fx.Node, fx.Node]) -> fx.Node:
    """The sum `node` with a new float64 constant a c + t, of data that have the scale of `pair` already."""
    term = _term(program, node)
    assert term is not None
    value = program.tensor(term.constant)
    assert value is not None
    shift = None if pair.shift is None else pair.shift / term.factor
    made = trim(_applied(Pair(pair.scale, shift), lift(value, len(shape_of(node)))))
    constant = renewed(program, term.constant, made, like=node)
    return program.clone(node, {**substitution, term.constant: constant})


def _term(program: Program, node: fx.Node) -> Term | None:
    args = arguments(node)
    alpha = args.get("alpha", 1)
    if not isinstance(alpha, (int, float)) or not alpha:
        return None
    alpha = -alpha if is_call(node, SUBS) else alpha
    factors = (alpha, 1) if node.target is aten.rsub.Tensor else (1, alpha)
    for own, other, factor in zip(("self", "other"), ("other", "self"), factors, strict=True):
        constant, data = args[own], args[other]
        told = program.constant(constant)
        if told is None or not told.value.is_floating_point():
            continue
        if is_float(data) and program.constant(data) is None and shape_of(data) == shape_of(node):
            return Term(data, constant, float(factor))
    return None


def _applied(pair: Pair, value: Tensor) -> Tensor:
    value = value if pair.scale is None else value * pair.scale
    return value if pair.shift is None else value + pair.shift
