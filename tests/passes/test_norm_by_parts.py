"""norm-by-parts: a batch norm of concatenated channels folds into the parts that take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.ir import BATCH_NORMS, arguments, is_call
from reparam.passes.norm_by_parts import NormByParts
from support.helpers import Fused, Lambda, apply_exactly, doubles, fuse_exactly, graph_text, healthy


class Down(nn.Module):
    """A strided convolution beside a pooled copy, under one norm, as in ENet and ERFNet."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(c_in, c_out - c_in, 3, 2, 1), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(torch.cat([self.conv(x), F.max_pool2d(x, 2)], 1)))


def test_the_convolution_takes_its_share_and_the_pooled_part_keeps_its_own() -> None:
    done = fuse_exactly(healthy(Down(3, 8)), doubles(2, 3, 8, 8), bound=1e-13)
    assert done.passed("norm-by-parts") == ["folded into 1 of 2 concatenated parts"]
    norms = [n for n in done.program.calls() if "batch_norm" in str(n.target)]
    assert [tuple(n.meta["val"].shape[1:2]) for n in norms] == [(3,)]


@pytest.mark.parametrize("width", [1, 2])
def test_two_layers_take_it_and_one_pool_does_not(width: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 3, 1), nn.Conv2d(4, width, 3, padding=1), nn.BatchNorm2d(7 + width)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.norm(torch.cat([self.a(x), F.avg_pool2d(x, 3, 1, 1), self.b(x)], 1)))

    done = fuse_exactly(healthy(Net()), doubles(2, 4, 6, 6), bound=1e-13)
    assert done.passed("norm-by-parts") == ["folded into 2 of 3 concatenated parts"]


def test_two_parts_that_do_not_take_it_would_be_two_norms() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(4, 3, 1), nn.BatchNorm2d(11)

        def forward(self, x: Tensor) -> Tensor:
            parts = [self.a(x), F.avg_pool2d(x, 3, 1, 1), F.max_pool2d(x, 3, 1, 1)]
            return torch.tanh(self.norm(torch.cat(parts, 1)))

    done = fuse_exactly(healthy(Net()), doubles(2, 4, 6, 6), bound=1e-13)
    assert not done.passed("norm-by-parts") and done.text.count("batch_norm") == 1


def test_what_folds_whole_is_left_to_the_other_rule() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.norm(torch.cat([self.a(x), self.b(x)], 1)))

    done = fuse_exactly(healthy(Net()), doubles(2, 4, 6, 6), bound=1e-13)
    assert not done.passed("norm-by-parts") and "batch_norm" not in done.text


def test_nothing_where_no_part_takes_it_or_the_concatenation_is_read_elsewhere() -> None:
    class Net(nn.Module):
        def __init__(self, twice: bool) -> None:
            super().__init__()
            self.twice, self.a, self.norm = twice, nn.Conv2d(4, 3, 1), nn.BatchNorm2d(7)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([self.a(x) if self.twice else self.a(x).sin(), F.max_pool2d(x, 3, 1, 1)], 1)
            return torch.tanh(self.norm(y)) + (y.cos() if self.twice else 0.0)

    for twice in (True, False):
        done = fuse_exactly(healthy(Net(twice)), doubles(2, 4, 6, 6), bound=1e-13)
        assert not done.passed("norm-by-parts") and "batch_norm" in done.text


def norm_of(parts: Callable[..., Tensor], width: int = 6, **options: Any) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return parts(m, x)

    layers = {"a": nn.Conv2d(4, 2, 1), "b": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(width, **options)}
    return healthy(Lambda(forward, **layers))


def apart(model: nn.Module) -> Fused:
    return apply_exactly(model, doubles(2, 4, 6, 6), rules=[NormByParts()], bound=1e-13)


@pytest.mark.parametrize("affine", [True, False])
def test_the_smaller_norm_is_of_its_own_channels(affine: bool) -> None:
    model = norm_of(lambda m, x: m.norm(torch.cat([m.a(x), x.sin()], 1)), eps=0.25, momentum=0.5, affine=affine)
    done = apart(model)
    assert done.text == "cat([conv1x1(x), batch_norm(sin(x))], 1)"
    (norm,) = (arguments(n) for n in done.program.calls() if is_call(n, BATCH_NORMS))
    assert (norm["momentum"], norm["eps"], norm["training"]) == (0.5, 0.25, False)
    names = ("weight", "bias", "running_mean", "running_var") if affine else ("running_mean", "running_var")
    for name in names:
        constant = done.program.constants[str(norm[name].target)]
        assert constant.origin == f"norm.{name}" and constant.trainable == (name in ("weight", "bias"))
        assert torch.equal(constant.value, getattr(model.norm, name)[2:])


def test_pieces_that_are_read_elsewhere_keep_their_values_there() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = m.b(x).chunk(2, 1)
        return m.norm(torch.cat([x.sin(), first], 1)), second

    done = apart(norm_of(forward))
    assert done.passed("norm-by-parts") == ["folded into 1 of 2 concatenated parts"]


@pytest.mark.parametrize(
    ("parts", "width"),
    [
        (lambda m, x: m.norm(torch.cat([m.b(x), x.sin()], 2)), 4),
        (lambda m, x: m.norm(torch.cat([(y := m.a(x)), y, x.sin()], 1)), 8),
        (lambda m, x: m.norm(torch.cat([*m.b(x).chunk(2, 1), x.sin()], 1)), 8),
        (lambda m, x: m.norm(torch.cat([x.cos(), x.sin()], 1)), 8),
        (lambda m, x: (m.norm(y := torch.cat([m.a(x), x.sin()], 1)), y), 6),
        (lambda m, x: m.norm(torch.cat([m.a(x)], 1)), 2),
        (lambda m, x: m.norm(torch.cat([x.sin()], 1)), 4),
        (lambda m, x: m.norm(torch.cat([(y := m.b(x).chunk(2, 1))[0], m.a(x), y[1], x.sin()], 1)), 10),
    ],
    ids=[
        "another axis",
        "a part twice",
        "parts of one layer",
        "no layer",
        "read elsewhere",
        "one part",
        "one part without a layer",
        "parts of one layer, not in a row",
    ],
)
def test_silent_about_other_concatenations(parts: Callable[..., Tensor], width: int) -> None:
    done = apart(norm_of(parts, width))
    assert done.text == graph_text(done.original) and not done.outcome.remarks


def test_silent_about_statistics_of_the_batch() -> None:
    model = norm_of(lambda m, x: m.norm(torch.cat([m.a(x), x.sin()], 1)), track_running_stats=False)
    assert not apart(model).outcome.remarks


def test_a_part_that_shares_its_layers_with_others_is_the_one_that_keeps_its_norm() -> None:
    """The layer of the first part takes its share; so does that of the third, as the second asks nothing of it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        (first, second), (third, fourth) = m.b(x).chunk(2, 1), m.c(x).chunk(2, 1)
        joined: Tensor = m.norm(torch.cat([first, second + third, fourth], 1))
        return joined

    model = norm_of(forward)
    model.c = nn.Conv2d(4, 4, 1).double()
    assert apart(model).passed("norm-by-parts") == ["folded into 2 of 3 concatenated parts"]


def test_a_norm_without_shift_is_taken_apart_as_well() -> None:
    model = norm_of(lambda m, x: m.norm(torch.cat([m.a(x), x.sin()], 1)))
    with torch.no_grad():
        model.norm.bias.zero_()  # type: ignore[union-attr, operator]
        model.norm.running_mean.zero_()  # type: ignore[union-attr, operator]
    assert apart(model).text == "cat([conv1x1(x), batch_norm(sin(x))], 1)"
