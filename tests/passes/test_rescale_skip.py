"""rescale-skip: a batch norm leaves a residual sum by rescaling the batch norm on the other side."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.rescale_skip import RescaleSkip
from support.helpers import assert_evidence_bites, doubles, fuse, graph_text, healthy, max_rel, program_of, run_rules


class Mixer(nn.Module):
    """x -> BN -> (relu(depthwise) -> BN) + skip -> pointwise: the block of ConvMixer."""

    def __init__(self, channels: int = 4, kernel: int = 3, stem: bool = True) -> None:
        super().__init__()
        self.stem = nn.BatchNorm2d(channels) if stem else nn.Identity()
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(torch.relu(x))
        return self.pointwise(self.norm(torch.relu(self.depthwise(y))) + y)


@given(channels=st.integers(1, 6), kernel=st.sampled_from([1, 3, 5]), size=st.integers(1, 8), seed=st.integers(0, 99))
def test_property(channels: int, kernel: int, size: int, seed: int) -> None:
    net = healthy(Mixer(channels, kernel), seed)
    x = doubles(2, channels, size, size + 1, seed=seed)
    done = run_rules(program_of(net, x), RescaleSkip())
    assert graph_text(done.program).count("batch_norm") == 1
    assert max_rel(done.original, done.program, [x]) <= 1e-12


def test_before_and_after() -> None:
    done = run_rules(program_of(healthy(Mixer()), doubles(2, 4, 6, 6)), RescaleSkip())
    before, after = graph_text(done.original), graph_text(done.program)
    assert before.count("batch_norm") == 2
    assert after.count("batch_norm") == 1
    assert before.replace("batch_norm(relu(conv", "relu(conv").count("add") == after.count("add") == 1


def test_one_norm_fewer_for_each_block() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.BatchNorm2d(4)
            self.blocks = nn.ModuleList(
                nn.ModuleList(
                    [nn.Conv2d(4, 4, 3, 1, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
                )
                for _ in range(3)
            )
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(torch.relu(x))
            for depthwise, norm, pointwise, last in self.blocks:  # type: ignore[misc]
                x = norm(torch.relu(depthwise(x))) + x
                x = last(torch.relu(pointwise(x)))
            return self.head(x)

    x = doubles(2, 4, 7, 7)
    done = fuse(healthy(Stack()), x)
    assert graph_text(done.original).count("batch_norm") == 7
    assert graph_text(done.program).count("batch_norm") <= 3
    assert max_rel(done.original, done.program, [x]) <= 1e-12


def test_a_zero_scale_is_refused_with_the_reason() -> None:
    net = healthy(Mixer())
    for norm in (net.norm, net.stem):
        with torch.no_grad():
            norm.weight[1] = 0.0  # type: ignore[union-attr,operator,index]
    done = run_rules(program_of(net, doubles(2, 4, 6, 6)), RescaleSkip())
    assert graph_text(done.program).count("batch_norm") == 2
    assert any("scale of zero" in r.message for r in done.outcome.remarks if r.kind == "missed")


def test_a_user_that_takes_no_scale_is_named() -> None:
    class Gelu(Mixer):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(torch.relu(x))
            return torch.sigmoid(self.norm(torch.relu(self.depthwise(y))) + y)

    done = run_rules(program_of(healthy(Gelu()), doubles(2, 4, 6, 6)), RescaleSkip())
    messages = [r.message for r in done.outcome.remarks if r.kind == "missed"]
    assert any("no batch norm leaves this sum" in m and "sigmoid" in m for m in messages)


def test_no_norm_on_the_other_side_is_not_its_business() -> None:
    done = run_rules(program_of(healthy(Mixer(stem=False)), doubles(2, 4, 6, 6)), RescaleSkip())
    assert not done.outcome.remarks


@pytest.mark.parametrize("seed", [0, 1])
def test_a_wrong_weight_is_caught(seed: int) -> None:
    assert_evidence_bites(program_of(healthy(Mixer(), seed), doubles(2, 4, 6, 6)), RescaleSkip())
