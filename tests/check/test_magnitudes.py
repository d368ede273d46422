"""What each operator makes of the sizes of its operands, and how many roundings a region counts for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.check.rounding_bound import EPS, accumulation_length, magnitudes
from support.helpers import Lambda, doubles, program_of
from support.magnitudes import Forwards, captured, of, param, size_of

X, Y = doubles(2, 4, 3, 3, seed=1), doubles(2, 4, 3, 3, seed=2)
W = doubles(4, 1, 1, seed=3)
N = torch.tensor([-2, 3, 0])


# ---- sums and products -----------------------------------------------------------------------------------------------

LINEAR, CONV, UP = nn.Linear(3, 5).double(), nn.Conv2d(4, 6, 2, groups=2).double(), nn.ConvTranspose2d(4, 2, 2).double()


def positive(layer: nn.Module) -> nn.Module:
    made = type(layer).__new__(type(layer))
    made.__dict__ = dict(layer.__dict__)
    made._parameters = {k: param(p.detach().abs()) for k, p in layer.named_parameters()}
    return made


SUMS: dict[str, tuple[Callable[..., Any], Callable[[], Tensor]]] = {
    "linear": (lambda m, x, y: m.p(x), lambda: positive(LINEAR)(X.abs())),
    "convolution": (lambda m, x, y: m.c(x), lambda: positive(CONV)(X.abs())),
    "transposed": (lambda m, x, y: m.u(x), lambda: positive(UP)(X.abs())),
    "product of matrices": (lambda m, x, y: x @ y, lambda: X.abs() @ Y.abs()),
    "sum": (lambda m, x, y: x + y, lambda: X.abs() + Y.abs()),
    "difference": (lambda m, x, y: x - y, lambda: X.abs() + Y.abs()),
    "scaled": (lambda m, x, y: torch.add(x, y, alpha=-2), lambda: X.abs() + 2 * Y.abs()),
    "scaled down": (lambda m, x, y: torch.sub(x, y, alpha=0.5), lambda: X.abs() + 0.5 * Y.abs()),
    "a number on top": (lambda m, x, y: x + -3.0, lambda: X.abs() + 3),
    "from a number": (lambda m, x, y: 5.0 - x, lambda: X.abs() + 5),
    "whole numbers on top": (lambda m, x, y: x + torch.tensor([-2, 3, 0]), lambda: X.abs() + N.abs()),
    "a weight": (lambda m, x, y: x * m.w, lambda: X.abs() * W.abs()),
    "a number": (lambda m, x, y: x * -3.0, lambda: X.abs() * 3),
    "two inputs": (lambda m, x, y: x * y, lambda: X.abs() * Y.abs()),
    "by a number": (lambda m, x, y: x / -4.0, lambda: X.abs() / 4),
    "by an input": (lambda m, x, y: x / y, lambda: X.abs() / Y.abs()),
    "by a weight": (lambda m, x, y: x / m.w, lambda: X.abs() / W.abs()),
    "a sum by a weight": (lambda m, x, y: (x - y) / m.w, lambda: (X.abs() + Y.abs()) / W.abs()),
    "a sum by whole numbers": (lambda m, x, y: (x - y) / torch.tensor(-2), lambda: (X.abs() + Y.abs()) / 2),
    "a sum times a weight": (lambda m, x, y: (x - y) * m.w, lambda: (X.abs() + Y.abs()) * W.abs()),
    "a weight times a sum": (lambda m, x, y: m.w * (x - y), lambda: (X.abs() + Y.abs()) * W.abs()),
    "a mask": (lambda m, x, y: (x - y) * (x > 0), lambda: (X > 0) * ((X - Y).abs() + X.abs() + Y.abs())),
    "joined": (lambda m, x, y: torch.cat([x, y], 1), lambda: torch.cat([X, Y], 1).abs()),
    "a mean": (lambda m, x, y: x.mean((2, 3)), lambda: X.abs().mean((2, 3))),
    "a sum over an axis": (lambda m, x, y: x.sum(1), lambda: X.abs().sum(1)),
    "a pool": (lambda m, x, y: F.avg_pool2d(x, 2), lambda: F.avg_pool2d(X.abs(), 2)),
    "the largest of a map": (lambda m, x, y: F.adaptive_max_pool2d(x, 1), lambda: F.adaptive_max_pool2d(X.abs(), 1)),
    "zeros around": (lambda m, x, y: F.pad(x, (1, 0)), lambda: F.pad(X.abs(), (1, 0))),
    "a frame": (lambda m, x, y: F.pad(x, (1, 0), value=-7.0), lambda: F.pad(X.abs(), (1, 0), value=7.0)),
    "a part": (lambda m, x, y: x[:, 1:3], X[:, 1:3].abs),
    "a piece": (lambda m, x, y: x.split(2, 1)[1], X[:, 2:].abs),
    "casts": (lambda m, x, y: m.p(x.half().bfloat16().float().double()), lambda: positive(LINEAR)(X.abs())),
    "a cast": (lambda m, x, y: x.half(), X.abs),
}


PARTS = {"p": LINEAR, "c": CONV, "u": UP, "w": param(W)}
sums = captured({name: f for name, (f, _) in SUMS.items()}, X, Y, **PARTS)


@pytest.mark.parametrize("name", SUMS)
def test_sizes_go_where_the_values_go(name: str) -> None:
    torch.testing.assert_close(size_of(sums(), SUMS, name, X, Y), SUMS[name][1]().detach())


def square(m: Any, x: Tensor, y: Tensor) -> Tensor:
    z = x + y
    return z * z


PRODUCTS: Forwards = {"product": lambda m, x, y: (x + y) * (x - y), "square": square}
products = captured(PRODUCTS, X, Y)


def test_the_product_of_two_sums_is_bounded_by_each_value_times_the_others_size() -> None:
    """And by the product of both errors, which counts where both are large."""
    size = X.abs() + Y.abs()
    unit = EPS * 3 * 16
    expected = (X + Y).abs() * size + (X - Y).abs() * size + unit * size * size
    torch.testing.assert_close(size_of(products(), PRODUCTS, "product", X, Y), expected, rtol=1e-15, atol=0)
    large = size_of(products(), PRODUCTS, "product", 1e20 + 0 * X, -1e20 + 0 * Y)
    torch.testing.assert_close(large, 2e20 * 2e20 + unit * 4e40 + 0 * X, rtol=1e-14, atol=0)


def test_a_value_times_itself_is_the_product_of_two() -> None:
    size, value = X.abs() + Y.abs(), (X + Y).abs()
    found = size_of(products(), PRODUCTS, "square", X, Y)
    torch.testing.assert_close(found, 2 * value * size + EPS * 32 * size * size, rtol=1e-15, atol=0)


# ---- activations -----------------------------------------------------------------------------------------------------

FACTORS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda size, out: size),
    "elu": (F.elu, lambda size, out: 2 * size),
    "softplus": (F.softplus, lambda size, out: size + 1),
    "clamp": (lambda x: x.clamp(0.5, 3), torch.maximum),
    "clamp_min": (lambda x: torch.clamp_min(x, 9), torch.maximum),
    "clamp_max": (lambda x: torch.clamp_max(x, -9), torch.maximum),
    "hardtanh": (lambda x: F.hardtanh(x, 5, 6), torch.maximum),
    "clamp by tensors": (
        lambda x: torch.clamp(x, torch.tensor(-9.0).double(), torch.tensor(-8.0).double()),
        torch.maximum,
    ),
    "an unknown operator": (torch.cos, lambda size, out: size.max() + out),
}


def behind(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda m, x, y: f(x - y)


factors = captured({name: behind(f) for name, (f, _) in FACTORS.items()}, X, Y)


@pytest.mark.parametrize("name", FACTORS)
def test_an_activation_grows_its_operands_size_by_its_factor(name: str) -> None:
    f, expected = FACTORS[name]
    found = size_of(factors(), FACTORS, name, X, Y)
    torch.testing.assert_close(found, expected(X.abs() + Y.abs(), f(X - Y).abs()))


SLOPES: Forwards = {
    "of a channel": lambda m, x, y: F.prelu(x, m.slope),
    "of a column": lambda m, x, y: F.prelu(x[:, :, 0, 0], m.slope),
    "of a number": lambda m, x, y: F.prelu(x[0, 0, 0], m.one),
}
STEEP = torch.tensor([3.0, 1.0, 2.0, 1.0]).double()
SIZES = {"of a channel": X.abs() * STEEP.reshape(4, 1, 1), "of a column": X[:, :, 0, 0].abs() * STEEP}
SIZES["of a number"] = X[0, 0, 0].abs() * 3
slopes = captured(SLOPES, X, Y, slope=param(torch.tensor([-3.0, 0.5, 2.0, -0.25])), one=param(torch.tensor([-3.0])))


@pytest.mark.parametrize("name", SLOPES)
def test_a_slope_steeper_than_one_counts_for_its_channel(name: str) -> None:
    torch.testing.assert_close(size_of(slopes(), SLOPES, name, X, Y), SIZES[name])


BELLS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    "sigmoid": (torch.sigmoid, lambda x: math.exp(-x) / (1 + math.exp(-x)) ** 2),
    "tanh": (torch.tanh, lambda x: 1 - math.tanh(x) ** 2),
    "erf": (torch.erf, lambda x: 2 / math.sqrt(math.pi) * math.exp(-x * x)),
    "hardsigmoid": (F.hardsigmoid, lambda x: 1 / 6 if x <= 3 else 0.0),
}


def added(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda m, x, y: f(x + y)


ONE = torch.ones(1, 1, dtype=torch.float64)
bells = captured({name: added(f) for name, (f, _) in BELLS.items()}, ONE, ONE)


@pytest.mark.parametrize("name", BELLS)
@pytest.mark.parametrize("x, y", [(1.5, -0.5), (-1.0, -2.5), (3.0, 1.0), (1e12, 3.0 - 1e12), (1e17, -1e17)])
def test_a_gate_is_bounded_by_its_slope_and_its_value(name: str, x: float, y: float) -> None:
    """The slope is that of the point within the error that lies nearest to zero."""
    f, slope = BELLS[name]
    found = size_of(bells(), BELLS, name, x * ONE, y * ONE)
    size, value = abs(x) + abs(y), abs(x + y)
    nearest = max(value - EPS * 32 * size, 0.0)
    assert float(found) == pytest.approx(slope(nearest) * size + float(f((x + y) * ONE).abs()), rel=1e-12)


GATED: Forwards = {f"axis {dim}": lambda m, x, y, dim=dim: F.glu(x - y, dim) for dim in (1, -4)}
gated = captured(GATED, X, Y)


@pytest.mark.parametrize(("name", "dim"), [*zip(GATED, (1, -4), strict=True)])
@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_a_gated_unit_is_bounded_as_the_product_of_its_halves(name: str, dim: int, factor: float) -> None:
    a, b = X * factor, Y * factor
    found = size_of(gated(), GATED, name, a, b)
    (u, g), (left, right) = (a - b).chunk(2, dim), (a.abs() + b.abs()).chunk(2, dim)
    slope = torch.sigmoid(g) * torch.sigmoid(-g)
    torch.testing.assert_close(found, u.abs() * (slope * right + torch.sigmoid(g)) + torch.sigmoid(g) * left)


def test_what_is_made_of_nothing_counts_as_one_on_top_of_itself() -> None:
    program = program_of(Lambda(lambda m, x: (torch.linspace(0.0, 3.0, 3) + x,)), X)
    region, _, found = of(program, 0, X)
    [line] = [n for n in region if n.name.startswith("linspace")]
    torch.testing.assert_close(found[line], torch.tensor([1.0, 2.5, 4.0]).double())


# ---- kinds of values -------------------------------------------------------------------------------------------------


def test_weights_are_read_and_not_changed() -> None:
    """In double precision they are read where they lie."""
    program = sums()
    before = {k: c.value.detach().clone() for k, c in program.constants.items()}
    assert min(float(v.min()) for v in before.values()) < 0
    for which in range(len(SUMS)):
        of(program, which, X, Y)
    assert all(torch.equal(c.value, before[k]) for k, c in program.constants.items())


def test_weights_in_single_precision_are_read_in_double() -> None:
    layer = nn.Linear(3, 2, bias=False)
    region, _, found = of(program_of(Lambda(lambda m, x: (m.p(x),), p=layer), X.float()), 0, X)
    torch.testing.assert_close(found[region[-1]], X.abs() @ layer.weight.detach().double().abs().T)


def test_operands_by_name_are_read_too() -> None:
    program = program_of(Lambda(lambda m, x: (m.p(x),), p=LINEAR), X)
    [node] = program.calls()
    x, weight, bias = node.args
    node.args, node.kwargs = (x, weight), {"bias": bias}
    region, _, found = of(program, 0, X)
    torch.testing.assert_close(found[region[-1]], positive(LINEAR)(X.abs()).detach())


def test_values_from_outside_of_the_region_may_be_pieces_sizes_and_decisions() -> None:
    def forward(m: Any, x: Tensor, mask: Tensor) -> Any:
        piece = x.split(2, 1)[1] * mask
        return ((piece + 1).reshape(x.shape[0], 2, 9),)

    inputs = X, torch.tensor([True, False, True])
    program = program_of(Lambda(forward), *inputs)
    region, values, _ = of(program, 0, *inputs)
    inside = [n for n in region if not n.name.startswith(("split", "sym_size"))]
    found = magnitudes(program, inside, values)
    assert len(inside) < len(region)
    torch.testing.assert_close(found[region[-1]], (X[:, 2:].abs() * inputs[1] + 1).reshape(2, 2, 9))
    whole = magnitudes(program, region, values)
    torch.testing.assert_close(whole[region[-1]], found[region[-1]])


def test_an_unknown_operator_is_bounded_by_its_numbers_and_not_by_its_indices() -> None:
    small, index = X / 10, torch.full((2, 1, 3, 3), 3)
    region, values, found = of(program_of(Lambda(lambda m, x, i: (x.gather(1, i),)), small, index), 0, small, index)
    torch.testing.assert_close(found[region[-1]], values[region[-1]].abs() + small.abs().max())


def test_an_unknown_operator_with_several_results_is_bounded_in_each() -> None:
    region, values, found = of(program_of(Lambda(lambda m, x: tuple(x.topk(4, 1))), X), 0, X)
    topk = next(n for n in region if isinstance(values[n], tuple))
    torch.testing.assert_close(found[topk][0], values[topk][0].abs() + X.abs().max())
    assert torch.equal(found[topk][1], values[topk][1])


def test_complex_numbers_have_real_sizes() -> None:
    z = torch.view_as_complex(doubles(4, 3, 2))
    net = Lambda(lambda m, x: (torch.view_as_real(torch.fft.fft(x) * m.w),), w=nn.Parameter(z[0]))
    region, values, found = of(program_of(net, doubles(4, 3)), 0, doubles(4, 3))
    product, parts = region[-2:]
    assert not any(v.is_complex() for v in found.values())
    torch.testing.assert_close(found[product], found[product.args[0]] * z[0].abs())  # type: ignore[index]
    torch.testing.assert_close(found[parts], torch.stack([found[product]] * 2, -1))
    assert bool((found[parts] >= values[parts].abs()).all())


def test_whole_numbers_and_decisions_are_what_they_are() -> None:
    def forward(m: Any, x: Tensor, n: Tensor) -> Any:
        return (torch.where(x > 0, n.neg().double(), x),)

    region, values, found = of(program_of(Lambda(forward), X, N), 0, X, N)
    named = {n.name: n for n in region}
    assert all(torch.equal(found[named[k]], values[named[k]]) for k in ("neg", "gt"))
    made = next(n for k, n in named.items() if k.startswith(("to", "_to")))
    assert torch.equal(found[made], torch.tensor([2.0, 3.0, 0.0]).double()), "numbers that they become are positive"


# ---- how many roundings ----------------------------------------------------------------------------------------------

LENGTHS: dict[str, tuple[Callable[..., Any], int]] = {
    "linear": (lambda m, x, y: m.p(x), 5 + 8),
    "a wide linear": (lambda m, x, y: m.q(x.flatten(1)), 16 + 36 + 8),
    "convolution": (lambda m, x, y: m.c(x), 2 * 2 * 2 + 8),
    "transposed": (lambda m, x, y: m.u(x), 2 * 2 * 2 + 8),
    "many filters": (lambda m, x, y: m.d(x), 9 + 8),
    "matrices": (lambda m, x, y: (x + y) @ y, 16 + 4),
    "matrices of whole numbers": (lambda m, x, y: x.long() @ y.long(), 16 + 16 + 1),
    "anything else": (lambda m, x, y: (x + y).relu(), 16 + 16),
    "two layers": (lambda m, x, y: m.p(m.p(x).narrow(-1, 0, 3)), 13 + 16 + 13),
}


MANY = {"p": nn.Linear(3, 5), "q": nn.Linear(36, 5), "d": nn.Conv2d(4, 9, 1)}
MANY |= {"c": nn.Conv2d(4, 6, 2, groups=2), "u": nn.ConvTranspose2d(4, 2, 2)}
lengths = captured({name: f for name, (f, _) in LENGTHS.items()}, X, Y, **MANY)


@pytest.mark.parametrize("name", LENGTHS)
def test_a_weighted_operator_counts_what_it_adds_up_and_any_other_a_few(name: str) -> None:
    region, _, _ = of(lengths(), list(LENGTHS).index(name), X, Y)
    assert accumulation_length(region) == LENGTHS[name][1]
