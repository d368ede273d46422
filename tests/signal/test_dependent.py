"""Moments of operators whose operands depend on one another: sums exactly, others on random tensors, and what is told
where neither is possible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import analyze, init
from support.moments import PARTS, Of, agreed, image, of_function

SMALL = (16, 256, 4, 4)
X2 = PARTS.second


def tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H*W, C)."""
    return x.flatten(2).transpose(1, 2)


def spelled_norm(x: Tensor) -> Tensor:
    d = x - x.mean(1, keepdim=True)
    return d / torch.sqrt(d.pow(2).mean(1, keepdim=True) + 1e-5)


def by_var_mean(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


EXACT: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "x + x": (lambda x: x + x, 4 * X2),
    "x - x": (lambda x: x - x, 0),
    "a copy": (lambda x: x.clone() + x.contiguous(), 4 * X2),
    "the same call twice": (lambda x: x.transpose(2, 3) + x.transpose(2, 3), 4 * X2),
    "alpha": (lambda x: torch.add(x, x, alpha=-0.5), 0.25 * X2),
    "alpha of zero": (lambda x: torch.add(x, x, alpha=0), X2),
    "of halves": (lambda x: 0.5 * (x + 1) + 0.5 * (x - 1), X2),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_sum_of_a_value_with_itself_is_exact(name: str) -> None:
    function, second = EXACT[name]
    power, found = of_function(function)
    assert power.second == pytest.approx(second, rel=1e-4, abs=1e-12)
    assert not found.drawn and not found.dependent


SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "long skip": lambda x, y: x + (x + y),
    "difference": lambda x, y: (x + y) * 0.5 - y,
    "of functions": lambda x, y: x.relu() + (x + y.tanh()) - 0.5 * y,
    "with numbers": lambda x, y: (x + y + 1) * 2 - x,
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_of_sums_are_taken_together(name: str) -> None:
    _, found = of_function(SUMS[name], count=2)
    assert not found.drawn and not found.dependent
    agreed(Of(SUMS[name]).double(), image(0), image(1), within=0.02)  # two images of one draw are correlated a little


ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "x*x": lambda x: x * x,
    "silu, spelled": lambda x: x * torch.sigmoid(x),
    "x - relu(x)": lambda x: x - F.relu(x),
    "stack": lambda x: torch.stack([x, x]).sum(0),
    "stack of functions": lambda x: torch.stack([x, x.relu(), 2 * x], 1).mean(1),
    "cat": lambda x: torch.cat([x, x], 2).mean(2),
    "lerp": lambda x: torch.lerp(x, x.relu(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.tanh()),
    "gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "centred": lambda x: x - x.mean((2, 3), keepdim=True),
    "pooling beside": lambda x: F.avg_pool2d(x, 3, 1, 1) - x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "mask": lambda x: (x > 0).to(x.dtype) * x,
    "repeated": lambda x: F.interpolate(x, scale_factor=2).mean((2, 3)),
    "expanded": lambda x: x[:, :, :1, :1].expand(-1, -1, 4, 4).mean((2, 3)),
    "norm": spelled_norm,
    "var_mean": by_var_mean,
    "rms": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "largest": lambda x: x / x.abs().amax((1, 2, 3), keepdim=True),
}


@pytest.mark.parametrize("name", ONE)
def test_operands_that_are_functions_of_one_value(name: str) -> None:
    within = {"gate": 0.03, "largest": 0.02}.get(name, 0.01)  # fourth powers; sixteen largest entries
    agreed(Of(ONE[name]).double(), image(0, shape=SMALL), within=within)


TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "(x + y)*x": lambda x, y: (x + y) * x,
    "where": lambda x, y: torch.where(x > y, x, y),
    "lerp": lambda x, y: torch.lerp(x, y, x.sigmoid()),
    "parts of x": lambda x, y: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid() + y.chunk(2, 1)[0],
}


@pytest.mark.parametrize("name", TWO)
def test_operands_that_share_a_value(name: str) -> None:
    within = 0.03 if name == "(x + y)*x" else 0.02  # fourth powers; two images of one draw are correlated a little
    agreed(Of(TWO[name]).double(), image(0), image(1), within=within)


def test_attention_of_tokens_with_themselves() -> None:
    """No layer makes queries, keys and values: each token attends to itself most."""

    def attend(x: Tensor) -> Tensor:
        t = tokens(x)
        return torch.softmax(t @ t.transpose(1, 2) / 8, -1) @ t

    agreed(Of(attend).double(), image(0, shape=(16, 64, 4, 4)), within=0.03)


def test_parts_of_a_layer_are_independent_however_they_are_packed() -> None:
    """Nothing is drawn together, and nothing is told: queries and keys have weights of their own."""

    def attend(layer: nn.Module, x: Tensor) -> Tensor:
        q, k, v = layer(tokens(x)).unflatten(-1, (2, 3, 4)).unbind(3)
        return q * k.sigmoid() + v

    _, found = of_function(attend, nn.Linear(8, 24))
    assert not found.dependent


def test_a_branch_with_random_weights_is_uncorrelated() -> None:
    layer = nn.Linear(8, 8, bias=False)
    power, found = of_function(lambda f, x: tokens(x) + f(tokens(x)), layer)
    own = float(layer.weight.square().sum()) / 8
    assert power.second == pytest.approx(X2 * (1 + own), rel=0.1)  # the sums of eight weights
    assert not found.dependent and not found.drawn


@pytest.mark.parametrize("kind", ["identity", "blur", "depthwise"])
def test_a_branch_whose_weights_are_no_random_numbers(kind: str) -> None:
    """x + W x is 2x where W is an identity, and x - W x what a blur takes away; both are run as they are."""
    groups = 1 if kind == "identity" else SMALL[1]
    layer = nn.Conv2d(SMALL[1], SMALL[1], 3, padding=1, groups=groups, bias=False)
    with torch.no_grad():
        if kind == "identity":
            nn.init.dirac_(layer.weight)
        elif kind == "blur":
            layer.weight.fill_(1 / 9)
        else:
            layer.weight[:, 0, 1, 1] += 1
    sign = -1 if kind == "blur" else 1
    agreed(Of(lambda f, x: x + sign * f(x), layer).double(), image(0, shape=SMALL))


def test_what_can_be_neither_summed_nor_drawn_is_told() -> None:
    """Two values that one weight makes are not independent, and layers are not run on random tensors."""
    layer = nn.Linear(16, 16)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            y: Tensor = self.layer(a.relu()) - self.layer(b.relu())
            return y

    a, b = torch.randn(4, 16), torch.randn(4, 16)
    (note,) = analyze(Twice(), a, b, what="moments")["moments"].notes
    assert "depends on one another" in note and "(add)" in note
    made = init(Twice(), a, b, method="autoinit", samples=0)
    assert any("depends on one another" in n for n in made.notes)
    alone = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    assert analyze(alone, a, what="moments")["moments"].notes == ()


def _channels_to_channels(x: Tensor, q: nn.Module, k: nn.Module) -> Tensor:
    made: Tensor = q(x).transpose(1, 2) @ k(x)
    return made


PRODUCTS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "between channels": (_channels_to_channels, True),
    "a gram matrix": (lambda x, q, k: (y := q(x)).transpose(1, 2) @ y, True),
    "between tokens": (lambda x, q, k: q(x) @ k(x).transpose(1, 2), False),
    "shares": (lambda x, q, k: q(x).softmax(-1) @ x.transpose(1, 2) @ k(x), False),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_over_places_of_what_both_are_made_of_is_told(name: str) -> None:
    """Gram matrices have (1 + N/d) times the power of independent places: here 1 + 100/16."""
    function, told = PRODUCTS[name]
    q, k = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
    net = Of(lambda q, k, x: function(x, q, k), q, k)
    table = analyze(net, torch.randn(2, 100, 16), what="moments", batch=32)["moments"]
    assert any("(matmul) read depends on one another" in n for n in table.notes) == told
    if name == "between channels":
        assert table.rows[-1][3] / table.rows[-1][4] == pytest.approx(1 + 100 / 16, rel=0.3)


def test_the_error_of_what_is_drawn_is_told() -> None:
    """A gate of two channels by the mean of eight samples: two thousand numbers or so are not enough for 1 %."""
    net = Of(lambda a, b, x: b((y := a(x)) * y.mean(0)), nn.Linear(2, 2), nn.Linear(2, 2))
    table = analyze(net, torch.randn(8, 2), what="moments", batch=8)["moments"]
    drawn = table.detail["drawn"]
    assert {d["call"] for d in drawn} == {"mean", "mul"} and all(0 < d["error"] < 0.3 for d in drawn)
    (note,) = table.notes
    worst = max(2 * d["error"] for d in drawn)
    assert "two standard errors" in note and f"by {worst:.1%}" in note


@pytest.mark.parametrize("norm", [spelled_norm, by_var_mean])
def test_a_norm_that_is_spelled_out_is_known_behind_what_is_not(norm: Callable[[Tensor], Tensor]) -> None:
    power, found = of_function(lambda x: norm((x - 9).log()))
    assert any(v.power is None for v in found.values.values())
    assert power.second == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_that_reads_what_its_own_weight_made_is_named(turned: bool) -> None:
    """As the second half of an autoencoder with one matrix: E y^2 is a third larger than predicted."""
    layer = nn.Linear(64, 64, bias=False)

    def twice(read: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(read(x).relu(), read.weight.t() if turned else read.weight)

    (note,) = analyze(Of(twice, layer), torch.randn(4, 64), what="moments")["moments"].notes
    assert "'linear_1' (linear)" in note and "as if it did not" in note


@pytest.mark.parametrize("name", ["max", "topk", "var_mean"])
def test_one_of_several_results_over_places_that_depend_on_one_another_is_predicted_and_named(name: str) -> None:
    """As the largest of the logits of all tokens, which a second head gives."""
    reduced = {
        "max": lambda y: y.max(1)[0],
        "topk": lambda y: y.topk(2, 1)[0],
        "var_mean": lambda y: torch.var_mean(y, 1)[0],
    }[name]
    model = Of(lambda read, x: reduced(read(x.cumsum(1))) + 1, nn.Linear(32, 32))
    table = analyze(model, torch.randn(4, 12, 32), what="moments")["moments"]
    assert table.facts["unknown"] == 0
    assert any("depends on one another" in n for n in table.notes)
