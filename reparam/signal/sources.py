"""Of which independent values a value is made: layers with weights of their own, inputs, and which of their channels.

Values whose sources have nothing in common are independent. Weights are taken as random numbers of mean zero, so that
what a layer gives is uncorrelated with what it reads, and so are its channels among themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

WHOLE = -1  # all channels, as a mask of bits
MOST = 1 << 14  # channels that are told apart
Sources = Mapping[fx.Node | str, int]  # by node, or by the name of a weight with several readers: a bit for a channel


def meet(one: Sources, other: Sources) -> bool:
    """Whether two values are made of the same channels of some source."""
    return any(mask & other.get(key, 0) for key, mask in one.items())


def united(several: Iterable[Sources]) -> Sources:
    """The sources of a value that is made of several."""
    found: dict[fx.Node | str, int] = {}
    for sources in several:
        for key, mask in sources.items():
            found[key] = found.get(key, 0) | mask
    return found


@dataclass(frozen=True)
class Track:
    """How the elements of a value lie in that of its only source. root: that source, of the shape. axis: of its
    channels. moves: the movements since."""

    root: fx.Node
    shape: tuple[int, ...]
    axis: int
    moves: tuple[Callable[[Tensor], Tensor], ...] = ()

    def moved(self, move: Callable[[Tensor], Tensor]) -> Track:
        """Behind one more movement."""
        return replace(self, moves=(*self.moves, move))

    def channels(self) -> int:
        """The channels of the root that are left: a mask of bits."""
        count = self.shape[self.axis]
        if count > MOST:
            return WHOLE
        sizes = [count if i == self.axis else 1 for i in range(len(self.shape))]
        label: Tensor = torch.arange(count, dtype=torch.int32).reshape(sizes).expand(self.shape)
        for move in self.moves:
            label = move(label)
        mask = 0
        for channel in torch.unique(label).tolist():
            mask |= 1 << channel
        return mask


def picker(run: Callable[[Tensor], Any], index: int | None) -> Callable[[Tensor], Tensor]:
    """A movement that gives one tensor; of several, the one at `index`."""

    def move(label: Tensor) -> Tensor:
        found: Tensor = run(label) if index is None else run(label)[index]
        return found

    return move
