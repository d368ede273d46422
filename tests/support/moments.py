"""Predicted moments against those of random tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.capture import capture
from reparam.ir import evaluate, filled
from reparam.signal import Power, Predicted, measured, predict

PARTS = Power(0.4, 0.3, 0.5, 0.8)
IMAGE = (16, 768, 4, 4)
ROLES = tuple(map(frozenset, ("n", "c", "p", "p")))


class Of(nn.Module):
    """A function of layers and of any number of inputs, as a module."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *xs: Tensor) -> Tensor:
        return self.function(*self.parts, *xs)


def image(seed: int, power: Power = PARTS, shape: tuple[int, ...] = IMAGE) -> Tensor:
    """Normal numbers (N, C, H, W) of a power; what many have in common has its variance exactly."""
    generator, (n, c, *places) = torch.Generator().manual_seed(seed), shape
    result = torch.full(shape, power.mean, dtype=torch.float64)
    for variance, sizes in (
        (power.channel, (1, c, 1, 1)),
        (power.sample, (n, c, 1, 1)),
        (power.place, (n, c, *places)),
    ):
        if variance:
            part = torch.randn(sizes, generator=generator, dtype=torch.float64)
            result = result + variance**0.5 * (part - part.mean()) / part.std(correction=0)
    return result


def agreed(model: nn.Module, *inputs: Tensor, within: float = 0.01) -> tuple[Power, Power]:
    """What is predicted and what is measured, once they are alike."""
    program = capture(model.eval(), tuple(x[:2] for x in inputs)).program
    given = {s.name: measured(x, ROLES) for s, x in zip(program.inputs, inputs, strict=True)}
    found = predict(program, inputs=given)
    (last,) = program.output.all_input_nodes
    predicted, roles = found.power(last), found.values[last].roles
    got: dict[object, Tensor] = {}
    evaluate(program, filled(program, inputs), observe=lambda n, v: got.update({n: v}))
    seen = measured(got[last], roles)
    assert predicted is not None
    assert predicted.second == pytest.approx(float(got[last].square().mean()), rel=within)
    assert predicted.mean == pytest.approx(seen.mean, abs=0.03 * seen.second**0.5)  # of few channels
    return predicted, seen


def of_function(function: Callable[..., Tensor], *parts: nn.Module, count: int = 1) -> tuple[Power, Predicted]:
    """What is predicted of a function of `count` inputs of power PARTS."""
    program = capture(Of(function, *parts).double().eval(), tuple(image(i)[:2, :8] for i in range(count))).program
    found = predict(program, inputs={s.name: PARTS for s in program.inputs})
    (last,) = program.output.all_input_nodes
    power = found.power(last)
    assert power is not None
    return power, found
