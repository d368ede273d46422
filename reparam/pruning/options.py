"""What `prune` is asked for, checked before any work."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

from reparam.errors import InputError
from reparam.utils import check_seed, describe_type, describe_value

from .choosing import FLOOR
from .price import Currency
from .score import SCORES

FORMS = ("auto", "residual", "plain")
STREAMS = ("per-depth", "coupled")
ENGINES = ("onnxruntime", "openvino", "tensorrt", "torch")
FAST = 8  # channels that engines compute at once: another width takes as long as the next multiple, or longer
SAMPLES = 512  # that choices are made on, unless told


@dataclass(frozen=True)
class PruneOptions:
    """The options of `prune`; exactly one of the three budgets is given.

    macs, params, latency: what may be left, as a share of the original's; macs and params are those of the residual
    form, whatever form is written. engine: what runs the result (`ENGINES`); it
    measures times, and `latency` is its. form: residual, plain, or the one of both that is faster in that engine.
    score: how channels are chosen (`score.SCORES`). streams: whether the channels of a stream go at each depth by
    themselves (per-depth) or at all together (coupled). round_to: widths become multiples of this; None for 8 where the
    latency is the budget and that reaches it, else 1. floor: share of a layer's channels that stay at least. keep:
    layers whose name this pattern matches keep all their channels; it has to match one. refit: whether weights are
    refitted. joint: how many steps of the refit of all layers at once follow the last cut; None for as many as take
    little time (`joint.STEPS` for small networks, none for large ones, or without refit). max_drop: the most that the
    accuracy may fall, or without labels the share of samples that may be told otherwise than by the original. samples:
    that choices are made on.

    Raises InputError.
    """

    macs: float | None = None
    params: float | None = None
    latency: float | None = None
    engine: str = "onnxruntime"
    form: str = "auto"
    score: str = "fisher"
    streams: str = "coupled"
    round_to: int | None = None
    floor: float = FLOOR
    keep: str | None = None
    refit: bool = True
    joint: int | None = None
    max_drop: float | None = None
    samples: int = SAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        given = {n: getattr(self, n) for n in ("macs", "params", "latency") if getattr(self, n) is not None}
        if len(given) != 1:
            raise InputError("give one budget: the share of macs, of params or of latency that may be left")
        for name, value in given.items():
            _check_share(name, value, zero=False)
        _check_share("floor", self.floor, zero=True)
        if self.max_drop is not None:
            _check_share("max_drop", self.max_drop, zero=True, example="0.01 for one point")
        for name, choices in (("form", FORMS), ("streams", STREAMS), ("score", SCORES), ("engine", ENGINES)):
            if getattr(self, name) not in choices:
                raise InputError(f"unknown {name} {str(getattr(self, name))[:40]!r}; choose from {', '.join(choices)}")
        for name, least, told in (("round_to", 1, "one"), ("joint", 0, "zero"), ("samples", 1, "one")):
            value = getattr(self, name)
            if name != "samples" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} is {str(value)[:40]!r}; give a whole number of {told} or more")
        if not isinstance(self.refit, bool):
            raise InputError(f"refit is {str(self.refit)[:40]!r}; give True or False")
        if self.joint and not self.refit:
            raise InputError("a refit of all layers at once is asked for, and refits are off; leave out one of the two")
        if self.keep is not None and not isinstance(self.keep, str):
            raise InputError(f"keep is {describe_type(self.keep)}; give a pattern as text")
        if self.keep is not None:
            try:
                re.compile(self.keep)
            except re.error as error:
                raise InputError(f"keep is no regular expression: {error}") from error

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> PruneOptions:
        """The options by their names. Raises InputError for an unknown one."""
        unknown = [n for n in options if n not in cls.__dataclass_fields__]
        if unknown:
            raise InputError(f"unknown option '{unknown[0]}'; choose from {', '.join(cls.__dataclass_fields__)}")
        return cls(**options)

    @property
    def timed(self) -> bool:
        """Whether something is measured by the clock."""
        return self.form == "auto" or self.latency is not None

    @property
    def of_the_rounds(self) -> dict[str, Any]:
        """The options that the rounds of cuts depend on, by their names; others tell what becomes of their result."""
        later = {"max_drop"} | (set() if self.latency is not None else {"form", "engine"})
        return {name: value for name, value in asdict(self).items() if name not in later}

    @property
    def multiple(self) -> int:
        """What widths become multiples of, as long as the budget can be met."""
        return self.round_to or (FAST if self.latency is not None else 1)

    @property
    def currency(self) -> Currency:
        """What channels are priced in: parameters for a budget of those, multiply-accumulates for all others."""
        return "params" if self.params is not None else "macs"

    @property
    def budget(self) -> tuple[str, float]:
        """The name and the share of the budget."""
        name = next(n for n in ("macs", "params", "latency") if getattr(self, n) is not None)
        return name, float(getattr(self, name))


def _check_share(name: str, value: Any, *, zero: bool, example: str = "0.4") -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise InputError(f"{name} is {describe_value(value)}; give a share, such as {example}")
    value = float(value)
    if not (0 <= value < 1 if zero else 0 < value < 1):
        raise InputError(f"{name} is {value:g}; give a share between 0 and 1, such as {example}")
