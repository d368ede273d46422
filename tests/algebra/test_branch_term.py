"""Chains of linear operators: where they start, and the one kernel that computes the same."""

from __future__ import annotations

import operator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from reparam.algebra import Branch, Link, Term, add_terms, branches_to, build_term, fit, identity_window, unite
from reparam.algebra.branch_term import read_link
from reparam.algebra.window import Window
from reparam.ir import Refusal, aten, evaluate
from support.by_hand import ByHand, Make, call
from support.helpers import EXACT, doubles

SHAPE = (2, 4, 7, 8)


def conv(
    c_out: int = 4, k: int = 3, padding: int = 0, *, stride: int = 1, groups: int = 1, bias: bool = True, seed: int = 1
) -> Make:
    """Of as many channels as it finds, with other numbers for each axis."""

    def step(graph: ByHand, x: fx.Node) -> fx.Node:
        weight = graph.weight(doubles(c_out, x.meta["val"].shape[1] // groups, k, max(k - 1, 1), seed=seed), "w")
        b = graph.weight(doubles(c_out, seed=seed + 50), "b") if bias else None
        return graph.call(aten.conv2d.default, x, weight, b, [stride, 1], [padding, padding], [1, 2], groups)

    return step


def linear(c_out: int, seed: int = 1, bias: bool = True) -> Make:
    def step(graph: ByHand, x: fx.Node) -> fx.Node:
        b = graph.weight(doubles(c_out, seed=seed + 50), "b") if bias else None
        return graph.call(aten.linear.default, x, graph.weight(doubles(c_out, x.meta["val"].shape[-1], seed=seed)), b)

    return step


times, plus = call(aten.mul.Tensor, doubles(4, 1, 1, seed=5)), call(aten.add.Tensor, doubles(4, 1, 1, seed=6))
pool, zero_pad = call(aten.avg_pool2d.default, [2, 3], [1, 1]), call(aten.pad.default, [1, 2, 0, 3])
crop, cut = call(aten.pad.default, [-1, 0, -2, -1], "reflect"), call(aten.slice.Tensor, 2, 1, -1, 2)
take, repeat = call(aten.slice.Tensor, 1, 1, 3), call(aten.repeat.default, [1, 2, 1, 1])


def chained(*steps: Make, shape: tuple[int, ...] = SHAPE) -> tuple[ByHand, list[Branch], fx.Node]:
    """The chains that end behind all steps, the longest one last, and the value there."""
    graph = ByHand()
    value = graph.input(*shape)
    for step in steps:
        value = step(graph, value)
    user = graph.call(aten.relu.default, value)
    return graph, branches_to(graph.program, value, user), value


def term_of(*steps: Make, ndim: int = 2, axis: int = 1, shape: tuple[int, ...] = SHAPE) -> Term | Refusal:
    graph, branches, _ = chained(*steps, shape=shape)
    assert branches[-1].source is graph.program.placeholders[0]
    return build_term(graph.program, branches[-1], ndim, axis)


def value_of(term: Term, x: Tensor) -> Tensor:
    """The kernel of a term, run as a convolution."""
    geometry = term.window.geometry(term.groups)
    padded = F.pad(x, [p for ends in reversed(geometry.padding) for p in ends])
    return F.conv2d(padded, term.weight, term.bias, geometry.stride, 0, geometry.dilation, term.groups)


def assert_close(made: Tensor, truth: Tensor) -> None:
    assert made.shape == truth.shape
    assert float((made - truth).abs().max()) <= EXACT * max(1.0, float(truth.abs().max()))


# ---- one kernel --------------------------------------------------------------------------------------------------

CHAINS: dict[str, tuple[Make, ...]] = {
    "nothing": (),
    "conv": (conv(6, padding=1),),
    "grouped conv": (conv(6, groups=2, stride=2),),
    "two convs": (conv(6, stride=2), conv(3, 2, seed=2)),
    "grouped convs": (conv(8, groups=4), conv(8, 2, groups=2, seed=2)),
    "convs without biases": (conv(6, bias=False), conv(3, 2, bias=False, seed=2)),
    "a factor": (times,),
    "a shift": (plus,),
    "an affine before a conv": (times, plus, conv(6)),
    "an affine behind a conv": (conv(4, groups=2), times, plus),
    "one number for all": (conv(4), call(aten.mul.Tensor, -1.5), call(aten.add.Tensor, 2.0)),
    "a batch norm": (
        conv(4),
        call(aten.batch_norm.default, *(doubles(4, seed=s).abs() for s in range(4)), False, 0.1, 0.25, False),
    ),
    "average pool": (pool,),
    "padded average pool": (call(aten.avg_pool2d.default, [3, 3], [2, 2], [1, 1]),),
    "another divisor": (call(aten.avg_pool2d.default, [2, 2], [1, 1], [0, 0], False, True, 3),),
    "pool between convs": (conv(6, groups=2), pool, conv(3, 2, seed=2)),
    "zero pad": (zero_pad,),
    "pad before a conv": (zero_pad, conv(6)),
    "pad behind a factor": (times, zero_pad),
    "pad behind a pointwise conv": (conv(6, 1, bias=False), zero_pad, conv(3)),
    "padded conv behind a factor": (times, conv(6, padding=2)),
    "padded conv behind a pointwise one": (conv(6, 1, bias=False, groups=2), conv(4, padding=2, groups=2, seed=2)),
    "crop": (crop,),
    "crop of a conv": (conv(6, padding=1), crop),
    "cut": (conv(6), cut),
    "cut along the rows": (call(aten.slice.Tensor, -1, 2, 2**63 - 1), conv(6)),
    "channels": (take,),
    "channels of a grouped conv": (conv(6, groups=2), take, conv(3, seed=2)),
    "channels without a bias": (conv(6, groups=2, bias=False), take),
    "channels listed": (call(aten.index_select.default, 1, torch.tensor([3, 0, 3])), conv(6)),
    "one number for all, without a bias": (conv(4, bias=False), call(aten.add.Tensor, 2.0)),
    "channels repeated": (conv(2), repeat),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_one_kernel(name: str) -> None:
    graph, branches, value = chained(*CHAINS[name])
    term = build_term(graph.program, branches[-1], 2, 1)
    assert isinstance(term, Term)
    x = doubles(*SHAPE, seed=9)
    [truth] = evaluate(graph.returns(value), [x])
    assert_close(value_of(term, x), truth)
    assert len(branches) == len(CHAINS[name]) + 1 and branches[-1].source is graph.program.placeholders[0]
    for sign in (-1.0, 2.0):
        other = build_term(graph.program, branches[-1], 2, 1, sign)
        assert isinstance(other, Term) and (other.window, other.groups) == (term.window, term.groups)
        assert_close(value_of(other, x), sign * truth)


def test_groups_of_a_chain_are_those_that_both_parts_keep_apart() -> None:
    groups = {name: getattr(term_of(*CHAINS[name]), "groups", None) for name in CHAINS}
    assert groups["nothing"] == groups["a factor"] == groups["average pool"] == groups["zero pad"] == 4
    assert groups["grouped convs"] == groups["pool between convs"] * 2 == 2
    assert groups["an affine behind a conv"] == groups["grouped conv"] == 2
    assert groups["channels"] == groups["channels of a grouped conv"] == 1


@pytest.mark.parametrize("axis", [1, 2])
def test_linear_layers_are_one_layer(axis: int) -> None:
    graph, branches, value = chained(
        linear(5), call(aten.mul.Tensor, doubles(5)), linear(3, 2), shape=(2, 4) if axis == 1 else (2, 3, 4)
    )
    term = build_term(graph.program, branches[-1], 0, axis)
    assert isinstance(term, Term) and term.window == identity_window(0) and term.bias is not None
    x = doubles(*graph.program.inputs[0].shape, seed=9)  # type: ignore[arg-type]
    assert_close(F.linear(x, term.weight, term.bias), evaluate(graph.returns(value), [x])[0])


PADDED = "its bias would meet the zero padding that follows, which is wrong on the border"
REFUSED: dict[str, tuple[tuple[Make, ...], int, str]] = {
    "a bias before padding": ((conv(6, 1), conv(3, padding=1, seed=2)), 2, PADDED),
    "a shift before padding": ((plus, zero_pad), 2, PADDED),
    "padding behind a window": (
        (conv(6, bias=False), conv(3, padding=1, seed=2)),
        2,
        "a padded window after another window sees the wrong border",
    ),
    "a linear layer in a map": ((conv(6), linear(3)), 2, "a linear layer and a convolution do not combine"),
    "a conv among linear layers": ((conv(6),), 0, "a linear layer and a convolution do not combine"),
    "a pool among linear layers": ((pool,), 0, "a cut along the map and a linear layer do not combine"),
    "another axis": (
        (conv(6), call(aten.mul.Tensor, doubles(5, 1))),
        2,
        "the constant of 'mul_tensor' does not lie along the channel axis",
    ),
    "another axis, a shift": (
        (call(aten.add.Tensor, doubles(8)),),
        2,
        "the constant of 'add_tensor' does not lie along the channel axis",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_why_a_chain_is_no_kernel(name: str) -> None:
    steps, ndim, reason = REFUSED[name]
    refused = term_of(*steps, ndim=ndim)
    assert isinstance(refused, Refusal) and refused.reason == reason


def test_a_part_along_another_axis_than_the_channels_is_named() -> None:
    """Of a map with one axis, a slice takes positions."""
    graph, branches, value = chained(call(aten.slice.Tensor, 2, 1), shape=(2, 4, 7))
    expected = Refusal("'slice_tensor' takes a part along another axis than the channels", value)
    assert build_term(graph.program, branches[-1], 1, 1) == expected
    assert branches[-1].picks and not branches[0].picks


def test_a_bias_of_zero_passes_a_padded_border() -> None:
    graph, branches, value = chained(conv(6, 1), conv(3, padding=1, seed=2, bias=False))
    name = next(n for n, c in graph.program.constants.items() if c.origin == "b")
    old = graph.program.constants[name]
    graph.program.constants[name] = replace(old, value=torch.zeros(6).double())
    term = build_term(graph.program, branches[-1], 2, 1)
    assert isinstance(term, Term) and term.bias is None
    x = doubles(*SHAPE, seed=9)
    assert_close(value_of(term, x), evaluate(graph.returns(value), [x])[0])


@pytest.mark.parametrize(
    ("steps", "diagonal"),
    [
        ((), True),
        ((times, plus), True),
        ((conv(4, 1, groups=4),), True),
        ((conv(8, 1, groups=4),), False),
        ((conv(4, 1),), False),
        ((conv(4, 1, groups=4, stride=2),), False),
        ((conv(4, 1, 1, groups=4),), False),
        ((pool,), False),
        ((cut,), False),
        ((crop,), False),
    ],
)
def test_diagonal_is_what_scales_and_shifts_each_channel(steps: tuple[Make, ...], diagonal: bool) -> None:
    term = term_of(*steps)
    assert isinstance(term, Term) and term.diagonal == diagonal


# ---- links and branches ------------------------------------------------------------------------------------------

NO_LINKS: dict[str, Make] = {
    "activation": call(aten.relu.default),
    "transposed conv": call(aten.conv_transpose2d.input, doubles(4, 4, 1, 1)),
    "reflection": call(aten.pad.default, [1, 0, -1, 0], "reflect"),
    "a pool that leaves its padding out": call(aten.avg_pool2d.default, [3, 3], [1, 1], [1, 1], False, False),
    "ones around it": call(aten.pad.default, [1, 1], "constant", 1.0),
    "channels around it": call(aten.pad.default, [0, 0, 0, 0, 1, 0]),
    "square": lambda g, x: g.call(aten.mul.Tensor, x, x),
    "flip": call(aten.flip.default, [2]),
}


@pytest.mark.parametrize("name", NO_LINKS)
def test_what_is_no_link(name: str) -> None:
    graph, branches, value = chained(NO_LINKS[name])
    assert read_link(graph.program, value) is None and branches == [Branch(value, ())]


def test_the_links_of_a_chain() -> None:
    """What each kind of operator says of itself, nearest the source first."""
    graph, branches, _ = chained(conv(4), pool, zero_pad, take, cut, call(aten.neg.default))
    links = branches[-1].links
    assert [
        [getattr(link, part) is not None for part in ("layer", "pool", "affine", "picks")].index(True) for link in links
    ] == [0, 1, 1, 3, 1, 2]
    assert branches[-1].layers == [links[0].layer] and branches[-1].picks
    assert links[3].picks == (1, (1, 2))
    assert [link.node for link in links] == [n for n in graph.program.calls()][:-1]
    assert [b.links for b in branches] == [links[i:] for i in range(6, -1, -1)]
    assert [b.source for b in branches[:-1]] == [n.node for n in links[::-1]]


def test_a_chain_stops_where_it_is_long_or_read_elsewhere() -> None:
    graph, branches, value = chained(*[times] * 8)
    assert len(branches) == 7 and branches[0] == Branch(value, ())
    assert len(branches_to(graph.program, value, next(iter(value.users)), 2)) == 3
    middle = branches[3].source
    graph.call(aten.sin.default, middle)
    again = branches_to(graph.program, value, next(iter(value.users)))
    assert [b.source for b in again] == [b.source for b in branches[:4]]
    graph.call(aten.sin.default, value)
    assert branches_to(graph.program, value, next(iter(value.users))) == branches[:1]


def test_a_chain_does_not_go_through_a_split() -> None:
    """Whose other pieces read what comes before it."""
    piece: Make = lambda g, x: g.call(operator.getitem, g.call(aten.split.Tensor, x, 2, 1), 1)  # noqa: E731
    _, branches, value = chained(conv(4), piece)
    assert branches[1:] == [Branch(branches[1].source, (Link(value, picks=(1, (2, 3))),))]


# ---- sums --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True), (False, False)])
def test_a_sum_of_two_terms_over_a_window_that_holds_both(biases: tuple[bool, bool]) -> None:
    shifts = [doubles(8, seed=i) if there else None for i, there in enumerate(biases)]
    one = Term(Window((1, 1), (3, 2), (1, 2), (0, 0), (1, 2)), 2, doubles(8, 2, 3, 2, seed=4), shifts[0])
    other = Term(Window((1, 1), (2, 2), (2, 3), (-1, -1), (1, 2)), 4, doubles(8, 1, 2, 2, seed=3), shifts[1])
    joint = unite(one.window, other.window, SHAPE[2:])
    assert isinstance(joint, Window)
    x = doubles(*SHAPE, seed=9)
    truth = value_of(one, x) + value_of(other, x)
    for total in (add_terms(one, other, joint), add_terms(other, one, joint)):
        assert total.groups == 2 and total.window == joint and (total.bias is not None) == any(biases)
        assert_close(value_of(total, x), truth)
    assert_close(value_of(Term(joint, 4, fit(other.weight, other.window, joint), other.bias), x), value_of(other, x))
