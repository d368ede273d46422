"""What trains deep networks without norms: plain and residual perceptrons on digits, from each kind of initial weights.

A network has L linear layers of 64 features with ReLU between them; its residual twin the same layers in blocks
x + second(relu(first(x))). Both are trained for some epochs of SGD with momentum, with the best of three rates for each
kind of initial weights (the lowest mean loss), five seeds. A run whose loss is not finite counts as loss 2.303, that of
guessing.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reparam

GUESS = math.log(10)
WIDTH, BATCH = 64, 64
RATES = (0.03, 0.01, 0.001)


class Residual(nn.Module):
    """The twin: (N, 64) -> (N, 10)."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        count = (depth - 2) // 2
        self.stem, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
        self.first, self.second = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(torch.relu(x))))
        y: Tensor = self.head(torch.relu(x))
        return y


def plain(depth: int) -> nn.Sequential:
    """(N, 64) -> (N, 10), `depth` layers."""
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


@dataclass(frozen=True)
class Digits:
    """Training and held-out images (N, 64), of mean 0 and variance 1, with their labels."""

    x: Tensor
    y: Tensor
    other_x: Tensor
    other_y: Tensor


def digits() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    x = (x - x[:1437].mean()) / x[:1437].std()
    return Digits(x[:1437], y[:1437], x[1437:], y[1437:])


def made(kind: str, depth: int, residual: bool, seed: int, data: Digits) -> nn.Module:
    """A network with initial weights of a kind."""
    torch.manual_seed(seed)
    net = Residual(depth) if residual else plain(depth)
    example = data.x[:2]
    if kind == "torch's own":
        return net
    if kind == "residual-scale, converted to plain":
        scaled = reparam.init(net, example, method="residual-scale", seed=seed).module
        return reparam.convert(scaled, example, to="plain", signed="prelu").module
    options = {"data": [data.x], "batch": 256, "batches": 1} if kind == "lsuv" else {}
    return reparam.init(net, example, method=kind, seed=seed, **options).module


def train(net: nn.Module, data: Digits, rate: float, epochs: int, seed: int) -> tuple[list[float], float]:
    """The mean loss of each epoch, and the accuracy on what was held out."""
    net.train()
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], rate, momentum=0.9)
    generator, curve = torch.Generator().manual_seed(seed), []
    for _ in range(epochs):
        losses = []
        for part in torch.randperm(len(data.x), generator=generator).split(BATCH):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(data.x[part]), data.y[part])
            if not torch.isfinite(loss):
                return [*curve, *(GUESS for _ in range(epochs - len(curve)))], 0.1
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
        curve.append(fmean(losses))
    net.eval()
    with torch.no_grad():
        right = net(data.other_x).argmax(1) == data.other_y
    return curve, float(right.double().mean())


PLAIN = ("torch's own", "he", "autoinit", "zero", "normalised-act", "gaussian", "lsuv")
RESIDUAL = ("torch's own", "he", "autoinit", "zero", "lsuv", "depth-scale", "residual-scale")


def measure(
    kind: str, depth: int, residual: bool, data: Digits, seeds: int, epochs: int
) -> tuple[float, list[float], float]:
    """The best rate, its mean curve over seeds, and its mean accuracy."""
    best: tuple[float, list[float], float] | None = None
    for rate in RATES:
        runs = [train(made(kind, depth, residual, s, data), data, rate, epochs, s) for s in range(seeds)]
        curve = [fmean(values) for values in zip(*(c for c, _ in runs), strict=True)]
        found = rate, curve, fmean(a for _, a in runs)
        if best is None or curve[-1] < best[1][-1]:
            best = found
    assert best is not None
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, twenty layers")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.depths, arguments.seeds, arguments.epochs = [20], 1, 2
    data = digits()
    print("| layers | form | initial weights | rate | loss by epoch | accuracy |\n|---|---|---|---|---|---|")
    for depth in arguments.depths:
        rows = [(False, kind) for kind in PLAIN] + [(True, "residual-scale, converted to plain")]
        for residual, kind in rows + [(True, kind) for kind in RESIDUAL]:
            rate, curve, right = measure(kind, depth, residual, data, arguments.seeds, arguments.epochs)
            form = "plain" if not residual or "converted" in kind else "residual"
            shown = " ".join(f"{v:.2f}" for v in (curve[0], curve[len(curve) // 2], curve[-1]))
            print(f"| {depth} | {form} | {kind} | {rate:g} | {shown} | {100 * right:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
