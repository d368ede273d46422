"""product-as-linear: a product with a matrix of weights is a linear layer, and folds what linear layers fold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.passes.product_as_linear import ProductAsLinear
from support.helpers import Lambda, doubles, fuse_exactly, healthy, program_of, run_rules

W = nn.Parameter(doubles(4, 6, seed=1))
V = nn.Parameter(doubles(6, 4, seed=2))
B = nn.Parameter(doubles(6, seed=3))

LINEAR: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "x @ w": (lambda m, x: x @ m.w, (3, 4)),
    "x @ w, of tokens": (lambda m, x: x @ m.w, (2, 5, 4)),
    "mm": (lambda m, x: x.mm(m.w), (3, 4)),
    "addmm": (lambda m, x: torch.addmm(m.b, x, m.w), (3, 4)),
    "the weight turned": (lambda m, x: x @ m.v.t(), (3, 4)),
    "einsum": (lambda m, x: torch.einsum("bi,io->bo", x, m.w), (3, 4)),
    "einsum, outputs first": (lambda m, x: torch.einsum("bti, oi -> bto", x, m.v), (2, 5, 4)),
    "einsum, weight first": (lambda m, x: torch.einsum("oi,...i->...o", m.v, x), (2, 5, 4)),
}
CONVS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "w @ x": (lambda m, x: m.v @ x, (2, 4, 5)),
    "einsum": (lambda m, x: torch.einsum("bit,io->bot", x, m.w), (2, 4, 5)),
    "einsum, weight first": (lambda m, x: torch.einsum("oi,bihw->bohw", m.v, x), (2, 4, 3, 5)),
    "einsum of a volume": (lambda m, x: torch.einsum("bithw,io->bothw", x, m.w), (2, 4, 2, 3, 5)),
}
OTHERS: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "a vector": (lambda m, x: x[0] @ m.w, (3, 4)),
    "w @ x": (lambda m, x: m.v @ x, (4, 3)),
    "a matrix that is read twice": (lambda m, x: (x @ m.w).sin() @ m.w.t(), (3, 4)),
    "a matrix for each sample": (lambda m, x: x @ torch.stack([m.w, m.w]), (2, 3, 4)),
    "data": (lambda m, x: x @ x.transpose(0, 1), (3, 4)),
    "addmm of half": (lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5), (3, 4)),
    "addmm twice": (lambda m, x: torch.addmm(m.b, x, m.w, alpha=2), (3, 4)),
    "addmm with data": (lambda m, x: torch.addmm(x[:, :1], x, m.w), (3, 4)),
    "addmm with one number": (lambda m, x: torch.addmm(m.b[:1], x, m.w), (3, 4)),
    "another axis": (lambda m, x: torch.einsum("bcit,io->bcot", x, m.w), (2, 3, 4, 5)),
    "too many axes": (lambda m, x: torch.einsum("bidhwt,io->bodhwt", x, m.w), (2, 4, 1, 1, 1, 3)),
    "w @ x, of four axes": (lambda m, x: m.v @ x, (2, 3, 4, 5)),
    "an ellipsis behind": (lambda m, x: torch.einsum("bi...,io->bo...", x, m.w), (2, 4, 5)),
    "another place": (lambda m, x: torch.einsum("bti,io->tbo", x, m.w), (2, 5, 4)),
    "no sum": (lambda m, x: torch.einsum("bi,io->bio", x, m.w), (3, 4)),
    "a sum over both": (lambda m, x: torch.einsum("bi,io->b", x, m.w), (3, 4)),
    "a diagonal": (lambda m, x: torch.einsum("bi,ii->bi", x, m.w[:, :4]), (3, 4)),
    "a diagonal of the value": (lambda m, x: torch.einsum("bii,io->bio", x, m.w), (2, 4, 4)),
    "two sums": (lambda m, x: torch.einsum("bi,kj->bj", x, m.w), (3, 4)),
    "weights alone": (lambda m, x: x @ (m.v @ m.w)[:4, :4] @ x.t(), (3, 4)),
    "a power": (lambda m, x: torch.einsum("ii,io->io", x, m.w), (4, 4)),
    "three operands": (lambda m, x: torch.einsum("bi,io,oj->bj", x, m.w, m.v), (3, 4)),
    "one operand": (lambda m, x: torch.einsum("bi->ib", x), (3, 4)),
}


def model_of(compute: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    made = Lambda(compute, **parts)
    for name, value in (("w", W), ("v", V), ("b", B)):
        made.register_parameter(name, nn.Parameter(value.detach().clone()))
    return made.double().eval()


@pytest.mark.parametrize("name", LINEAR)
def test_a_product_with_a_matrix_is_a_layer(name: str) -> None:
    compute, shape = LINEAR[name]
    done = fuse_exactly(model_of(compute), doubles(*shape), bound=1e-14)
    assert done.text.startswith("linear(") and "matmul" not in done.text
    [told] = done.passed("product-as-linear")
    assert told.endswith("by a matrix of weights became a linear layer")


@pytest.mark.parametrize("name", CONVS)
def test_a_product_over_the_channels_is_a_convolution_of_one_position(name: str) -> None:
    compute, shape = CONVS[name]
    done = fuse_exactly(model_of(compute), doubles(*shape), bound=1e-14)
    assert done.text.startswith("conv1") and "einsum" not in done.text and "matmul" not in done.text
    [told] = done.passed("product-as-linear")
    assert told.endswith("by a matrix of weights became a convolution of one position")


@pytest.mark.parametrize("name", CONVS)
def test_norms_of_channels_fold_on_both_sides(name: str) -> None:
    compute, shape = CONVS[name]
    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    model = model_of(lambda m, x: m.after(compute(m, m.before(x.sin()))).tanh(), before=kind(4), after=kind(6))
    done = fuse_exactly(healthy(model), doubles(*shape), bound=1e-13)
    assert "norm" not in done.text


def test_a_scale_of_positions_passes_a_product_over_the_channels() -> None:
    """Into the layer behind it, which reads along the positions."""
    model = model_of(lambda m, x: m.last(m.v @ (x.sin() * m.s)), last=nn.Linear(5, 3))
    model.register_parameter("s", nn.Parameter(doubles(1, 1, 5)))
    done = fuse_exactly(model, doubles(2, 4, 5), bound=1e-13)
    assert "mul" not in done.text and "linear" in done.text


@pytest.mark.parametrize("name", OTHERS)
def test_other_products_stay(name: str) -> None:
    compute, shape = OTHERS[name]
    done = run_rules(program_of(model_of(compute), doubles(*shape)), ProductAsLinear())
    assert "linear" not in done.text and not done.outcome.remarks


@pytest.mark.parametrize("name", ("x @ w", "addmm", "einsum"))
def test_norms_fold_on_both_sides(name: str) -> None:
    norms = nn.BatchNorm1d(4, dtype=torch.float64), nn.BatchNorm1d(6, dtype=torch.float64)
    for norm in norms:
        norm.running_mean, norm.running_var = doubles(norm.num_features), doubles(norm.num_features).abs() + 0.5
    compute, shape = LINEAR[name]
    model = model_of(lambda m, x: m.after(compute(m, m.before(x.sin()))).tanh(), before=norms[0], after=norms[1])
    done = fuse_exactly(model, doubles(*shape), bound=1e-13)
    assert "norm" not in done.text and done.text.count("linear(") == 1


def test_a_layer_norm_gives_its_affine_to_the_product() -> None:
    """As in blocks whose projections are parameters, or matrices with their inputs first."""
    norm = nn.LayerNorm(4, dtype=torch.float64)
    norm.weight.data, norm.bias.data = doubles(4, seed=5), doubles(4, seed=6)
    model = model_of(lambda m, x: torch.addmm(m.b, m.norm(x), m.w), norm=norm)
    done = fuse_exactly(model, doubles(3, 4), bound=1e-13)
    assert done.text == "linear(layer_norm(x, [4]))"


class Mixed(nn.Module):
    """Weights of two dtypes, one of them no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.low = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 6).bfloat16())
        self.register_buffer("fixed", torch.randn(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = (self.layer(x).bfloat16() @ self.low).float()
        z: Tensor = y @ self.fixed
        return z


def test_the_matrix_keeps_its_dtype_and_what_it_is() -> None:
    done = run_rules(program_of(Mixed(), torch.randn(3, 4)), ProductAsLinear())
    layers = [n for n in done.program.calls() if n.target is torch.ops.aten.linear.default]
    found = [done.program.constants[str(n.args[1].target)] for n in layers]  # type: ignore[union-attr]
    assert [(tuple(c.value.shape), c.dtype, c.trainable, c.origin) for c in found] == [
        ((4, 4), torch.float32, True, "layer.weight"),
        ((6, 4), torch.bfloat16, True, "low"),
        ((3, 6), torch.float32, False, "fixed"),
    ]


class Conditional(nn.Module):
    """Kernels that a router mixes for each sample, with samples as groups of one convolution."""

    def __init__(self, groups: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.route, self.groups = nn.Linear(4, 3), groups
        self.kernels = nn.Parameter(torch.randn(3, 6 * (4 // groups) * 9))
        self.biases = nn.Parameter(torch.randn(3, 6)) if bias else None
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        shares = torch.sigmoid(self.route(x.mean((2, 3))))
        kernels = (shares @ self.kernels).reshape(n * 6, c // self.groups, 3, 3)
        biases = None if self.biases is None else (shares @ self.biases).reshape(n * 6)
        made = torch.conv2d(x.reshape(1, n * c, h, w), kernels, biases, padding=1, groups=self.groups * n)
        y: Tensor = self.norm(made.reshape(n, 6, h, w))
        return y.relu()


@pytest.mark.parametrize(("groups", "bias"), ((1, False), (2, True)))
def test_a_norm_behind_mixed_kernels_gives_them_its_scale(groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = Conditional(groups, bias=bias).double().eval()
    model.norm.running_mean, model.norm.running_var = doubles(6), doubles(6).abs() + 0.5
    model.norm.weight.data, model.norm.bias.data = doubles(6, seed=8), doubles(6, seed=9)
    done = fuse_exactly(model, doubles(2, 4, 5, 5), bound=1e-13)
    assert "norm" not in done.text
    assert any("the shift left standing" in m for m in done.passed("leave-shift"))
