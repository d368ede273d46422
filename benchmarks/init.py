"""What trains deep networks without norms: plain and residual perceptrons on digits, from each kind of initial weights.

A network has L linear layers of 64 features with ReLU between them; its residual twin the same layers in blocks
x + second(relu(first(x))). Both are trained for some epochs of SGD with momentum, with the best of three rates for each
kind of initial weights (the lowest mean loss), five seeds; gradients are clipped at norm 1. All rates and seeds of a
kind are trained at once. A run whose loss is not finite counts as loss 2.303, that of guessing. gradinit starts from
torch's own weights and makes 390 steps. bn-scale is for networks with batch norms: its row, and one beside it, are of
the same networks with a norm of the input and one behind every layer but the last, and its scales learn at a hundredth
of the rate.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

import reparam

GUESS = math.log(10)
WIDTH, BATCH = 64, 64
RATES = (0.03, 0.01, 0.001)


def layer(norms: bool) -> nn.Module:
    """(N, 64) -> (N, 64), with a batch norm or without."""
    linear = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(linear, nn.BatchNorm1d(WIDTH)) if norms else linear


class Residual(nn.Module):
    """The twin: (N, 64) -> (N, 10). norms: whether it has batch norms."""

    def __init__(self, depth: int, norms: bool = False) -> None:
        super().__init__()
        count = (depth - 2) // 2
        self.norm = nn.BatchNorm1d(WIDTH) if norms else nn.Identity()
        self.stem, self.head = layer(norms), nn.Linear(WIDTH, 10)
        self.first, self.second = (nn.ModuleList(layer(norms) for _ in range(count)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.norm(x))
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(torch.relu(x))))
        y: Tensor = self.head(torch.relu(x))
        return y


def plain(depth: int, norms: bool = False) -> nn.Sequential:
    """(N, 64) -> (N, 10), `depth` layers. norms: whether it has batch norms."""
    layers = [part for _ in range(depth - 1) for part in (layer(norms), nn.ReLU())]
    first = [nn.BatchNorm1d(WIDTH)] if norms else []
    return nn.Sequential(*first, *layers, nn.Linear(WIDTH, 10))


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
    norms = kind in NORMED
    net = Residual(depth, norms) if residual else plain(depth, norms)
    example = data.x[:2]
    if kind.startswith("torch's own"):
        return net
    if kind == "residual-scale, converted to plain":
        scaled = reparam.init(net, example, method="residual-scale", seed=seed).module
        return reparam.convert(scaled, example, to="plain", signed="prelu").module
    options: dict[str, Any] = {}
    if kind in ("lsuv", "point-variance"):
        options = {"data": [data.x], "batch": 256, "batches": 1}
    if kind == "gradinit":
        options = {"data": [(data.x, data.y)], "batch": BATCH, "rate": max(RATES)}
    return reparam.init(net, example, method=kind, seed=seed, **options).module


def slower(kind: str, net: nn.Module) -> dict[str, float]:
    """What the learning rate of some parameters is multiplied by: of scales behind bn-scale."""
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm1d)]
    return {f"{n}.weight": 0.01 for n in norms} if kind == "bn-scale" else {}


def train(
    nets: Sequence[nn.Module],
    rates: Sequence[float],
    seeds: Sequence[int],
    data: Digits,
    epochs: int,
    factors: Mapping[str, float],
) -> tuple[list[list[float]], list[float]]:
    """The mean loss of each epoch and the accuracy on what was held out, of networks of one structure, all at once.

    rates, seeds: the learning rate of each network, and the seed of the order of its samples. factors: of the rate, by
    the names of parameters; 1 where none is given.
    """
    model, count = nets[0].train(), len(nets)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    held = [dict(net.named_parameters()) | dict(net.named_buffers()) for net in nets]
    every = {n: torch.stack([h[n].detach() for h in held]) for n in held[0]}
    weights, fixed = {n: every.pop(n) for n in trained}, every
    momentum = {n: torch.zeros_like(w) for n, w in weights.items()}
    alive, curves = torch.ones(count, dtype=torch.bool), [[] for _ in nets]  # type: list[list[float]]

    def loss_of(given: dict[str, Tensor], rest: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, given | rest, (x,)), y)

    step = vmap(grad_and_value(loss_of))
    rows = torch.tensor(rates)
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    for _ in range(epochs):
        orders = [torch.randperm(len(data.x), generator=g).split(BATCH) for g in generators]
        total = torch.zeros(count)
        for parts in zip(*orders, strict=True):
            chosen = torch.stack(parts)
            found, losses = step(weights, fixed, data.x[chosen], data.y[chosen])
            alive &= torch.isfinite(losses)
            total += losses
            norm = sum(g.flatten(1).square().sum(1) for g in found.values()).sqrt()
            scale = (1 / (norm + 1e-6)).clamp(max=1)
            for name, g in found.items():
                shape = (count, *[1] * (g.dim() - 1))
                momentum[name] = 0.9 * momentum[name] + g * scale.view(shape)
                moved = weights[name] - factors.get(name, 1.0) * rows.view(shape) * momentum[name]
                weights[name] = torch.where(alive.view(shape), moved, weights[name])
        for i, curve in enumerate(curves):
            curve.append(float(total[i]) / len(orders[i]) if alive[i] else GUESS)
    model.eval()
    with torch.no_grad():
        given = [({n: w[i] for n, w in weights.items()} | {n: b[i] for n, b in fixed.items()}) for i in range(count)]
        right = [functional_call(model, g, (data.other_x,)).argmax(1) == data.other_y for g in given]
    return curves, [float(r.double().mean()) if a else 0.1 for r, a in zip(right, alive, strict=True)]


PLAIN = ("torch's own", "he", "autoinit", "zero", "normalised-act", "gaussian", "lsuv", "point-variance", "gradinit")
RESIDUAL = (*PLAIN, "depth-scale", "residual-scale")
NORMED = ("torch's own, batch norms", "bn-scale")


def measure(
    kind: str, depth: int, residual: bool, data: Digits, seeds: int, epochs: int
) -> tuple[float, list[float], float]:
    """The best rate, its mean curve over seeds, and its mean accuracy."""
    nets = [made(kind, depth, residual, s, data) for s in range(seeds)]
    runs = [(net, rate, s) for rate in RATES for s, net in enumerate(nets)]
    curves, right = train(*zip(*runs, strict=True), data, epochs, slower(kind, nets[0]))
    found = []
    for i, rate in enumerate(RATES):
        own = slice(i * seeds, (i + 1) * seeds)
        found.append((rate, [fmean(values) for values in zip(*curves[own], strict=True)], fmean(right[own])))
    return min(found, key=lambda f: f[1][-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, twenty layers")
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--only", default="", help="a part of the names of initial weights")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--curves", action="store_true", help="the loss of every epoch, not of three of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        arguments.depths, arguments.seeds, arguments.epochs = [20], 1, 2
    data = digits()
    print("| layers | form | initial weights | rate | loss by epoch | accuracy |\n|---|---|---|---|---|---|")
    for depth in arguments.depths:
        rows = [(False, kind) for kind in PLAIN] + [(True, "residual-scale, converted to plain")]
        rows += [(True, kind) for kind in RESIDUAL]
        rows += [(residual, kind) for residual in (False, True) for kind in NORMED]
        for residual, kind in rows:
            if arguments.only not in kind:
                continue
            rate, curve, right = measure(kind, depth, residual, data, arguments.seeds, arguments.epochs)
            form = "plain" if not residual or "converted" in kind else "residual"
            chosen = curve if arguments.curves else (curve[0], curve[len(curve) // 2], curve[-1])
            shown = " ".join(f"{v:.2f}" for v in chosen)
            print(f"| {depth} | {form} | {kind} | {rate:g} | {shown} | {100 * right:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
