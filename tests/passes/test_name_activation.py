"""name-activation: an activation that is spelled out becomes one call, and what only looks like one stays."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from reparam.passes.name_activation import NameActivation
from support.helpers import Lambda, apply_exactly, doubles

Function = Callable[[Tensor], Tensor]
CUBIC = math.sqrt(2 / math.pi)

SPELLED: dict[str, tuple[str, Function]] = {
    "swish": ("silu(x)", lambda x: x * torch.sigmoid(x)),
    "sigmoid first": ("silu(x)", lambda x: torch.sigmoid(x).mul(x)),
    "hard sigmoid": ("hardsigmoid(x)", lambda x: F.relu6(x + 3) / 6),
    "hard sigmoid by clamp": ("hardsigmoid(x)", lambda x: (x + 3).clamp(0, 6) / 6),
    "hard sigmoid, scaled first": ("hardsigmoid(x)", lambda x: torch.clamp(x / 6 + 0.5, 0, 1)),
    "hard sigmoid, factor": ("hardsigmoid(x)", lambda x: F.relu6(3 + x) * (1 / 6)),
    "hard swish": ("hardswish(x)", lambda x: x * F.relu6(x + 3) / 6),
    "hard swish, gate first": ("hardswish(x)", lambda x: x * (F.relu6(x + 3) / 6)),
    "hard swish, named gate": ("hardswish(x)", lambda x: x * F.hardsigmoid(x)),
    "mish": ("mish(x)", lambda x: x * torch.tanh(F.softplus(x))),
    "gelu": ("gelu(x)", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu, gate first": ("gelu(x)", lambda x: 0.5 * (1 + torch.erf(x * 0.5**0.5)) * x),
    "gelu, tanh": (
        "gelu(x, approximate=tanh)",
        lambda x: 0.5 * x * (1 + torch.tanh(CUBIC * (x + 0.044715 * torch.pow(x, 3)))),
    ),
    "relu by clamp": ("relu(x)", lambda x: x.clamp(min=0)),
    "a slope that is random in training": (
        "leaky_relu(x, negative_slope=0.25)",
        lambda x: F.rrelu(x, 0.125, 0.375),
    ),
}


@pytest.mark.parametrize(("name", "function"), SPELLED.values(), ids=SPELLED)
def test_spelled_form_is_called_by_its_name(name: str, function: Function) -> None:
    x = torch.cat([doubles(2, 3, 8) * 4, torch.linspace(-7, 7, 48, dtype=torch.float64).reshape(2, 3, 8)])
    done = apply_exactly(Lambda(lambda _, v: function(v)), x, rules=[NameActivation()], bound=1e-14)
    assert done.text == name


OTHERS: dict[str, Function] = {
    "scaled inside": lambda x: x * torch.sigmoid(1.702 * x),
    "of another value": lambda x: x * torch.sigmoid(x.flip(1)),
    "rounded sixth": lambda x: F.relu6(x + 3) * 0.16666667,
    "another offset": lambda x: F.relu6(x + 2.5) / 6,
    "another end": lambda x: (x + 3).clamp(0, 5) / 6,
    "beside a number": lambda x: 2 * x * torch.sigmoid(x),
    "gate read twice": lambda x: x * (gate := torch.sigmoid(x)) + gate.sum(),
    "broadcast": lambda x: x * torch.sigmoid(x[:, :1]),
    "half a gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu of another width": lambda x: x * 0.5 * (1 + torch.erf(x / 2)),
    "another cubic": lambda x: 0.5 * x * (1 + torch.tanh(CUBIC * (x + 0.05 * torch.pow(x, 3)))),
    "softplus of another sharpness": lambda x: x * torch.tanh(F.softplus(x, beta=2)),
    "clamp from below zero": lambda x: x.clamp(min=-0.1),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_another_function_stays(function: Function) -> None:
    done = apply_exactly(Lambda(lambda _, v: function(v)), doubles(2, 3, 8) * 4, rules=[NameActivation()], bound=1e-14)
    assert done.passed("name-activation") == []
    assert done.missed("name-activation") == []
