"""Which cases of a test run every time, and which in `make sweep` alone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_in_sweeps(values: Iterable[Any], *every_time: Any) -> list[Any]:
    """The values of a parametrised test, tuples for several parameters: what is not of `every_time` runs in sweeps."""
    return [v if v in every_time else pytest.param(*_each(v), marks=pytest.mark.sweep) for v in values]


def crossed(*columns: Collection[Any]) -> list[Any]:
    """All combinations of the values of several parameters. Each value is in one that runs every time."""
    rows = [list(column) for column in columns]
    times = range(max(map(len, rows)))
    return mostly_in_sweeps(itertools.product(*rows), *(tuple(row[i % len(row)] for row in rows) for i in times))


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
