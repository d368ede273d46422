"""What every table of an analysis has to hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from reparam.signal import Table, draw_pictures


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from leaves(part)
    else:
        yield tree


def check_finite(table: Table) -> None:
    """No NaN and no infinity, but for the gaps of lines; where a figure is missing, a note says so."""
    told = [*leaves(table.rows), *leaves(dict(table.facts)), *leaves(dict(table.detail)), *leaves(dict(table.maps))]
    assert all(math.isfinite(v) for v in told if isinstance(v, float))
    assert not any(math.isinf(v) for v in leaves(dict(table.series)))
    dict(draw_pictures({"one": [table]}))
