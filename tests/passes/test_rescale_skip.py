"""rescale-skip: a batch norm leaves a residual sum by rescaling the batch norm on the other side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import BATCH_NORMS, arguments, is_call
from reparam.passes.rescale_skip import RescaleSkip
from support.helpers import (
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    doubles,
    fuse,
    graph_text,
    healthy,
    max_rel,
    program_of,
    run_rules,
)


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
    assert done.passed("rescale-skip") == ["'norm' left the sum, the other side was rescaled"]


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


def two_norms(join: Callable[..., Tensor], **options: Any) -> nn.Module:
    """`join` of two batch norms of what two functions make of the input, before a convolution."""

    def forward(m: Any, x: Tensor) -> Tensor:
        joined: Tensor = m.head(join(m.left(x.sin()), m.right(x.cos())))
        return joined

    norms = {"left": nn.BatchNorm2d(3, **options), "right": nn.BatchNorm2d(3, **options)}
    return healthy(Lambda(forward, **norms, head=nn.Conv2d(3, 2, 1)))


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_that_stays_has_the_statistics_and_the_epsilon_that_it_had(affine: bool) -> None:
    model = two_norms(lambda a, b: a + b, eps=0.25, momentum=0.5, affine=affine)
    done = apply_exactly(model, doubles(2, 3, 4, 4), rules=[RescaleSkip()], bound=1e-12)
    assert done.text == "conv1x1(add(sin(x), batch_norm(cos(x))))"
    assert done.passed("rescale-skip") == ["'left' left the sum, the other side was rescaled"]
    (norm,) = (arguments(n) for n in done.program.calls() if is_call(n, BATCH_NORMS))
    assert (norm["momentum"], norm["eps"], norm["training"]) == (0.5, 0.25, False)
    assert str(norm["running_mean"].target) == "right.running_mean"
    assert done.program.constants[str(norm["weight"].target)].origin == "right.weight"
    assert norm["bias"] is None or done.program.constants[str(norm["bias"].target)].origin == "right.bias"


def test_where_the_first_has_no_way_out_the_second_goes() -> None:
    model = two_norms(lambda a, b: a + b)
    with torch.no_grad():
        model.left.weight[1] = 0.0  # type: ignore[union-attr,operator,index]
    done = apply_exactly(model, doubles(2, 3, 4, 4), rules=[RescaleSkip()], bound=1e-12)
    assert done.passed("rescale-skip") == ["'right' left the sum, the other side was rescaled"]


def test_one_that_is_read_elsewhere_does_not_go_and_the_other_one_says_why() -> None:
    model = two_norms(lambda a, b: torch.cat([a + b, a.sigmoid()], 1))
    model.head = nn.Conv2d(6, 2, 1).double()
    done = apply_exactly(model, doubles(2, 3, 4, 4), rules=[RescaleSkip()], bound=1e-12)
    assert [r.message for r in done.outcome.remarks] == [
        "no batch norm leaves this sum: sigmoid does not commute with a channel affine (at 'sigmoid')"
    ]


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.add(a, b, alpha=2),
        lambda a, b: a + a,
        lambda a, b: a[:1] + b,
        lambda a, b: a + b.sin(),
        lambda a, b: a + 1.0,
        lambda a, b: (a + b) * a.sigmoid() * b.sigmoid(),
    ],
    ids=["a factor", "one norm twice", "another shape", "no norm on the right", "a number", "both read elsewhere"],
)
def test_other_sums_are_not_its_business(join: Callable[..., Tensor]) -> None:
    program = program_of(two_norms(join), doubles(2, 3, 4, 4), dynamic=())
    done = run_rules(program, RescaleSkip())
    assert done.text == graph_text(program) and not done.outcome.remarks


@pytest.mark.parametrize("side", ["left", "right"])
def test_silent_about_statistics_of_the_batch(side: str) -> None:
    model = two_norms(lambda a, b: a + b)
    setattr(model, side, nn.BatchNorm2d(3, track_running_stats=False).double())
    assert not run_rules(program_of(model, doubles(2, 3, 4, 4)), RescaleSkip()).outcome.remarks
