"""merge-shared-inputs: linear layers on one value become one layer and a split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.merge_shared_inputs import MergeSharedInputs
from support.helpers import (
    Lambda,
    assert_evidence_bites,
    doubles,
    fingerprint,
    graph_text,
    max_rel,
    program_of,
    run_rules,
)


class Attention(nn.Module):
    """One head of attention with separate query, key and value layers."""

    def __init__(self, width: int = 6, head: int = 4, biases: tuple[bool, bool, bool] = (True, False, True)) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, head, bias=b).double() for b in biases)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return torch.softmax(q @ k.transpose(1, 2) * 0.5, -1) @ v


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


def two_layers(forward: Any) -> Any:
    """What becomes of two linear layers `a` and `b` of 6 values."""
    layers = {name: nn.Linear(6, 6).double() for name in "ab"}
    return run_rules(program_of(Lambda(forward, **layers), doubles(4, 6), dynamic=()), MergeSharedInputs())


def test_an_output_that_is_read_by_a_product_and_as_it_is_would_be_copied() -> None:
    done = two_layers(lambda m, x: ((q := m.a(x)).exp(), q @ m.b(x).transpose(0, 1)))
    assert graph_text(done.program).count("linear") == 2
    assert any("would have to be copied" in r.message for r in done.outcome.remarks if r.kind == "missed")


def test_a_layer_whose_weight_is_the_value_stays_beside_those_that_read_it() -> None:
    done = two_layers(lambda m, x: F.linear(x.exp(), x) @ m.a(x) @ m.b(x).transpose(0, 1))
    assert graph_text(done.program).count("linear") == 2
    assert max_rel(done.original, done.program, [doubles(4, 6, seed=2)]) <= 1e-13


class Inception(nn.Module):
    """Pointwise branches of one value, each with its activation; one goes on through a padded convolution."""

    def __init__(self, stride: int = 1, last: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, c, 1, stride).double() for c in (3, 5))
        self.c = nn.Conv2d(5, 2, 3, padding=1).double()
        self.first, self.last = nn.ReLU(), last or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(self.a(x)), self.c(self.last(self.b(x)))], 1)


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


def sides(a: nn.Module, b: nn.Module, after: Any = torch.relu) -> nn.Module:
    """Two layers of one value, each with `after` (or one of two functions) behind it."""
    first, last = after if isinstance(after, tuple) else (after, after)
    return Lambda(lambda m, x: (first(m.a(x)), last(m.b(x))), a=a, b=b).double()


IMAGE = doubles(2, 4, 6, 6)
UNLIKE: dict[str, tuple[nn.Module, Tensor]] = {
    "kernels": (sides(nn.Conv2d(4, 3, 3), nn.Conv2d(4, 3, 3)), IMAGE),
    "groups": (sides(nn.Conv2d(4, 2, 1, groups=2), nn.Conv2d(4, 2, 1, groups=2)), IMAGE),
    "strides": (sides(nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1, stride=2)), IMAGE),
    "a kernel beside a pointwise layer": (sides(nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3)), IMAGE),
    "kinds": (sides(nn.Linear(4, 3), nn.Conv1d(4, 3, 1), lambda y: y.transpose(1, 2)), doubles(2, 4, 4)),
    "a value that is a weight": (
        Lambda(lambda m, x: F.linear(m.a(x) @ m.a(x).transpose(0, 1), x.transpose(0, 1)), a=nn.Linear(4, 5)).double(),
        doubles(3, 4),
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_layers_that_are_not_alike_are_left_alone_in_silence(name: str) -> None:
    model, x = UNLIKE[name]
    program = program_of(model, x)
    done = run_rules(program, MergeSharedInputs())
    assert fingerprint(done.program) == fingerprint(program)
    assert not done.outcome.remarks


@pytest.mark.parametrize(
    "after",
    [
        (torch.relu, lambda y: torch.relu(y) + y),
        (torch.relu, torch.exp),
        (lambda y: F.leaky_relu(y, 0.1), lambda y: F.leaky_relu(y, 0.2)),
        (lambda y: F.hardtanh(y, -1.0, 1.0), lambda y: F.hardtanh(y, -1.0, 2.0)),
        (F.gelu, lambda y: F.gelu(y, approximate="tanh")),
        (lambda y: y, lambda y: y),
    ],
    ids=["read twice", "no activation", "slopes", "upper ends", "formulas", "outputs"],
)
def test_branches_whose_activations_differ_are_refused_with_the_reason(after: Any) -> None:
    program = program_of(sides(nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1), after), IMAGE)
    done = run_rules(program, MergeSharedInputs())
    assert fingerprint(done.program) == fingerprint(program)
    [message] = done.missed("merge-shared-inputs")
    assert message == "not joined with the layers beside it: the output of 'a' would have to be copied"


def test_one_use_that_is_no_rearrangement_is_enough_to_refuse() -> None:
    """In whatever order the uses come."""
    for uses in ([torch.exp, lambda y: y @ y.transpose(1, 2)], [lambda y: y @ y.transpose(1, 2), torch.exp]):
        model = Lambda(lambda m, x, u=uses: (m.a(x) * 2, *(f(m.b(x)) for f in u)), a=nn.Linear(6, 4), b=nn.Linear(6, 4))
        done = run_rules(program_of(model.double(), doubles(2, 5, 6)), MergeSharedInputs())
        assert not done.passed("merge-shared-inputs")


def test_weights_of_different_dtypes_are_refused_with_the_reason() -> None:
    program = program_of(Attention(), doubles(2, 5, 6))
    name = next(n for n in program.constants if n.endswith("k.weight"))
    program.constants[name] = replace(program.constants[name], dtype=torch.float32)
    done = run_rules(program, MergeSharedInputs())
    assert fingerprint(done.program) == fingerprint(program)
    assert done.missed("merge-shared-inputs") == ["the layers that read its input have weights of different dtypes"]


def test_the_first_layer_speaks_for_all() -> None:
    done = run_rules(program_of(Attention(), doubles(2, 5, 6)), MergeSharedInputs())
    [remark] = done.outcome.remarks
    assert (remark.module, remark.node, remark.message) == ("q", "linear", "3 layers on one value became one")


class Tied(nn.Module):
    """The product of two linear layers on one value, which share a weight: as one layer, or as two that are tied."""

    def __init__(self, once: bool, others: int = 0) -> None:
        super().__init__()
        self.a = nn.Linear(6, 4).double()
        self.b = self.a if once else nn.Linear(6, 4).double()
        self.b.weight = self.a.weight
        self.others = nn.ModuleList(nn.Linear(6, 4).double() for _ in range(others))

    def forward(self, x: Tensor) -> Tensor:
        product = self.a(x) @ self.b(x).transpose(0, 1)
        for layer in self.others:
            product = product @ layer(x) @ self.a(x).transpose(0, 1)
        return product


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("others", [0, 1])
def test_layers_that_share_a_weight_are_left_alone_in_silence(once: bool, others: int) -> None:
    """One layer of both would hold the weight twice. With a third layer beside them none of them is joined."""
    x = doubles(3, 6)
    program = program_of(Tied(once, others), x)
    done = run_rules(program, MergeSharedInputs())
    assert fingerprint(done.program) == fingerprint(program)
    assert not done.outcome.remarks
    assert done.program.parameters() == program.parameters() == sum(p.numel() for p in Tied(once, others).parameters())


def test_a_wrong_weight_is_caught() -> None:
    assert_evidence_bites(program_of(Attention(), doubles(2, 5, 6)), MergeSharedInputs())
