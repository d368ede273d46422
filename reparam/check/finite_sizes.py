"""What to say where the original gives no numbers: at all sizes, or at some of its free ones alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from reparam.errors import InputError
from reparam.ir import Feed, Program, feed

from .input_plan import plans_of
from .path_error import names_of_axes, shape_of_first
from .values import all_finite

AGAIN = 3  # inputs of a size that are drawn before something is said of all of them
Run = Callable[[Feed], list[Any] | None]


def not_finite(original: Program, run: Run, sizes: Mapping[str, int], generator: torch.Generator) -> InputError:
    """The error for an original whose outputs are not finite on inputs of these sizes of its free axes.

    run: the original's outputs; None for inputs that it does not take.
    """

    def finite(sizes: Mapping[str, int]) -> list[bool]:
        found = (run(feed(original, dict(sizes), generator)) for _ in range(AGAIN))
        return [outputs is not None and all_finite(outputs) for outputs in found]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of one number
        others = () if not sizes or any(finite(sizes)) else _others(original, sizes)
        other = next((s for s in others if all(finite(s))), None)
        if other is None:
            return InputError("the original's own outputs are not finite on random inputs, so nothing can be compared")
        differing = {s: n for s, n in sizes.items() if other[s] != n}
        alone = {s: n for s, n in differing.items() if len(differing) > 1 and not any(finite(other | {s: n}))}
    here, there = (shape_of_first(feed(original, dict(s), generator)) for s in (sizes, other))
    names = names_of_axes(original, alone or differing)
    axes = " and ".join(f"axis {name}" if name.isdigit() else name for name in names)
    return InputError(
        f"the original's own outputs are not finite on inputs of shape {here}, and are on those of shape {there}; "
        f"leave {axes} out of the free axes, or have the model give numbers there"
    )


def _others(original: Program, sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Other sizes, the traced ones first. Those that a plan leaves as they were traced are among them."""
    traced, seen = original.traced_sizes, [dict(original.traced_sizes) | dict(sizes)]
    for plan in ({}, *(p.sizes for p in plans_of(original) if not p.far)):
        found = dict(traced) | plan
        if found not in seen:
            seen.append(found)
            yield found
