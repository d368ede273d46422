"""How close a network is to another on samples that nothing was chosen on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from reparam.data import Deck
from reparam.errors import InputError
from reparam.ir import Program, evaluate

from .running import DTYPE, feed_of


@dataclass(frozen=True)
class Quality:
    """On held-out samples. None for what does not apply.

    samples: how many. agreement: the share of samples that get the class that the original gives them. kl: the mean of
    KL(original || this) in nats. error: the RMS of the difference of the outputs, relative to the original's RMS.
    accuracy: the share of samples that get the class of their label.
    """

    samples: int
    error: float
    agreement: float | None = None
    kl: float | None = None
    accuracy: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)


@torch.no_grad()
def quality(program: Program, original: Program, deck: Deck, size: int) -> Quality:
    """Compares the outputs of two programs on a deck, `size` samples at a time, in float32.

    Class scores are a single output of shape (N, K), K > 1; anything else has an error and no classes.
    """
    agree = kl = right = wrong2 = norm2 = 0.0
    count, classes, own = 0, True, [torch.zeros(())]
    for inputs, labels in deck.batches(size):
        own, wanted = (_floats(evaluate(p, feed_of(p, inputs), DTYPE)) for p in (program, original))
        count += len(inputs[0])
        wrong2 += sum(float((a - b).double().square().sum()) for a, b in zip(own, wanted, strict=True))
        norm2 += sum(float(b.double().square().sum()) for b in wanted)
        classes = classes and is_scores(own)
        if not classes:
            continue
        a, b = own[0].double().log_softmax(1), wanted[0].double().log_softmax(1)
        agree += float((a.argmax(1) == b.argmax(1)).sum())
        kl += float((b.exp() * (b - a)).sum())
        if labels is not None:
            if int(labels.max()) >= a.shape[1]:
                raise InputError(f"a label is {int(labels.max())}, but the network has {a.shape[1]} classes, from 0")
            right += float((a.argmax(1) == labels).sum())
    if not own:
        raise InputError("the network gives no floating numbers, so that nothing can be compared")
    error = (wrong2 / norm2) ** 0.5 if norm2 else 0.0
    if not classes or not count:
        return Quality(count, error)
    return Quality(count, error, agree / count, kl / count, right / count if deck.labelled else None)


def is_scores(outputs: Sequence[Tensor]) -> bool:
    """Whether the outputs are one score for each of several classes."""
    return len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1


def _floats(outputs: Iterable[Any]) -> list[Tensor]:
    return [o for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]
