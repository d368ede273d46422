"""What autoinit does for outputs that are no layer's own result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam import init
from support.initial_nets import second_moment

Joined = Callable[[Tensor, Tensor], Any]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Heads(nn.Module):
    """A trunk, and heads whose results are joined by `joined`; `tied` heads are one layer."""

    def __init__(self, joined: Joined, tied: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.first = nn.Linear(64, 64)
        self.second = self.first if tied else nn.Linear(64, 64)
        self.joined = joined

    def forward(self, x: Tensor) -> Any:
        h = self.trunk(x)
        return self.joined(self.first(h), self.second(h.flip(1)))


def given(net: nn.Module, **options: Any) -> tuple[list[float], list[str]]:
    """E y^2 of each output on other inputs, and the weights that were scaled for an output."""
    made = init(net, torch.randn(2, 64), method="autoinit", **options)
    with torch.no_grad():
        outputs = made.module(torch.randn(2048, 64))
    scaled = [w.name for w in made.weights if "for the output that it leads to" in w.what]
    return [second_moment(y) for y in (outputs if isinstance(outputs, tuple) else (outputs,))], scaled


@pytest.mark.parametrize(
    ("joined", "scaled", "powers"),
    [
        (lambda a, b: (a + b) / 2, ["first.weight", "second.weight"], [1]),
        (lambda a, b: (F.relu(a), b), ["first.weight"], [1, 1]),
        (lambda a, b: (a, a * 3, b.abs().mean(1)), ["second.weight"], [1, 9, 1]),
    ],
)
def test_the_last_layers_are_scaled_for_outputs_that_grow_with_them(
    joined: Joined, scaled: list[str], powers: list[float]
) -> None:
    """The mean of two heads has half their power, and a ReLU lets half of it through."""
    found, changed = given(Heads(joined))
    assert changed == scaled
    assert found == pytest.approx(powers, rel=0.05)


def test_samples_of_none_leave_outputs_as_moments_have_them() -> None:
    (power,), changed = given(Heads(lambda a, b: (a + b) / 2), samples=0)
    assert changed == [] and power == pytest.approx(0.5, rel=0.2)


def test_what_an_output_does_not_grow_with_is_left() -> None:
    """Also the trial with weights of twice the size leaves nothing."""
    deviations = []
    for joined in (lambda a, b: torch.tanh(a + b), lambda a, b: (a, b)):
        made = init(Heads(joined), torch.randn(2, 64), method="autoinit")
        assert not any("output" in w.what for w in made.weights)
        deviations.append([w.deviation for w in made.weights])
    assert deviations[0] == pytest.approx(deviations[1], rel=0.05)


class Stream(nn.Module):
    """A stream that is the output: what the branch reads changes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return h + self.branch(torch.relu(h))


@pytest.mark.parametrize(
    "net",
    [Heads(lambda a, b: a + b, tied=True), Heads(lambda a, b: (a + b, a)), Stream()],
    ids=["tied heads", "outputs that share a head", "a residual stream"],
)
def test_layers_that_something_else_reads_are_left(net: nn.Module) -> None:
    powers, changed = given(net)
    assert changed == [] and powers[0] == pytest.approx(2, rel=0.3)


class Features(nn.Module):
    """Logits of features, and the features: these are ReLUs, and `factor` times what they would be."""

    def __init__(self, factor: float, share: float) -> None:
        super().__init__()
        self.trunk, self.head, self.factor, self.share = nn.Linear(64, 64), nn.Linear(64, 64), factor, share

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.share * torch.relu(self.trunk(x))
        return self.factor * self.head(h), h


@pytest.mark.parametrize(("factor", "share"), [(1.0, 1.0), (3.0, 1.0), (0.5, 0.25)])
def test_what_leads_to_another_output_is_left_and_that_output_is_right(factor: float, share: float) -> None:
    (logits, features), changed = given(Features(factor, share))
    assert changed == ([] if factor == 1 else ["head.weight"])
    assert logits == pytest.approx(1, rel=0.05) and features == pytest.approx(share**2 / 2, rel=0.05)
