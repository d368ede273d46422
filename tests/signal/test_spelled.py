"""Residual blocks are found however their sum is written: by analyze, and by init."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import analyze, init
from reparam.signal import blocks
from support.choice import mostly_in_sweeps

LAYERS = 4


class Net(nn.Module):
    """Residual blocks of two layers, whose sums are written by `add`; wide, so that powers are close to their means."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor], width: int = 256) -> None:
        super().__init__()
        self.add = add
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(LAYERS))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for a, b in zip(self.first, self.second, strict=True):
            x = self.add(x, b(a(x).relu()))
        return x


def weighted(x: Tensor, f: Tensor) -> Tensor:
    return torch.einsum("kbc,k->bc", torch.stack([x, f]), torch.tensor([1.0, 0.5]))


SPELLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "x - f": (lambda x, f: x - f, 1, -1),
    "f - x": (lambda x, f: f - x, -1, 1),
    "rsub": (lambda x, f: torch.rsub(f, x), 1, -1),
    "lerp": (lambda x, f: torch.lerp(x, f, 0.25), 0.75, 0.25),
    "lerp of a tensor": (lambda x, f: torch.lerp(x, f, torch.tensor(0.25)), 0.75, 0.25),
    "stack": (lambda x, f: torch.stack([x, f]).sum(0), 1, 1),
    "mean of a stack": (lambda x, f: torch.stack([x, f], -1).mean(-1), 0.5, 0.5),
    "alpha": (lambda x, f: x.add(f, alpha=0.5), 1, 0.5),
    "sub with alpha": (lambda x, f: x.sub(f, alpha=0.5), 1, -0.5),
    "addcmul": (lambda x, f: torch.addcmul(x, f, torch.tensor(0.5), value=0.5), 1, 0.25),
    "addcmul, turned": (lambda x, f: torch.addcmul(x, torch.tensor(0.5), f), 1, 0.5),
    "addcdiv": (lambda x, f: torch.addcdiv(x, f, torch.tensor(4.0), value=2), 1, 0.5),
    "cat": (lambda x, f: torch.cat([x, f], 1).unflatten(1, (2, 256)).sum(1), 1, 1),
    "cat, viewed": (lambda x, f: torch.cat([x, f]).view(2, -1, 256).sum(0), 1, 1),
    "einsum": (lambda x, f: torch.einsum("kbc->bc", torch.stack([x, f])), 1, 1),
    "einsum with weights": (weighted, 1, 0.5),
    "twice": (lambda x, f: x + f + 0.5 * f, 1, 1.5),
}

MEASURED = ("f - x", "lerp", "mean of a stack", "sub with alpha", "addcmul, turned", "cat, viewed", "einsum", "twice")
SCALED = ("x - f", "rsub", "lerp of a tensor", "stack", "alpha", "addcdiv", "cat", "einsum with weights")


@pytest.mark.parametrize("spelling", mostly_in_sweeps(SPELLINGS, *MEASURED))
def test_analyze_measures_the_blocks_however_they_are_spelled(spelling: str) -> None:
    torch.manual_seed(0)
    add, skip, branch = SPELLINGS[spelling]
    net, x = Net(add), torch.randn(8, 256)
    before = {n: p.clone() for n, p in net.named_parameters()}
    found = analyze(net, x, what="depth,rank", data=[x])
    table = found["depth"]
    shown: list[list[float]] = []
    with torch.no_grad():
        for a, b in zip(net.first, net.second, strict=True):
            h, f = x * skip, b(a(x).relu()) * branch
            if spelling == "mean of a stack":  # a factor of the whole sum
                h, f = h * 2, f * 2
            shown.append([float(f.norm() / h.norm()), float((f * h).sum() / (f.norm() * h.norm()))])
            x = add(x, b(a(x).relu()))
    for row, (moved, cosine) in zip(table.rows, shown, strict=True):
        assert row[1] == pytest.approx(moved, rel=1e-5) and row[2] == pytest.approx(cosine, abs=1e-5)
        assert row[3] == "identity"
    assert len(found["rank"].rows) >= LAYERS
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


@pytest.mark.parametrize("spelling", mostly_in_sweeps(SPELLINGS, *SCALED))
def test_init_scales_the_blocks_however_they_are_spelled(spelling: str) -> None:
    torch.manual_seed(0)
    add, _, branch = SPELLINGS[spelling]
    x = torch.randn(512, 256)
    made = init(Net(add), x[:2], method="residual-scale")
    assert len(list(blocks(made.program))) == LAYERS
    with torch.no_grad():
        assert float(made.module(x).square().mean()) == pytest.approx(1, rel=0.35)
    deep = init(Net(add), x[:2], method="depth-scale", beta=0.5)
    assert deep.figures["blocks"] == LAYERS
    weight = next(w for w in deep.weights if w.name == "second.0.weight")
    own = 1.0 if "stack" in spelling else abs(branch)
    assert weight.deviation == pytest.approx(LAYERS**-0.5 / 16 / own, rel=0.02)


def test_what_is_rewritten_computes_the_same() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 256)
    for add, *_ in SPELLINGS.values():
        net = Net(add)
        made = init(net, x[:2], method="residual-scale")
        held: dict[str, Any] = dict(made.module.named_parameters())
        y = x
        with torch.no_grad():
            for i in range(LAYERS):
                f = y
                for name in ("first", "second"):
                    f = nn.functional.linear(f, held[f"{name}.{i}.weight"], held[f"{name}.{i}.bias"])
                    f = f.relu() if name == "first" else f
                y = add(y, f) * _factor(made.inserted[i])
            assert torch.allclose(made.module(x), y, rtol=2e-3, atol=5e-3)


def _factor(text: str) -> float:
    return float(text.split()[2])


def test_a_difference_of_two_inputs_stays_what_it_is() -> None:
    class Gap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            y: Tensor = self.layer(a - b)
            return y

    a, b = torch.randn(3, 4), torch.randn(3, 4)
    table = analyze(Gap(), a, b, what="moments", data=[(a, b)])["moments"]
    assert table.rows[0][3] == pytest.approx(float((a - b).var(correction=0)), rel=0.3)
