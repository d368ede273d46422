"""Orders of values in a register: pools and gates keep them, and sums are rounded as the blocks rounded them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import convert
from reparam.errors import InputError
from reparam.ir import census
from reparam.models.scaled_resnet import ScaledResNet
from reparam.passes import plain_phases
from support.helpers import EXACT, Lambda, doubles, healthy, max_rel, program_of, run_phases


class GateBeside(nn.Module):
    """cat(relu(conv(y * gate(y))), z): z comes into being after y, and is carried past the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 3, 3), nn.Conv2d(4, 4, 1)
        self.down, self.up = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, z = F.relu(self.main(x)), F.relu(self.side(x))
        y = y * torch.sigmoid(self.up(F.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return torch.cat([F.relu(self.last(y)), z], 1)


def test_a_gate_keeps_the_place_of_what_it_gates() -> None:
    torch.manual_seed(0)
    x = doubles(2, 4, 8, 8)
    found = run_phases(program_of(healthy(GateBeside()), x), plain_phases())
    after = census(found.program)
    assert (after.merges, after.gates) == (0, 1)
    assert max_rel(found.original, found.program, [x]) <= EXACT


def test_pools_in_another_order_than_their_operands() -> None:
    torch.manual_seed(0)

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = F.relu(m.a(x)), F.relu(m.b(x))
        second, first = F.max_pool2d(b, 2), F.max_pool2d(a, 2)
        return m.last(F.relu(m.c(first) + second))

    model = Lambda(
        forward, a=nn.Conv2d(4, 5, 1), b=nn.Conv2d(4, 3, 3, padding=1), c=nn.Conv2d(5, 3, 1), last=nn.Conv2d(3, 2, 1)
    )
    x = doubles(2, 4, 8, 8)
    found = run_phases(program_of(healthy(model), x), plain_phases())
    assert census(found.program).merges == 0
    assert max_rel(found.original, found.program, [x]) <= EXACT


@pytest.mark.sweep
def test_a_deep_sum_is_as_exact_in_float32_as_the_blocks_were() -> None:
    """Carried channels behind new ones: with the old ones first the error is 4.3 times the original's, and refused."""
    torch.manual_seed(0)
    evidence = convert(ScaledResNet(layers=200), torch.randn(2, 64), to="plain").report.evidence
    assert evidence is not None
    assert evidence.error <= 1.5 * evidence.original_error


def test_a_chain_that_is_too_dear_stays_with_its_price() -> None:
    """Parallel dilations of one value need one kernel that holds all of them."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reduce = nn.Conv2d(8, 4, 1)
            self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=d, dilation=d) for d in (1, 2))

        def forward(self, x: Tensor) -> Tensor:
            y = self.reduce(x)
            return torch.relu(x + torch.cat([torch.relu(b(y)) for b in self.branches], 1))

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), Pyramid(), nn.Conv2d(8, 3, 1)).eval()
    x = torch.rand(2, 3, 16, 16)
    free = convert(model, x, to="plain", max_cost=math.inf)
    ratio = max(r.block["macs_after"] / r.block["macs_before"] for r in free.report.remarks if r.block)
    assert free.report.plain and ratio > 1.5
    kept = convert(model, x, to="plain", max_cost=1.2)
    told = [r.message for r in kept.report.remarks if r.kind == "missed" and "--max-cost" in r.message]
    assert not kept.report.plain and any(f"--max-cost {math.ceil(ratio)} takes it" in t for t in told)
    torch.testing.assert_close(kept.module(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dilations", [(1, 2, 4), (1, 2, 4, 8, 16)], ids=str)
def test_parallel_dilations_get_a_level_each(dilations: tuple[int, ...]) -> None:
    """The block of ESPNet: one kernel over the taps of all of them has 33 x 33, nearly all of it zeros."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            wide = 4 * len(dilations)
            self.reduce = nn.Conv2d(16, 4, 1)
            self.branches = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=d, dilation=d, bias=False) for d in dilations)
            self.norm, self.act, self.expand = nn.BatchNorm2d(wide), nn.PReLU(wide), nn.Conv2d(wide, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.reduce(x)
            parts = [branch(y) for branch in self.branches]
            for i in range(2, len(parts)):
                parts[i] = parts[i] + parts[i - 1]
            return x + self.expand(self.act(self.norm(torch.cat(parts, 1))))

    torch.manual_seed(0)
    model, x = Pyramid().eval(), torch.randn(2, 16, 40, 40)
    done = convert(model, x, to="plain")
    assert done.report.after.merges == 0
    kernels = [p.shape[2:] for p in done.module.parameters() if p.dim() == 4]
    assert {math.prod(k) for k in kernels} == {1, 9}
    assert sum(math.prod(k) > 1 for k in kernels) == len(dilations)
    assert done.report.after.macs < 25 * done.report.before.macs
    torch.testing.assert_close(done.module(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cost", [0, -1, math.nan, "32", True])
def test_a_bound_that_is_none(cost: Any) -> None:
    with pytest.raises(InputError, match="max_cost is"):
        convert(nn.Conv2d(3, 4, 1), torch.rand(1, 3, 4, 4), to="plain", max_cost=cost)


COPIES = {
    "broadcast": lambda x: x,
    "expand": lambda x: x.expand(-1, 4, -1, -1),
    "repeat": lambda x: x.repeat(1, 4, 1, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(4, 1),
    "cat": lambda x: torch.cat([x] * 4, 1),
}


@pytest.mark.parametrize("deep", [False, True], ids=["one layer", "two layers"])
@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_one_channel_added_to_many_is_carried(copies: Any, deep: bool) -> None:
    """Super-resolution of one channel: the image itself is added before the shuffle to a larger one."""
    model = Lambda(
        lambda m, x: F.pixel_shuffle((m.b(F.relu(m.a(x))) if deep else m.c(x)) + copies(x), 2),
        a=nn.Conv2d(1, 6, 3, padding=1),
        b=nn.Conv2d(6, 4, 3, padding=1),
        c=nn.Conv2d(1, 4, 3, padding=1),
    ).eval()
    x = torch.rand(2, 1, 6, 6)
    done = convert(model, x, to="plain", input_ranges=[(0, 1)])
    assert done.report.after.merges == 0
    torch.testing.assert_close(done.module(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", ["fused", "plain"])
def test_values_without_channels_change_nothing(to: str) -> None:
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        y = m.c(x)
        whole = torch.cat([y[:, 2:2], y], 1)
        return m.k(y) + y[:, 1:3] + whole[:, :2], torch.cat([x, x], 1)[:, 6:6], y[:, 4:4] + y[:, :0]

    model = Lambda(forward, c=nn.Conv2d(3, 4, 3, padding=1), k=nn.Conv2d(4, 2, 1)).eval()
    x = torch.rand(2, 3, 6, 6)
    for got, wanted in zip(convert(model, x, to=to).module(x), model(x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
