"""Smaller images than the traced ones, on which whole networks are compared as well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.check import NetworkEvidence, check_float64
from reparam.check import network_check as subject
from reparam.check.judge import Judge
from reparam.errors import NotEquivalentError
from reparam.ir import Feed, Program, evaluate_where_it_runs, feed
from support.helpers import Lambda, program_of


def check(original: Program, converted: Program | None = None) -> NetworkEvidence:
    return check_float64(original, converted or original.copy())[0]


def pooled(size: int, ceil_mode: bool) -> Program:
    net = Lambda(lambda m, x: F.avg_pool2d(x, size, ceil_mode=ceil_mode).mean((2, 3)))
    return program_of(net, torch.zeros(2, 1, 12, 12), dynamic=("batch",))


@pytest.mark.parametrize("size, side", [(3, 9), (2, 8), (6, 12)])
def test_an_image_is_as_small_as_both_agree_on(size: int, side: int) -> None:
    """Three quarters of it, odd; then even; then the traced size, for which alone the model is said to hold."""
    evidence = check(pooled(size, False), pooled(size, True))
    assert evidence.shapes == ((1, 1, 12, 12), (5, 1, side, side), (2, 1, side, side))


@pytest.mark.parametrize("multiple, side", [(2, 8), (3, 9), (4, 8), (6, 12)])
def test_an_image_that_has_to_be_a_multiple_is_made_smaller_where_that_fits(multiple: int, side: int) -> None:
    parts = Lambda(lambda m, x: x.unflatten(3, (-1, multiple)))
    program = program_of(parts, torch.zeros(2, 1, 12, 12), dynamic=("batch",))
    assert check(program).shapes == ((1, 1, 12, 12), (5, 1, side, side), (2, 1, side, side))


def test_a_size_at_which_nothing_ran_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(Lambda(lambda m, x: x.unflatten(3, (-1, 4))), torch.zeros(2, 1, 12, 12), dynamic=("batch",))
    tried: list[int | None] = []

    def drawn(program: Program, sizes: Any, generator: Any, small: int | None = None) -> Feed:
        tried.append(small)
        return feed(program, sizes, generator, small)

    monkeypatch.setattr(subject, "feed", drawn)
    check(program)
    assert tried == [None, 33, 65, 96, 96]


@pytest.mark.parametrize("multiple, side", [(1, 33), (2, 32), (5, 40)])
def test_all_three_sides_of_a_volume_are_made_smaller(multiple: int, side: int) -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return m.conv(x[..., ::8]), x.unflatten(2, (-1, multiple)).mean((3, 4, 5))

    net = Lambda(forward, conv=nn.Conv3d(1, 1, 3, bias=False))
    evidence = check(program_of(net, torch.zeros(2, 1, 40, 40, 40), dynamic=("batch",)))
    assert evidence.shapes == ((1, 1, 40, 40, 40), (3, 1, side, side, side), (2, 1, side, side, side))


def test_frames_in_front_of_channels_stay_as_many_as_they_are() -> None:
    net = Lambda(lambda m, x: m.conv(x.flatten(0, 1)), conv=nn.Conv2d(1, 1, 3, bias=False))
    program = program_of(net, torch.zeros(2, 4, 1, 12, 12), dynamic=("batch",))
    assert check(program).shapes == ((1, 4, 1, 12, 12), (5, 4, 1, 9, 9), (2, 4, 1, 9, 9))


def test_of_an_image_that_differs_at_the_traced_size_no_smaller_one_is_tried() -> None:
    with pytest.raises(NotEquivalentError):
        check(pooled(5, False), pooled(5, True))


def test_volumes_of_which_shapes_fit_are_run_at_an_odd_size() -> None:
    net = nn.Conv3d(1, 1, 3)
    program = program_of(net, torch.zeros(2, 1, 40, 40, 40), dynamic=("batch",))
    evidence = check_float64(program, program.copy(), 0, Judge(net, program), lean=True)[0]
    assert evidence.shapes[1] == (3, 1, 33, 33, 33)


@pytest.mark.parametrize("volumes", [True, False])
def test_volumes_whose_shapes_do_not_fit_are_not_run(volumes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half and the whole meet at even sizes alone: 32, and of images 96."""
    down, up = (nn.Conv3d, nn.ConvTranspose3d) if volumes else (nn.Conv2d, nn.ConvTranspose2d)
    net = Lambda(lambda m, x: m.up(m.down(x)) + x, down=down(1, 1, 2, 2), up=up(1, 1, 2, 2)).eval()
    shape = (2, 1, 40, 40, 40) if volumes else (2, 1, 112, 112)
    program = program_of(net, torch.zeros(shape), dynamic=("batch",))
    sides: list[int] = []

    def run(part: Program, values: Feed) -> list[Any] | None:
        sides.append(values[0].shape[-1])
        return evaluate_where_it_runs(part, values)

    monkeypatch.setattr(subject, "evaluate_where_it_runs", run)
    evidence = check_float64(program, program.copy(), 0, Judge(net, program), lean=True)[0]
    assert evidence.shapes[1][-1] == sides[-1] == (32 if volumes else 96)
    assert (33 in sides) is not volumes
