"""A chain of linear maps of one sample becomes one linear layer when that is no dearer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.compose_maps import ComposeMaps
from support.helpers import (
    EXACT,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_verification_bites,
    doubles,
    graph_text,
    program_of,
    run_rules,
    vector,
)

RULES = [ComposeMaps()]
Forward = Callable[..., Tensor]


def _votes(m: Any, x: Tensor) -> Tensor:
    """The first iteration of routing: votes (N, J, I, D), summed by a coupling (J, 1, I)."""
    votes = torch.matmul(x.transpose(0, 1), m.w).unflatten(2, (3, 5)).permute(1, 2, 0, 3)
    return torch.matmul(m.c, votes).squeeze(2).tanh()


def _model() -> nn.Module:
    return Lambda(_votes, w=vector(6, 4, 15), c=vector(3, 1, 6)).double()


def test_the_graph_before_and_after() -> None:
    fused = apply_exactly(_model(), doubles(2, 6, 4), rules=RULES, bound=EXACT)
    before = "tanh(squeeze(matmul(w, permute(unflatten(matmul(transpose(x, 0, 1), w), 2, [3, 5]), [1, 2, 0, 3])), 2))"
    assert graph_text(fused.original) == before
    assert fused.text == "tanh(squeeze(unflatten(linear(flatten(x, 1)), 1, [3, 1, 5]), 2))"
    assert fused.passed("compose-maps") == ["2 linear maps became one"]
    assert sum(r.macs for r in fused.outcome.remarks) == -3 * 6 * 5


CHAINS: dict[str, tuple[Forward, tuple[int, ...]]] = {
    "coupling as a product": (
        lambda m, x: (m.c * (x.transpose(0, 1).matmul(m.w)).unflatten(2, (3, 5)).transpose(0, 1)).sum(1),
        (2, 6, 4),
    ),
    "the mean": (lambda m, x: x.transpose(0, 1).matmul(m.w).mean(0), (2, 6, 4)),
    "the mean, kept": (lambda m, x: x.transpose(0, 1).matmul(m.w).mean([0], keepdim=True), (2, 6, 4)),
    "over a number": (lambda m, x: (x.transpose(0, 1).matmul(m.w) / 3).sum([0]), (2, 6, 4)),
    "all of a sample": (lambda m, x: x.transpose(0, 1).matmul(m.w).sum((0, 2)), (2, 6, 4)),
    "all of a sample, kept": (lambda m, x: x.transpose(0, 1).matmul(m.w).sum((0, 2), keepdim=True), (2, 6, 4)),
    "shifts": (lambda m, x: (1 - x.transpose(0, 1).matmul(m.w) + m.k).sum([0]), (2, 6, 4)),
}
WEIGHTS = {"w": (6, 4, 15), "c": (6, 3, 1), "k": (15,)}


@pytest.mark.parametrize("name", CHAINS)
def test_every_spelling_becomes_one_layer(name: str) -> None:
    forward, shape = CHAINS[name]
    model = Lambda(lambda m, x: forward(m, x).tanh(), **{k: vector(*v) for k, v in WEIGHTS.items()}).double()
    fused = apply_exactly(model, doubles(*shape), rules=RULES, bound=EXACT)
    assert fused.passed("compose-maps") == ["2 linear maps became one"]
    assert "linear" in fused.text and "matmul" not in fused.text


@given(
    order=st.permutations([0, 1, 2]),
    last=st.sampled_from(["sum", "mean", "matmul"]),
    batch_last=st.booleans(),
    bias=st.booleans(),
)
def test_any_order_of_axes(order: list[int], last: str, batch_last: bool, bias: bool) -> None:
    """The batch may stand anywhere in between; what comes out has the same shape as before."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = (x.movedim(0, -2) if batch_last else x.transpose(0, 1)).contiguous()  # (3, N, 4)
        y = torch.matmul(y, m.w)
        y = y + 0 if not bias else torch.nn.functional.linear(y, m.eye, m.t)
        y = y.permute(order)
        axis = order.index(0)
        if last == "matmul":
            return torch.matmul(y.movedim(axis, 2), m.row).squeeze(-1).tanh()
        return (y.sum([axis]) if last == "sum" else y.mean([axis])).tanh()

    weights = {"w": vector(3, 4, 5), "row": vector(3, 1), "t": vector(5), "eye": nn.Parameter(torch.eye(5).double())}
    fused = apply_exactly(Lambda(forward, **weights).double(), doubles(2, 3, 4), rules=RULES, bound=EXACT)
    assert "linear" in fused.text and "matmul" not in fused.text


def test_refused_when_it_would_cost_more() -> None:
    model = Lambda(lambda m, x: m.v.matmul(x.matmul(m.u)), u=vector(4, 5), v=vector(6, 6)).double()
    fused = apply_exactly(model, doubles(2, 6, 4), rules=RULES, bound=EXACT)
    assert fused.missed("compose-maps") == ["as one layer it would cost 720 multiply-accumulates instead of 300"]


def test_refused_when_it_would_store_more() -> None:
    """A layer that parts share is smaller than one layer over all parts, even where that costs no more."""
    model = Lambda(lambda m, x: m.v.matmul(m.a(x)), a=nn.Linear(4, 5, bias=False), v=vector(1, 6)).double()
    fused = apply_exactly(model, doubles(2, 6, 4), rules=RULES, bound=EXACT)
    assert fused.missed("compose-maps") == ["as one layer it would store 120 values instead of 26"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.v.matmul(torch.matmul(x.transpose(0, 1), m.w).relu().transpose(0, 1)),
        lambda m, x: (y := torch.matmul(x.transpose(0, 1), m.w)).sum(0) + y.amax(),
        lambda m, x: torch.matmul(x, x.transpose(1, 2)).sum(1),
        lambda m, x: torch.matmul(x.transpose(0, 1), m.w).sum([0, 1]),
        lambda m, x: torch.matmul(x.transpose(0, 1), m.w).reshape(-1, 15).sum(0),
        lambda m, x: torch.matmul(x.transpose(0, 1), m.w).sum(),
        lambda m, x: x.mean(2).mean(1),
        lambda m, x: m.b(m.a(x)),
        lambda m, x: m.a(x).mean(1),
        lambda m, x: m.a(x.mean(1)),
    ],
    ids=[
        "a ReLU between",
        "read twice",
        "a product of data",
        "a sum over the batch",
        "the batch mixed with parts",
        "a sum over everything",
        "sums alone",
        "layers in a row",
        "the mean of shared layers",
        "a layer behind the mean",
    ],
)
def test_silent_about_what_is_no_chain(forward: Forward) -> None:
    children = {"w": vector(6, 4, 15), "v": vector(1, 6), "a": nn.Linear(4, 1), "b": nn.Linear(1, 1)}
    fused = apply_exactly(Lambda(forward, **children).double(), doubles(2, 6, 4), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


def test_silent_about_a_fixed_batch() -> None:
    fused = run_rules(program_of(_model(), doubles(2, 6, 4), dynamic=()), *RULES)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


def test_a_reshape_that_scatters_the_batch_stays() -> None:
    """(N, 6) -> (6, N) without moving anything: an axis has the size of the batch and does not hold its samples."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.matmul(x.matmul(m.u).reshape(6, -1, 4), m.w).sum(0).tanh()

    model = Lambda(forward, u=vector(4, 4), w=vector(6, 4, 15)).double()
    fused = apply_exactly(model, doubles(2, 6, 4), rules=RULES, bound=EXACT)
    assert fused.text == "tanh(linear(flatten(permute(reshape(matmul(x, w), [6, -1, 4]), [1, 0, 2]), 1)))"


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 6, 4)
    fused = apply_exactly(_model(), x, rules=RULES, bound=EXACT)
    assert_verification_bites(fused, [x], bound=EXACT)
    assert_evidence_bites(fused.original, ComposeMaps())


# ---- where the map begins ------------------------------------------------------------------------------------------


def test_a_vector_is_not_flattened() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return x.unflatten(1, (6, 4)).transpose(0, 1).matmul(m.w).sum(0).tanh()

    fused = apply_exactly(Lambda(forward, w=vector(6, 4, 15)).double(), doubles(2, 24), rules=RULES, bound=EXACT)
    assert fused.text == "tanh(linear(x))"


def test_a_convolution_before_it_stays_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(x).flatten(1).unflatten(1, (6, 4)).transpose(0, 1).matmul(m.w).sum(0).tanh()

    model = Lambda(forward, w=vector(6, 4, 15), c=nn.Conv2d(24, 24, 1)).double()
    fused = apply_exactly(model, doubles(2, 24, 1, 1), rules=RULES, bound=EXACT)
    assert fused.text == "tanh(linear(flatten(conv1x1(x), 1)))"
