"""Affines carried forward: what every operator on the way makes of a scale and a shift."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.algebra import Affine, Pair, Route, execute, forward, forward_all, read_affine
from reparam.ir import Program, Refusal, aten
from support.helpers import EXACT, Lambda, doubles, graph_text, max_rel, program_of, vector

Binary = Callable[[Any, Any], Tensor]
SHAPE = (2, 4, 3, 5)


@functools.cache
def behind(meet: Binary) -> Program:
    """conv(meet(tanh x, tanh y)), without padding; the calls of tanh stand for what carries an affine."""
    model = Lambda(lambda m, x, y: m.conv(meet(torch.tanh(x), torch.tanh(y))), conv=nn.Conv2d(4, 3, 2))
    return program_of(model.double(), doubles(*SHAPE), doubles(*SHAPE, seed=8))


def carriers(program: Program) -> list[fx.Node]:
    return [n for n in program.calls() if n.target is aten.tanh.default]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def sink(route: Route | Refusal) -> Pair:
    assert isinstance(route, Route)
    [step] = [s for s in route.steps if s.action == "sink"]
    return step.pair


def assert_equal(vector: Tensor | None, wanted: Tensor) -> None:
    assert vector is not None
    assert float((vector - wanted.reshape(-1)).abs().max()) <= EXACT


# ---- sums and differences ----------------------------------------------------------------------------------------

MEETINGS: dict[str, Binary] = {
    "add": lambda a, b: a + b,
    "add, alpha 0": lambda a, b: torch.add(a, b, alpha=0),
    "add, alpha 3": lambda a, b: torch.add(a, b, alpha=3),
    "sub": lambda a, b: a - b,
    "sub, alpha 3": lambda a, b: torch.sub(a, b, alpha=3),
    "sub, alpha -0.5": lambda a, b: torch.sub(a, b, alpha=-0.5),
    "rsub": torch.rsub,
    "rsub, alpha 3": lambda a, b: torch.rsub(a, b, alpha=3),
}
SHIFT, OTHER = column(1.0, -2.0, 0.5, 4.0), column(-3.0, 0.25, 1.5, -1.0)
NONE = torch.zeros(1, 4, 1, 1, dtype=torch.float64)


@pytest.mark.parametrize("name", MEETINGS)
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)], ids=["left", "right", "both"])
def test_a_shift_keeps_its_sign_and_factor_through_a_sum(name: str, sides: tuple[bool, bool]) -> None:
    """What arrives at the layer is what torch makes of the shifts themselves, on either side and on both."""
    program = behind(MEETINGS[name])
    shifts = [s if there else NONE for s, there in zip((SHIFT, OTHER), sides, strict=True)]
    wanted = MEETINGS[name](*shifts)
    starts = {n: Pair(None, s) for n, s, there in zip(carriers(program), shifts, sides, strict=True) if there}
    pair = sink(forward_all(program, starts))
    assert pair.scale is None
    assert_equal(pair.shift, wanted)


@pytest.mark.parametrize("name", MEETINGS)
def test_shifts_that_cancel_are_gone(name: str) -> None:
    """Where both sides bring the same values, the other one is scaled so that nothing is left of them."""
    program = behind(MEETINGS[name])
    left, right = (float(MEETINGS[name](*(torch.tensor(v) for v in at))) for at in ((1.0, 0.0), (0.0, 1.0)))
    one, other = carriers(program)
    pair = sink(forward_all(program, {one: Pair(None, SHIFT * right), other: Pair(None, -SHIFT * left)}))
    assert pair.trivial


# ---- every operator on the way -----------------------------------------------------------------------------------

Way = Callable[[Any, Tensor, Tensor], Any]  # of the modules, the carried value, and one on the side
SIGNS = {"scale": [0.5, -2.0, 1.5, 3.0], "positive": [0.5, 2.0, 1.5, 3.0], "shift": [1.0, -1.0, 0.5, 2.0]}


def norm(scale: str = "scale", shift: bool = False) -> nn.Module:
    """A batch norm in evaluation mode with these factors (to a rounding) and, if wanted, a shift."""
    made: Any = nn.BatchNorm2d(4, eps=0.0).double().eval()
    with torch.no_grad():
        made.weight.copy_(torch.tensor(SIGNS[scale]))
        made.bias.copy_(torch.tensor(SIGNS["shift"]) if shift else torch.zeros(4))
    return made


def carried(way: Way, *, scale: str = "scale", shift: bool = False) -> tuple[Program, fx.Node, Route | Refusal]:
    """way(norm(tanh(z))), its norm, and the norm's route into what `way` ends in."""
    children = {"conv": nn.Conv2d(4, 3, 1), "wide": nn.Conv2d(4, 3, 2), "padded": nn.Conv2d(4, 3, 3, padding=1)}
    children |= {"deconv": nn.ConvTranspose2d(4, 3, 2), "linear": nn.Linear(4, 3), "c": vector(4, 1, 1)}
    children |= {"twice": nn.Conv2d(8, 3, 1), "narrow": nn.Conv2d(2, 3, 1)}
    model = Lambda(lambda m, x: way(m, m.norm(torch.tanh(x)), x), norm=norm(scale, shift), **children)
    program = program_of(model.double().eval(), doubles(*SHAPE), dynamic=())
    node = next(n for n in program.calls() if n.target is aten.batch_norm.default)
    affine = read_affine(program, node)
    assert isinstance(affine, Affine)
    return program, node, forward(program, node, affine.pair)


CARRIED: dict[str, tuple[Way, str]] = {
    "a layer": (lambda m, x, z: m.conv(x), "sink"),
    "two layers": (lambda m, x, z: m.conv(x[:, :, 1:, 1:]) + m.wide(x), "sink clone clone sink"),
    "linear": (lambda m, x, z: m.linear(x.permute(0, 2, 3, 1)), "clone sink"),
    "another affine": (lambda m, x, z: m.conv(x * m.c), "skip sink"),
    "concatenation": (lambda m, x, z: m.twice(torch.cat([x, z], 1)), "clone sink"),
    "concatenation behind": (lambda m, x, z: m.twice(torch.cat([z, x], 1)), "clone sink"),
    "concatenation twice": (lambda m, x, z: m.twice(torch.cat([x, x], 1)), "clone sink"),
    "split": (
        lambda m, x, z: m.narrow(x.split(2, 1)[0]) + m.narrow(x.split(2, 1)[1]),
        "clone clone clone clone sink sink",
    ),
    "sum with itself": (lambda m, x, z: m.conv(x + x), "clone sink"),
    "clone": (lambda m, x, z: m.conv(x.clone()), "clone sink"),
    "flip": (lambda m, x, z: m.conv(x.flip(1)), "clone sink"),
    "reflected": (lambda m, x, z: m.conv(F.pad(x, [1, 1, 1, 1], mode="reflect")), "clone sink"),
    "average pool": (lambda m, x, z: m.conv(F.avg_pool2d(x, 2)), "clone sink"),
    "global pool": (lambda m, x, z: m.conv(F.adaptive_avg_pool2d(x, 1)), "clone sink"),
    "upsampled": (lambda m, x, z: m.conv(F.interpolate(x, scale_factor=2, mode="bilinear")), "clone sink"),
    "mean": (lambda m, x, z: m.linear(x.mean((2, 3))), "clone sink"),
}
SCALED: dict[str, tuple[Way, str]] = {
    "padded layer": (lambda m, x, z: m.padded(x), "sink"),
    "transposed layer": (lambda m, x, z: m.deconv(x), "sink"),
    "zero padding": (lambda m, x, z: m.conv(F.pad(x, [1, 2, 3, 4])), "clone sink"),
    "padded average pool": (lambda m, x, z: m.conv(F.avg_pool2d(x, 3, 1, 1)), "clone sink"),
    "square": (lambda m, x, z: m.conv(x * x), "clone sink"),
    "product with data": (lambda m, x, z: m.conv(x * z), "clone sink"),
    "product of data": (lambda m, x, z: m.conv(z * x), "clone sink"),
    "quotient": (lambda m, x, z: m.conv(x / z), "clone sink"),
    "quotient by a number for each place": (lambda m, x, z: m.conv(x / z.norm(dim=1, keepdim=True)), "clone sink"),
    "quotient that broadcasts": (
        lambda m, x, z: m.conv(x.mean((0, 2, 3))[:, None, None] / z),
        "clone clone clone clone sink",
    ),
}
POSITIVE: dict[str, tuple[Way, str]] = {
    "rectifier": (lambda m, x, z: m.conv(F.relu(x)), "clone sink"),
    "leaky rectifier": (lambda m, x, z: m.conv(F.leaky_relu(x, 0.2)), "clone sink"),
    "max pool": (lambda m, x, z: m.conv(F.max_pool2d(x, 2)), "clone sink"),
}


def assert_carried(way: Way, steps: str, **options: Any) -> None:
    """Without the norm, and with the layers that took it, the network computes the same."""
    program, node, route = carried(way, **options)
    assert isinstance(route, Route), route
    assert sorted(s.action for s in route.steps) == sorted(steps.split()) and route.direction == "forward"
    copy = program.copy()
    twins = dict(zip(program.graph.nodes, copy.graph.nodes, strict=True))
    moved = Route(tuple(type(s)(twins[s.node], s.action, s.pair) for s in route.steps), "forward")
    made = execute(copy, moved, {twins[node]: twins[node].args[0]})  # type: ignore[dict-item]
    for sink in moved.sinks:
        sink.replace_all_uses_with(made[sink])
    copy.graph.eliminate_dead_code()
    assert "batch_norm" in graph_text(program) and "batch_norm" not in graph_text(copy)
    assert max_rel(program, copy, [doubles(*SHAPE)]) <= EXACT


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", CARRIED)
def test_an_affine_passes_what_is_linear(name: str, shift: bool) -> None:
    assert_carried(*CARRIED[name], shift=shift)


@pytest.mark.parametrize("name", SCALED)
def test_a_scale_passes_what_is_homogeneous(name: str) -> None:
    assert_carried(*SCALED[name])


@pytest.mark.parametrize("name", POSITIVE)
def test_a_positive_scale_passes_what_keeps_an_order(name: str) -> None:
    assert_carried(*POSITIVE[name], scale="positive")


# ---- what stops it -----------------------------------------------------------------------------------------------

STOPPED: dict[str, tuple[Way, dict[str, Any], str, str]] = {
    "output": (lambda m, x, z: x, {}, "its value is an output of the network", "output"),
    "also an output": (lambda m, x, z: (m.conv(x), x), {}, "its value is an output of the network", "output"),
    "activation": (lambda m, x, z: m.conv(torch.tanh(x)), {}, "tanh does not commute with a channel affine", "tanh_1"),
    "shift, padded": (
        lambda m, x, z: m.padded(x),
        {"shift": True},
        "the shift before a zero-padded convolution would be wrong on the border",
        "conv2d",
    ),
    "shift, transposed": (
        lambda m, x, z: m.deconv(x),
        {"shift": True},
        "a shift before a transposed convolution changes its border",
        "conv_transpose2d",
    ),
    "another axis": (
        lambda m, x, z: m.linear(x.permute(0, 2, 1, 3)[..., :4]),
        {},
        "the affine does not lie along the channel axis of this layer",
        "linear",
    ),
    "one operand": (
        lambda m, x, z: m.conv(x + z),
        {},
        "a scale on one operand only does not pass through a sum",
        "add",
    ),
    "shift, product": (
        lambda m, x, z: m.conv(x * z),
        {"shift": True},
        "a shift does not pass through a product with data",
        "mul",
    ),
    "shift, quotient": (
        lambda m, x, z: m.conv(x / z),
        {"shift": True},
        "a shift does not pass through a quotient of data",
        "div",
    ),
    "quotient by itself": (
        lambda m, x, z: m.conv(x / x),
        {},
        "div uses the value in a way that an affine cannot follow",
        "div",
    ),
    "rounded quotient": (
        lambda m, x, z: m.conv(torch.div(x, z, rounding_mode="trunc")),
        {},
        "div does not commute with a channel affine",
        "div",
    ),
    "quotient": (
        lambda m, x, z: m.conv(z / x),
        {},
        "div uses the value in a way that an affine cannot follow",
        "div",
    ),
    "pool over the scale": (
        lambda m, x, z: m.linear(F.avg_pool2d(x.permute(0, 2, 3, 1), (1, 2), (1, 1))[..., :1].expand(2, 3, 5, 4)),
        {},
        "the affine varies over the window of avg_pool2d",
        "avg_pool2d",
    ),
    "rectifier": (
        lambda m, x, z: m.conv(F.relu(x)),
        {},
        "relu does not let a negative scale through (1 channels)",
        "relu",
    ),
    "shift, rectifier": (
        lambda m, x, z: m.conv(F.relu(x)),
        {"shift": True, "scale": "positive"},
        "relu does not let a shift through",
        "relu",
    ),
    "max pool": (
        lambda m, x, z: m.conv(F.max_pool2d(x, 2)),
        {},
        "max-pool does not let a negative scale through (1 channels)",
        "max_pool2d",
    ),
    "shift, padded pool": (
        lambda m, x, z: m.conv(F.avg_pool2d(x, 3, 1, 1)),
        {"shift": True},
        "the shift meets the average pool's padding, which counts as zero",
        "avg_pool2d",
    ),
    "shift, pad": (
        lambda m, x, z: m.conv(F.pad(x, [1, 1])),
        {"shift": True},
        "a shift does not pass through zero padding",
        "pad",
    ),
    "pad by a number": (
        lambda m, x, z: m.conv(F.pad(x, [1, 1], value=1.0)),
        {},
        "a scale does not pass through a pad with another number than zero",
        "pad",
    ),
    "pad of channels": (
        lambda m, x, z: m.conv(F.pad(x, [0, 0, 0, 0, 1, -1])),
        {},
        "the padding adds channels to the axis of the scale",
        "pad",
    ),
    "mean of channels": (
        lambda m, x, z: x.mean(1),
        {},
        "the affine varies along an axis that is averaged away",
        "mean",
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_stops_an_affine_is_named(name: str) -> None:
    way, options, reason, place = STOPPED[name]
    _, _, refused = carried(way, **options)
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.node and refused.node.name) == (reason, place)
