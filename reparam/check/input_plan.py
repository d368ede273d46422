"""On which inputs a whole network is compared: the traced size, other batches, and every kind of size of free axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reparam.ir import SMALL_SIZE, Program, axes_of_images, batch_one

TRIALS, TRIALS_OF_VOLUMES = 8, 6  # inputs in all; a volume has as many positions as some thirty images
EVEN, PRIME, SMALLEST = 48, 53, 3
LARGER = (5, 9, 17)  # in place of the smallest, where the original does not run on it
LARGE = 97  # for networks that take no small images
GROWN = 32  # what a large size is above the traced one
MOST_OWN = 32  # samples of the traced batch that are still run


@dataclass(frozen=True)
class Plan:
    """Sizes of one round. sizes: of the free axes, by symbol. inputs: how many. small: what large images shrink to.

    claimed: whether the program is said to hold for these very sizes, so that it has to run where the original does.
    far: whether they show no other kind of border than the rest: primes, large sizes, and some for one axis alone.
    single: whether a free axis beside the batch is one. Only the values count there: a decoder that gets one more step
    calls other functions, which compute the same.
    instead: sizes that take the place of these one after the other, where the original does not run on them.
    """

    sizes: dict[str, int]
    inputs: int
    small: int | None = None
    claimed: bool = True
    far: bool = False
    single: bool = False
    instead: tuple[dict[str, int], ...] = ()


def plans_of(program: Program) -> Iterator[Plan]:
    """The traced size alone; then seven inputs at a smaller one (five volumes), where it runs there; then free axes.

    A free axis is tried at an even and a prime size, at a larger odd one, at the smallest that the original runs on, at
    one larger than was traced, at one, each by itself and all together, and at sizes that break what torch took for
    granted when it traced, which is none of one: torch traces with two or more, and does not say what it read off that.
    """
    batch = sorted(batch_one(program))
    symbols = sorted({s for spec in program.inputs for s in spec.shape if isinstance(s, str)})
    others = [s for s in symbols if s not in batch]
    rest = (TRIALS_OF_VOLUMES if axes_of_images(program) == 3 else TRIALS) - 1
    yield Plan({s: 1 for s in batch}, 1)
    if not batch:
        for _ in range(rest):
            yield Plan({}, 1, SMALL_SIZE)
    else:
        for count in _batches(program.traced_sizes[batch[0]], rest):
            yield Plan({s: count for s in batch}, count, SMALL_SIZE)
    traced = program.traced_sizes
    one, two = ({s: n for s in batch} for n in (1, 2))
    if others:
        yield Plan(two | {s: EVEN + 16 * j for j, s in enumerate(others)}, 2)
        yield Plan(two | {s: PRIME + 16 * j for j, s in enumerate(others)}, 2, far=True)
        yield Plan(one | {s: LARGE + 16 * j for j, s in enumerate(others)}, 1, far=True)
        least, *more = (two | {s: n + j for j, s in enumerate(others)} for n in (SMALLEST, *LARGER))
        yield Plan(least, 2, instead=tuple(more))
        yield Plan(one | {s: traced[s] + GROWN + 2 * j for j, s in enumerate(others)}, 1, far=True)
        for sizes in sizes_of_one(program):
            yield Plan(sizes, 2, single=True)
    for probe in program.probes:
        sizes = two | {s: n for s, n in probe.items() if s in symbols}
        yield Plan(sizes, probe.get(batch[0], 2) if batch else 1, far=True)


def sizes_of_one(program: Program) -> list[dict[str, int]]:
    """Free sizes with one of those beside a batch of two at one, and with all of them at one: no trace has these."""
    batch, traced = batch_one(program), program.traced_sizes
    others = sorted(s for s in traced if s not in batch)
    picks = [[s] for s in others] + ([others] if len(others) > 1 else [])
    return [dict.fromkeys(batch, 2) | {s: 1 if s in pick else traced[s] for s in others} for pick in picks]


def _batches(own: int, rest: int) -> list[int]:
    """Samples of the batches at smaller sizes: `rest` in all, so many as were traced among them.

    own: the traced batch. A model may do something else for that very number.
    """
    if own < rest - 1:
        return [rest - own, own]
    return [rest, own] if rest < own <= MOST_OWN else [rest]
