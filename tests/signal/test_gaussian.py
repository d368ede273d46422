"""Integrals of functions of normal variables against closed forms, and functions found in programs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reparam.capture import capture
from reparam.signal import Power, activations, blocks, function_behind, function_read, gain_of, points_of, power_of

GAINS = {
    nn.ReLU: 2.0,
    nn.Tanh: 2.53618,
    nn.SiLU: 2.81076,
    nn.GELU: 2.35172,
    nn.ELU: 1.55052,
    nn.Mish: 2.21072,
}
BACKWARD = {nn.ReLU: 1.41421, nn.Tanh: 1.46741, nn.SiLU: 1.62332, nn.GELU: 1.48111}
FORWARD = {nn.ReLU: 1.41421, nn.Tanh: 1.59254, nn.SiLU: 1.67653, nn.GELU: 1.53353}
PARTS = Power(0.3, 0.2, 0.4, 0.5)


def program_of(*layers: nn.Module, width: int = 4):
    return capture(nn.Sequential(nn.Linear(width, width), *layers), (torch.randn(2, width),)).program


@pytest.mark.parametrize(("layer", "gain"), GAINS.items())
def test_the_gain_of_an_activation(layer: type[nn.Module], gain: float) -> None:
    (found,) = activations(program_of(layer()))
    assert gain_of(found) == pytest.approx(gain, rel=3e-6)


@pytest.mark.parametrize("layer", BACKWARD)
def test_the_factors_of_normalised_activations(layer: type[nn.Module]) -> None:
    (found,) = activations(program_of(layer()))
    assert math.sqrt(gain_of(found, backward=True)) == pytest.approx(BACKWARD[layer], rel=1e-5)
    assert math.sqrt(gain_of(found)) == pytest.approx(FORWARD[layer], rel=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_the_gain_of_a_prelu(slope: float) -> None:
    (found,) = activations(program_of(nn.PReLU(4, slope))) if slope < 1 else [None]
    assert gain_of(found) == pytest.approx(2 / (1 + slope**2), rel=1e-5)


def test_slopes_that_differ_from_channel_to_channel_are_averaged() -> None:
    layer = nn.PReLU(64)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0, 1, 64))
    (found,) = activations(program_of(layer, width=64))
    assert 1 / gain_of(found) == pytest.approx((1 + float(layer.weight.detach().square().mean())) / 2, rel=1e-2)


def test_the_power_of_the_identity_and_of_a_square() -> None:
    x = points_of(PARTS)
    same = power_of(x)
    assert (same.mean, same.channel, same.sample, same.place) == pytest.approx((0.3, 0.2, 0.4, 0.5), rel=1e-4)
    square = power_of(points_of(Power(0, 0.2, 0.4, 0.5)).square())
    total = 1.1
    cov = [2 * 0.2**2, 2 * 0.6**2, 2 * total**2]  # of squares of normal variables
    wanted = (total, cov[0], cov[1] - cov[0], cov[2] - cov[1])
    assert (square.mean, square.channel, square.sample, square.place) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.9, 1.0])
def test_the_covariance_of_rectified_variables(rho: float) -> None:
    """Cho and Saul 2009: E relu(X) relu(Y) = (sqrt(1 - r^2) + r (pi - arccos r))/(2 pi)."""
    found = power_of(points_of(Power(0.0, rho, 0.0, 1 - rho)).relu())
    together = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / (2 * math.pi)
    assert found.second == pytest.approx(0.5, rel=1e-4)
    assert found.channel + found.mean**2 == pytest.approx(together, rel=1e-3)


def test_a_function_is_found_as_a_whole_however_it_is_spelled() -> None:
    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.gate = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            y = 1.5 * (y * torch.sigmoid(y))
            return self.second(y) * torch.sigmoid(self.gate(y)) + 2 * y

    program = capture(Spelled(), (torch.randn(2, 4),)).program
    (found,) = activations(program)  # a gate is none, and neither is what is linear
    silu = 1 / GAINS[nn.SiLU]
    assert found.power().second == pytest.approx(silu, rel=1e-5)
    layers = [n for n in program.calls() if str(n.target) == "aten.linear.default"]
    assert function_read(program, layers[0].args[0]) is None
    read = function_read(program, layers[1].args[0])
    assert read is not None and read.power().second == pytest.approx(2.25 * silu, rel=1e-5)
    behind = function_behind(program, layers[0])
    assert behind is None or behind.root is layers[0]


def test_residual_blocks_are_found_with_the_layer_that_ends_their_branch() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x = x + 0.1 * self.norm(self.b(torch.relu(x)))
            return x + torch.relu(self.c(x))

    first, second = blocks(capture(Net(), (torch.randn(2, 4, 8, 8),)).program)
    assert first.identity and [n.meta["module"] for n in first.last] == ["b"]
    assert first.source is not None and first.source.meta["module"] == "a"
    assert second.last == () and [n.meta["module"] for n in second.layers] == ["c"]
