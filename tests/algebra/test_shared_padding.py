"""Pads of one kind and different widths: which of them stands for the others, and how the chains start at it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from reparam.algebra import Branch, Link, share_padding
from reparam.algebra.window import Window
from reparam.ir import aten
from support.by_hand import ByHand
from support.helpers import doubles

SHAPE = (2, 3, 6, 6)
Pad = tuple[list[int], str, float]


def found_behind(graph: ByHand, x: fx.Node, *pads: Pad) -> dict[fx.Node, dict[int, Branch]]:
    """A chain of one product behind each pad, numbered in order."""
    found: dict[fx.Node, dict[int, Branch]] = {}
    for number, (pad, mode, value) in enumerate(pads):
        node = graph.call(aten.pad.default, x, pad, mode, value if mode == "constant" else None)
        found[node] = {number: Branch(node, (Link(graph.call(aten.mul.Tensor, node, 2.0)),))}
    return found


def cut(low: tuple[int, int], high: tuple[int, int]) -> Window:
    """Takes the first `low` and the last `high` positions of each axis away."""
    return Window((1, 1), (1, 1), (1, 1), low, tuple(-a - b - 1 for a, b in zip(low, high, strict=True)))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "constant"])
def test_the_widest_stands_for_all_and_the_source_itself(mode: str) -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    pads = [[1, 0, 0, 1], [1, 3, 2, 2], [0, 1, 1, 2]]
    found = found_behind(graph, x, *((p, mode, 2.0) for p in pads))
    nodes, own = list(found), {n: c[i] for i, (n, c) in enumerate(found.items())}
    alone = Branch(x, (Link(graph.call(aten.relu.default, x)),))
    found[x] = {7: alone}
    [(pad, chains)] = share_padding(found)
    assert pad is nodes[1]
    assert chains == {
        0: Branch(pad, (Link(nodes[0], pool=cut((2, 0), (1, 3))), *own[nodes[0]].links)),
        1: own[pad],
        2: Branch(pad, (Link(nodes[2], pool=cut((1, 1), (0, 2))), *own[nodes[2]].links)),
        7: Branch(pad, (Link(pad, pool=cut((2, 1), (2, 3))), *alone.links)),
    }
    values = doubles(*SHAPE)
    wide, *narrow = (F.pad(values, p, mode, 2.0 if mode == "constant" else None) for p in (pads[1], pads[0], pads[2]))
    for part, (top, bottom, left, right) in zip(
        (*narrow, values), ((2, 1, 0, 3), (1, 0, 1, 2), (2, 2, 1, 3)), strict=True
    ):
        assert torch.equal(wide[:, :, top : wide.shape[2] - bottom, left : wide.shape[3] - right], part)


APART: dict[str, list[Pad]] = {
    "none is the widest": [([1, 1, 0, 0], "reflect", 0.0), ([0, 0, 1, 1], "reflect", 0.0)],
    "none is the widest on either side": [([2, 1, 0, 0], "reflect", 0.0), ([1, 2, 0, 0], "reflect", 0.0)],
    "zeros": [([1, 1, 1, 1], "constant", 0.0), ([2, 2, 2, 2], "constant", 0.0)],
    "channels": [([0, 0, 0, 0, 1, 1], "constant", 1.0), ([0, 0, 0, 0, 2, 2], "constant", 1.0)],
    "around a circle from which something was cut": [([1, -1, 0, 0], "circular", 0.0)],
}


@pytest.mark.parametrize("name", APART)
def test_nothing_to_share(name: str) -> None:
    graph = ByHand()
    assert share_padding(found_behind(graph, graph.input(*SHAPE), *APART[name])) == []


def test_what_has_no_widest_does_not_keep_others_from_sharing() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    found = found_behind(
        graph, x, *APART["none is the widest"], ([1, 1, 0, 0], "replicate", 0.0), ([0, 1, 0, 0], "replicate", 0.0)
    )
    [(pad, chains)] = share_padding(found)
    assert pad is list(found)[2] and set(chains) == {2, 3}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (([1, 1, 1, 1], "reflect", 0.0), ([2, 2, 2, 2], "replicate", 0.0)),
        (([1, 1, 1, 1], "reflect", 0.0), ([2, 2, 2, 2], "constant", 3.0)),
        (([1, 1, 1, 1], "constant", 2.0), ([2, 2, 2, 2], "constant", 3.0)),
    ],
    ids=["modes", "a constant", "constants"],
)
def test_other_kinds_stay_apart(one: Pad, other: Pad) -> None:
    graph = ByHand()
    found = found_behind(graph, graph.input(*SHAPE), one, other)
    assert [(pad, set(chains)) for pad, chains in share_padding(found)] == [(n, {i}) for i, n in enumerate(found)]


def test_pads_of_other_values_stay_apart() -> None:
    graph = ByHand()
    pad: Any = ([1, 1, 0, 0], "reflect", 0.0)
    found = found_behind(graph, graph.input(*SHAPE), pad) | {
        n: {5: c[0]} for n, c in found_behind(graph, graph.input(*SHAPE), pad).items()
    }
    assert [set(chains) for _, chains in share_padding(found)] == [{0}, {5}]


def test_both_spellings_of_a_constant_pad_are_one_kind() -> None:
    graph = ByHand()
    x = graph.input(*SHAPE)
    wide = graph.call(aten.constant_pad_nd.default, x, [1, 1], 3.0)
    narrow = graph.call(aten.pad.default, x, [0, 1], "constant", 3.0)
    [(pad, chains)] = share_padding({wide: {0: Branch(wide, ())}, narrow: {1: Branch(narrow, ())}})
    assert pad is wide
    assert chains == {0: Branch(wide, ()), 1: Branch(wide, (Link(narrow, pool=cut((0, 1), (0, 0))),))}


def test_a_chain_that_starts_at_two_pads_is_taken_once() -> None:
    """And from the one that was found first."""
    graph = ByHand()
    x = graph.input(*SHAPE)
    found = found_behind(graph, x, ([1, 1, 0, 0], "reflect", 0.0), ([2, 2, 0, 0], "reflect", 0.0))
    first, second = found
    found[second][0], found[x] = Branch(second, ()), {0: Branch(x, ()), 1: Branch(x, ())}
    [(pad, chains)] = share_padding(found)
    assert pad is second and set(chains) == {0, 1}
    assert chains[0] == Branch(pad, (Link(first, pool=cut((0, 1), (0, 1))), *found[first][0].links))
    assert chains[1] == found[second][1]
