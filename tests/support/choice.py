"""Which cases of a test run every time, and which in `make sweep` alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_in_sweeps(values: Iterable[Any], *every_time: Any) -> list[Any]:
    """The values of a parametrised test, tuples for several parameters: what is not of `every_time` runs in sweeps."""
    return [v if v in every_time else pytest.param(*_each(v), marks=pytest.mark.sweep) for v in values]


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
