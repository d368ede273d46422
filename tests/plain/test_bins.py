"""Equal components are laid into bins together, where laying them one by one would bring them."""

from __future__ import annotations

import numpy as np
import pytest

from reparam.plain.bins import distribute


def one_by_one(counts: np.ndarray, home: np.ndarray, g: int) -> np.ndarray:
    """Each component where the fullest bins grow least, then where least is held, then in the first bin."""
    found, loads = home.copy(), np.zeros((g, counts.shape[1]), dtype=np.int64)
    for m in np.flatnonzero(home >= 0):
        loads[home[m]] += counts[m]
    rows, inverse = np.unique(counts, axis=0, return_inverse=True)
    for kind in np.argsort(-rows.max(1), kind="stable"):
        for m in np.flatnonzero((inverse.reshape(-1) == kind) & (home < 0)):
            prices = [np.maximum(np.maximum(loads[b] + counts[m], loads[b]), loads.max(0)).prod() for b in range(g)]
            b = min(range(g), key=lambda b: (prices[b], loads[b].sum(), b))
            found[m] = b
            loads[b] += counts[m]
    return found


@pytest.mark.parametrize("registers", [1, 2, 3])
@pytest.mark.parametrize("low", [0, 1])
def test_bins_are_those_of_one_component_after_the_other(registers: int, low: int) -> None:
    drawn = np.random.default_rng(registers + 10 * low)
    for _ in range(60):
        g = int(drawn.integers(2, 9))
        kinds = drawn.integers(low, 9, (int(drawn.integers(1, 4)), registers)) + np.eye(1, registers, dtype=np.int64)
        kinds[kinds.max(1) < 2, 0] = 2  # components of single channels are poured
        each = [drawn.integers(1, 2 * g + 1) for _ in kinds]
        counts = np.repeat(kinds, each, axis=0)
        home = np.where(drawn.random(len(counts)) < 0.2, drawn.integers(0, g, len(counts)), -1)
        wanted = one_by_one(counts, home, g)
        rows, inverse = np.unique(counts, axis=0, return_inverse=True)
        if np.bincount(inverse.reshape(-1)[home < 0], minlength=1).max() > 2 * g:
            continue  # two kinds that were drawn alike
        distribute(counts, (rows, inverse), home, g)
        assert home.tolist() == wanted.tolist()
