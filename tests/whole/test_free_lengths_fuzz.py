"""Random networks over a free length, whose movements cut, turn and regroup it: converted, and right at all lengths."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.errors import CaptureError
from reparam.loading import randomize_statistics

LENGTHS = (2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 17, 21, 41, 64, 90)
TRACED = (8, 12, 20, 33, 64)
Step = Callable[[Tensor], Tensor]  # (N, 4, T) -> (N, 4, T')


def steps(k: int) -> dict[str, Step]:
    """k: how many positions some of them take."""
    return {
        "head": lambda y: y[:, :, :k],
        "tail": lambda y: y[:, :, -k:],
        "from": lambda y: y[:, :, k:],
        "half": lambda y: y[:, :, y.shape[2] // 2 :],
        "every other": lambda y: y[:, :, ::2],
        "chunk": lambda y: y.chunk(2, 2)[0],
        "chunks turned": lambda y: torch.cat(y.chunk(2, 2)[::-1], 2),
        "piece": lambda y: y.split(k, 2)[0],
        "pairs": lambda y: y[:, :, : y.shape[2] // 2 * 2].unflatten(2, (-1, 2)).mean(3),
        "roll": lambda y: y.roll(1, 2),
        "flip": lambda y: y.flip(2),
        "cut": lambda y: F.pad(y, (-1, -1)),
        "reflect": lambda y: F.pad(y, (1, 1), mode="reflect"),
        "zeros": lambda y: F.pad(y, (k, 0)),
        "doubled": lambda y: F.interpolate(y, scale_factor=2),
        "between": lambda y: F.interpolate(y, scale_factor=2, mode="linear"),
        "pool": lambda y: F.adaptive_avg_pool1d(y, k),
        "picked": lambda y: y[:, :, [0, 2, 1]],
        "repeated": lambda y: y.repeat(1, 1, 2),
        "tokens": lambda y: y.transpose(1, 2).flatten(1)[:, : 4 * k].unflatten(1, (-1, 4)).transpose(1, 2),
        "in a row": lambda y: y.flatten(1)[:, : 4 * k].reshape(y.shape[0], 4, -1),
        "regrouped": lambda y: y.reshape(y.shape[0], -1)[:, : 4 * (y.shape[2] // 2 * 2)].reshape(y.shape[0], 4, -1),
        "all samples": lambda y: y.flatten(0, 1).unflatten(0, (-1, 4)),
        "shuffled": lambda y: y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
        "two channels": lambda y: y[:, :2].repeat(1, 2, 1),
        "sorted": lambda y: y.sort(2)[0],
        "largest": lambda y: y.topk(2, 2)[0],
        "larger": lambda y: torch.maximum(y, y.flip(2)),
        "neighbours": lambda y: y[:, :, 1:] + y[:, :, :-1],
        "rectified": torch.relu,
    }


class Net(nn.Module):
    """Convolutions and batch norms with such steps between them; half of them have a channel of zeros."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        size = rng.choice([1, 3])
        self.first, self.second = nn.Conv1d(3, 4, size, padding=rng.choice([0, size // 2])), nn.Conv1d(4, 4, 1)
        self.norm, self.last = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.steps = [rng.choice(list(steps(rng.choice([2, 3, 4, 5, 6, 8, 10, 16])).values())) for _ in range(3)]
        self.kind = rng.choice(["before", "after", "beside"])
        if rng.random() < 0.5:
            with torch.no_grad():
                self.first.weight[1] = self.first.bias[1] = 0  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        one, two, three = self.steps
        y = one(self.first(x))
        if self.kind == "before":
            y = two(self.norm(y))
        elif self.kind == "after":
            y = self.norm(two(y))
        else:
            y = two(self.norm(y)) + two(self.second(y))
        z: Tensor = self.last(self.second(three(y)))
        return z


def runs(model: nn.Module, x: Tensor) -> Tensor | None:
    """What the model gives, None where it does not take this length or gives nothing that can be compared."""
    try:
        with torch.no_grad():
            y: Tensor = model(x)
    except (RuntimeError, IndexError):
        return None
    return y if y.numel() and bool(y.isfinite().all()) else None


def check(seed: int) -> bool:
    """Whether a random network could be captured; then it has to be right at all lengths."""
    rng: Any = random.Random(seed)
    torch.manual_seed(seed)
    model, length, to = Net(rng).double(), rng.choice(TRACED), rng.choice(["fused", "fused", "plain"])
    if runs(model, torch.randn(8, 3, length).double()) is None:
        return False
    randomize_statistics(model, (torch.randn(8, 3, length).double(),))
    if rng.random() < 0.5:
        model.norm.weight.data.abs_()
    try:
        done = convert(model.eval(), torch.randn(2, 3, length).double(), to=to, dynamic=("batch", "x:2=T"))
    except CaptureError:  # another path at another length
        return False
    for steps_there in LENGTHS:
        x = torch.randn(3, 3, steps_there).double()
        wanted = runs(model, x)
        if wanted is not None:
            found = done.module(x)
            assert found.shape == wanted.shape, (seed, steps_there)
            assert float((found - wanted).norm()) <= 1e-9 * float(wanted.norm()) + 1e-12, (seed, steps_there)
    return True


@pytest.mark.parametrize("part", range(2))
def test_random_networks_of_a_free_length(part: int) -> None:
    assert sum(check(seed) for seed in range(20 * part, 20 * part + 20)) >= 10


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(10))
def test_many_random_networks_of_a_free_length(part: int) -> None:
    assert sum(check(seed) for seed in range(1000 + 60 * part, 1060 + 60 * part)) >= 30
