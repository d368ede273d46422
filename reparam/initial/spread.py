"""Whether the power that a network gives is that of a few samples, and which of its activations make it so."""

from __future__ import annotations

import math

from torch import Tensor

from reparam.ir import Program, op_name, place_of
from reparam.signal import Function, Power, activations

WIDE = 1.0  # deviation of the power of single samples, over its mean, from which on it is told
STEP = 1e-3
ABOVE = 1.01  # an exponent from which on an activation drives samples apart


def exponent_of(function: Function) -> float:
    """d log E f(sX)^2 / d log s^2 at s = 1, X ~ N(0, 1): 1 for a ReLU; NaN for a function that is zero there.

    Above 1 a sample that is larger than the others is so even more behind the function.
    """
    below, above = (function.power(Power(place=math.exp(q))).second for q in (-STEP, STEP))
    return math.log(above / below) / (2 * STEP) if below > 0 < above else math.nan


def told_spread(program: Program, powers: Tensor, numbers: int) -> tuple[str, ...]:
    """One sentence where the powers of samples (N,) deviate by more than their mean.

    numbers: in the result of a sample; few normal ones make powers deviate by sqrt(2/numbers) of themselves.
    """
    mean = float(powers.mean())
    spread = float(powers.std(correction=0)) / mean if mean > 0 else 0.0
    if not spread > math.hypot(WIDE, math.sqrt(2 / max(1, numbers))):
        return ()
    median, dead = float(powers.median()), float((powers == 0).double().mean())
    most_have = f"{100 * dead:.0f} % of them give zero" if median == 0 else f"half of them have less than {median:.2g}"
    text = (
        f"the power of the result is {mean:.3g} on random inputs, but that of single ones deviates by {spread:.2g} "
        f"times that, and {most_have}: it is the power of a few, and on other inputs it may be another"
    )
    found = [(exponent_of(f), f) for f in activations(program)]
    parting = [(exponent, f) for exponent, f in found if exponent > ABOVE]
    if not parting:
        return (text,)
    most, function = max(parting, key=lambda pair: pair[0])
    return (
        f"{text}; {len(parting)} of {len(found)} activations drive samples apart, such as "
        f"'{place_of(function.result)}' ({op_name(function.result)}), behind which E f(sX)² grows as s^{2 * most:.3g}",
    )
