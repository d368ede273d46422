"""Networks that have factors at their residual sums already: `init` neither repeats them nor makes up for them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam import init
from reparam.capture import capture
from reparam.loading import build_architecture
from reparam.signal import blocks, factors_of
from support.choice import mostly_in_sweeps
from support.initial_nets import second_moment

WIDTH, DEPTH = 512, 5
HALF = math.sqrt(0.5)

Sum = Callable[["Block", Tensor, Tensor], Tensor]
SUMS: dict[str, tuple[Sum, tuple[float, float, float]]] = {  # factors of the branch, of the skip, behind the sum
    "none": (lambda block, x, f: x + f, (1, 1, 1)),
    "behind": (lambda block, x, f: HALF * (x + f), (1, 1, HALF)),
    "quotient": (lambda block, x, f: (f + x) / 2**0.5, (1, 1, HALF)),
    "branch": (lambda block, x, f: x + 0.3 * f, (0.3, 1, 1)),
    "a parameter": (lambda block, x, f: x + block.alpha * f, (0.5, 1, 1)),
    "one of each channel": (lambda block, x, f: f * block.gamma + x, (0.3, 1, 1)),
    "skip": (lambda block, x, f: 0.8 * x + f, (1, 0.8, 1)),
    "both": (lambda block, x, f: 0.8 * x + 0.6 * f, (0.6, 0.8, 1)),
    "alpha": (lambda block, x, f: torch.add(x, f, alpha=0.3), (0.3, 1, 1)),
    "nothing of the branch": (lambda block, x, f: x + block.zero * f, (0.0, 1, 1)),
}


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), kind
        self.alpha, self.zero = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.zeros(1))
        self.gamma = nn.Parameter(torch.full((WIDTH,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return SUMS[self.kind][0](self, x, self.second(torch.relu(self.first(x))))


def network(kind: str) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Block(kind) for _ in range(DEPTH)))


@pytest.mark.parametrize("kind", SUMS)
def test_the_factors_of_a_network_are_found(kind: str) -> None:
    program = capture(network(kind), (torch.randn(2, WIDTH),)).program
    wanted = SUMS[kind][1]
    found = [factors_of(program, block) for block in blocks(program)]
    assert len(found) == DEPTH
    for factors in found:
        assert (factors.branch, factors.skip, factors.behind) == pytest.approx(wanted)


def powers(kind: str, method: str, **options: object) -> tuple[float, float]:
    """E y^2, and that of the gradient of inputs, of a few networks."""
    forward = backward = 0.0
    for seed in range(2):
        torch.manual_seed(seed)
        made = init(network(kind), torch.randn(2, WIDTH), method=method, seed=seed, **options).module
        x = torch.randn(64, WIDTH).requires_grad_()
        y = made(x)
        (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
        forward, backward = forward + second_moment(y.detach()) / 2, backward + second_moment(gradient) / 2
    return forward, backward


@pytest.mark.parametrize("kind", mostly_in_sweeps(tuple(SUMS), "behind", "both", "alpha"))
def test_residual_scale_gives_the_power_one_whatever_factors_there_are(kind: str) -> None:
    assert powers(kind, "residual-scale") == pytest.approx((1, 1), rel=0.3)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("kind", mostly_in_sweeps(("behind", "branch", "both", "a parameter"), "behind", "branch"))
def test_he_does_not_make_up_for_the_factors(kind: str, mode: str) -> None:
    """Behind ten blocks, a factor of 0.7 that was taken for a function of layers gave 35 in place of 1."""
    branch, skip, behind = SUMS[kind][1]
    wanted = (behind**2 * (branch**2 + skip**2)) ** DEPTH
    assert powers(kind, "he", mode=mode) == pytest.approx((wanted, wanted), rel=0.3)


def test_what_is_put_in_and_what_is_not_is_told() -> None:
    x = torch.randn(2, WIDTH)
    made = init(network("both"), x, method="residual-scale")
    assert made.inserted == ()
    assert made.notes == (
        "5 of 5 sums have the factors already, such as '1' (0.6 on the branch, 0.8 on the skip): "
        "nothing is put behind them",
    )
    made = init(network("branch"), x, method="residual-scale")
    assert made.inserted[0] == "the factor 0.9578 behind the sum of '1', beside those that it has: 0.3 on the branch"
    made = init(network("behind"), x, method="he")
    assert made.notes == (
        "5 residual sums have factors of their own, for which no weight makes up, such as that of '1': "
        "0.7071 behind the sum",
    )
    made = init(network("none"), x, method="residual-scale", factor=1.0)
    assert made.inserted[0] == "the factor 1 behind the sum of '1'" and made.notes == ()
    made = init(network("behind"), x, method="residual-scale", scale="learned")
    assert not any("residual_scale" in left.name for left in made.left)
    assert len(made.inserted) == DEPTH and "a parameter '1.residual_scale' of 1 behind" in made.inserted[0]


def test_the_published_network_stays_as_it_is_published() -> None:
    built = build_architecture("reparam/robust_residual_small", seed=0)
    made = init(built.module, torch.randn(2, 3, 16, 16), method="residual-scale")
    assert made.inserted == () and made.notes[0].startswith("3 of 3 sums have the factors already")


def test_depth_scale_gives_what_is_missing() -> None:
    made = init(network("branch"), torch.randn(2, WIDTH), method="depth-scale", beta=0.5)
    assert "5 branches have a factor of their own, such as 0.3, which counts" in made.notes
    weight = made.module.get_parameter("3.second.weight")
    assert 0.3 * math.sqrt(second_moment(weight)) == pytest.approx((DEPTH * WIDTH) ** -0.5, rel=0.02)
    for kind, value in (("one of each channel", 0.3), ("a parameter", 0.5), ("nothing of the branch", 0)):
        made = init(network(kind), torch.randn(2, WIDTH), method="depth-scale", beta=0.5)
        assert f"5 branches have a parameter that they are multiplied by, {value}: it stays" in made.notes
        weight = made.module.get_parameter("3.second.weight")
        assert math.sqrt(second_moment(weight)) == pytest.approx((DEPTH * WIDTH) ** -0.5, rel=0.02)
    made = init(network("behind"), torch.randn(2, WIDTH), method="depth-scale")
    assert "5 blocks multiply the stream by factors of their own, such as 0.7071: they stay" in made.notes


def test_activations_that_read_a_sum_take_its_factor_along() -> None:
    """relu(c*x) of a sum x: lambda is that of the ReLU, and phi reads c*x."""

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.relu(0.5 * (x + self.first(x))))
            return y

    x = torch.randn(2, WIDTH)
    for keep in ("forward", "backward"):
        made = init(Before(), x, method="normalised-act", keep=keep)
        assert made.figures["factors"] == [pytest.approx(2**0.5, rel=1e-3)]
    program = init(Before(), x, method="gaussian").program
    clamp = next(n for n in program.calls() if "clamp" in n.name)
    assert "mul" in clamp.all_input_nodes[0].name


class Times(nn.Module):
    """c*relu(x)."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        return self.c * torch.relu(x)


class Masked(nn.Module):
    """relu(x) with every other feature off."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([1.0, 0.0]).repeat(WIDTH // 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(x) * self.mask
        return y


@pytest.mark.parametrize("method", ["normalised-act", "gaussian"])
def test_a_mask_behind_an_activation_stays(method: str) -> None:
    net, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), Masked()), torch.randn(2, WIDTH)
    y = init(net, x, method=method).module(x)
    assert bool((y[:, 1::2] == 0).all()) and bool((y[:, ::2] != 0).any())


def gain_back(net: nn.Module) -> float:
    x = torch.randn(64, WIDTH, requires_grad=True)
    y = net(x)
    (g,) = torch.autograd.grad(y, x, torch.randn_like(y))
    return second_moment(g)


@pytest.mark.parametrize("c", [1.0, 2**0.5, 3.0])
def test_factors_behind_activations_are_counted(c: float) -> None:
    layers = [part for _ in range(10) for part in (nn.Linear(WIDTH, WIDTH), Times(c))]
    net, x = nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH)), torch.randn(64, WIDTH)
    made = init(net, x[:2], method="normalised-act")
    assert 0.7 < gain_back(made.module) < 1.4 and made.figures["factors"] == [pytest.approx(2**0.5)] * 10
    beside = {1.0: "", 2**0.5: "", 3.0: ", beside the 3 that it has"}[c]
    put_in = [] if c == 2**0.5 else [f"the factor {2**0.5 / c:.5g} behind '{2 * i + 1}'{beside}" for i in range(10)]
    assert list(made.inserted) == put_in
    kept = "nothing is put behind activations that have their factor already: '1' (1.4142) and 9 more"
    assert (kept in made.notes) == (c == 2**0.5)
    gaussian = init(net, x[:2], method="gaussian")
    assert second_moment(gaussian.module(x)) == pytest.approx(1, rel=0.1)
    assert sum("no activation" in weight.what for weight in gaussian.weights) == 1  # the first layer


class Standardised(nn.Linear):
    """Rows of mean zero and norm g; g of its own, as the published networks have it, or that of the activation."""

    def __init__(self, width: int, g: float) -> None:
        super().__init__(width, width, bias=False)
        self.g = g

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean(1, keepdim=True)
        return nn.functional.linear(x, self.g * w / w.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("g", [1.0, 1.7139588594436646])
def test_gains_inside_standardised_weights_count_for_normalised_act(g: float) -> None:
    """The first layer has a weight of its own, and the gain stands inside of the ten behind it."""
    layers = [part for _ in range(10) for part in (nn.ReLU(), Standardised(WIDTH, g))]
    net, x = nn.Sequential(nn.Linear(WIDTH, WIDTH), *layers), torch.randn(64, WIDTH)
    made = init(net, x[:2], method="normalised-act")
    assert 0.7 < gain_back(made.module) < 1.4
    assert f"the factor {2**0.5 / g:.4g}" == made.inserted[0].split(" behind")[0][: len(f"the factor {2**0.5 / g:.4g}")]
    assert ("in the weights behind it" in made.inserted[0]) == (g != 1)
    for name, value in net.named_parameters():
        if name.split(".")[0] not in ("0",):
            assert torch.equal(made.module.get_parameter(name), value)


def test_layers_behind_an_activation_that_differ_are_not_taken_for_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(WIDTH, WIDTH)
            self.a, self.b = Standardised(WIDTH, 1.0), Standardised(WIDTH, 3.0)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            z: Tensor = self.a(y) + self.b(y)
            return z

    made = init(Two(), torch.randn(2, WIDTH), method="normalised-act")
    assert made.inserted[0].startswith("the factor 1.4142 behind") and "beside" not in made.inserted[0]
