"""The weights of one layer by least squares: normal equations, gathered batch by batch.

With x the columns that a layer reads at one place of its output (for each group), t what it should give there, and w
its weights as they are: min_W E|W x + b - t|^2 + r |W - w|^2, solved as (E[x x'] + r I) (W - w)' = E[x (t - w x - b)'].
Memory is that of the matrix E[x x'], whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra import Layer
from reparam.ir import shape_of

RIDGE = 1e-4  # of the mean square of the columns


def columns_of(layer: Layer, x: Tensor, places: Tensor, channels: Tensor | None = None) -> Tensor:
    """(groups, rows, C_in/groups * kernel): what the layer reads at some places of its output.

    x: (N, C_in, *spatial) of a convolution, (..., C_in) of a linear layer. places: numbers of places of the output of
    one sample of a convolution, of rows of all samples of a linear layer. channels: those of x that are looked at, of a
    layer without groups; the columns are fewer then.

    A transposed convolution reads as a convolution with the kernel turned round (`as_rows`), over its input with
    stride - 1 zeros between the entries and dilation * (kernel - 1) - padding at the border.
    """
    if layer.kind == "linear":
        rows = x.reshape(1, -1, x.shape[-1])[:, places]
        return rows if channels is None else rows.index_select(2, channels)
    g, kernel = layer.geometry, layer.kernel
    stride, padding = g.stride, g.padding
    if layer.kind == "transposed":
        x, padding = _with_gaps(x, stride), _borders(layer)
        stride = (1,) * len(kernel)
    pads = [p for pair in reversed(padding) for p in pair]
    x = nn.functional.pad(x, pads) if any(pads) else x
    n, c = x.shape[:2]
    out = output_sizes(layer, x.shape[2:], stride)
    strides = x.stride()
    view = x.as_strided(
        (n, c, *out, *kernel),
        (
            *strides[:2],
            *(s * k for s, k in zip(strides[2:], stride, strict=True)),
            *(s * k for s, k in zip(strides[2:], g.dilation, strict=True)),
        ),
    )
    index: tuple[Any, ...] = (slice(None), *torch.unravel_index(places, out))
    if channels is not None:
        index = (channels[:, None], *(i[None] for i in index[1:]))
    rows = view[(slice(None), *index)]  # (N, C, places, *kernel)
    rows = rows.movedim(2, 1).reshape(n * len(places), g.groups, -1)
    return rows.transpose(0, 1)


def output_sizes(layer: Layer, padded: torch.Size, stride: Sequence[int]) -> tuple[int, ...]:
    """Of the output, along the spatial axes of a padded input."""
    sizes = zip(padded, layer.kernel, stride, layer.geometry.dilation, strict=True)
    return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)


def _with_gaps(x: Tensor, stride: Sequence[int]) -> Tensor:
    """x with stride - 1 zeros between its entries along each spatial axis."""
    out = x.new_zeros(*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], stride, strict=True)))
    out[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return out


def _borders(layer: Layer) -> tuple[tuple[int, int], ...]:
    """What a transposed convolution has before and behind its input along each spatial axis; negative is cut off.

    What the output is longer than its input makes it, at the traced size, is its output padding.
    """
    g = layer.geometry
    ends = []
    for axis, (k, d, s, (low, high)) in enumerate(zip(layer.kernel, g.dilation, g.stride, g.padding, strict=True), 2):
        inner = (shape_of(layer.x)[axis] - 1) * s + d * (k - 1) + 1 - low - high
        ends.append((d * (k - 1) - low, d * (k - 1) - high + shape_of(layer.node)[axis] - inner))
    return tuple(ends)


def as_rows(layer: Layer, weight: Tensor) -> Tensor:
    """(C_out, C_in/groups, *kernel): a weight as the rows that `columns_of` goes with."""
    if layer.kind != "transposed":
        return weight
    return _other_way_round(weight, layer.geometry.groups)


def from_rows(layer: Layer, rows: Tensor) -> Tensor:
    """The weight of a layer, of rows: the inverse of `as_rows`."""
    if layer.kind != "transposed":
        return rows
    return _other_way_round(rows, layer.geometry.groups)


def _other_way_round(weight: Tensor, groups: int) -> Tensor:
    """Rows and columns of each group exchanged, and the kernel turned round; its own inverse."""
    exchanged = torch.cat([part.transpose(0, 1) for part in weight.chunk(groups)])
    return exchanged.flip(list(range(2, weight.dim())))


def rows_of(layer: Layer, y: Tensor, places: Tensor, channels: Tensor | None = None) -> Tensor:
    """(groups, rows, C_out/groups): an output of the layer at some places. channels, places: as for `columns_of`."""
    if layer.kind == "linear":
        rows = y.reshape(1, -1, y.shape[-1])[:, places]
        return rows if channels is None else rows.index_select(2, channels)
    flat = y.flatten(2)
    flat = (flat[:, :, places] if channels is None else flat[:, channels[:, None], places]).movedim(2, 1)
    return flat.reshape(-1, layer.geometry.groups, flat.shape[-1] // layer.geometry.groups).transpose(0, 1)


@dataclass(frozen=True)
class _System:
    """seen: the columns that are solved for. factor: of Cholesky. known: E[x x'] w, what the old weights give."""

    seen: Tensor
    factor: Tensor
    known: Tensor


class Equations:
    """E[x x'] and E[x t'] of one layer, a column of ones for its bias behind the others."""

    def __init__(self, groups: int, columns: int, rows: int, *, kernel: int = 1, bias: bool) -> None:
        """kernel: how many columns belong to one channel."""
        width = columns + bias
        self.bias, self.kernel = bias, kernel
        self.columns = columns
        self.gram = torch.zeros(groups, width, width, dtype=torch.float64)
        self.cross = torch.zeros(groups, width, rows, dtype=torch.float64)
        self.count = 0
        self.systems: dict[int, _System | None] = {}

    def add(self, x: Tensor, t: Tensor) -> None:
        """x: (groups, rows, columns). t: (groups, rows, C_out/groups)."""
        x = self.see(x)
        self.cross += x.transpose(1, 2) @ t

    def see(self, x: Tensor) -> Tensor:
        """Adds columns, (groups, rows, columns), without targets; gives them with that of the bias."""
        x = self._with_ones(x)
        self.gram += x.transpose(1, 2) @ x
        self.count += x.shape[1]
        return x

    def clear(self) -> None:
        """Forgets what was added."""
        self.gram.zero_()
        self.cross.zero_()
        self.count = 0
        self.systems.clear()

    def free(self, old: Tensor) -> Tensor:
        """(groups, columns, C_out/groups), bool: the unknowns that may change, of the packed weights `old`."""
        rows = (old[:, : self.columns] != 0).any(1)
        return torch.stack([self._read(own)[:, None] & row for own, row in zip(old, rows, strict=True)])

    def retarget(self, rows: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Puts other targets in place: (x, t) of all that was added, with another t."""
        self.cross.zero_()
        for x, t in rows:
            self.cross += self._with_ones(x).transpose(1, 2) @ t

    def _with_ones(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2) if self.bias else x

    def predict(self, x: Tensor, weights: Tensor) -> Tensor:
        """(groups, rows, C_out/groups): what weights, (groups, columns, C_out/groups), make of columns."""
        y = x @ weights[:, : self.columns].to(x.dtype)
        return y + weights[:, self.columns :].to(x.dtype) if self.bias else y

    def pack(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(groups, columns, C_out/groups), float64: the weights as the unknowns, the bias behind them."""
        groups = len(self.gram)
        packed = weight.double().reshape(groups, -1, self.columns).transpose(1, 2)
        return packed if bias is None else torch.cat([packed, bias.double().reshape(groups, 1, -1)], 1)

    def unpack(self, packed: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The unknowns in the shapes and dtypes of a weight and a bias."""
        fitted = packed[:, : self.columns].transpose(1, 2).reshape(weight.shape).to(weight.dtype)
        return fitted, None if bias is None else packed[:, -1].reshape(bias.shape).to(bias.dtype)

    def solve(self, old: Tensor, ridge: float = RIDGE) -> Tensor:
        """The unknowns, from the packed weights `old`, the same ones each time. Columns of zeros keep their weights.

        What is switched off in the weights themselves stays off: rows, and channels that a layer reads, of zeros.
        """
        rows = (old[:, : self.columns] != 0).any(1)  # (groups, C_out/groups)
        new = old.clone()
        for i in range(len(self.gram)):
            if i not in self.systems:
                self.systems[i] = self._system(i, old[i], ridge)
            system = self.systems[i]
            if system is not None:
                change = torch.cholesky_solve((self.cross[i] / self.count - system.known)[system.seen], system.factor)
                new[i][system.seen] += change * rows[i]
        return new

    def _system(self, group: int, old: Tensor, ridge: float) -> _System | None:
        """The matrix of one group on the columns that are seen, decomposed; None when there are none, or no such."""
        gram = self.gram[group] / self.count
        seen = (gram.diagonal() > 0) & self._read(old)
        if not bool(seen.any()):
            return None
        part, columns = gram[seen][:, seen], int(seen[: self.columns].sum())
        damping = torch.full((len(part),), 1e-12 * float(part.diagonal().max()), dtype=torch.float64)
        if columns:
            damping[:columns] += ridge * part.diagonal()[:columns].mean()
        factor, failed = torch.linalg.cholesky_ex(part + damping.diag())
        return None if int(failed) else _System(seen, factor, gram @ old)

    def _read(self, old: Tensor) -> Tensor:
        """(columns,), bool: those of channels that some weight of `old`, (columns, C_out/groups), reads."""
        channels = (old[: self.columns] != 0).any(1).reshape(-1, self.kernel).any(1)
        read = channels.repeat_interleave(self.kernel)
        return torch.cat([read, read.new_ones(1)]) if self.bias else read
