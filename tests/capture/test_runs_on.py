"""Whether a module runs on some inputs, asked without a trace."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.capture import runs_on
from reparam.errors import EndedError


class Counts(nn.Module):
    """Counts its calls, draws numbers, and takes two samples or more in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop, self.calls = nn.BatchNorm1d(3), nn.Dropout(), 0
        self.seen = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        y: Tensor = self.drop(self.norm(x)) + torch.rand(3)
        return y


def test_a_module_is_left_as_it_was_and_so_is_the_generator() -> None:
    net, generator = Counts().train(), torch.random.get_rng_state()
    assert runs_on(net, (torch.ones(1, 3),)) and not runs_on(net, (torch.ones(1, 4),))
    assert net.calls == 0 and float(net.seen) == 0 and net.training and net.norm.training
    assert float(net.norm.num_batches_tracked or 0) == 0
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_inputs_are_left_as_they_were() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2)

    x = torch.ones(2)
    assert runs_on(Writes(), (x,)) and x.tolist() == [1, 1]


@pytest.mark.parametrize("error", [ValueError("no"), KeyError(3), AssertionError()])
def test_whatever_it_raises_says_that_it_does_not_run(error: Exception) -> None:
    class Raises(nn.Module):
        def forward(self, x: Any) -> Any:
            raise error

    assert not runs_on(Raises(), (torch.ones(1),))


def test_an_end_of_the_process_is_an_error() -> None:
    class Ends(nn.Module):
        def forward(self, x: Any) -> Any:
            sys.exit(0)

    with pytest.raises(EndedError):
        runs_on(Ends(), (torch.ones(1),))
