"""Affines where elements are masked: fills of zeros, choices by a condition, triangles, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.algebra import Pair, Route, forward_all
from reparam.ir import Refusal, aten
from reparam.passes.fold_channel_affine import FoldChannelAffine
from support.helpers import EXACT, Fused, Lambda, apply_exactly, doubles, fuse_exactly, healthy, program_of, vector

Masked = Callable[[Any, Tensor, Tensor], Tensor]  # of the module, of what is masked, and of the input

ZEROS: dict[str, Masked] = {
    "masked_fill": lambda m, y, x: y.masked_fill(x[:, :1] > 0, 0.0),
    "where": lambda m, y, x: torch.where(x[:, :1] > 0, y, 0.0),
    "where, on the other side": lambda m, y, x: torch.where(x[:, :1] > 0, 0.0, y),
    "where of a tensor of zeros": lambda m, y, x: torch.where(x[:, :1] > 0, y, m.zeros),
    "a mask of truth values": lambda m, y, x: y * (x[:, :1] > 0),
    "a mask in front": lambda m, y, x: (x[:, :1] > 0) * y,
    "a triangle": lambda m, y, x: y.tril(),
    "the other triangle": lambda m, y, x: y.triu(-1),
    "a running sum": lambda m, y, x: y.cumsum(-1),
}


ONE_SIDE = "an affine on one operand only does not pass through where"


def alone(forward: Any) -> Fused:
    """Channel affines alone, so that nothing else takes them."""
    return apply_exactly(model_of(forward), doubles(2, 3, 5, 6), rules=[FoldChannelAffine()], bound=EXACT)


def model_of(forward: Any) -> nn.Module:
    layers = {"c": nn.Conv2d(3, 4, 1), "d": nn.Conv2d(4, 2, 1), "n": nn.BatchNorm2d(4), "w": vector(4, 1, 1)}
    model = Lambda(forward, **layers)
    model.register_buffer("zeros", torch.zeros(1))
    model.register_buffer("ones", torch.ones(1))
    return healthy(model)


@pytest.mark.parametrize("name", ZEROS)
def test_the_scale_of_a_norm_behind_goes_back_and_its_shift_stays(name: str) -> None:
    """The judge is the model itself."""
    mask = ZEROS[name]
    done = fuse_exactly(model_of(lambda m, x: m.n(mask(m, m.c(x), x)).relu()), doubles(2, 3, 5, 6), bound=EXACT)
    assert "batch_norm" not in done.text and "add(" in done.text


@pytest.mark.parametrize("name", ZEROS)
def test_a_scale_in_front_goes_on(name: str) -> None:
    mask = ZEROS[name]
    done = alone(lambda m, x: m.d(mask(m, m.c(x).sin() * m.w, x)))
    assert done.passed("fold-channel-affine") == ["folded into the input of 'd'"]


def test_both_sides_of_a_choice_take_an_affine() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.n(torch.where(x[:, :1] > 0, m.c(x), m.e(x))).relu()

    model = model_of(forward)
    model.e = nn.Conv2d(3, 4, 1).double()
    done = fuse_exactly(model, doubles(2, 3, 5, 6), bound=EXACT)
    assert "batch_norm" not in done.text and "add(" not in done.text


def test_an_affine_of_both_sides_goes_on() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        return m.d(torch.where(x[:, :1] > 0, y.sin() + m.w, y.cos() + m.w))

    refused = alone(forward)
    assert ONE_SIDE in " ".join(refused.missed("fold-channel-affine"))
    program = program_of(model_of(forward), doubles(2, 3, 5, 6))
    sums = {n: Pair(shift=vector(4, 1, 1).detach()[None]) for n in program.calls() if n.target is aten.add.Tensor}
    route = forward_all(program, sums)
    assert isinstance(route, Route) and [s.node.name for s in route.steps if s.action == "sink"] == ["conv2d_1"]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (lambda m, y, x: y.masked_fill(x[:, :1] > 0, 2.0), "which fills in another number than zero"),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y, 2.0), "is a constant that does not take the affine"),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y, m.ones), "is a constant that does not take the affine"),
        (lambda m, y, x: torch.where(y > 0, y, 0.0), "the value before it is also used by"),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y, x[:, :1].expand(-1, 4, -1, -1)), ""),
        (lambda m, y, x: y.cumsum(1), "the scale varies along a running sum"),
    ],
)
def test_what_stays(mask: Masked, reason: str) -> None:
    model = model_of(lambda m, x: m.n(mask(m, m.c(x), x)).relu())
    done = fuse_exactly(model, doubles(2, 3, 5, 6), bound=EXACT)
    assert "batch_norm" in done.text
    told = " ".join([*done.missed("fold-batch-norm"), *done.missed("leave-shift")])
    assert reason in told


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, y, x: torch.where(x[:, :1] > 0, y.sin() * m.w, y.cos()), ONE_SIDE),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y.cos(), y.sin() * m.w), ONE_SIDE),
        (lambda m, y, x: torch.where((z := y.sin() * m.w) > 0, z, 0.0), "gt"),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y.sin() + m.w, 0.0), "a shift does not pass where, which fills in"),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y.sin() + m.w, m.zeros), "a shift does not pass where, which fills"),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y.sin() * m.w, 2.0), ONE_SIDE),
        (lambda m, y, x: torch.where(x[:, :1] > 0, y.mean((2, 3), True).sin() * m.w, 0.0), "which broadcasts"),
        (lambda m, y, x: (y.mean((2, 3), True).sin() * m.w).masked_fill(x[:, :1] > 0, 0.0), "which broadcasts"),
        (lambda m, y, x: (y.sin() + m.w).cumsum(-1), "a shift adds up in a running sum"),
    ],
)
def test_what_an_affine_in_front_does_not_pass(forward: Masked, reason: str) -> None:
    done = alone(lambda m, x: m.d(forward(m, m.c(x), x)))
    assert not done.passed("fold-channel-affine")
    assert reason in " ".join(done.missed("fold-channel-affine"))


def test_other_scales_on_both_sides_do_not_pass() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        return m.d(torch.where(x[:, :1] > 0, y.sin(), y.cos()))

    program = program_of(model_of(forward), doubles(2, 3, 5, 6))
    sides = [n for n in program.calls() if n.target in (aten.sin.default, aten.cos.default)]
    scales, shift = [doubles(1, 4, 1, 1, seed=k) for k in (1, 2)], doubles(1, 4, 1, 1, seed=3)
    for pairs in ((Pair(scales[0]), Pair(scales[1])), (Pair(scales[0], shift), Pair(scales[0]))):
        refused = forward_all(program, dict(zip(sides, pairs, strict=True)))
        assert isinstance(refused, Refusal) and refused.reason == "its operands carry different affines into where"
    assert isinstance(forward_all(program, dict.fromkeys(sides, Pair(scales[0], shift))), Route)


@pytest.mark.parametrize("function", [torch.max, torch.min])
def test_the_larger_of_two_values_by_its_other_name(function: Any) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.n(function(m.c(x), m.e(x))).relu()

    model = model_of(forward)
    model.e = nn.Conv2d(3, 4, 1).double()
    model.n.weight.data.abs_()  # type: ignore[union-attr,operator]
    assert "batch_norm" not in fuse_exactly(model, doubles(2, 3, 5, 6), bound=EXACT).text


def test_where_nothing_is_chosen_nothing_takes_a_scale() -> None:
    done = alone(lambda m, x: torch.where(x.sum(1, keepdim=True) > m.w, 0.0, m.zeros) * m.w)
    [told] = done.missed("fold-channel-affine")
    assert told.startswith("before it: nothing is chosen by this where (at 'where")
