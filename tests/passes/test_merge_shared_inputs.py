"""merge-shared-inputs: linear layers on one value become one layer and a split."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.merge_shared_inputs import MergeSharedInputs
from support.helpers import assert_evidence_bites, doubles, graph_text, max_rel, program_of, run_rules


class Attention(nn.Module):
    """One head of attention with separate query, key and value layers."""

    def __init__(self, width: int = 6, head: int = 4, biases: tuple[bool, bool, bool] = (True, False, True)) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, head, bias=b).double() for b in biases)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return torch.softmax(q @ k.transpose(1, 2) * 0.5, -1) @ v


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 8),
    head=st.integers(1, 5),
    tokens=st.integers(1, 6),
    biases=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_property(width: int, head: int, tokens: int, biases: tuple[bool, bool, bool]) -> None:
    x = doubles(2, tokens, width)
    done = run_rules(program_of(Attention(width, head, biases), x), MergeSharedInputs())
    assert graph_text(done.program).count("linear") == 1
    assert max_rel(done.original, done.program, [x]) <= 1e-13
    assert max_rel(done.original, done.program, [doubles(5, tokens, width, seed=2)]) <= 1e-13


def test_before_and_after() -> None:
    done = run_rules(program_of(Attention(), doubles(2, 5, 6)), MergeSharedInputs())
    assert graph_text(done.original).count("linear") == 3
    text = graph_text(done.program)
    assert text.count("linear") == 1
    assert "split" in text


def test_outputs_that_would_be_copied_are_refused_with_the_reason() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 4).double(), nn.Linear(6, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.a(x)) * torch.tanh(self.b(x))

    done = run_rules(program_of(Gates(), doubles(2, 6)), MergeSharedInputs())
    assert graph_text(done.program).count("linear") == 2
    assert any("would have to be copied" in r.message for r in done.outcome.remarks if r.kind == "missed")


class Inception(nn.Module):
    """Pointwise branches of one value, each with its activation; one goes on through a padded convolution."""

    def __init__(self, stride: int = 1, last: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, c, 1, stride).double() for c in (3, 5))
        self.c = nn.Conv2d(5, 2, 3, padding=1).double()
        self.first, self.last = nn.ReLU(), last or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(self.a(x)), self.c(self.last(self.b(x)))], 1)


@settings(max_examples=10, deadline=None)
@given(stride=st.integers(1, 2), size=st.integers(3, 7))
def test_pointwise_convolutions(stride: int, size: int) -> None:
    x = doubles(2, 4, size, size)
    done = run_rules(program_of(Inception(stride), x), MergeSharedInputs())
    text = graph_text(done.program)
    assert text.count("conv1x1") == 1
    assert text.count("relu") == 1
    assert max_rel(done.original, done.program, [x]) <= 1e-13


def test_different_activations_are_refused_with_the_reason() -> None:
    done = run_rules(program_of(Inception(last=nn.SiLU()), doubles(2, 4, 6, 6)), MergeSharedInputs())
    assert graph_text(done.program).count("conv1x1") == 2
    assert any("would have to be copied" in m for m in done.missed("merge-shared-inputs"))


def test_a_shared_layer_keeps_its_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) @ self.a(x).transpose(0, 1)

    x = doubles(3, 6)
    done = run_rules(program_of(Twice(), x), MergeSharedInputs())
    assert max_rel(done.original, done.program, [x]) <= 1e-13


def test_a_wrong_weight_is_caught() -> None:
    assert_evidence_bites(program_of(Attention(), doubles(2, 5, 6)), MergeSharedInputs())
