"""Diagonals beside infinite numbers, logarithms of running sums, means of what is scattered, and complex numbers of one
value, by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import reparam
from support.helpers import Lambda

onnxruntime = pytest.importorskip("onnxruntime")
INF = torch.inf


def assert_same(
    compute: Callable[..., Tensor], path: Path, example: tuple[Tensor, ...], *others: Tensor, axes: tuple[str, ...] = ()
) -> None:
    """On an example, and on other values of its first input."""
    reparam.export(Lambda(lambda _, *values: compute(*values)).eval(), *example, path=path, dynamic=axes)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for first in (example[0], *others):
        values = (first, *example[1:])
        feed = {p.name: v.numpy() for p, v in zip(session.get_inputs(), values, strict=True)}
        np.testing.assert_allclose(session.run(None, feed)[0], compute(*values).numpy(), rtol=1e-5, atol=1e-6)


DIAGONALS: dict[str, Callable[[Tensor], Tensor]] = {
    "diagonal": lambda x: x.diagonal(dim1=1, dim2=2),
    "above": lambda x: x.diagonal(1, 2, 1),
    "below": lambda x: x.diagonal(-1, 1, 2),
    "of other axes": lambda x: x.diagonal(dim1=2, dim2=0),
    "of a matrix": lambda x: x[0].diag(1),
    "a trace": lambda x: x[0].trace(),
    "einsum": lambda x: torch.einsum("bii->bi", x[:, :, :3]),
    "truth values": lambda x: (x > 0).diagonal(dim1=1, dim2=2),
    "whole numbers": lambda x: (x * 4).clamp(-9, 9).long().diagonal(2, 1, 2),
}


@pytest.mark.parametrize("compute", DIAGONALS.values(), ids=DIAGONALS)
def test_nothing_beside_a_diagonal_counts(compute: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    infinite = torch.full((2, 3, 4), -INF)
    at = compute(torch.arange(24.0).reshape(2, 3, 4)).long() if compute(infinite).is_floating_point() else []
    for place in np.ravel(at):
        infinite.view(-1)[place] = float(place)
    assert_same(compute, tmp_path / "net.onnx", (torch.randn(2, 3, 4),), infinite)


def test_a_diagonal_behind_a_mask(tmp_path: Path) -> None:
    mask = torch.full((3, 3), -INF).triu(1)
    example = torch.randn(2, 3, 4)
    assert_same(lambda x: (x @ x.mT + mask).diagonal(dim1=1, dim2=2), tmp_path / "net.onnx", (example,))


def test_a_diagonal_of_free_size(tmp_path: Path) -> None:
    example, axes = torch.randn(2, 3, 4), ("batch", "inputs_0:1=length")
    others = torch.randn(3, 6, 4), torch.full((1, 2, 4), 1e19).cumprod(1)
    assert_same(lambda x: (x @ x.mT).diagonal(dim1=1, dim2=2), tmp_path / "net.onnx", (example,), *others, axes=axes)


@pytest.mark.parametrize("axis", [1, -1])
def test_sums_are_taken_each_by_its_own_largest_number(axis: int, tmp_path: Path) -> None:
    far = torch.tensor([-100.0, 100.0, -INF, 5.0]).expand(2, 4, 4)
    assert_same(lambda x: x.logcumsumexp(axis), tmp_path / "net.onnx", (torch.randn(2, 4, 4),), far, far.mT)


@pytest.mark.parametrize("own", [True, False])
def test_means_of_what_is_scattered(own: bool, tmp_path: Path) -> None:
    def mean(x: Tensor, i: Tensor) -> Tensor:
        start = torch.arange(20.0).reshape(5, 4)
        return start.scatter_reduce(0, i[:, None].expand(-1, 4), x, "mean", include_self=own)

    places = torch.tensor([0, 3, 3, 1, 0, 0, 3])
    assert_same(mean, tmp_path / "net.onnx", (torch.randn(7, 4), places), torch.full((7, 4), 1e30))


STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": lambda x: torch.zeros(x.shape[0], 4, dtype=torch.cfloat),
    "ones": lambda x: torch.ones(x.shape[0], 4, dtype=torch.cfloat),
    "a number": lambda x: torch.full((x.shape[0], 4), 1 - 2j),
    "new ones": lambda x: x.new_ones(x.shape[0], 4, dtype=torch.cfloat),
    "alike": lambda x: torch.full_like(x[:, 0], 3.0, dtype=torch.cfloat),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_complex_recurrence_starts_with_a_free_batch(start: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    turns = torch.polar(torch.ones(4), torch.arange(4.0))

    def recur(x: Tensor) -> Tensor:
        state = start(x)
        for step in x.unbind(1):
            state = turns * state + step
        return torch.view_as_real(state)

    assert_same(recur, tmp_path / "net.onnx", (torch.randn(2, 3, 4),), torch.randn(5, 3, 4), axes=("batch",))
