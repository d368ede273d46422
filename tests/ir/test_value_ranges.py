"""Intervals hold every value that can occur, and are as narrow as the rules need."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import Interval, Program, Scratchpad, evaluate, ranges_of
from reparam.ir.value_ranges import ALL
from support.helpers import Lambda, doubles, program_of, vector

SHAPE = (2, 4, 6, 6)
Function = Callable[[Tensor], Tensor]

FUNCTIONS: dict[str, Function] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "softmax": lambda x: x.softmax(1),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "softplus, beta": lambda x: F.softplus(x, beta=0.5, threshold=3),
    "elu": F.elu,
    "elu, alpha": lambda x: F.elu(x, 2.5),
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 2.0),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky relu, negative slope": lambda x: F.leaky_relu(x, -0.2),
    "abs": torch.abs,
    "exp": lambda x: (x / 8).exp(),
    "square": torch.square,
    "times itself": lambda x: x * x,
    "neg": lambda x: -x,
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average pool, padding left out": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average pool, own divisor": lambda x: F.avg_pool2d(x, 3, 1, divisor_override=4),
    "average pool, large divisor": lambda x: F.avg_pool2d(x, 2, 1, divisor_override=40),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(x, 2),
    "mean": lambda x: x.mean((2, 3)),
    "amax": lambda x: x.amax(1),
    "amin": lambda x: x.amin(1),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "movements": lambda x: F.pixel_shuffle(x.permute(0, 1, 3, 2).flip(1), 2).flatten(1)[:, 3:],
    "pad": lambda x: F.pad(x, [1, 1]),
    "pad with a value": lambda x: F.pad(x, [1, 1], value=50.0),
    "cat": lambda x: torch.cat([x, torch.sigmoid(x), 2 + x], 1),
    "stack": lambda x: torch.stack([x, 3 * x]),
    "split": lambda x: x.split([1, 3], 1)[1],
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp min": lambda x: x.clamp_min(1),
    "clamp max": lambda x: x.clamp(max=1),
    "clamp crossed": lambda x: x.clamp(2, -2),
    "hardtanh": lambda x: F.hardtanh(x, -3, 0.5),
    "plus": lambda x: x + torch.sigmoid(x),
    "plus, alpha": lambda x: torch.add(x, torch.tanh(x), alpha=-3),
    "plus a number": lambda x: x + 2.5,
    "minus": lambda x: x - torch.sigmoid(x),
    "a number minus": lambda x: 1.5 - x,
    "times": lambda x: x * torch.tanh(x),
    "times a number": lambda x: x * -2.5,
    "over": lambda x: x / -4,
    "sum": lambda x: x.sum(1),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "layer norm": lambda x: F.layer_norm(x, [6]),
    "log": lambda x: (x.abs() + 1).log(),
    "pow": lambda x: x.pow(3),
}


def ranged(program: Program, low: float, high: float) -> Program:
    return dataclasses.replace(
        program, inputs=tuple(dataclasses.replace(s, low=low, high=high) for s in program.inputs), notes=Scratchpad()
    )


def interval(program: Program) -> Interval:
    [result] = program.output.args[0]  # type: ignore[misc]
    return ranges_of(program).of(result)


_PROGRAMS: dict[str, Program] = {}


def _program(name: str) -> Program:
    if name not in _PROGRAMS:
        function = FUNCTIONS[name]
        _PROGRAMS[name] = program_of(Lambda(lambda m, x: function(x)), doubles(*SHAPE))
    return _PROGRAMS[name]


ends = st.floats(-12, 12).map(lambda v: round(v, 1))


@pytest.mark.parametrize("name", FUNCTIONS)
@given(pair=st.tuples(ends, ends).map(sorted), seed=st.integers(0, 99))
def test_no_value_lies_outside_its_interval(name: str, pair: list[float], seed: int) -> None:
    low, high = pair
    program = ranged(_program(name), low, high)
    random = torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = (low + (high - low) * random).clamp(low, high)
    x[0, 0], x[0, 1] = low, high
    x[1][random[1] < 0.3], x[1][random[1] > 0.7] = low, high
    [value] = evaluate(program, [x])
    bottom, top = interval(program)
    slack = 1e-12 * (1 + float(value.abs().max()))
    assert bottom - slack <= float(value.min()) and float(value.max()) <= top + slack


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unbounded_input_breaks_no_interval(name: str) -> None:
    program = _program(name)
    x = 30 * doubles(*SHAPE)
    [value] = evaluate(program, [x])
    bottom, top = interval(ranged(program, *ALL))
    assert not math.isnan(bottom) and not math.isnan(top)
    assert bottom <= float(value.min()) and float(value.max()) <= top


@pytest.mark.parametrize(
    "name, given_, expected",
    [
        ("relu", (-2, 3), (0, 3)),
        ("relu", ALL, (0, math.inf)),
        ("sigmoid", ALL, (0, 1)),
        ("tanh", ALL, (-1, 1)),
        ("softmax", ALL, (0, 1)),
        ("relu6", ALL, (0, 6)),
        ("max pool", (0, 3), (0, 3)),
        ("max pool", (1, 3), (1, 3)),
        ("average pool", (1, 3), (0, 3)),
        ("average pool, own divisor", (0, 4), (0, 9)),
        ("adaptive average", (1, 3), (1, 3)),
        ("mean", (1, 3), (1, 3)),
        ("movements", (1, 3), (1, 3)),
        ("cat", (-1, 3), (-1, 5)),
        ("clamp", (-9, 9), (-1, 2)),
        ("clamp min", (-9, 9), (1, 9)),
        ("hardtanh", ALL, (-3, 0.5)),
        ("plus", (1, 3), (1, 4)),
        ("times itself", (-3, 2), (0, 9)),
        ("times a number", (1, 2), (-5, -2.5)),
        ("abs", ALL, (0, math.inf)),
        ("square", (-3, 1), (0, 9)),
        ("elu", (-9, 2), (-1, 2)),
        ("gelu", ALL, (-0.171, math.inf)),
        ("silu", ALL, (-0.279, math.inf)),
    ],
)
def test_the_intervals_that_rules_rely_on(name: str, given_: Interval, expected: Interval) -> None:
    """Sound but useless intervals would pass every other test here."""
    assert interval(ranged(_program(name), *given_)) == pytest.approx(expected, abs=1e-9)


def test_an_unknown_operator_can_return_anything() -> None:
    assert interval(ranged(_program("pow"), 0, 1)) == ALL
    assert interval(ranged(_program("layer norm"), 0, 1)) == ALL


def test_weights_know_their_extremes_and_a_wrong_dtype_does_not() -> None:
    model = Lambda(lambda m, x: F.relu(x) * m.c.abs() + m.c, c=vector(4, 1, 1))
    program = ranged(program_of(model, doubles(*SHAPE)), *ALL)
    assert interval(program)[0] == pytest.approx(float(model.c.detach().min()))
    empty = Lambda(lambda m, x: torch.cat([x, m.c], 1), c=torch.nn.Parameter(torch.zeros(2, 0, 6, 6).double()))
    assert interval(ranged(program_of(empty, doubles(*SHAPE), dynamic=()), 0, 1)) == ALL


def test_a_long_chain_is_followed_without_recursion() -> None:
    depth = 1200  # more than Python's own stack allows

    def forward(m: Any, x: Tensor) -> Tensor:
        x = F.relu(x)
        for _ in range(depth):
            x = x + 1.0
        return x

    program = program_of(Lambda(forward), doubles(2, 3), dynamic=())
    [result] = program.output.args[0]  # type: ignore[misc]
    assert ranges_of(program).of(result) == (depth, math.inf)


@given(pair=st.tuples(ends, ends).map(sorted))
def test_clamp_between_weights(pair: list[float]) -> None:
    bounds = ([-1, 0, -9, 2], [1, 6, 0, 3])
    low, high = (nn.Parameter(torch.tensor(v, dtype=torch.float64).view(4, 1, 1)) for v in bounds)
    program = program_of(Lambda(lambda m, x: torch.clamp(x, m.low, m.high), low=low, high=high), doubles(*SHAPE))
    program = ranged(program, *pair)
    x = torch.linspace(*pair, 5, dtype=torch.float64).reshape(5, 1, 1, 1).expand(5, *SHAPE[1:])
    [value] = evaluate(program, [x])
    bottom, top = interval(program)
    assert bottom <= float(value.min()) and float(value.max()) <= top
