"""More samples than there are: mixes of two, for the refit alone.

A mix of samples a and b is m + ((1 - s) (a - m) + s (b - m)) / sqrt((1 - s)^2 + s^2), with m the mean of the batch
and s drawn from [0, 1/2): it has the mean and, for samples that are drawn independently, the variance of the samples,
entry by entry. What the original gives on it is what the refitted network is to give, so that a mix need not look like
a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from reparam.ir import own_generator

Batch = Sequence[Tensor]

COPIES = 4  # of each sample that a layer is refitted on, the first one as it is, ...
MACS = 1e12  # ... as long as all of them take fewer multiply-accumulates than this in the original


def copies_for(macs: int, samples: int) -> int:
    """How many copies of so many samples are worth their time, in a network of so many multiply-accumulates."""
    return max(1, min(COPIES, int(MACS / max(1, macs * samples))))


def with_mixes(batches: Iterable[Batch], copies: int, seed: int = 0) -> Iterator[Batch]:
    """Each batch, and behind it copies - 1 batches of as many mixes of its samples, the same ones for a seed.

    A batch whose samples cannot be mixed comes alone: one sample, or inputs that are no floating numbers.
    """
    for i, inputs in enumerate(batches):
        yield inputs
        for k in range(1, copies if can_be_mixed(inputs) else 1):
            yield _mixed(inputs, own_generator(seed, i, k))


def only_mixes(batches: Iterable[Batch], seed: int = 0) -> Iterator[Batch]:
    """A batch of as many mixes in the place of each batch, the same ones for a seed; itself where that cannot be."""
    for i, inputs in enumerate(batches):
        yield _mixed(inputs, own_generator(seed, i, 0)) if can_be_mixed(inputs) else inputs


def can_be_mixed(inputs: Batch) -> bool:
    """Whether there are two samples at least, of real floating numbers."""
    return len(inputs[0]) > 1 and all(v.is_floating_point() for v in inputs)


def _mixed(inputs: Batch, generator: torch.Generator) -> Batch:
    """Mixes of the samples of one batch: all inputs of a sample with the same other one, to the same share."""
    count = len(inputs[0])
    share = torch.rand(count, generator=generator) / 2
    other = torch.randperm(count, generator=generator)
    found = []
    for value in inputs:
        s = share.to(value.dtype).reshape(-1, *[1] * (value.dim() - 1))
        mean = value.mean(0, keepdim=True)
        mix = mean + ((1 - s) * (value - mean) + s * (value[other] - mean)) / ((1 - s).square() + s.square()).sqrt()
        found.append(torch.where(mix.isfinite(), mix, value))
    return tuple(found)
