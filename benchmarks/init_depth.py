"""The variance that autoinit gives behind fifty layers (docs/systems.md, system 3): the mean over networks, its spread.

Where a function draws the power of a layer back to a fixed point (tanh, sigmoid), one network is close to 1. Where it
does not (ReLU and its relatives), every layer of width n multiplies the power by a random factor of mean 1 and relative
variance 5/n or so, and only the mean over networks is 1.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from torch import nn

import reparam

ACTIVATIONS = (nn.Tanh, nn.Softsign, nn.Sigmoid, nn.SELU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish)


def powers(act: type[nn.Module], depth: int, width: int, seeds: int) -> list[float]:
    """E y^2 of plain networks, one for each seed."""
    layers = [part for _ in range(depth - 1) for part in (nn.Linear(width, width), act())]
    net, found = nn.Sequential(*layers, nn.Linear(width, width)), []
    for seed in range(seeds):
        torch.manual_seed(seed)
        made = reparam.init(net, torch.randn(2, width), method="autoinit", seed=seed)
        with torch.no_grad():
            found.append(float(made.module(torch.randn(128, width)).square().mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| activation | mean | standard error | smallest | largest |\n|---|---|---|---|---|")
    for act in ACTIVATIONS:
        found = powers(act, 50, arguments.width, arguments.seeds)
        error = statistics.stdev(found) / len(found) ** 0.5
        row = (statistics.fmean(found), error, min(found), max(found))
        print(f"| {act.__name__} | " + " | ".join(f"{v:.3g}" for v in row) + " |", flush=True)


if __name__ == "__main__":
    main()
