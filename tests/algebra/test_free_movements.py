"""Movements whose free sizes decide which channels go where: nothing is carried through them, and no channel goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import Conversion, convert
from reparam.loading import randomize_statistics
from support.helpers import Lambda

WIDTH = 16


def cut(x: Tensor) -> Tensor:
    """The first values of all channels in a row."""
    return x.flatten(1)[:, :WIDTH]


def front(steps: int) -> nn.Module:
    norm, layer = nn.BatchNorm1d(3), nn.Linear(WIDTH, 2)
    model = Lambda(lambda m, x: m.d(cut(m.b(torch.relu(x)))), b=norm, d=layer)
    return randomize_statistics(model, (torch.randn(8, 3, steps),))


def assert_same(model: nn.Module, done: Conversion, sizes: tuple[int, ...]) -> None:
    for steps in sizes:
        x = torch.randn(2, 3, steps)
        torch.testing.assert_close(done.module(x), model(x))


@pytest.mark.parametrize("steps", [6, 20, 64])
def test_an_affine_does_not_pass_forward_what_depends_on_a_free_size(steps: int) -> None:
    """At 20 steps the values that are cut out are of one channel, at six of all three."""
    torch.manual_seed(0)
    model = front(steps).eval()
    done = convert(model, torch.randn(2, 3, steps), dynamic=("batch", "inputs_0:2=T"))
    assert done.report.after.norms == 1
    [remark] = [r.message for r in done.report.remarks if r.rule == "fold-batch-norm"]
    assert "which channels flatten moves where depends on the free sizes" in remark
    assert_same(model, done, (6, 7, 11, 15, 17, 40))


def test_nor_does_it_pass_back() -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.b(cut(m.c(x)).reshape(-1, 2, 8)), c=nn.Conv1d(3, 2, 1), b=nn.BatchNorm1d(2))
    randomize_statistics(model, (torch.randn(8, 3, 9),))
    done = convert(model.eval(), torch.randn(2, 3, 9), dynamic=("batch", "inputs_0:2=T"))
    assert done.report.after.norms == 1
    assert_same(model, done, (8, 9, 12, 30))


def test_channels_that_no_position_reads_at_the_traced_size_stay() -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.d(cut(m.c(x)).reshape(-1, 2, 8)), c=nn.Conv1d(3, 5, 1), d=nn.Linear(8, 3)).eval()
    done = convert(model, torch.randn(2, 3, 8), dynamic=("batch", "inputs_0:2=T"))
    assert_same(model, done, (4, 5, 8, 9, 20))


CROPS: dict[str, Callable[[Tensor], Tensor]] = {
    "a crop": lambda y: y[:, :, 1:-2],
    "every other": lambda y: y[:, :, ::2],
    "turned": lambda y: y.transpose(1, 2).flip(1).transpose(1, 2),
    "heads": lambda y: y.unflatten(1, (2, 2)).flatten(1, 2),
    "patches": lambda y: y[:, :, : y.shape[2] // 2 * 2].unfold(2, 2, 2).flatten(2),
}


@pytest.mark.parametrize("name", CROPS)
def test_what_keeps_channels_apart_at_all_sizes_lets_an_affine_through(name: str) -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.b(CROPS[name](m.c(x))), c=nn.Conv1d(3, 4, 3), b=nn.BatchNorm1d(4))
    randomize_statistics(model, (torch.randn(8, 3, 12),))
    done = convert(model.eval(), torch.randn(2, 3, 12), dynamic=("batch", "inputs_0:2=T"))
    assert done.report.after.norms == 0
    assert_same(model, done, (8, 12, 15, 31))
