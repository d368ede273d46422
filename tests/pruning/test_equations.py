"""Normal equations: columns that a layer reads, solutions that are the least squares, and what stays switched off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.algebra import Layer, read_layer
from reparam.ir import WEIGHTED, Program, is_call
from reparam.pruning.equations import Equations, as_rows, columns_of, from_rows, rows_of
from support.helpers import program_of

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (4, 7, 6)),
    "stride": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (4, 8, 7)),
    "groups": (nn.Conv2d(6, 4, 3, groups=2, bias=False), (6, 5, 5)),
    "depthwise": (nn.Conv2d(5, 5, 3, padding=1, groups=5), (5, 6, 6)),
    "same": (nn.Conv2d(3, 4, 4, padding="same"), (3, 6, 6)),
    "one axis": (nn.Conv1d(3, 5, 3), (3, 9)),
    "three axes": (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 5, 4)),
    "transposed, in groups": (nn.ConvTranspose2d(6, 4, (2, 3), stride=(2, 1), dilation=(1, 2), groups=2), (6, 4, 5)),
    "transposed, cut off": (nn.ConvTranspose1d(3, 4, 2, stride=2, padding=2, bias=False), (3, 7)),
    "linear": (nn.Linear(6, 4), (6,)),
    "linear on a sequence": (nn.Linear(6, 4, bias=False), (5, 6)),
}


def layer_of(module: nn.Module, x: Tensor) -> tuple[Program, Layer]:
    program = program_of(module, x)
    layer = next(found for n in program.calls() if is_call(n, WEIGHTED) and (found := read_layer(program, n)))
    return program, layer


def kernel_size(layer: Layer) -> int:
    size = 1
    for k in layer.kernel:
        size *= k
    return size


def equations_of(layer: Layer, weight: Tensor, *, bias: bool) -> Equations:
    groups = layer.geometry.groups
    return Equations(groups, weight[0].numel(), len(weight) // groups, kernel=kernel_size(layer), bias=bias)


@pytest.mark.parametrize("name", LAYERS)
def test_columns_times_weights_are_what_the_layer_gives(name: str) -> None:
    module, shape = LAYERS[name]
    x = torch.randn(3, *shape)
    y: Any = module(x)
    _, layer = layer_of(module, x)
    count = y[0].numel() // layer.out_channels
    places = torch.randperm(count)[: max(1, count // 2)]
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()  # type: ignore[union-attr]
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    weight, given = as_rows(layer, weight), weight
    assert torch.equal(from_rows(layer, weight), given)
    equations = equations_of(layer, weight, bias=bias is not None)
    made = equations.predict(columns_of(layer, x, places), equations.pack(weight, bias))
    assert torch.allclose(made, rows_of(layer, y.detach(), places), atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_the_solution_finds_the_weights_that_made_the_targets(name: str) -> None:
    module, shape = LAYERS[name]
    x = torch.randn(40, *shape)
    _, layer = layer_of(module, x[:2])
    weight = as_rows(layer, torch.randn_like(module.weight))  # type: ignore[arg-type]
    bias = None if module.bias is None else torch.randn(len(module.bias))  # type: ignore[arg-type]
    equations = equations_of(layer, weight, bias=bias is not None)
    truth = equations.pack(weight, bias)
    count = module(x[:1])[0].numel() // layer.out_channels
    for part in x.split(7):
        rows = count * len(part) if layer.kind == "linear" else count
        columns = columns_of(layer, part, torch.arange(rows))
        equations.add(columns, equations.predict(columns, truth))
    start = torch.rand_like(truth)
    assert torch.allclose(equations.solve(start, ridge=1e-10), truth, atol=1e-4)
    again, shift = equations.unpack(truth, weight, bias)
    assert torch.equal(again, weight) and (bias is None or torch.equal(shift, bias))  # type: ignore[arg-type]


def gathered(x: Tensor, t: Tensor, *, kernel: int = 1, bias: bool = True) -> Equations:
    equations = Equations(1, x.shape[1], t.shape[1], kernel=kernel, bias=bias)
    equations.add(x[None], t[None])
    return equations


def test_a_ridge_holds_weights_to_what_they_were_and_leaves_the_bias_free() -> None:
    x, t = torch.randn(200, 4), torch.full((200, 2), 5.0)
    old = torch.randn(1, 5, 2, dtype=torch.float64)
    old[0, 4] = 0.0
    new = gathered(x, t).solve(old, ridge=1e9)
    assert torch.allclose(new[0, :4], old[0, :4], atol=1e-6)
    wanted = (t.double() - x.double() @ old[0, :4]).mean(0)
    assert torch.allclose(new[0, 4], wanted, atol=1e-4)


def test_the_solution_is_that_of_ridge_regression() -> None:
    x, t = torch.randn(50, 3), torch.randn(50, 2)
    old = torch.randn(1, 3, 2, dtype=torch.float64)
    new = gathered(x, t, bias=False).solve(old, ridge=0.3)
    gram = x.double().T @ x.double() / 50
    r = 0.3 * gram.diagonal().mean() * torch.eye(3, dtype=torch.float64)
    wanted = torch.linalg.solve(gram + r, x.double().T @ t.double() / 50 + r @ old[0])
    assert torch.allclose(new[0], wanted, atol=1e-6)


def test_columns_without_values_and_weights_that_are_off_stay_as_they_are() -> None:
    x, t = torch.randn(100, 6), torch.randn(100, 3)
    x[:, 1] = 0.0  # a channel that is masked in front of the layer
    old = torch.randn(1, 7, 3, dtype=torch.float64)
    old[0, 4:6] = 0.0  # a channel of two columns that the layer does not read
    old[0, :6, 2] = 0.0  # a row that is off
    new = gathered(x, t, kernel=2).solve(old)
    assert torch.equal(new[0, 1], old[0, 1]) and torch.equal(new[0, 4:6], old[0, 4:6])
    assert torch.equal(new[0, :, 2], old[0, :, 2])
    assert not torch.allclose(new[0, 0, :2], old[0, 0, :2]) and not torch.allclose(new[0, 6, :2], old[0, 6, :2])


def test_other_targets_take_the_place_of_the_first() -> None:
    x, first, second = torch.randn(80, 3), torch.randn(80, 2), torch.randn(80, 2)
    old = torch.randn(1, 4, 2, dtype=torch.float64)
    equations = gathered(x, first)
    equations.solve(old)
    equations.retarget([(x[None, :30], second[None, :30]), (x[None, 30:], second[None, 30:])])
    assert torch.allclose(equations.solve(old), gathered(x, second).solve(old), atol=1e-6)


def test_a_layer_that_saw_nothing_keeps_its_weights() -> None:
    old = torch.randn(1, 4, 2, dtype=torch.float64)
    assert torch.equal(gathered(torch.zeros(9, 3), torch.randn(9, 2), bias=False).solve(old[:, :3]), old[:, :3])
