"""Mean and variance of the channels of a value that is seen a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and sum of squared deviations for each channel (axis 1), in float64, merged batch by batch.

    Source: Chan, Golub & LeVeque 1983, equation 2.1: nothing is subtracted from a sum of squares, so that no digits are
    lost where a mean is large beside its deviation.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, value: Tensor) -> None:
        """Takes in a batch (N, C, *places): every sample and every place counts once."""
        rows = value.detach().to(torch.float64).movedim(1, -1).reshape(-1, value.shape[1])
        if not len(rows):
            return
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        if not self.count:
            self.count, self.mean, self._squares = len(rows), mean, squares
            return
        total = self.count + len(rows)
        gap = mean - self.mean
        self.mean = self.mean + gap * (len(rows) / total)
        self._squares = self._squares + squares + gap.square() * (self.count * len(rows) / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """(C,): E[(y - E[y])^2], over all that was taken in."""
        return self._squares / max(1, self.count)
