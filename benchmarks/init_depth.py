"""The power that autoinit gives behind fifty layers (docs/systems.md, system 3), on inputs that nothing was scaled on.

How fast E f(sX)^2 grows with s^2, at s = 1, decides. Below 1, what is too large is drawn back. At 1, every layer of
width n multiplies the power by a random factor of relative variance 5/n, which scaling the drawn weights takes away.
Above 1, the samples' own powers part: their deviation of sqrt(2/n) grows by that exponent at each layer.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch
from torch import nn

import reparam
from reparam.signal import Power, points_of, power_of

ACTIVATIONS = (
    *(nn.Sigmoid, nn.Tanh, nn.Softsign, nn.Softplus, nn.SELU, nn.ELU, nn.ReLU, nn.LeakyReLU, nn.PReLU),
    *(nn.Mish, nn.GELU, nn.SiLU, nn.Hardswish, nn.Softshrink, nn.Tanhshrink),
)
STEP = 1e-3


def exponent(act: type[nn.Module]) -> float:
    """d log E f(sX)^2 / d log s^2 at s = 1."""
    with torch.no_grad():
        ends = [power_of(act().double()(points_of(Power(place=math.exp(q))))).second for q in (-STEP, STEP)]
    return math.log(ends[1] / ends[0]) / (2 * STEP)


def powers(act: type[nn.Module], depth: int, width: int, seeds: int, samples: int | None) -> tuple[list[float], float]:
    """E y^2 of plain networks, one for each seed, and the median deviation of a sample's power over the mean."""
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), act())]
    net, found, spread = nn.Sequential(*layers, nn.Linear(width, width)), [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        made = reparam.init(net, torch.randn(2, width), method="autoinit", seed=seed, samples=samples)
        with torch.no_grad():
            of_samples = made.module(torch.randn(4096, width)).square().mean(1)
        found.append(float(of_samples.mean()))
        spread.append(float(of_samples.std()) / found[-1] if found[-1] else math.inf)  # all may be zero
    return found, statistics.median(spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--width", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| activation | exponent | mean, moments alone | smallest .. largest | mean | smallest .. largest | deviation |"
    )
    print("|---|---|---|---|---|---|---|")
    for act in ACTIVATIONS:
        row = [f"{exponent(act):.3f}"]
        for samples in (0, None):
            found, spread = powers(act, 50, arguments.width, arguments.seeds, samples)
            row += [f"{statistics.fmean(found):.3g}", f"{min(found):.3g} .. {max(found):.3g}"]
        print(f"| {act.__name__} | " + " | ".join([*row, f"{spread:.2g}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
