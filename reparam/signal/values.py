"""What is known of a value while moments are carried through a program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from .gaussian import points_of, power_of
from .power import Power, Roles, measured
from .roles import has_places
from .sources import Sources, Track

GROUPS = 16  # of channels, where a function differs from channel to channel


@dataclass(frozen=True)
class Law:
    """A value as a function of a normal one. root: that one. values: (K, points), the function at its points."""

    root: fx.Node
    values: Tensor


@dataclass(frozen=True)
class Mix:
    """A value as a sum. terms: by nodes, those of other values and of constants, with their factors. offset: a number
    beside them."""

    terms: Mapping[fx.Node, float]
    offset: float = 0.0

    def scaled(self, factor: float) -> Mix:
        """Of factor*y."""
        return Mix({n: c * factor for n, c in self.terms.items()}, self.offset * factor)

    def plus(self, other: Mix) -> Mix:
        """Of x + y."""
        terms = {n: self.terms.get(n, 0.0) + other.terms.get(n, 0.0) for n in {**self.terms, **other.terms}}
        return Mix({n: c for n, c in terms.items() if c}, self.offset + other.offset)


@dataclass(frozen=True)
class Value:
    """shape: with sizes for free axes. power: None where nothing is known of it. law: where it is a function of one
    normal value; without it, it is taken as normal itself.

    mix: where it is a sum of others. sources: what it is made of, empty until the walk has told. track: how it lies in
    its source, where it is only moved. woven: "p" where its places, "c" where its channels depend on one another, as
    those do that are repeated, and shares whose sum is one.
    """

    shape: tuple[int, ...]
    roles: Roles
    power: Power | None
    law: Law | None = None
    mix: Mix | None = None
    sources: Sources = field(default_factory=dict)
    track: Track | None = None
    woven: frozenset[str] = frozenset()

    @property
    def known(self) -> Power:
        """The power, which somebody has checked to be there."""
        assert self.power is not None
        return self.power

    def law_at(self, node: fx.Node) -> Law:
        """Its law; `node`, which gives it, is the root of a value that has none."""
        return self.law or Law(node, points_of(self.known).unsqueeze(0))

    def root_at(self, node: fx.Node) -> fx.Node:
        """The root of its law; `node`, which gives it, where it has none."""
        return self.law.root if self.law else node

    def settled(self) -> Value:
        """Without power of places where there is one place alone, and unknown where it is not finite."""
        if self.power is None or not self.power.finite:
            return replace(self, power=None, law=None, mix=None)
        if self.power.place and not has_places(self.roles, self.shape):
            return replace(self, power=self.power.without_places())
        return self


def of_law(law: Law, shape: tuple[int, ...], roles: Roles) -> Value:
    """The value that a function of a normal one is."""
    return Value(shape, roles, power_of(law.values), law)


def of_constant(value: Tensor, roles: Roles) -> Power:
    """The power of a constant beside a value with those roles (aligned at the last axis); it has no samples."""
    own = roles[len(roles) - value.dim() :] if value.dim() else ()
    kinds = tuple(frozenset("c") if "c" in r else frozenset("p") if r else frozenset() for r in own)
    found = measured(value.unsqueeze(0), (frozenset("n"), *kinds))
    return Power(found.mean, found.channel, 0.0, found.place)


def affine(power: Power, scale: Tensor, shift: Tensor) -> Power:
    """Of scale*y + shift, with a number of each for every channel: (C,)."""
    a, t = scale.flatten().to(torch.float64), shift.flatten().to(torch.float64)
    square = float(a.square().mean())
    mean = power.mean * float(a.mean()) + float(t.mean())
    of_means = float((power.mean * a + t).square().mean()) + power.channel * square
    return Power(mean, max(0.0, of_means - mean * mean), power.sample * square, power.place * square)


def by_groups(value: Tensor) -> Tensor | float:
    """A constant beside points: a number, or (GROUPS, 1) numbers that are spread as its entries are."""
    flat = value.detach().to(torch.float64).flatten()
    if not flat.numel() or bool((flat == flat[0]).all()):
        return float(flat[0]) if flat.numel() else math.nan
    shares = (torch.arange(GROUPS, dtype=torch.float64) + 0.5) / GROUPS
    return torch.quantile(flat[:: max(1, flat.numel() // 100_000)], shares).unsqueeze(1)
