"""What `init` is asked for, checked before any work."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from reparam.errors import InputError
from reparam.utils import check_seed, describe_value

METHODS = (
    "he",
    "autoinit",
    "zero",
    "residual-scale",
    "depth-scale",
    "bn-scale",
    "normalised-act",
    "gaussian",
    "point-variance",
    "lsuv",
    "gradinit",
)
WITH_DATA = ("point-variance", "lsuv", "gradinit")  # methods that look at samples
REWRITING = ("residual-scale", "normalised-act", "gaussian")  # methods whose network has parts that the model has not
CHOICES = {
    "mode": ("fan_in", "fan_out"),
    "distribution": ("normal", "truncated", "uniform", "orthogonal"),
    "scale": ("fixed", "learned", "shortcut"),
    "smooth": ("iid", "rbf", "fbm"),
    "keep": ("backward", "forward"),
    "optimizer": ("sgd", "adam"),
}
USED = {
    "he": ("mode", "distribution"),
    "autoinit": ("distribution", "variance", "samples"),
    "zero": (),
    "residual-scale": ("scale", "factor", "distribution"),
    "depth-scale": ("beta", "smooth", "hurst", "length"),
    "bn-scale": ("gamma", "input_factor"),
    "normalised-act": ("keep", "distribution"),
    "gaussian": ("theta",),
    "point-variance": ("batch", "batches", "distribution"),
    "lsuv": ("batch", "batches"),
    "gradinit": ("optimizer", "rate", "bound", "steps", "step_size", "batch"),
}
MOST_SAMPLES = 2**20


@dataclass(frozen=True)
class InitOptions:
    """The options of `init`; each method reads those that it is listed with.

    mode (he): keep the power of values (fan_in) or of gradients (fan_out). distribution (he, autoinit, residual-scale,
    normalised-act, point-variance): of the weights. variance (autoinit): of each layer's result; samples: random inputs
    that the drawn weights are scaled on, as many as fit unless told, none for moments alone.
    scale (residual-scale): what a block is multiplied by: fixed, learned, or fixed with a layer in each shortcut;
    factor: by how much. beta (depth-scale): branches are scaled by L^-beta; smooth: weights over the depth are
    independent (iid) or paths (rbf, fbm), hurst: of fbm, length: of rbf, as a share of the depth. gamma (bn-scale): of
    every batch norm; input_factor: times that for one on the input.
    keep (normalised-act): the power of values or of gradients. theta (gaussian): of the Weibull distribution.
    batch, batches (point-variance, lsuv, gradinit): samples at a time, and how many times.
    optimizer, rate, bound, steps, step_size (gradinit): the optimiser that training will use and its rate, the largest
    norm of the gradient, steps that are made, and their size.

    Raises InputError.
    """

    mode: str = "fan_in"
    distribution: str | None = None
    variance: float = 1.0
    samples: int | None = None
    scale: str = "fixed"
    factor: float = math.sqrt(0.5)
    beta: float = 0.5
    smooth: str = "iid"
    hurst: float = 0.7
    length: float = 0.1
    gamma: float = 0.1
    input_factor: float = 0.58
    keep: str = "backward"
    theta: float = 4.0
    batch: int = 64
    batches: int = 4
    optimizer: str = "sgd"
    rate: float = 0.1
    bound: float = 1.0
    steps: int = 390
    step_size: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "distribution" and value is None):
                raise InputError(f"unknown {name} {str(value)[:40]!r}; choose from {', '.join(choices)}")
        for name in ("batch", "batches", "steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {str(value)[:40]!r}; give a whole number of one or more")
        samples = self.samples
        whole = isinstance(samples, int) and not isinstance(samples, bool)
        if samples is not None and not (whole and 0 <= samples <= MOST_SAMPLES):
            up_to = f"a whole number up to {MOST_SAMPLES:,}"
            raise InputError(f"samples is {str(samples)[:40]!r}; give {up_to}, 0 for moments alone")
        for name in ("variance", "factor", "length", "gamma", "input_factor", "rate", "bound", "step_size"):
            _check_number(name, getattr(self, name), 0, math.inf)
        _check_number("beta", self.beta, -math.inf, math.inf)
        _check_number("hurst", self.hurst, 0, 1)
        _check_number("theta", self.theta, 2, 20.0001)

    def drawn_from(self, usual: str) -> str:
        """The distribution of weights: the one that was asked for, or what the method usually takes."""
        return self.distribution or usual


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {describe_value(value)}; give a number")
    if not low < value < high:
        bounds = f"between {low:g} and {high:g}" if math.isfinite(high) else f"above {low:g}"
        raise InputError(f"{name} is {value:g}; give a number {bounds}")


def read_options(method: Any, given: dict[str, Any]) -> InitOptions:
    """The options of one method. Raises InputError for an unknown method, and for an option that it does not read."""
    if method not in METHODS:
        raise InputError(f"unknown method {str(method)[:40]!r}; choose from {', '.join(METHODS)}")
    known = {f.name for f in fields(InitOptions)}
    if unknown := sorted(set(given) - known):
        raise InputError(f"init takes no option '{unknown[0][:40]}'; it takes {', '.join(sorted(known))}")
    used = (*USED[method], "seed")
    if idle := sorted(set(given) - set(used)):
        takes = ", ".join(used)
        raise InputError(f"the method {method} does not read the option '{idle[0]}'; it reads {takes}")
    made = InitOptions(**given)
    for name, smooth in (("hurst", "fbm"), ("length", "rbf")):
        if name in given and made.smooth != smooth:
            raise InputError(f"{name} is read where smooth is '{smooth}', and it is '{made.smooth}'")
    return made
