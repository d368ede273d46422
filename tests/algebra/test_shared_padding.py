"""Pads of one kind and different widths: which of them stands for the others, and how the chains start at it."""

from __future__ import annotations

import pytest
import torch.nn.functional as F

from reparam.algebra import Branch, share_padding
from support.helpers import Lambda, doubles, program_of


def _found(pads: list[tuple[list[int], str, float]]):  # type: ignore[no-untyped-def]
    def forward(_, x):  # type: ignore[no-untyped-def]
        return tuple(F.pad(x, p, m, v if m == "constant" else None) for p, m, v in pads)

    program = program_of(Lambda(forward), doubles(2, 3, 6, 6))
    nodes = list(program.calls())
    return program, nodes, {n: {i: Branch(n, ())} for i, n in enumerate(nodes)}


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
def test_widest_stands_for_all_and_the_source_itself(mode: str) -> None:
    program, nodes, found = _found([([1, 1, 0, 0], mode, 2.0), ([1, 1, 2, 2], mode, 2.0), ([0, 0, 1, 2], mode, 2.0)])
    found[program.placeholders[0]] = {7: Branch(program.placeholders[0], ())}
    ((pad, chains),) = share_padding(found)
    assert pad is nodes[1] and sorted(chains) == [0, 1, 2, 7]
    cuts = {i: chain.links[0].pool.first if chain.links else None for i, chain in chains.items()}
    assert cuts == {0: (2, 0), 1: None, 2: (1, 1), 7: (2, 1)}


@pytest.mark.parametrize(
    "pads",
    [
        [([1, 1, 0, 0], "reflect", 0.0), ([0, 0, 1, 1], "reflect", 0.0)],
        [([1, 1, 1, 1], "constant", 0.0), ([2, 2, 2, 2], "constant", 0.0)],
    ],
    ids=["none is the widest", "zeros"],
)
def test_nothing_to_share(pads: list[tuple[list[int], str, float]]) -> None:
    assert share_padding(_found(pads)[2]) == []


def test_other_kinds_stay_apart() -> None:
    shared = share_padding(_found([([1, 1, 1, 1], "reflect", 0.0), ([1, 1, 1, 1], "constant", 3.0)])[2])
    assert [len(chains) for _, chains in shared] == [1, 1]
