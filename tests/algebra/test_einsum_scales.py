"""Scales through einsums: which operand takes them, and along which of its axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from reparam.algebra import Pair
from reparam.algebra.einsum_scales import einsum_backward, einsum_forward
from reparam.ir import Refusal, aten
from support.by_hand import ByHand
from support.helpers import doubles

SIZES = {"b": 2, "c": 4, "h": 5, "w": 6, "v": 3, "o": 1, "d": 2}


def einsum(equation: str, *, weights: tuple[int, ...] = ()) -> tuple[ByHand, fx.Node, list[fx.Node]]:
    """The call, and its operands: inputs, but for those at the places `weights`."""
    graph = ByHand()
    terms = [t.strip() for t in equation.partition("->")[0].split(",")]
    shapes = [tuple(SIZES[c] for c in t) for t in terms]
    operands = [graph.weight(doubles(*s)) if i in weights else graph.input(*s) for i, s in enumerate(shapes)]
    return graph, graph.call(aten.einsum.default, equation, operands), operands


def along(labels: str, varying: str) -> Tensor:
    """A scale along some labels of a value."""
    return doubles(*(SIZES[c] if c in varying else 1 for c in labels))


BACK: dict[str, tuple[str, tuple[int, ...], str, int]] = {  # weights, the labels of the scale, the operand
    "a matrix of weights first": ("vh,bchw->bcvw", (0,), "c", 1),
    "weights that have the label too": ("bc,bchw->bchw", (0,), "c", 1),
    "the first of two": ("bch,bcw->bchw", (), "c", 0),
    "the one that has it": ("bch,bwv->bchw", (), "w", 1),
    "two labels": ("bc,bchw->hcbw", (), "ch", 1),
    "no label": ("vh,bchw->bcvw", (0,), "", 1),
    "of two values": ("bd,db->bd", (), "d", 0),
    "an operand of size one": ("o,bc->bc", (), "b", 1),
    "no arrow": ("bchw,wv", (1,), "c", 0),
    "another order": ("bchw->whcb", (), "ch", 0),
}


@pytest.mark.parametrize("name", BACK)
def test_a_scale_goes_back_into_one_operand(name: str) -> None:
    equation, weights, varying, wanted = BACK[name]
    graph, node, operands = einsum(equation, weights=weights)
    out = equation.partition("->")[2] or "bchv"
    scale = along(out, varying)
    found = einsum_backward(graph.program, node, Pair(scale))
    assert isinstance(found, tuple) and found[0] is operands[wanted]
    pair = found[1]
    assert pair.scale is not None and pair.shift is None and pair.scale.dim() == operands[wanted].meta["val"].dim()
    values = [doubles(*o.meta["val"].shape, seed=i) for i, o in enumerate(operands)]
    scaled = [v * pair.scale if i == wanted else v for i, v in enumerate(values)]
    torch.testing.assert_close(torch.einsum(equation, scaled), torch.einsum(equation, values) * scale)


FORTH: dict[str, tuple[str, list[str | None]]] = {  # the labels of the scale of each operand
    "one": ("vh,bchw->bcvw", [None, "c"]),
    "both": ("bch,bcw->bchw", ["c", "cw"]),
    "along all": ("bd,db->bd", ["bd", None]),
    "another order": ("bchw->whcb", ["hb"]),
    "no label": ("bc,ch->bh", ["", ""]),
}


@pytest.mark.parametrize("name", FORTH)
def test_scales_come_out_as_their_product(name: str) -> None:
    equation, varying = FORTH[name]
    _, node, operands = einsum(equation)
    terms = equation.partition("->")[0].split(",")
    scales = [None if v is None else along(t, v) for t, v in zip(terms, varying, strict=True)]
    known = {o: Pair(s) for o, s in zip(operands, scales, strict=True) if s is not None}
    found = einsum_forward(node, known)
    assert isinstance(found, Pair) and found.scale is not None and found.shift is None
    values = [doubles(*o.meta["val"].shape, seed=i) for i, o in enumerate(operands)]
    given = [v if s is None else v * s for v, s in zip(values, scales, strict=True)]
    torch.testing.assert_close(torch.einsum(equation, given), torch.einsum(equation, values) * found.scale)


REFUSED: dict[str, tuple[str, tuple[int, ...], Pair, str]] = {
    "shift": (
        "bchw->bchw",
        (),
        Pair(along("bchw", "c"), along("bchw", "c")),
        "a shift does not pass back through an einsum",
    ),
    "apart": ("bch,bwv->bchw", (), Pair(along("bchw", "cw")), "the scale lies along no one operand of this einsum"),
    "weights": ("bc,bhw->bchw", (0,), Pair(along("bchw", "c")), "the scale lies along no one operand of this einsum"),
    "size one": ("bo,bo->bo", (0, 1), Pair(along("bo", "b")), "the scale lies along no one operand of this einsum"),
    "repeated": ("bcdd->bcd", (), Pair(along("bcd", "c")), "the labels of this einsum are not followed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_goes_into_no_operand(name: str) -> None:
    equation, weights, pair, reason = REFUSED[name]
    graph, node, _ = einsum(equation, weights=weights)
    found = einsum_backward(graph.program, node, pair)
    assert isinstance(found, Refusal) and found.node is node and found.reason == reason


def test_an_operand_that_is_spread_over_the_label_takes_nothing_along_it() -> None:
    graph = ByHand()
    narrow, wide = graph.input(2, 1), graph.input(2, 4)
    node = graph.call(aten.einsum.default, "bc,bc->bc", [narrow, wide])
    found = einsum_backward(graph.program, node, Pair(along("bc", "c")))
    assert isinstance(found, tuple) and found[0] is wide


def test_dots_stand_for_axes() -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, 5), graph.weight(doubles(3, 5))
    node = graph.call(aten.einsum.default, "...h, vh -> ...v", [x, weight])
    scale = along("bch", "c")
    found = einsum_backward(graph.program, node, Pair(scale))
    assert isinstance(found, tuple) and found[0] is x
    assert found[1].scale is not None and torch.equal(found[1].scale, scale)
    there = einsum_forward(node, {x: Pair(scale)})
    assert isinstance(there, Pair) and there.scale is not None and torch.equal(there.scale, scale)


def test_dots_are_other_axes_than_those_with_letters() -> None:
    graph = ByHand()
    x, weight = graph.input(2, 4, 5), graph.weight(doubles(5, 4))
    node = graph.call(aten.einsum.default, "...h,ha->...", [x, weight])
    found = einsum_backward(graph.program, node, Pair(along("bc", "c")))
    assert isinstance(found, tuple) and found[0] is x
    assert found[1].scale is not None and torch.equal(found[1].scale, along("bch", "c"))
    assert isinstance(einsum_forward(node, {weight: Pair(along("hc", "c"))}), Refusal)


@pytest.mark.parametrize("equation", ["...h,...h->...h", "...h,h", "...hh->...h"])
def test_some_dots_are_not_followed(equation: str) -> None:
    graph = ByHand()
    x, other = graph.input(2, 4, 5), graph.input(5)
    operands = [graph.input(2, 5, 5)] if "," not in equation else [x, other]
    node = graph.call(aten.einsum.default, equation, operands)
    found = einsum_forward(node, {operands[0]: Pair(along("bch", "c"))})
    assert isinstance(found, Refusal) and found.reason == "the labels of this einsum are not followed"


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair(along("bd", "d")), "the scale varies along what this einsum sums over"),
        (Pair(None, along("bd", "b")), "a shift does not pass through an einsum"),
    ],
)
def test_what_does_not_come_out(pair: Pair, reason: str) -> None:
    _, node, operands = einsum("bd,dc->bc")
    found: Any = einsum_forward(node, {operands[0]: pair})
    assert isinstance(found, Refusal) and found.node is node and found.reason == reason
