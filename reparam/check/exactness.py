"""Is the converted network as exact as the original in the dtype that is emitted? Judged input by input.

Rounding errors of a network that amplifies them have heavy tails: over a few inputs one of them rules any sum. So each
input is compared by itself, e_new against e_old, its RMS errors against the float64 truth. Where not at least half of
the inputs keep to twice the original's error, plus a few roundings, or where the errors of all together do not, the law
of the original's own errors is measured first: on more inputs, each run again with weights and inputs off by about one
rounding (one ulp). The median error of these runs takes the place of e_old, which is only one draw from that law.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reparam.errors import NotEquivalentError
from reparam.ir import Feed, Program, Room, evaluate, give_back, typed

from .values import is_number, widened

DISTURBED = 4  # runs of the original that are off by a rounding
MORE = 3  # further feeds of the last round's size
TAIL = 8.0  # times the largest error of the original's own law, which no input of the converted network may pass


class LostDigitsError(NotEquivalentError):
    """The converted network is the same function, and rounds worse than the original."""


@dataclass
class OutputSpread:
    """Errors of one output, input by input: of the converted network, of the original, and the size of the truth.

    spread: for each input the errors of the original when it is off by a rounding; empty where it was not measured.
    """

    new: list[float] = field(default_factory=list)
    old: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)
    weight: list[int] = field(default_factory=list)
    spread: list[list[float]] = field(default_factory=list)

    @property
    def new_rms(self) -> float:
        return self._rms(self.new)

    @property
    def old_rms(self) -> float:
        return self._rms(self.old)

    def _rms(self, values: Sequence[float]) -> float:
        total = sum(w * v * v for v, w in zip(values, self.weight, strict=True))
        return math.sqrt(total / max(sum(self.weight), 1))

    def ratio(self, floor: float) -> float:
        """The error of all inputs together, as a share of what is allowed."""
        bar = 2.0 * self.old_rms + floor * self._rms(self.size)
        return self.new_rms / bar if bar else (0.0 if self.new_rms == 0.0 else math.inf)

    def fair(self, floor: float) -> bool:
        """Whether at least half of the inputs, and all together, keep to twice the original's error."""
        return self.ratio(floor) <= 1.0 and self.median_ratio(floor) <= 2.0

    def median_ratio(self, floor: float) -> float:
        """The median over the inputs of the error against the original's, a few roundings allowed."""
        against = [statistics.median([o, *s]) for o, s in zip(self.old, self._spreads, strict=True)]
        each = [_ratio(n, o, floor * s) for n, o, s in zip(self.new, against, self.size, strict=True)]
        return statistics.median(each) if each else 0.0

    def fair_against_spread(self, floor: float) -> bool:
        """Whether the median keeps to twice, and no input lies far outside of the original's own law."""
        if not all(map(math.isfinite, self.new)):
            return False
        shares = [max([o, *s]) / max(z, 1e-300) for o, s, z in zip(self.old, self._spreads, self.size, strict=True)]
        top = TAIL * max(shares, default=0.0) + floor
        tail = all(n <= top * max(z, 1e-300) for n, z in zip(self.new, self.size, strict=True))
        return self.median_ratio(floor) <= 2.0 and tail

    @property
    def _spreads(self) -> list[list[float]]:
        return self.spread or [[] for _ in self.old]


def _ratio(new: float, old: float, room: float) -> float:
    """new / old, where `room` is allowed on top of twice the old."""
    if new <= 2.0 * old + room:
        return min(2.0, new / old) if old else 0.0
    return new / old if old else math.inf


def add_spreads(
    outputs: list[OutputSpread], truth: Sequence[Any], old: Sequence[Any], new: Sequence[Any], inputs: int
) -> None:
    """Adds one feed to the errors of each output. inputs: how many it holds."""
    rows = [(t, o, n) for t, o, n in zip(truth, old, new, strict=True) if is_number(t)]
    while len(outputs) < len(rows):
        outputs.append(OutputSpread())
    for out, row in zip(outputs, rows, strict=True):
        t, o, n = (widened(v) for v in row)
        for part in _samples(t, inputs):
            out.new.append(_rms_of(n[part] - t[part]))
            out.old.append(_rms_of(o[part] - t[part]))
            out.size.append(_rms_of(t[part]))
            out.weight.append(t[part].numel())


def _samples(value: Tensor, inputs: int) -> list[Any]:
    """The parts of an output that belong to single inputs, where it has one for each along its first axis."""
    if not value.numel():
        return []
    if inputs > 1 and value.dim() and value.shape[0] == inputs:
        return list(range(inputs))
    return [...]


def _rms_of(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


def spread_further(
    original: Program, emitted: Program, rounds: Sequence[Any], dtype: torch.dtype | None, outputs: list[OutputSpread]
) -> list[OutputSpread]:
    """The errors on the inputs of the rounds and on more, with the original's own spread. outputs: found so far."""
    generator = torch.Generator().manual_seed(len(outputs) + 1)
    found: list[OutputSpread] = []
    for values, truth, inputs in _more_feeds(original, rounds, generator):
        old = evaluate(original, typed(original, values), dtype)
        new = evaluate(emitted, typed(emitted, values), None)
        before = [len(o.old) for o in found]
        add_spreads(found, truth, old, new, inputs)
        before += [0] * (len(found) - len(before))
        again: list[OutputSpread] = [OutputSpread() for _ in found]
        for _ in range(DISTURBED):
            off = evaluate(*disturbed(original, typed(original, values, dtype), dtype, generator), dtype)
            add_spreads(again, truth, off, off, inputs)
        for out, other, start in zip(found, again, before, strict=True):
            count = len(out.old) - start
            out.spread += [[other.old[k * count + i] for k in range(DISTURBED)] for i in range(count)]
    return found


def _more_feeds(
    original: Program, rounds: Sequence[Any], generator: torch.Generator
) -> list[tuple[Feed, Sequence[Any], int]]:
    """The feeds that were run, and more of the size of the one with most inputs."""
    feeds = [(r.values, r.truth, r.inputs) for r in rounds]
    most = max(rounds, key=lambda r: r.inputs)
    for _ in range(MORE):
        values = [_drawn_like(v, generator) for v in most.values]
        feeds.append((values, evaluate(original, values), most.inputs))
    return feeds


def _drawn_like(value: Any, generator: torch.Generator) -> Any:
    """Other values in another order of the same numbers, so that they lie in the same range; integers stay."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    flat = value.reshape(-1)
    return flat[torch.randint(flat.numel(), flat.shape, generator=generator).to(flat.device)].reshape(value.shape)


def disturbed(
    program: Program, values: Feed, dtype: torch.dtype | None, generator: torch.Generator
) -> tuple[Program, Feed]:
    """The program and its inputs, every number off by up to one rounding of the dtype that it is computed in."""
    constants, room = dict(program.constants), Room()
    for name, c in program.constants.items():
        if c.value.is_floating_point():
            value = room.take(_off(c.value.to(dtype or c.dtype), generator))
            constants[name] = dataclasses.replace(c, value=value)
            give_back(c.value)
    moved = [_off(v, generator) if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]
    return dataclasses.replace(program, constants=constants), moved


def _off(value: Tensor, generator: torch.Generator) -> Tensor:
    eps = torch.finfo(value.dtype).eps
    signs = torch.rand(value.shape, generator=generator).to(value.device) * 2 - 1
    made: Tensor = (value.detach().double() * (1 + eps * signs)).to(value.dtype)
    return made
