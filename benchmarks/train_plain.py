"""Trains the plain form of a small residual network further on scikit-learn's digits, without norms and with them.

1,437 of the 1,797 images are for training, the others for the accuracy. The residual network is trained with its batch
norms, converted with `to="plain"`, written as source with and without norms, and each is trained for a few more epochs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import network_of
from digits import TRAINED, digits
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.training import save_training_source

BATCH, BLOCKS, WIDTH = 64, 6, 16
EPOCHS, MORE = 8, 4
RATES = (0.05, 0.01)


class Block(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


def network() -> nn.Module:
    """13 convolutions and a head."""
    blocks = [Block(WIDTH) for _ in range(BLOCKS)]
    stem = [nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 10))


def train(model: nn.Module, x: Tensor, labels: Tensor, rate: float, epochs: int, seed: int) -> float:
    """SGD with momentum, one cycle of the rate up to `rate`; returns the accuracy in per cent."""
    steps = TRAINED // BATCH
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps, pct_start=0.1)
    draw = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(TRAINED, generator=draw)[: steps * BATCH].split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(x[batch]), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    return accuracy(model, x, labels)


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """In per cent, of the images that were not trained on."""
    return 100 * float((model.eval()(x[TRAINED:]).argmax(1) == labels[TRAINED:]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="networks that are trained")
    parser.add_argument("--quick", action="store_true", help="one epoch each, one seed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x, labels = digits()
    print("| seed | rate | before, % | without norms | with norms |\n|---|---|---|---|---|")
    for seed in range(1 if args.quick else args.seeds):
        torch.manual_seed(seed)
        model = network()
        before = train(model, x, labels, 0.1, 1 if args.quick else EPOCHS, seed)
        plain = convert(model, x[:2], to="plain")
        with tempfile.TemporaryDirectory() as name:
            bare, normed = Path(name) / "bare", Path(name) / "normed"
            plain.save_source(bare)
            save_training_source(plain.program, normed, x[:TRAINED])
            for rate in RATES:
                after = [
                    train(network_of(f), x, labels, rate, 1 if args.quick else MORE, seed + 1) for f in (bare, normed)
                ]
                print(f"| {seed} | {rate} | {before:.1f} | {after[0]:.1f} | {after[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
