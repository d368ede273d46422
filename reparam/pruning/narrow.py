"""The network under way on the channels that are left, to be run in the place of the one with zeros.

    W_small = W[R, C],  b_small = b[R] + c      of a layer that keeps the rows R and the columns C

c is what constant channels add. Both networks are the same function, so that the derivatives by W_small and b_small are
those by W[R, C] and b[R], and what is done to the ones can be done to the others. Constant channels before a border of
zeros are one channel of the small network, whose column is a sum of theirs, and has to stay as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reparam.algebra import Layer
from reparam.channels import ChannelPlan, plan_channels, rebuild
from reparam.ir import Program

from .equations import as_rows, from_rows
from .gated import Gated, drop_open_gates
from .refitting import layers_to_fit
from .running import set_weight


@dataclass(frozen=True)
class _Kept:
    """What is left of one layer. old, new: it in the large and in the small network. rows: of the old that lie in the
    new. columns: (rows, C_in/groups), of the old, for each row of the new. read: (rows, C_in/groups), whether the group
    reads that channel at all, and it is one of the old. fixed: (C_in/groups,), the channels that are none of the old.
    shift: c, None without a bias."""

    old: Layer
    new: Layer
    rows: Tensor
    columns: Tensor
    read: Tensor
    fixed: Tensor
    shift: Tensor | None


@dataclass(frozen=True)
class Narrow:
    """The small network, whose weights may be changed; without layers in `kept` the large one itself."""

    program: Program
    kept: tuple[_Kept, ...]

    @property
    def fixed(self) -> dict[str, Tensor]:
        """By the names of the weights the channels, (C_in/groups,), whose columns have to stay as they are."""
        return {str(k.new.weight.target): k.fixed for k in self.kept}

    def hand_back(self, gated: Gated) -> None:
        """Gives the weights of the layers to the network with zeros that it was made of."""
        for kept in self.kept:
            weight = _rows_of(gated.program, kept.old).clone()
            rows = kept.rows[:, None].expand_as(kept.columns)[kept.read]
            weight[rows, kept.columns[kept.read]] = _rows_of(self.program, kept.new)[kept.read].to(weight.dtype)
            set_weight(gated.program, str(kept.old.weight.target), from_rows(kept.old, weight))
            if kept.old.bias is not None and kept.new.bias is not None and kept.shift is not None:
                bias = _value(gated.program, kept.old.bias.target).clone()
                bias[kept.rows] = (_value(self.program, kept.new.bias.target).double() - kept.shift).to(bias.dtype)
                set_weight(gated.program, str(kept.old.bias.target), bias)


def narrowed(gated: Gated) -> Narrow | None:
    """The network without what is switched off. None where some weight of it is not one of the large network."""
    program = gated.masked()
    layers = layers_to_fit(program)
    before = {n: c.value for n, c in program.constants.items()}
    plan = plan_channels(program)
    rows = [plan.kept.get(layer.node, torch.arange(layer.out_channels)) for layer in layers]
    columns = [list(_columns(plan, layer, r)) for layer, r in zip(layers, rows, strict=True)]
    replaced, _ = rebuild(plan)
    for old, new in replaced.items():
        program.output.replace_input_with(old, new)
    _clear(program)
    made = layers_to_fit(program)
    if len(made) != len(layers):
        return None
    found = [_kept(program, before, *each) for each in zip(layers, made, rows, columns, strict=True)]
    kept = tuple(k for k in found if k is not None)
    return Narrow(program, kept) if len(kept) == len(found) else None


def _clear(program: Program) -> None:
    """Erases what nobody reads any more, and products with masks that switch nothing off."""
    drop_open_gates(program)
    for node in reversed(list(program.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            program.erase([node])


def _columns(plan: ChannelPlan, layer: Layer, rows: Tensor) -> Iterator[Tensor]:
    """(rows, C_in/groups), the input channels within a group that each row may be left with: all of them, those that
    the input has, or those that are read."""
    groups = layer.geometry.groups
    per = layer.in_channels // groups
    yield torch.arange(per).expand(len(rows), -1)
    reads = plan.reads(layer.node).get(layer.x)
    if groups == 1:
        yield from (found.expand(len(rows), -1) for found in (plan.kept.get(layer.x), reads) if found is not None)
    elif reads is not None:
        left = len((rows * groups // layer.out_channels).unique())
        yield (reads % per).reshape(left, -1).repeat_interleave(len(rows) // left, 0)


def _kept(
    program: Program,
    before: Mapping[str, Tensor],
    old: Layer,
    new: Layer,
    rows: Tensor,
    columns: Sequence[Tensor],
) -> _Kept | None:
    """How the weights of `new` are found in those of `old`. rows: those of it that are left. columns: which of its
    columns they may be."""
    own, large = _rows_of(program, new), as_rows(old, before[str(old.weight.target)])
    if (old.kind, old.bias is None) != (new.kind, new.bias is None) or len(rows) != len(own):
        return None
    groups = new.geometry.groups
    read = (own != 0).reshape(groups, len(own) // groups, own.shape[1], -1).any(-1).any(1)
    read = read.repeat_interleave(len(own) // groups, 0)  # a channel that no row of its group reads stays so
    for some in columns:
        part = large[rows[:, None], some]
        if part.shape != own.shape:
            continue
        others = ((part.to(own.dtype) != own).reshape(*own.shape[:2], -1).any(-1) & read).any(0)
        if int(others.sum()) <= int(groups == 1):
            shift = None
            if old.bias is not None and new.bias is not None:
                there = before[str(old.bias.target)].double()[rows]
                shift = _value(program, new.bias.target).double() - there
            return _Kept(old, new, rows, some, read & ~others, others, shift)
    return None


def _rows_of(program: Program, layer: Layer) -> Tensor:
    return as_rows(layer, _value(program, layer.weight.target))


def _value(program: Program, name: object) -> Tensor:
    return program.constants[str(name)].value.detach()
