"""How close a network is to another on samples that nothing was chosen on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from reparam.data import Deck, Spooled
from reparam.errors import InputError, NotEquivalentError
from reparam.ir import Program, evaluate, is_floating

from .frontier import Frontier
from .running import DTYPE, feed_of

MEMORY = 32 << 20  # bytes of outputs that are kept in memory
SURE = 2.0  # standard errors that an average has to be better by: the best of many is a little so by chance
TINY = 1e-300  # of a square, in the place of zero
FEWEST = 5  # samples whose spread says anything
CHOOSING = 3  # of so many held-out samples one chooses among the averages, and no figures are taken from it


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


class Judge:
    """Compares networks with the original on held-out samples. What the original gives is computed once.

    Class scores are a single output of shape (N, K), K > 1; anything else has an error and no classes. Outputs that do
    not fit into memory lie in files, which go with the judge.
    """

    def __init__(self, original: Program, deck: Deck, size: int) -> None:
        """size: how many samples are computed at a time."""
        self.original, self.deck, self.size = original, deck, size
        self.frontier = Frontier(MEMORY)
        self.known = 0

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.frontier.__exit__(kind, error, trace)

    @torch.no_grad()
    def quality(self, program: Program) -> Quality:
        """How close the outputs of a program are to the original's, in float32. Raises InputError for labels that are
        no classes of the network, and where there is nothing to compare."""
        return self.look(program)[0]

    @torch.no_grad()
    def look(self, program: Program) -> tuple[Quality, Tensor]:
        """The quality, and the squared difference of the outputs for each sample, (samples,); for each batch where an
        output has no axis of samples. Raises InputError."""
        agree = kl = right = norm2 = 0.0
        wrong: list[Tensor] = []
        count, classes, own = 0, True, [torch.zeros(())]
        for i, (inputs, labels) in enumerate(self.deck.batches(self.size)):
            wanted = self._wanted(i, inputs)
            own = wanted if program is self.original else _outputs(program, inputs)
            count += len(inputs[0])
            if not own:
                raise InputError("the network gives no floating numbers, so that nothing can be compared")
            wrong.append(_squares(own, wanted, len(inputs[0])))
            norm2 += sum(float(b.double().square().sum()) for b in wanted)
            classes = classes and is_scores(own)
            if not classes:
                continue
            a, b = own[0].double().log_softmax(1), wanted[0].double().log_softmax(1)
            agree += float((a.argmax(1) == b.argmax(1)).sum())
            kl += float((b.exp() * (b - a)).sum())
            if labels is not None:
                if int(labels.max()) >= a.shape[1]:
                    raise InputError(
                        f"a label is {int(labels.max())}, but the network has {a.shape[1]} classes, from 0"
                    )
                right += float((a.argmax(1) == labels).sum())
        each = torch.cat([*wrong, torch.zeros(0, dtype=torch.float64)])
        error = (float(each.sum()) / norm2) ** 0.5 if norm2 else 0.0
        if not classes or not count:
            return Quality(count, error), each
        accuracy = right / count if self.deck.labelled else None
        return Quality(count, error, agree / count, kl / count, accuracy), each

    def _wanted(self, batch: int, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the original gives on one batch."""
        if batch >= self.known:
            outputs = _outputs(self.original, inputs)
            self.frontier.put((batch, -1), len(outputs))
            for i, value in enumerate(outputs):
                self.frontier.put((batch, i), value)
            self.known = batch + 1
        return [self.frontier.get((batch, i)) for i in range(self.frontier.get((batch, -1)))]


def _squares(own: Sequence[Tensor], wanted: Sequence[Tensor], samples: int) -> Tensor:
    parts = [(a - b).double().square() for a, b in zip(own, wanted, strict=True)]
    if not all(p.dim() and len(p) == samples for p in parts):
        parts = [p.sum()[None] for p in parts]
    return torch.stack([p.flatten(1).sum(1) if p.dim() > 1 else p for p in parts]).sum(0)


def _outputs(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    found = evaluate(program, feed_of(program, inputs), DTYPE)
    return [o for o in found if is_floating(o)]


def is_scores(outputs: Sequence[Tensor]) -> bool:
    """Whether the outputs are one score for each of several classes."""
    return len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1


def check_sides(decks: Spooled) -> None:
    """Raises InputError where nothing was held out, or where all was."""
    fit, held = len(decks.fit), len(decks.held)
    if fit and held:
        return
    if fit + held > 1:
        raise InputError(f"the {fit + held} samples are all the same: others have to be held out, to measure on")
    what = "one batch of the size that the network fixes" if decks.fit.fixed else "one sample"
    raise InputError(f"{what} is not enough: some have to be held out, to measure on; give more")


def check_drop(final: Quality, base: Quality, most: float | None) -> None:
    """Whether a network is as good as asked for. most: the share of accuracy, or without labels of agreement, that may
    be lost; None for any.

    Raises NotEquivalentError for more, and InputError for outputs that are no class scores.
    """
    if most is None:
        return
    if final.agreement is None:
        raise InputError("max_drop is of classes, and the outputs of this network are no scores of classes")
    if final.accuracy is not None and base.accuracy is not None:
        drop, what = base.accuracy - final.accuracy, "the accuracy on held-out samples falls by"
    else:
        drop, what = 1 - final.agreement, "the classes of held-out samples differ from the original's in"
    if drop > most:
        raise NotEquivalentError(f"{what} {100 * drop:.2f} %, more than {100 * most:g} %; nothing was written")


def parted(held: Deck, steps: int) -> tuple[Deck | None, Deck]:
    """Of the samples that were held out those that averages are chosen on, and those that figures are taken from.

    All are for figures where there are no steps, or fewer than `FEWEST` would choose.
    """
    choosing = held.part(CHOOSING)
    if not steps or choosing.rows < FEWEST:
        return None, held
    return choosing, held.part(CHOOSING, others=True)


def surely_less(a: Tensor, b: Tensor) -> bool:
    """Whether a is less than b, sample by sample: the mean of log(b / a) is above `SURE` of its standard errors, (N,).

    Of fewer samples than `FEWEST` nobody knows. Logarithms, since squares of a few samples would decide alone.
    """
    gain = torch.log(b.double().clamp(min=TINY) / a.double().clamp(min=TINY))
    if len(gain) < FEWEST:
        return False
    return float(gain.mean()) > SURE * float(gain.std()) / math.sqrt(len(gain))
