"""Convolutions, transposed ones and linear layers: rows that are constants, columns that nobody needs.

    y = W x + b,   x_c = k for a constant channel c:   b' = b + W_c k, where no border of zeros cuts the window off
                   x_c = x_d for equal channels:       W'_d = W_d + W_c

Before a border of zeros (padding; the gaps of a transposed convolution) a constant channel is no constant any more:
there all constant channels become one, W'_r = sum_c W_c k_c / k_r, which is exact at the border too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from reparam.algebra import Layer, read_layer, write_layer
from reparam.ir import static_shape

from .family import SPARED, Ask, Builder, Known, Request
from .value import Channels, first_of, has_entries, unique


@dataclass(frozen=True)
class _Read:
    """A layer by its rows. weight: (C_out, C_in/groups, taps). facts: those of its input, None when unknown."""

    layer: Layer
    weight: Tensor
    bias: Tensor | None
    facts: Channels | None

    @property
    def groups(self) -> int:
        return self.layer.geometry.groups

    @property
    def cut_off(self) -> bool:
        """Whether zeros beyond a border, or gaps, stand beside the input."""
        return self.layer.kind == "transposed" or self.layer.geometry.padded

    @property
    def inputs(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def per(self) -> tuple[int, int]:
        """Rows and columns of one group."""
        return self.weight.shape[0] // self.groups, self.weight.shape[1]

    def reads(self, rows: Tensor) -> Tensor:
        """(len(rows), C_in/groups): the input channels that the columns of each row belong to."""
        out, columns = self.per
        return (rows // out)[:, None] * columns + torch.arange(columns)


def _read(known: Known, node: fx.Node) -> _Read | None:
    layer = read_layer(known.program, node)
    if layer is None or static_shape(node)[layer.axis] is None:
        return None
    weight, bias = (
        None if n is None else known.program.constants[str(n.target)].value for n in (layer.weight, layer.bias)
    )
    assert weight is not None
    weight = weight.detach().cpu()
    if layer.kind == "transposed":
        weight = weight.unflatten(0, (layer.geometry.groups, -1)).transpose(1, 2).flatten(0, 1)
    weight = weight.reshape(*weight.shape[:2], -1)
    return _Read(
        layer, weight, None if bias is None else bias.detach().cpu().double(), known.along(layer.x, layer.in_axis)
    )


def _merged(read: _Read) -> tuple[Tensor, Tensor]:
    """(C_out, C_in, taps) and (C_out,): each row on those channels that it has to read, and what the others add.

    Weights stay as they are, in their dtype, where nothing is known of the input; else they are float64.
    """
    weight, facts = read.weight, read.facts
    shift = torch.zeros(weight.shape[0], dtype=torch.float64)
    if facts is None or facts.trivial:
        return weight, shift
    weight = weight.double()
    held = facts.constant.nan_to_num()
    if read.groups > 1:
        index = read.reads(torch.arange(weight.shape[0]))
        here = torch.where(facts.known[index], held[index], 0.0)
        gone = facts.known[index] & ((here == 0) if read.cut_off else torch.ones_like(here, dtype=torch.bool))
        shift = (weight.sum(-1) * here * gone).sum(1)
        return weight * (~gone).double()[..., None], shift
    to, factor = torch.arange(read.inputs), torch.ones(read.inputs, dtype=torch.float64)
    to, varying = torch.where(facts.known, to, facts.first), (~facts.known).double()
    if not read.cut_off:
        shift = (weight.sum(-1) * torch.where(facts.known, held, 0.0)).sum(1)
        factor = varying
    else:
        lasting = facts.known & (held != 0)
        if bool(lasting.any()):
            one = int((held.abs() * lasting).argmax())
            to = torch.where(lasting, one, to)
            factor = torch.where(lasting, held / held[one], varying)
        else:
            factor = varying
    weight = weight * factor[:, None]
    if torch.equal(to, torch.arange(read.inputs)):
        return weight, shift
    return torch.zeros_like(weight).index_add_(1, to, weight), shift


class Layers:
    """Layers with weights."""

    def channels(self, known: Known, node: fx.Node) -> Channels | None:
        read = _read(known, node)
        if read is None:
            return None
        merged, shift = _merged(read)
        known.memo[node] = (merged != 0).any(-1)
        total = shift if read.bias is None else shift + read.bias
        flat = merged.flatten(1)
        constant = torch.where(has_entries(flat), math.nan, total)
        columns = [flat, total, constant]
        if read.groups > 1:
            index = read.reads(torch.arange(len(total)))
            columns.append(index if read.facts is None else read.facts.first[index])
        first = first_of(*columns)
        return Channels((read.layer.axis,), (len(total),), constant, first)

    def ask(self, known: Known, node: fx.Node, wanted: Tensor) -> Ask:
        read = _read(known, node)
        assert read is not None
        reads: Tensor = known.memo[node]  # (C_out, C_in) or (C_out, C_in/groups): whether a row reads a channel
        if read.groups > 1:
            return _ask_in_groups(read, reads, wanted)
        kept = unique(wanted)
        if read.facts is None:
            return Ask(kept)
        needed = reads[kept].any(0).nonzero().flatten()
        return Ask(kept, {read.layer.x: Request(needed if len(needed) else torch.zeros(1, dtype=torch.int64))})

    def build(self, builder: Builder, node: fx.Node, kept: Tensor) -> Any:
        read = _read(builder.known, node)
        assert read is not None
        x, columns = _input(builder, node, read, self.ask(builder.known, node, kept), kept)
        if builder.dry:
            return node
        layer, (merged, shift) = read.layer, _merged(read)
        weight, groups = merged[kept], read.groups
        if read.groups > 1:
            groups = len(unique(kept // read.per[0]))
        if columns is not None and read.groups > 1:
            inside = (columns % read.per[1]).reshape(groups, -1).repeat_interleave(len(kept) // groups, 0)
            weight = weight.gather(1, inside[..., None].expand(*inside.shape, merged.shape[-1]))
        elif columns is not None:
            weight = weight[:, columns]
        bias = None
        if read.bias is not None or bool((shift != 0).any()):
            bias = (shift if read.bias is None else shift + read.bias)[kept]
        weight = weight.reshape(*weight.shape[:2], *layer.kernel)
        if layer.kind == "transposed":
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        geometry = replace(layer.geometry, groups=groups)
        return write_layer(builder.known.program, layer, weight, bias, x=x, geometry=geometry)


def _input(builder: Builder, node: fx.Node, read: _Read, ask: Ask, kept: Tensor) -> tuple[Any, Tensor | None]:
    """What the layer reads, and which of its input channels that holds; None for all of those of its groups."""
    layer = read.layer
    if read.facts is None:
        x = builder.whole(layer.x, like=node)
        if read.groups > 1:
            x = builder.pick(x, layer.in_axis, _blocks(kept, read), read.inputs, like=node)
        return x, None
    columns, held = ask.requests[layer.x].ids, builder.kept[layer.x]
    if read.groups == 1 and len(columns) > (1 - SPARED) * len(held):
        columns = held
    return builder.take(layer.x, columns, like=node), columns


def _blocks(kept: Tensor, read: _Read) -> Tensor:
    """The input channels of the groups that `kept` lie in."""
    groups = unique(kept // read.per[0])
    return (groups[:, None] * read.per[1] + torch.arange(read.per[1])).flatten()


def _ask_in_groups(read: _Read, reads: Tensor, wanted: Tensor) -> Ask:
    """The same number of rows, and of columns, in every group that has one; groups in the order of the rows."""
    out, columns = read.per
    rows: dict[int, list[int]] = {}
    for row in unique(wanted).tolist():
        rows.setdefault(row // out, []).append(row)
    count = max(len(r) for r in rows.values())
    kept = [_filled_up(r, group * out, out, count) for group, r in rows.items()]
    ids = torch.tensor(kept).flatten()
    if read.facts is None:
        return Ask(ids)
    used = [reads[r].any(0).nonzero().flatten().tolist() for r in kept]
    count = max(1, *(len(u) for u in used))
    needed = [
        _filled_up([group * columns + c for c in u], group * columns, columns, count)
        for group, u in zip(rows, used, strict=True)
    ]
    return Ask(ids, {read.layer.x: Request(torch.tensor(needed).flatten(), ordered=True)})


def _filled_up(ids: list[int], start: int, size: int, count: int) -> list[int]:
    """`ids` and the first others of the range, `count` in all."""
    taken = set(ids)
    spare = [i for i in range(start, start + size) if i not in taken]
    return [*ids, *spare[: count - len(ids)]]
