"""Movements that torch has several names for: one name in the program, and the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reparam.capture import capture
from reparam.ir import evaluate, op_name
from support.helpers import Lambda

NAMED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "swapaxes": (lambda x: x.swapaxes(1, -1), "transpose"),
    "swapdims, by name": (lambda x: x.swapdims(dim0=-2, dim1=1), "transpose"),
    "mT": (lambda x: x.mT, "transpose"),
    "adjoint": (torch.adjoint, "transpose"),
    "mH": (lambda x: x.mH, "transpose"),
    "T": (lambda x: x[:, 0, 0].T, "permute"),
    "movedim": (lambda x: x.movedim(1, -1), "permute"),
    "movedims": (lambda x: torch.movedim(x, (0, -1), (2, 1)), "permute"),
    "moveaxis": (lambda x: x.moveaxis(-1, 0), "permute"),
    "moveaxes": (lambda x: x.moveaxis((3, 1), (1, 3)), "permute"),
    "fliplr": (lambda x: x.fliplr(), "flip"),
    "flipud": (lambda x: x.flipud(), "flip"),
    "tile": (lambda x: x.tile(2, 1, 3), "repeat"),
    "tile, longer": (lambda x: torch.tile(x, (2, 1, 1, 1, 2)), "repeat"),
    "narrow_copy": (lambda x: torch.narrow_copy(x, 1, 1, 2), "narrow"),
    "atleast_1d": (torch.atleast_1d, "reshape"),
    "atleast_2d": (lambda x: torch.atleast_2d(x[0, 0, 0]), "reshape"),
    "atleast_3d": (lambda x: torch.atleast_3d(x[0, 0]), "reshape"),
    "tensor_split": (lambda x: torch.cat(torch.tensor_split(x, 3, 3)[::-1], 3), "split_with_sizes"),
    "tensor_split at": (lambda x: torch.cat(torch.tensor_split(x, (1, 4), dim=-1)[::-1], 3), "split_with_sizes"),
    "hsplit": (lambda x: torch.cat(torch.hsplit(x, 3)[::-1], 1), "split_with_sizes"),
    "hsplit of a row": (lambda x: torch.cat(torch.hsplit(x[0, 0, 0], [2])[::-1]), "split_with_sizes"),
    "dsplit": (lambda x: torch.cat(torch.dsplit(x, [1, 3])[::-1], 2), "split_with_sizes"),
}


OTHERS = frozenset(
    [
        "swapaxes",
        "swapdims",
        "mT",
        "adjoint",
        "mH",
        "numpy_T",
        "movedim",
        "moveaxis",
        "fliplr",
        "flipud",
        "tile",
        "narrow_copy",
        "atleast_1d",
        "atleast_2d",
        "atleast_3d",
        "tensor_split",
        "hsplit",
        "dsplit",
    ]
)


@pytest.mark.parametrize("name", NAMED)
def test_one_name_and_the_same_values(name: str) -> None:
    way, wanted = NAMED[name]
    model = Lambda(lambda m, x: way(x + 1)).eval()
    x = torch.randn(2, 3, 4, 5)
    program = capture(model, (x,), dynamic=()).program
    names = {op_name(n) for n in program.calls()}
    assert wanted in names and not names & OTHERS
    [found] = evaluate(program, [x], None)
    torch.testing.assert_close(found, model(x), rtol=0, atol=0)


def test_pieces_of_the_first_axis() -> None:
    model = Lambda(lambda m, x: torch.cat(torch.vsplit(x + 1, 2)[::-1])).eval()
    x = torch.randn(4, 3)
    program = capture(model, (x,), dynamic=()).program
    assert [op_name(n) for n in program.calls()].count("split_with_sizes") == 1
    torch.testing.assert_close(evaluate(program, [x], None)[0], model(x), rtol=0, atol=0)


FREE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "pieces of a free axis": (lambda x: torch.cat(torch.tensor_split(x, (2,), 2)[::-1], 2), "tensor_split"),
    "pieces of another": (lambda x: torch.cat(torch.tensor_split(x, 2, 3)[::-1], 3), "split_with_sizes"),
    "a row": (lambda x: torch.atleast_3d(x[0, 0, :, 0]), "reshape"),
    "a free map": (lambda x: torch.atleast_3d(x[:, 0, :, 0]), "atleast_3d"),
}


@pytest.mark.parametrize("name", FREE)
def test_free_sizes_stay_free(name: str) -> None:
    way, wanted = FREE[name]
    model = Lambda(lambda m, x: way(x + 1)).eval()
    program = capture(model, (torch.randn(2, 3, 4, 6),), dynamic=("batch", "height")).program
    assert isinstance(program.inputs[0].shape[2], str)
    assert wanted in [op_name(n) for n in program.calls()]
    for size in (3, 9):
        x = torch.randn(3, 3, size, 6)
        torch.testing.assert_close(evaluate(program, [x], None)[0], model(x), rtol=0, atol=0)


def test_the_conjugate_of_a_complex_matrix_is_no_transpose() -> None:
    model = Lambda(lambda m, x: torch.view_as_real(torch.fft.fft(x).mH.resolve_conj())).eval()
    x = torch.randn(2, 3, 4)
    program = capture(model, (x,), dynamic=()).program
    assert "mH" in [op_name(n) for n in program.calls()]
    torch.testing.assert_close(evaluate(program, [x], None)[0], model(x))
