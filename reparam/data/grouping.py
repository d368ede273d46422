"""Samples put together as batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .samples import Sample


@dataclass(frozen=True)
class Group:
    """A batch: the names of its samples, its inputs (n, *shape), and its labels (n,) or maps (n, H, W), or None."""

    names: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    labels: Tensor | None


def grouped(samples: Iterable[Sample], size: int) -> Iterator[Group]:
    """Batches of up to `size` samples (1, *shape) that follow each other and have equal shapes."""
    for _, alike in itertools.groupby(samples, _shapes):
        while chosen := list(itertools.islice(alike, size)):
            inputs = tuple(torch.cat(values) for values in zip(*(s.inputs for s in chosen), strict=True))
            labels = [torch.as_tensor(s.label) for s in chosen if s.label is not None]
            yield Group(tuple(s.name for s in chosen), inputs, torch.stack(labels) if labels else None)


def _shapes(sample: Sample) -> tuple[torch.Size, ...]:
    label = sample.label if isinstance(sample.label, Tensor) else torch.zeros(())
    return (*(v.shape for v in sample.inputs), label.shape)
