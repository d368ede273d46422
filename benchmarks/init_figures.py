"""The figures of systems.py that are about initial weights and signals, once more: through `init` and `analyze`.

Nothing here knows the architectures: networks are plain torch, and the methods find what they set on the traced graph.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from systems import Figure, print_table
from torch import Tensor, nn

import reparam
from reparam.models.point_conv import PointNet
from reparam.models.proxy_norm_resnet import ProxyNorm
from reparam.models.scaled_resnet import ScaledResNet
from reparam.models.transformer import Attention, Block


class Stream(nn.Module):
    """x + second(relu(first(x))), block after block; outer: of relu(x)."""

    def __init__(self, width: int, depth: int, outer: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.ModuleList(nn.Linear(width, width) for _ in range(depth)) for _ in range(2))
        self.outer = outer

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(torch.relu(x) if self.outer else x)))
        return x


def mean_over_seeds(seeds: int, measure: Callable[[int], float]) -> float:
    found = []
    for seed in range(seeds):
        torch.manual_seed(1000 + seed)  # of inputs, which are not to be the numbers that weights are drawn from
        found.append(measure(seed))
    return fmean(found)


def growth(net: nn.Module, width: int, seeds: int, method: str, rows: int = 64, **options: Any) -> float:
    """E|y|^2/E|x|^2 of a network whose weights a method sets."""

    def once(seed: int) -> float:
        made = reparam.init(net, torch.randn(2, width), method=method, seed=seed, **options).module
        x = torch.randn(rows, width)
        with torch.no_grad():
            return float(made(x).square().sum() / x.square().sum())

    return mean_over_seeds(seeds, once)


def plain(depth: int, width: int, act: Callable[[], nn.Module]) -> nn.Sequential:
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), act())]
    return nn.Sequential(*layers, nn.Linear(width, width))


def autoinit(act: type[nn.Module]) -> float:
    """The gain that autoinit gives the layer behind an activation: fan_in*Var w, where pre-activations are N(0, 1)."""
    net = nn.Sequential(nn.Linear(256, 256), act(), nn.Linear(256, 256))
    text = reparam.init(net, torch.randn(2, 256), method="autoinit", samples=0).weights[2].what
    return 1 / float(text.split("E x² ")[1])


def chain_field(count: int) -> Any:
    layers = [nn.Conv2d(1, 1, 3, bias=False) for _ in range(count)]
    for layer in layers:
        nn.init.constant_(layer.weight, 1 / 9)
    x = torch.randn(2, 1, 2 * count + 1, 2 * count + 1)
    return reparam.analyze(nn.Sequential(*layers), x, what="erf", batch=1)["erf"].facts


def alike(depth: int, scale: float, seeds: int) -> float:
    """The cosine of eight tokens, orthonormal at first, behind uniform attention and linear ff."""

    def once(seed: int) -> float:
        blocks = [Block(128, 1, 128, scale, "none", "relu") for _ in range(depth)]
        for block in blocks:
            block.act = lambda v: v
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.orthogonal_(layer.weight)
                    nn.init.zeros_(layer.bias)
            nn.init.zeros_(block.attention.q.weight)
        tokens = torch.eye(8, 128).unsqueeze(0).repeat(2, 1, 1)
        found = reparam.analyze(nn.Sequential(*blocks), tokens, what="rank", data=[tokens], batch=2)
        return float(found["rank"].facts["last cosine"])  # type: ignore[arg-type]

    return mean_over_seeds(seeds, once)


@functools.cache
def collapsed() -> tuple[list[float], list[float]]:
    """Attention without skips: the cosine behind each of three layers, and the gradients of the weights of keys."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Attention(128, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    net = Attend()
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    table = reparam.analyze(net, torch.randn(2, 8, 128), what="rank", batch=16)["rank"]
    cosines = [float(row[2]) for row in table.rows if str(row[0]).endswith("out")]  # type: ignore[arg-type]
    return cosines, [row["keys"] for row in table.detail["attention"]]


@functools.cache
def channel_means(proxy: bool) -> list[float]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.randn(64, 64, 3, 3) * math.sqrt(2 / 576) for _ in range(20))
            self.norms = nn.ModuleList(ProxyNorm(64, proxy=proxy) for _ in range(20))

        def forward(self, x: Tensor) -> Tensor:
            for weight, norm in zip(self.weights, self.norms, strict=True):
                x = norm(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight))
            return x

    rows = []
    for seed in range(8):
        torch.manual_seed(seed)
        found = reparam.analyze(Net(), torch.randn(2, 64, 8, 8), what="norm", batch=32, seed=seed)["norm"]
        rows.append([float(row[2]) for row in found.rows])  # type: ignore[arg-type]
    return [fmean(column) for column in zip(*rows, strict=True)]


def distance(width: int, gaussian: bool) -> float:
    """Of pre-activations of networks of that width side by side, all weights random, from a normal distribution."""
    count = 20_000
    first = nn.Conv1d(width * count, width * count, 1, groups=count, bias=False)
    net = nn.Sequential(first, nn.ReLU(), nn.Conv1d(width * count, count, 1, groups=count, bias=False), nn.ReLU())
    x = torch.ones(1, width * count, 1).repeat(2, 1, 1)
    method = {"method": "gaussian", "theta": 3.0} if gaussian else {"method": "he"}
    made = reparam.init(net, x, **method).module
    with torch.no_grad():
        return float(reparam.analyze(made, x, what="gaussianity", data=[x], batch=2)["gaussianity"].rows[1][1])  # type: ignore[arg-type]


def backward_gain(act: type[nn.Module]) -> float:
    """Of a layer and an activation, with pre-activations from N(0, 1): what `init` puts behind the activation."""
    net = nn.Sequential(nn.Linear(1024, 1024), act(), nn.Linear(1024, 1024))
    made = reparam.init(net, torch.randn(2, 1024), method="normalised-act")
    found = reparam.analyze(made.module, torch.randn(2, 1024), what="gradients", batch=256)["gradients"]
    return float(found.facts["gain through the whole"])  # type: ignore[arg-type]


def normaliser(act: type[nn.Module], keep: str) -> float:
    net = nn.Sequential(nn.Linear(4, 4), act())
    return float(reparam.init(net, torch.randn(2, 4), method="normalised-act", keep=keep).figures["factors"][0])


def points() -> float:
    """E y^2 of three layers of point convolutions, on clouds that the weights were not set on, of eight networks."""
    seen: list[float] = []
    for seed in range(8):
        torch.manual_seed(seed)
        net = PointNet((64, 64, 64), 4, norm=False)
        clouds = [(torch.randn(16, 64, 3) / 2, torch.randn(16, 64, 3)) for _ in range(4)]
        options = {"method": "point-variance", "data": clouds, "batch": 16, "seed": seed}
        made = reparam.init(net, *(t[:2] for t in clouds[0]), **options).module
        for layer in made.get_submodule("layers").children():
            layer.get_submodule("conv").register_forward_hook(lambda m, a, y: seen.append(float(y.square().mean())))
        with torch.no_grad():
            made(torch.randn(64, 64, 3) / 2, torch.randn(64, 64, 3))
    return fmean(seen)


def found_exponent(beta: float) -> float:
    torch.manual_seed(0)
    table = reparam.analyze(ScaledResNet(layers=100, beta=beta), torch.randn(2, 64), what="depth", batch=32)["depth"]
    return float(table.facts["beta"])  # type: ignore[arg-type]


def moved(count: int) -> float:
    """How much conversion moves the field of a residual network."""
    net = reparam_model("reparam/resnet_small").double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    maps = []
    for model in (net, reparam.convert(net, x, to="plain").module):
        table = reparam.analyze(model, x, what="erf", batch=count)["erf"]
        maps.append(torch.tensor(table.maps["field"], dtype=torch.float64))
    return float((maps[0] - maps[1]).abs().max() / maps[0].abs().max())


def reparam_model(name: str) -> nn.Module:
    from reparam.loading import build_architecture

    return build_architecture(name).module.eval()


SMALL = {nn.ReLU: 2.0, nn.Tanh: 2.53618, nn.SiLU: 2.81076, nn.GELU: 2.35172, nn.ELU: 1.55052, nn.Mish: 2.21072}
LAMBDAS = {
    nn.ReLU: (1.41421, 1.41421),
    nn.Tanh: (1.46741, 1.59254),
    nn.SiLU: (1.62332, 1.67653),
    nn.GELU: (1.48111, 1.53353),
}
FIGURES = (
    Figure(
        1,
        "E‖x‖²: ten blocks, no factor",
        1024,
        0.3,
        lambda: growth(Stream(128, 10, True), 128, 40, "residual-scale", factor=1.0),
    ),
    Figure(
        1, "E‖x‖²: ten blocks, residual-scale", 1, 0.3, lambda: growth(Stream(128, 10, True), 128, 40, "residual-scale")
    ),
    Figure(
        1,
        "the same, with layers in the skips",
        1,
        0.3,
        lambda: growth(Stream(128, 10, True), 128, 40, "residual-scale", scale="shortcut"),
    ),
    *(
        Figure(3, f"fan_in·Var w behind {act.__name__}, autoinit", value, 1e-3, lambda act=act: autoinit(act))
        for act, value in SMALL.items()
    ),
    *(
        Figure(4, f"σ, {n} layers", math.sqrt(n * 8 / 12), 1e-6, lambda n=n: chain_field(n)["sigma"])
        for n in (5, 10, 20, 40)
    ),
    *(
        Figure(4, f"√area/RF, {n} layers", v, 2e-3, lambda n=n: chain_field(n)["side/field"])
        for n, v in ((5, 0.755), (10, 0.557), (20, 0.394), (40, 0.281))
    ),
    Figure(4, "change of the field by conversion to plain", 0, 1e-12, lambda: moved(2)),
    Figure(5, "cosine of tokens, L = 10, α = 1", 0.992, 0.01, lambda: alike(10, 1.0, 4)),
    Figure(5, "cosine of tokens, L = 50, α = 1/√L", 0.1745, 0.25, lambda: alike(50, 50**-0.5, 20)),
    *(
        Figure(5, f"cosine behind attention alone, layer {n + 1}", v, w, lambda n=n: collapsed()[0][n])
        for n, v, w in ((0, 0.624, 0.15), (1, 0.994, 0.01), (2, 1.0, 1e-3))
    ),
    Figure(
        5, "gradient of the keys' weights, layer 3 over layer 1", 0, 0.1, lambda: collapsed()[1][2] / collapsed()[1][0]
    ),
    Figure(6, "E‖x‖²: 30 layers of ReLU, he", 1, 0.7, lambda: growth(plain(30, 256, nn.ReLU), 256, 16, "he", 32)),
    Figure(
        6,
        "E‖x‖²: 30 layers of PReLU ¼, he",
        1,
        0.7,
        lambda: growth(plain(30, 256, lambda: nn.PReLU(init=0.25)), 256, 16, "he", 32),
    ),
    *(
        Figure(7, f"λ {k}, {act.__name__}", v[i], 1e-5, lambda act=act, k=k: normaliser(act, k))
        for i, k in enumerate(("backward", "forward"))
        for act, v in LAMBDAS.items()
    ),
    *(
        Figure(7, f"backward gain of a layer, {act.__name__}", 1, 0.1, lambda act=act: backward_gain(act))
        for act in LAMBDAS
    ),
    *(
        Figure(12, f"power in channel means, layer {n}, layer norm", v, w, lambda n=n: channel_means(False)[n - 1])
        for n, v, w in ((1, 0.001, 1.0), (5, 0.639, 0.1), (10, 0.793, 0.1), (20, 0.905, 0.04))
    ),
    *(
        Figure(12, f"the same with proxy normalisation, layer {n}", 0.001, 2.0, lambda n=n: channel_means(True)[n - 1])
        for n in (1, 5, 10, 20)
    ),
    *(
        Figure(14, f"distance of pre-activations, ReLU, width {n}", v, 0.1, lambda n=n: distance(n, False))
        for n, v in ((1, 0.257), (3, 0.111), (10, 0.036))
    ),
    *(Figure(14, f"the same behind gaussian, width {n}", 0, 0.02, lambda n=n: distance(n, True)) for n in (1, 3, 10)),
    Figure(15, "E y² of point convolutions, point-variance", 1, 0.2, points),
    *(
        Figure(
            17,
            f"E‖h_L‖²/‖h_0‖², L = 100, depth-scale, β = {b:g}",
            (1 + 100 ** (-2 * b) / 2) ** 100,
            w,
            lambda b=b: growth(Stream(40, 100, False), 40, 16, "depth-scale", beta=b),
        )
        for b, w in ((0.5, 0.05), (1.0, 0.01), (0.25, 0.25))
    ),
    *(Figure(17, f"β that analyze finds, β = {b:g}", b, 0.1, lambda b=b: found_exponent(b)) for b in (0.25, 0.5, 1.0)),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_table(FIGURES)


if __name__ == "__main__":
    main()
