"""The work of a conversion grows with the size of the network, not with its square. Calls are counted, not seconds."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.ir import Program
from reparam.passes import fused_phases
from reparam.rewrite import Driver
from reparam.rewrite import driver as pipeline
from support.helpers import healthy, program_of

SHALLOW, DEEP = 20, 80
BLOCKS = (DEEP - 2) / (SHALLOW - 2)  # how many times more of what repeats


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        stride = c_out // c_in
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        skip = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.skip = skip if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return (self.skip(x) + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def resnet(depth: int) -> nn.Module:
    """A residual network of 6n + 2 layers as for CIFAR, narrow: 4, 8 and 16 channels."""
    blocks = (depth - 2) // 6
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    for c_in, c_out in ((4, 4), (4, 8), (8, 16)):
        layers += [Block(c_in if i == 0 else c_out, c_out) for i in range(blocks)]
    return healthy(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)))


@pytest.fixture(scope="module")
def programs() -> dict[int, Program]:
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return {depth: program_of(resnet(depth), x) for depth in (SHALLOW, DEEP)}


def nodes(program: Program) -> int:
    return len(list(program.calls()))


def growth(counts: dict[int, Counter[str]], name: str) -> float:
    return counts[DEEP][name] / counts[SHALLOW][name]


def test_attempts_rewrites_and_checks_grow_with_the_network(
    programs: dict[int, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: dict[int, Counter[str]] = {}
    for depth, program in programs.items():
        counter = counts[depth] = Counter()

        class Counting(Driver):
            def _attempt(self, rule: Any, node: Any, counter: Counter[str] = counter) -> Any:
                counter["attempts"] += 1
                counter[rule.name] += 1
                return super()._attempt(rule, node)

            def _check(self, region: Any, claims: Any, created: Any, counter: Counter[str] = counter) -> Any:
                counter["checks"] += 1
                counter["checked nodes"] += len(region.old) + len(region.new)
                return super()._check(region, claims, created)

        outcome = Counting(program.copy(), allow_cost=False).run(fused_phases())
        counter["rewrites"] = sum(r.kind == "passed" for r in outcome.remarks)
        assert outcome.rejected == 0
    for name in counts[SHALLOW]:
        assert growth(counts, name) <= 1.05 * BLOCKS, name
    assert counts[DEEP]["rewrites"] >= DEEP - 2
    assert counts[DEEP]["attempts"] <= 20 * nodes(programs[DEEP])


def python_calls(program: Program) -> int:
    """Calls of Python functions in a whole run of the driver."""
    count = 0

    def profile(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call"

    driver = Driver(program.copy(), allow_cost=False)
    sys.setprofile(profile)
    try:
        driver.run(fused_phases())
    finally:
        sys.setprofile(None)
    return count


def test_all_python_calls_of_a_run_grow_with_the_network(programs: dict[int, Program]) -> None:
    python_calls(programs[SHALLOW])  # fills caches
    calls = {depth: python_calls(program) for depth, program in programs.items()}
    assert calls[DEEP] / calls[SHALLOW] <= 1.1 * BLOCKS


def test_progress_never_reports_more_than_there_is(programs: dict[int, Program]) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline.Driver(programs[SHALLOW].copy(), allow_cost=False, progress=lambda *s: told.append(s)).run(fused_phases())
    assert told and all(0 < done <= total for _, done, total in told)
    assert len(told) <= 30 * nodes(programs[SHALLOW])
