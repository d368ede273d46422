"""The figures that the papers of the reference architectures (docs/systems.md) lead one to expect, measured.

Each is a small random experiment in seconds on a CPU: theory or an earlier measurement beside what is found here.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.models import autoinit_net, gaussian_preact, nfnet, normalised_activation_net, point_conv
from reparam.models.momentum import momentum_stored
from reparam.models.proxy_norm_resnet import ProxyNorm
from reparam.models.robust_residual import Block as RobustBlock
from reparam.models.scaled_resnet import ScaledResNet
from reparam.models.transformer import Attention
from reparam.models.transformer import Block as TransformerBlock

T = TypeVar("T")


@dataclass(frozen=True)
class Figure:
    """system: its number in docs/systems.md. expected: theory, or what was found before. within: relative, or absolute
    where `expected` is zero. measure: takes a few seconds, always with the same seeds. below: the figure has to be
    smaller than `expected`, by how much no theory tells."""

    system: int
    what: str
    expected: float
    within: float
    measure: Callable[[], float]
    below: bool = False

    def holds(self) -> bool:
        found = self.measure()
        return (
            found < self.expected
            if self.below
            else abs(found - self.expected) <= self.within * (abs(self.expected) or 1)
        )


def over_seeds(seeds: int, measure: Callable[[], T]) -> list[T]:
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        found.append(measure())
    return found


def mean_over_seeds(seeds: int, measure: Callable[[], float]) -> float:
    return fmean(over_seeds(seeds, measure))


def growth(x: Tensor, y: Tensor) -> float:
    """E|y|^2/E|x|^2."""
    return float(y.square().sum() / x.square().sum())


# ---- 1, 6, 17: the size of activations -------------------------------------------------------------------------------


@torch.no_grad()
def robust(c: float) -> float:
    """After ten blocks of 128 channels."""

    def once() -> float:
        x = y = torch.randn(64, 128, 1, 1)
        for _ in range(10):
            y = RobustBlock(128, 128, c=c, kernel=1)(y)
        return growth(x, y)

    return mean_over_seeds(16, once)


@torch.no_grad()
def rectified(variance: float, slope: float) -> float:
    """After thirty layers of 256 features, weights of variance `variance`/n."""

    def once() -> float:
        x = y = torch.randn(32, 256)
        for _ in range(30):
            y = F.leaky_relu(y @ (torch.randn(256, 256) * math.sqrt(variance / 256)), slope)
        return growth(x, y)

    return mean_over_seeds(16, once)


@torch.no_grad()
def scaled(beta: float) -> float:
    """After 100 layers of 40 features."""

    def once() -> float:
        x = torch.randn(64, 40)
        y = ScaledResNet(layers=100, beta=beta).blocks(x)
        return float((y.square().sum(1) / x.square().sum(1)).mean())

    return mean_over_seeds(32, once)


# ---- 3, 7, 14: activations -------------------------------------------------------------------------------------------


def inverse_power(name: str) -> float:
    mean, variance = autoinit_net.moments(autoinit_net.FUNCTIONS[name])
    return 1 / (variance + mean**2)


@torch.no_grad()
def deep_variance() -> float:
    """The variance of what 50 layers of 256 features give, tanh between them."""
    torch.manual_seed(0)
    layers = ((256, 1, 1),) * 50
    model = autoinit_net.AutoInitNet(layers, function="tanh", dropout=(0.0, 0.0), num_classes=256)
    return float(model(torch.randn(256, 3, 1, 1)).square().mean())


def factor(name: str, keep: str) -> float:
    return normalised_activation_net.normaliser(normalised_activation_net.FUNCTIONS[name], keep)


def backward_gain(name: str) -> float:
    """What 50 layers of 512 features do to the size of a gradient, each with pre-activations from N(0, 1)."""
    act = normalised_activation_net.NormalisedActivation(name)

    def once() -> float:
        first = gradient = torch.randn(64, 512)
        for _ in range(50):
            x = torch.randn(64, 512, requires_grad=True)
            (gradient,) = torch.autograd.grad(act(x) @ (torch.randn(512, 512) / math.sqrt(512)), x, gradient)
        return growth(first, gradient)

    return mean_over_seeds(8, once)


def phi(x: float) -> float:
    return float(gaussian_preact.quantiles(3.0, torch.tensor([x])))


def gaussian_distance(theta: float) -> float:
    """The largest distance between the distribution of W*phi(X), of 400,000 samples, and the normal one."""
    torch.manual_seed(0)
    count = 400_000
    act = gaussian_preact.GaussianActivation(theta)
    return distance(gaussian_preact.weibull((count,), theta).double() * act(torch.randn(count, dtype=torch.float64)))


def rectified_distance(width: int) -> float:
    """The same of sum_i W_i*relu(X_i) over `width` inputs, all normal, divided by its standard deviation."""
    torch.manual_seed(0)
    w, x = torch.randn(2, 400_000, width, dtype=torch.float64)
    return distance((w * x.relu()).sum(1) / math.sqrt(width / 2))


def distance(z: Tensor) -> float:
    """Kolmogorov and Smirnov's, of the samples z (N,) from N(0, 1)."""
    below = 0.5 * (1 + torch.erf(z.sort().values / math.sqrt(2)))
    steps = torch.arange(len(z) + 1, dtype=torch.float64) / len(z)
    return float(torch.maximum((below - steps[:-1]).abs(), (below - steps[1:]).abs()).max())


# ---- 5: tokens -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def alikeness(depth: int, scale: float) -> float:
    """The mean cosine of eight tokens, orthonormal at first, behind uniform attention and linear ff."""

    def once() -> float:
        dim = 128
        x = torch.eye(8, dim).unsqueeze(0)
        for _ in range(depth):
            block = TransformerBlock(dim, 1, dim, scale, "none", "relu")
            block.act = lambda v: v
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight)
                    nn.init.zeros_(layer.bias)
            nn.init.zeros_(block.attention.q.weight)
            x = block(x)
        return mean_cosine(x[0])

    return mean_over_seeds(8, once)


@torch.no_grad()
def attended(depth: int) -> float:
    """The mean cosine of eight normal tokens of 128 features behind softmax attention without skip connections."""

    def once() -> float:
        x = torch.randn(1, 8, 128)
        for _ in range(depth):
            attention = Attention(128, 1)
            for layer in (attention.q, attention.k, attention.v, attention.out):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
            x = attention(x)
        return mean_cosine(x[0])

    return mean_over_seeds(16, once)


def mean_cosine(tokens: Tensor) -> float:
    """Over all pairs of tokens (n, dim)."""
    y, n = F.normalize(tokens, dim=1), len(tokens)
    return float(((y @ y.t()).sum() - n) / (n * (n - 1)))


# ---- 12, 15, 16, 20 --------------------------------------------------------------------------------------------------


@functools.cache
@torch.no_grad()
def powers(proxy: bool, batch_norm: bool, width: int = 64, networks: int = 8) -> list[list[float]]:
    """The share of channel means in the power of normalised values, behind each of 20 random convolutions of `width`
    channels, of some networks."""

    def once() -> list[float]:
        x, found = torch.randn(32, width, 8, 8), []
        for _ in range(20):
            wrapped = F.pad(x, (1, 1, 1, 1), mode="circular")
            y = F.conv2d(wrapped, torch.randn(width, width, 3, 3) * math.sqrt(2 / (9 * width)))
            normal = F.batch_norm(y, None, None, training=True) if batch_norm else F.group_norm(y, 1)
            found.append(float(normal.mean((0, 2, 3)).square().mean() / normal.square().mean()))
            x = normal.relu() if batch_norm else ProxyNorm(width, proxy=proxy)(y)
        return found

    return over_seeds(networks, once)


def power_of_means(layer: int, proxy: bool, batch_norm: bool = False, *, width: int = 64, networks: int = 8) -> float:
    return fmean(network[layer - 1] for network in powers(proxy, batch_norm, width, networks))


def share_in_theory(layer: int) -> float:
    """The correlation of places that share nothing, behind layers of infinitely many channels and ReLU: it starts at 0,
    and c becomes (sqrt(1 - c^2) + c (pi - arccos c))/pi in each."""
    c = 0.0
    for _ in range(layer - 1):
        c = (math.sqrt(1 - c * c) + c * (math.pi - math.acos(c))) / math.pi
    return c


@torch.no_grad()
def point_outputs(aware: bool, layer: int) -> float:
    """E y^2 of a layer of point convolutions, 64 features wide, on clouds that the weights were not drawn on."""

    def clouds(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 64, 3) / 2, torch.randn(count, 64, 3)

    def once() -> float:
        model = point_conv.PointNet((64, 64, 64), 4, norm=False)
        if aware:
            point_conv.variance_aware_(model, [clouds(16) for _ in range(4)])
        points, x = clouds(32)
        for i in range(layer):
            x = model.layers[i](points, x)
        y: Tensor = model.layers[layer].get_submodule("conv")(points, x)
        return float(y.square().mean())

    return mean_over_seeds(4, once)


@torch.no_grad()
def unrolled(gamma: float = 0.9, layers: int = 10) -> float:
    """Of the recurrence of momentum: |x_N - x_0 - sum_j (1 - gamma^(N-j)) f_j|/|x_N|, in float64."""
    torch.manual_seed(0)
    x = start = torch.randn(64, 32, dtype=torch.float64)
    functions = [nn.Sequential(nn.Linear(32, 32), nn.Tanh()).double() for _ in range(layers)]
    found: list[Tensor] = []
    for function in functions:
        function.register_forward_hook(lambda _module, _args, y: found.append(y))
    x = momentum_stored(functions, start, gamma)
    total = start + sum(((1 - gamma ** (layers - j)) * y for j, y in enumerate(found)), torch.zeros_like(start))
    return float((x - total).abs().max() / x.abs().max())


def deviation(name: str) -> float:
    """1/sqrt(Var f(X)), X ~ N(0, 1)."""
    _, variance = autoinit_net.moments(nfnet.FUNCTIONS[name])
    return variance**-0.5


FIGURES = (
    Figure(1, "E‖x‖²: ten blocks, c = 1", 1024, 0.15, lambda: robust(1.0)),
    Figure(1, "E‖x‖²: ten blocks, c = √½", 1, 0.15, lambda: robust(math.sqrt(0.5))),
    *(
        Figure(3, f"1/E f², {name}", value, 1e-5, lambda name=name: inverse_power(name))
        for name, value in (
            ("relu", 2.0),
            ("tanh", 2.53618),
            ("silu", 2.81076),
            ("gelu", 2.35172),
            ("elu", 1.55052),
            ("mish", 2.21072),
        )
    ),
    Figure(3, "output variance, 50 layers, tanh", 1, 0.05, deep_variance),
    Figure(5, "cosine of normal tokens", 0.008, 1.0, lambda: attended(0)),
    *(
        Figure(5, f"the same behind attention alone, layer {depth}", value, within, lambda depth=depth: attended(depth))
        for depth, value, within in ((1, 0.624, 0.1), (2, 0.994, 0.01), (3, 1.0, 1e-3))
    ),
    Figure(5, "cosine of tokens, L = 10, a = 1", 0.992, 0.005, lambda: alikeness(10, 1.0)),
    Figure(5, "cosine of tokens, L = 50, a = 1/√L", 0.1745, 0.1, lambda: alikeness(50, 50**-0.5)),
    Figure(6, "E‖x‖²: 30 layers, ReLU, 1/n", 0.5**30, 0.5, lambda: rectified(1.0, 0.0)),
    Figure(6, "E‖x‖²: 30 layers, ReLU, 2/n", 1, 0.5, lambda: rectified(2.0, 0.0)),
    Figure(6, "E‖x‖²: 30 layers, PReLU ¼, 2/((1 + a²)n)", 1, 0.5, lambda: rectified(2 / (1 + 0.25**2), 0.25)),
    *(
        Figure(7, f"λ {keep}, {name}", value, 1e-5, lambda name=name, keep=keep: factor(name, keep))
        for keep, values in (
            ("backward", (1.41421, 1.46741, 1.62332, 1.48111)),
            ("forward", (1.41421, 1.59254, 1.67653, 1.53353)),
        )
        for name, value in zip(("relu", "tanh", "silu", "gelu"), values, strict=True)
    ),
    *(
        Figure(7, f"backward gain of 50 layers, {name}", 1, 0.15, lambda name=name: backward_gain(name))
        for name in ("relu", "silu")
    ),
    *(
        Figure(
            12, f"power in channel means, layer {n}, layer norm", value, within, lambda n=n: power_of_means(n, False)
        )
        for n, value, within in ((1, 1 / 2048, 0.05), (5, 0.639, 0.1), (10, 0.793, 0.075), (20, 0.905, 0.04))
    ),
    *(
        Figure(
            12,
            f"the same, 256 channels, layer {n}, against infinitely many",
            share_in_theory(n),
            within,
            lambda n=n: power_of_means(n, False, width=256, networks=6),
        )
        for n, within in ((5, 0.025), (10, 0.04), (20, 0.02))
    ),
    *(
        Figure(12, f"the same with proxy normalisation, layer {n}", 0.001, 2.0, lambda n=n: power_of_means(n, True))
        for n in (1, 5, 10, 20)
    ),
    Figure(12, "the same, layer 20, batch norm", 0, 1e-9, lambda: power_of_means(20, False, True)),
    *(
        Figure(14, f"φ₃({x})", value, 1e-3, lambda x=x: phi(x))
        for x, value in ((1.0, 1.182), (2.0, 1.876), (3.0, 2.304))
    ),
    *(
        Figure(
            14, f"distance of Wφ(X) from N(0, 1), θ = {theta}", 0, 0.004, lambda theta=theta: gaussian_distance(theta)
        )
        for theta in (2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
    ),
    *(
        Figure(14, f"the same of relu, width {n}", value, 0.05, lambda n=n: rectified_distance(n))
        for n, value in ((1, 0.257), (3, 0.111), (10, 0.036))
    ),
    Figure(15, "E y², first point convolution", 1, 0.15, lambda: point_outputs(True, 0)),
    Figure(15, "E y², third point convolution", 1, 0.25, lambda: point_outputs(True, 2)),
    Figure(16, "x_N − x_0 − Σ(1 − γ^(N−j))f_j, ten layers, relative", 0, 1e-14, unrolled),
    Figure(17, "E‖h_L‖²/‖h_0‖², β = ½", (1 + 0.01 / 2) ** 100, 0.05, lambda: scaled(0.5)),
    Figure(17, "E‖h_L‖²/‖h_0‖², β = 1", (1 + 1e-4 / 2) ** 100, 0.01, lambda: scaled(1.0)),
    Figure(17, "E‖h_L‖²/‖h_0‖², β = ¼", (1 + 0.1 / 2) ** 100, 0.15, lambda: scaled(0.25)),
    *(
        Figure(20, f"β of block {i + 1}", value, 1e-5, lambda i=i: nfnet.betas(3)[i])
        for i, value in enumerate((1, 0.98058, 0.96225))
    ),
    *(
        Figure(20, f"gain, {name}", value, 1e-3, lambda name=name: deviation(name))
        for name, value in nfnet.GAINS.items()
    ),
)


def print_table(figures: Iterable[Figure]) -> None:
    """Measures the figures, one after the other, on one thread: a Markdown table."""
    torch.set_num_threads(1)
    print("| system | figure | expected | measured |\n|---|---|---|---|")
    for figure in figures:
        expected = f"{'< ' * figure.below}{figure.expected:.5g}"
        print(f"| {figure.system} | {figure.what} | {expected} | {figure.measure():.5g} |", flush=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_table(FIGURES)


if __name__ == "__main__":
    main()
