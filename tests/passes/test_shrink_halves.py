"""shrink through gated linear units, which make each channel of two."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.helpers import Lambda, doubles
from support.shrinking import shrunk, widths, zero


def gated(before: nn.Module, after: nn.Module, axis: int) -> nn.Module:
    return Lambda(lambda m, x: m.after(F.glu(m.before(x), axis)), before=before, after=after)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_factor_of_zero_and_a_channel_that_nobody_reads_take_their_gates_along(tokens: bool) -> None:
    torch.manual_seed(0)
    before, after = (nn.Linear(3, 16), nn.Linear(8, 2)) if tokens else (nn.Conv2d(3, 16, 1), nn.Conv2d(8, 2, 1))
    zero(before, rows=[0, 3], bias=True)
    zero(after, columns=[5])
    x = doubles(2, 4, 3) if tokens else doubles(2, 3, 4, 4)
    assert widths(shrunk(gated(before, after, -1 if tokens else 1), x).program) == [(2 * 5, 3), (2, 5)]


def test_a_gate_that_is_a_number_stays_and_makes_a_constant_of_a_constant() -> None:
    torch.manual_seed(0)
    before, after = nn.Linear(3, 8), nn.Linear(4, 2)
    zero(before, rows=[4, 5], bias=False)  # two gates are numbers, one of them of a factor that is one as well
    zero(before, rows=[1], bias=False)
    done = shrunk(gated(before, after, -1), doubles(2, 4, 3))
    assert widths(done.program) == [(2 * 3, 3), (2, 3)]


def test_channels_are_the_same_where_factors_and_gates_are() -> None:
    torch.manual_seed(0)
    before, after = nn.Linear(3, 8), nn.Linear(4, 2)
    with torch.no_grad():
        for twin, of in ((1, 0), (5, 4), (2, 0)):  # the third has a gate of its own
            before.weight[twin], before.bias[twin] = before.weight[of], before.bias[of]
    assert widths(shrunk(gated(before, after, -1), doubles(2, 4, 3)).program) == [(2 * 3, 3), (2, 3)]


def test_along_another_axis_nothing_is_known() -> None:
    torch.manual_seed(0)
    before, after = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    zero(before, rows=[0], bias=True)
    assert widths(shrunk(gated(before, after, 2), doubles(2, 3, 4, 4)).program) == [(8, 3), (2, 8)]
