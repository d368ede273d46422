"""One layer of a chain as a grouped convolution: which channels each of its groups reads and writes.

Channels are named by their place in natural order, where a register holds its values one after the other. A group may
read channels that others read too, and several groups may write parts of one channel; `PartialSums` then adds the parts
up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reparam.algebra import fit
from reparam.ir import FOLD_DTYPE

from .channel_order import natural, width
from .linear_form import Map, RegisterValue, numbers_of, shift_vector
from .stage import Stage

PAD = -1


@dataclass(frozen=True, eq=False)
class PartialSums:
    """A pointwise layer that adds up parts.

    picks: (groups, n) positions among the parts. results: (groups, m) channels. Both hold PAD where there is nothing.
    """

    picks: np.ndarray
    results: np.ndarray


@dataclass(frozen=True, eq=False)
class GroupedLayer:
    """inputs: (groups, n) channels that each group reads. outputs: (groups, m) channels that it writes, or parts of.

    links: for each block of the stage that joins single channels the group of each of its rows, None for other blocks.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    links: tuple[np.ndarray | None, ...]
    sums: PartialSums | None = None

    @property
    def groups(self) -> int:
        return len(self.inputs)

    @property
    def order(self) -> np.ndarray:
        """The channel at each place of the layer's result, parts added up."""
        return (self.outputs if self.sums is None else self.sums.results).reshape(-1)


def is_link(m: Map) -> bool:
    """Whether each result of the map comes from one channel alone."""
    return m.n_in == m.groups


def ends(m: Map) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cols) of a link: the result and the operand channel of each of its entries."""
    k = np.arange(m.n_out)
    return m.rows + k, m.cols + k // (m.n_out // m.groups)


def group_layer(stage: Stage, groups: int, before: np.ndarray, after: np.ndarray) -> GroupedLayer:
    """A layer whose registers have these orders, cut into equal groups, each of which holds whole components."""
    inputs, outputs = before.reshape(groups, -1), after.reshape(groups, -1)
    home = np.zeros(width(stage.after), dtype=np.int64)
    used = after >= 0
    home[after[used]] = np.flatnonzero(used) // outputs.shape[1]
    out = natural(stage.after)
    links = tuple(home[out[v] + ends(m)[0]] if is_link(m) else None for v, _, m in stage.blocks())
    return GroupedLayer(inputs, outputs, links)


class _Places:
    """Where channels stand within groups."""

    def __init__(self, table: np.ndarray) -> None:
        self.span = int(table.max(initial=0)) + 1
        groups, places = np.nonzero(table >= 0)
        keys = groups * self.span + table[groups, places]
        order = np.argsort(keys)
        self.keys, self.places = keys[order], places[order]

    def find(self, groups: np.ndarray, channels: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.places[np.searchsorted(self.keys, groups * self.span + channels)]
        return found


def weight_of(wire: GroupedLayer, stage: Stage) -> Tensor:
    """The weight of the layer, (groups*m, n, *kernel), float64."""
    groups, n_in = wire.inputs.shape
    n_out = wire.outputs.shape[1]
    weight = torch.zeros(groups * n_out, n_in, *stage.window.size, dtype=FOLD_DTYPE)
    into, out = natural(stage.before), natural(stage.after)
    columns, rows = _Places(wire.inputs), _Places(wire.outputs)
    active = {v for v, _ in stage.forms if v.act.family != "linear"}
    for (v, u, m), home in zip(stage.blocks(), wire.links, strict=True):
        numbers = fit(numbers_of(m), m.window, stage.window)
        if v not in active and stage.joint.gain != 1.0:
            numbers = numbers / stage.joint.gain
        if home is not None:
            r, c = ends(m)
            at = home * n_out + rows.find(home, out[v] + r)
            weight[torch.from_numpy(at), torch.from_numpy(columns.find(home, into[u] + c))] += numbers[:, 0]
            continue
        for g in range(groups):
            _, r, rows_here = np.intersect1d(out[v] + m.rows + np.arange(m.n_out), wire.outputs[g], return_indices=True)
            _, c, cols_here = np.intersect1d(into[u] + m.cols + np.arange(m.n_in), wire.inputs[g], return_indices=True)
            if len(r) and len(c):
                at = torch.from_numpy(g * n_out + rows_here)
                weight[at[:, None], torch.from_numpy(cols_here)] += _part(m, numbers, r, c)
    return weight


def _part(m: Map, numbers: Tensor, rows: np.ndarray, cols: np.ndarray) -> Tensor:
    """These rows and columns of a block diagonal map, (rows, cols, *kernel)."""
    per_out, per_in = m.n_out // m.groups, m.n_in // m.groups
    part = numbers[torch.from_numpy(rows)[:, None], torch.from_numpy(cols % per_in)]
    if m.groups > 1:
        same = torch.from_numpy((rows // per_out)[:, None] == cols // per_in)
        part = part * same.reshape(*same.shape, *[1] * (part.dim() - 2)).to(part)
    return part


def shifts_of(stage: Stage) -> Tensor:
    """What the layer adds to each channel of its register in natural order, (C,), float64."""
    out = natural(stage.after)
    total = torch.zeros(width(stage.after), dtype=FOLD_DTYPE)
    for v, form in stage.forms:
        shift = shift_vector(form)
        if shift is not None:
            gain = 1.0 if v.act.family != "linear" else stage.joint.gain
            total[out[v] : out[v] + v.channels] += shift / gain
    return total


def placed(values: Tensor, order: np.ndarray) -> Tensor:
    """Values of channels in natural order, put into `order`; zero where there is padding."""
    return torch.cat([values, values.new_zeros(1)])[torch.from_numpy(order.copy())]


def sums_weight(wire: GroupedLayer, sums: PartialSums, ndim: int) -> Tensor:
    """One where a part belongs to a result, (groups*m, n, 1, ...), float64."""
    parts = np.append(wire.outputs.reshape(-1), PAD)[sums.picks]
    same = (sums.results[:, :, None] == parts[:, None, :]) & (parts >= 0)[:, None, :]
    ones = torch.from_numpy(same.reshape(-1, parts.shape[1])).to(FOLD_DTYPE)
    return ones.reshape(*ones.shape, *[1] * ndim)


def rearranged(order: np.ndarray, wanted: np.ndarray) -> np.ndarray | None:
    """The places in `order` of the channels of `wanted`; None when they stand there already.

    Padding is taken from padding where there is some, otherwise from any channel: it meets zeros only.
    """
    if len(order) == len(wanted) and bool(((order == wanted) | (wanted < 0)).all()):
        return None
    first = np.zeros(max(int(order.max()), int(wanted.max())) + 2, dtype=np.int64)
    first[order[::-1]] = np.arange(len(order))[::-1]
    places: np.ndarray = first[wanted]
    return places


def values_at(register: Sequence[RegisterValue], order: np.ndarray) -> dict[RegisterValue, Tensor]:
    """For each value of a register where its channels stand in `order`."""
    starts = natural(register)
    first = np.zeros(width(register) + 1, dtype=np.int64)
    first[order[::-1]] = np.arange(len(order))[::-1]
    return {v: torch.from_numpy(first[starts[v] : starts[v] + v.channels].copy()) for v in register}
