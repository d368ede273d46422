"""W1*x + W2*x + a x + pool(x) = (W1 + W2 + diag(a) + P) * x: parallel linear branches of one source are one layer.

Turns parallel convolutions of unequal kernel, dilation and groups, identity, affine and average-pool branches, linear
heads into one layer.

Fires on a sum (or difference) whose operands, each a chain of convolutions, channel affines and average pools, start at
the same value and give the same output positions: kernels of unequal size are centred by their padding, dilation is
written out as zeros, groups are expanded to their common form, a skip connection is a dirac kernel, an average pool a
constant depthwise one, a part of the channels a dirac kernel with rows left out, a crop a window that starts later.
Branches that pad alike in all but width read the widest pad. Linear layers likewise. Branches merge pairwise, as long
as no merge costs more multiply-accumulates than the layers that it replaces.

Refuses branches of one source whose union would cost more, with the numbers; whose strides or output sizes
differ; whose bias or second window would see a zero-padded border; where the pool's divisor changes at the border.

Source: linearity; Ding et al. 2021 (RepVGG, Diverse Branch Block) for the branch kinds.

    bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)        becomes        conv3x3'(x)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from reparam.algebra import (
    Branch,
    Layer,
    Pair,
    Term,
    Window,
    add_terms,
    branches_to,
    build_term,
    column,
    expand_groups,
    share_padding,
    unite,
    write_affine,
    write_layer,
)
from reparam.ir import (
    ADDS,
    PADS,
    SUBS,
    Program,
    Refusal,
    arguments,
    aten,
    batch_one,
    is_call,
    is_float,
    node_macs,
    place_of,
    shape_of,
    static_shape,
)
from reparam.rewrite import Match, Pattern, Rewrite, op


@dataclass(frozen=True)
class Operand:
    """One operand of the flattened sum: sign * value. `reader` is the node of the tree that reads it."""

    value: fx.Node
    sign: float
    reader: fx.Node


@dataclass(frozen=True)
class MergedBranch:
    """Operands that became one term. macs: what the layers that it replaces cost."""

    members: tuple[int, ...]
    term: Term
    layers: tuple[Layer, ...]
    macs: int


@dataclass(frozen=True)
class Plan:
    """The sum, its operands, and the branches that take the place of their members."""

    root: fx.Node
    source: fx.Node
    operands: tuple[Operand, ...]
    merged: tuple[MergedBranch, ...]


def _splits(node: fx.Node) -> bool:
    """A sum or difference of two floating values of its own shape, whose factor alpha is a number."""
    if not is_call(node, ADDS | SUBS) or not is_float(node):
        return False
    args = arguments(node)
    sides = (args["self"], args["other"])
    if not isinstance(args["alpha"], (int, float)):
        return False
    return all(is_float(s) and s.op != "get_attr" and shape_of(s) == shape_of(node) for s in sides)


def flatten(root: fx.Node) -> list[Operand]:
    """The operands of a tree of sums. Inner sums belong to the tree when nothing else reads them."""
    result: list[Operand] = []
    stack = [Operand(root, 1.0, root)]
    while stack:
        item = stack.pop()
        inner = item.value is root or len(item.value.users) == 1
        if not (inner and _splits(item.value)):
            result.append(item)
            continue
        args = arguments(item.value)
        alpha = float(args["alpha"])
        signs = (1.0, alpha) if is_call(item.value, ADDS) else (1.0, -alpha)
        if item.value.target in (aten.rsub.Tensor, aten.rsub.Scalar):
            signs = (-alpha, 1.0)
        stack.append(Operand(args["other"], item.sign * signs[1], item.value))
        stack.append(Operand(args["self"], item.sign * signs[0], item.value))
    return result


def _common_sources(program: Program, operands: Sequence[Operand]) -> list[tuple[fx.Node, dict[int, Branch]]]:
    """Values from which at least two operands come linearly, the nearest first, with the operands' chains.

    Last come pads that stand for others beside them.
    """
    found: dict[fx.Node, dict[int, Branch]] = {}
    for i, operand in enumerate(operands):
        for chain in branches_to(program, operand.value, operand.reader):
            found.setdefault(chain.source, {}).setdefault(i, chain)
    shared = [(s, c) for s, c in found.items() if len(c) > 1 and _worth_a_try(c.values())]
    shared.sort(key=lambda item: sum(len(c.links) for c in item[1].values()) / len(item[1]))
    return shared + [(s, c) for s, c in share_padding(found) if len(c) > 1 and _worth_a_try(c.values())]


def _worth_a_try(chains: Collection[Branch]) -> bool:
    """Something is linear between them and the source, and where channels are only picked and added, a layer is by."""
    return any(c.links for c in chains) and (any(c.layers for c in chains) or not any(c.picks for c in chains))


def _macs(program: Program, chain: Branch) -> int:
    env = batch_one(program)
    return sum(node_macs(layer.node, env) for layer in chain.layers)


def _term_macs(program: Program, term: Term, output: fx.Node) -> int:
    if term.diagonal:
        return 0
    size = math.prod(shape_of(output, batch_one(program)))
    return size * term.weight.shape[1] * math.prod(term.window.size)


@dataclass(frozen=True)
class MergeBranches:
    """Merges parallel linear branches of one source into one layer."""

    name: ClassVar[str] = "merge-branches"
    pattern: ClassVar[Pattern] = op(ADDS | SUBS)

    def check(self, program: Program, match: Match) -> Plan | Refusal | None:
        """Finds a source with branches that merge; Refusal when branches share a source and none of them does."""
        root = match.root
        if not _splits(root) or any(len(root.users) == 1 and _splits(u) for u in root.users):
            return None
        operands = flatten(root)
        reason = ""
        for source, candidates in _common_sources(program, operands):
            merged, why = _merge(program, root, source, operands, candidates)
            if merged:
                return Plan(root, source, tuple(operands), tuple(merged))
            reason = reason or why
        return Refusal(reason, root) if reason else None

    def rewrite(self, program: Program, plan: Plan) -> Rewrite:
        """One layer for each merged branch, and the sum of what is left."""
        source = plan.source
        if is_call(source, PADS):  # of which the operands may have read others like it
            source = program.clone(source, {})
        inside = {i for b in plan.merged for i in b.members}
        values = [(o.value, o.sign) for i, o in enumerate(plan.operands) if i not in inside]
        for branch in plan.merged:
            values.insert(0, (_write(program, plan.root, source, branch), 1.0))
        total = _write_sum(program, values, plan.root)
        count = sum(len(b.members) for b in plan.merged)
        return Rewrite(
            {plan.root: total}, f"{count} branches of '{plan.source.name}' became {len(plan.merged)} layer(s)"
        )


def _merge(
    program: Program, root: fx.Node, source: fx.Node, operands: Sequence[Operand], candidates: dict[int, Branch]
) -> tuple[list[MergedBranch], str]:
    """Branches of two or more operands of `source`, and the first reason why two of them did not merge."""
    linear = any(layer.kind == "linear" for c in candidates.values() for layer in c.layers)
    rank = len(shape_of(source))
    if rank < 2:
        return [], ""
    ndim, axis = (0, rank - 1) if linear or rank == 2 else (rank - 2, 1)
    branches: list[MergedBranch] = []
    reason = ""
    for i, chain in candidates.items():
        term = build_term(program, chain, ndim, axis, operands[i].sign)
        if isinstance(term, Refusal):
            reason = reason or term.reason
            continue
        branches.append(MergedBranch((i,), term, tuple(chain.layers), _macs(program, chain)))
    merged, why = _merge_pairs(program, root, branches, static_shape(source)[axis + 1 :])
    return [b for b in merged if len(b.members) > 1], why or reason


def _merge_pairs(
    program: Program, root: fx.Node, branches: list[MergedBranch], sizes: Sequence[int | None]
) -> tuple[list[MergedBranch], str]:
    """Merges pairs, the most expensive first, while the result costs no more than its parts."""
    reason = ""
    done: list[MergedBranch] = []
    rest = sorted(branches, key=lambda b: -b.macs)
    while rest:
        host = rest.pop(0)
        again = True
        while again:
            again = False
            for other in list(rest):
                joined = _join(program, root, host, other, sizes)
                if isinstance(joined, MergedBranch):
                    host, again = joined, True
                    rest.remove(other)
                else:
                    reason = reason or joined.reason
        done.append(host)
    return done, reason


def _join(
    program: Program, root: fx.Node, a: MergedBranch, b: MergedBranch, sizes: Sequence[int | None]
) -> MergedBranch | Refusal:
    joint: Window | Refusal = unite(a.term.window, b.term.window, sizes)
    if isinstance(joint, Refusal):
        return Refusal(f"branches of one source do not merge: {joint.reason}")
    groups = math.gcd(a.term.groups, b.term.groups)
    width = a.term.weight.shape[1] * a.term.groups // groups
    probe = replace(a.term, window=joint, weight=a.term.weight.new_empty(a.term.weight.shape[0], width))
    cost = _term_macs(program, probe, root)
    if cost > a.macs + b.macs:
        return Refusal(
            f"merging branches of one source would cost {cost:,} multiply-accumulates instead of {a.macs + b.macs:,}"
        )
    return MergedBranch(a.members + b.members, add_terms(a.term, b.term, joint), a.layers + b.layers, a.macs + b.macs)


def _write(program: Program, root: fx.Node, source: fx.Node, branch: MergedBranch) -> fx.Node:
    term = branch.term
    ndim = len(term.window.size)
    if term.diagonal and not branch.layers:
        rank = len(shape_of(root))
        axis = 1 if ndim else rank - 1
        scale = column(term.weight.reshape(-1), rank, axis)
        shift = None if term.bias is None else column(term.bias, rank, axis)
        return write_affine(program, source, Pair(scale, shift), place_of(root), like=root)
    in_order = sorted(branch.layers, key=lambda layer: layer.node)
    host = max(in_order, key=lambda layer: math.prod(layer.kernel))
    if not ndim:
        weight = expand_groups(term.weight, term.groups, 1)
        return write_layer(program, host, weight, term.bias, x=source, like=root)
    geometry = term.window.geometry(term.groups)
    return write_layer(program, host, term.weight, term.bias, x=source, geometry=geometry, like=root)


def _write_sum(program: Program, values: list[tuple[fx.Node, float]], like: fx.Node) -> fx.Node:
    """Of factor * value. The first is a merged branch, whose factor is one."""
    (total, _), *others = values
    for value, factor in others:
        if factor in (1.0, -1.0):
            target = aten.add.Tensor if factor == 1.0 else aten.sub.Tensor
            total = program.call(target, (total, value), like=like)
        else:
            total = program.call(aten.add.Tensor, (total, value), {"alpha": factor}, like=like)
    return total


PASS = MergeBranches
PHASE = "fold"
AFTER = "fold_channel_affine"
