"""Traps of geometry: paddings, strides, borders, pools and shortcuts where the obvious rewrite is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from support.choice import crossed
from support.helpers import EXACT, Lambda, conv_bn, doubles, fuse_exactly, healthy, module_rel, positive

_GEOMETRIES: dict[str, dict[str, Any]] = {
    "dilation": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "no padding": {"kernel_size": 3},
    "too much padding": {"kernel_size": 3, "padding": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": (2, 4), "padding": "same"},
    "same, dilated": {"kernel_size": (3, 2), "padding": "same", "dilation": (2, 3)},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "unequal padding": {"kernel_size": (3, 5), "padding": (0, 2), "stride": (1, 2)},
    "even kernel": {"kernel_size": 4, "padding": 1, "stride": 2},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "circular, even kernel, same": {"kernel_size": 4, "padding": "same", "padding_mode": "circular"},
    "depthwise multiplier": {"kernel_size": 3, "padding": 1, "groups": 4},
    "stride beyond kernel": {"kernel_size": 2, "stride": 3},
}


@pytest.mark.parametrize("name, size", crossed(tuple(_GEOMETRIES), ((7, 8), (5, 5))))
def test_a_norm_behind_any_geometry_is_folded(name: str, size: tuple[int, int]) -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 8, **_GEOMETRIES[name]), nn.BatchNorm2d(8)))
    fused = fuse_exactly(model, doubles(2, 4, *size), bound=EXACT)
    assert "batch_norm" not in fused.text and "add" not in fused.text and "mul" not in fused.text


@pytest.mark.parametrize("name", _GEOMETRIES)
def test_a_norm_before_any_geometry_is_exact_on_the_border(name: str) -> None:
    """Zero padding sees zeros, not shifts: a folded bias would be wrong there. Other paddings repeat shifted values."""
    options = _GEOMETRIES[name]
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.Conv2d(4, 8, **options)))
    fused = fuse_exactly(model, doubles(2, 4, 7, 8), bound=EXACT)
    zero_padded = options.get("padding", 0) not in (0, "valid") and options.get("padding_mode", "zeros") == "zeros"
    assert ("add(tanh(x), w)" in fused.text) == zero_padded
    assert "batch_norm" not in fused.text and "mul" not in fused.text
    if zero_padded:
        assert any("left standing (4 parameters)" in m for m in fused.passed("leave-shift"))


@pytest.mark.parametrize("name", _GEOMETRIES)
def test_a_pointwise_branch_beside_any_geometry_is_exact(name: str) -> None:
    """Whether the two merge depends on the geometry; whatever comes out is the same function."""
    options = _GEOMETRIES[name]
    stride = options.get("stride", 1)
    model = healthy(
        Lambda(
            lambda m, x: m.a(x)[:, :, :2, :2] + m.b(x)[:, :, :2, :2],
            a=nn.Conv2d(4, 8, **options),
            b=conv_bn(4, 8, 1, stride=stride),
        )
    )
    fuse_exactly(model, doubles(2, 4, 7, 8), bound=EXACT)


@pytest.mark.parametrize(
    "padding, expected",
    [
        ((1, 1, 1, 1), "conv3x3(x)"),
        ((0, 1, 0, 1), "conv3x3(pad(x, [0, 1, 0, 1], constant, 0.0))"),
        ((2, 0, 1, 1), "conv3x3(pad(x, [2, 0, 1, 1], constant, 0.0))"),
    ],
)
def test_an_asymmetric_pad_before_a_convolution_keeps_its_sides(padding: tuple[int, ...], expected: str) -> None:
    model = healthy(nn.Sequential(nn.ZeroPad2d(padding), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == expected


def test_a_pad_with_a_value_is_not_a_zero_pad() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ConstantPad2d(1, 0.5), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert "0.5" in fused.text


def test_a_border_that_is_filled_by_numbers_is_the_border_of_the_traced_size_only() -> None:
    """y[:, :, 9:10] is the last row of ten, and a row in the middle of more."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = F.pad(m.conv(x), [1, 1, 1, 1])
        for part in (y[:, :, 0:1], y[:, :, 9:10], y[:, :, :, 0:1], y[:, :, :, 9:10]):
            part.copy_(m.value)
        return m.head(y)

    value = nn.Parameter(doubles(4, 1, 1))
    model = healthy(Lambda(forward, conv=nn.Conv2d(4, 4, 1), head=nn.Conv2d(4, 5, 3), value=value))
    x = doubles(2, 4, 8, 8)
    free = fuse_exactly(model, x, bound=EXACT, dynamic=("batch", "height", "width"))
    assert module_rel(model, free.program, [doubles(2, 4, 11, 9)]) <= EXACT
    fixed = fuse_exactly(model, x, bound=EXACT)
    assert "scatter" not in fixed.text


def test_a_map_of_one_pixel_is_all_border() -> None:
    model = healthy(
        nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, 1, 1), bound=EXACT)
    assert fused.text == "conv3x3(add(tanh(conv3x3(x)), w))"


@pytest.mark.parametrize("rank", [1, 3])
def test_one_and_three_dimensional_blocks_fuse_alike(rank: int) -> None:
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv3d, nn.BatchNorm3d)
    model = healthy(
        Lambda(
            lambda m, x: F.relu(m.b3(m.c3(x)) + m.b1(m.c1(x)) + m.b0(x)),
            c3=conv(4, 4, 3, padding=1, groups=2),
            b3=norm(4),
            c1=conv(4, 4, 1, groups=2),
            b1=norm(4),
            b0=norm(4),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, *(5, 4, 3)[:rank]), bound=EXACT)
    assert fused.text == f"relu(conv{'x'.join('3' * rank)}g2(x))"


class Basic(nn.Module):
    """A basic block whose shortcut is chosen by `shortcut`, not by its widths."""

    def __init__(self, c_in: int, c_out: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.a = conv_bn(c_in, c_out, stride=stride, padding=1)
        self.b = conv_bn(c_out, c_out, padding=1)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + self.shortcut(x))


def test_a_strided_block_of_equal_width_keeps_its_projection() -> None:
    model = healthy(Basic(4, 4, 2, conv_bn(4, 4, 1, stride=2)))
    fused = fuse_exactly(model, doubles(2, 4, 7, 9), bound=EXACT)
    assert fused.text == "relu(add(conv3x3(relu(conv3x3s2(x))), conv1x1s2(x)))"


def test_a_block_of_unequal_width_and_stride_one_keeps_its_projection() -> None:
    model = healthy(Basic(4, 6, 1, conv_bn(4, 6, 1)))
    fused = fuse_exactly(model, doubles(2, 4, 7, 9), bound=EXACT)
    assert fused.text == "relu(add(conv3x3(relu(conv3x3(x))), conv1x1(x)))"


_POOLS: list[tuple[Any, tuple[int, int], bool]] = [
    (nn.AvgPool2d(2, 2), (8, 8), True),
    (nn.AvgPool2d(2, 2), (7, 9), True),
    (nn.AvgPool2d(2, 2, ceil_mode=True), (8, 8), True),  # as long as no window hangs over, ceil_mode changes nothing
    (nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), (8, 8), True),
    (nn.AvgPool2d(3, 2, 1), (8, 8), True),
    (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (8, 8), False),
    (nn.AvgPool2d(3, 2, 1, divisor_override=5), (8, 8), True),
]


@pytest.mark.parametrize("pool, size, merges", _POOLS, ids=str)
def test_an_average_pool_before_a_projection_keeps_its_border(pool: Any, size: tuple[int, int], merges: bool) -> None:
    """ResNet-D's shortcut, beside a strided convolution with which it merges where the pool's divisor is constant."""
    model = healthy(
        Lambda(
            lambda m, x: m.main(x) + m.norm(m.projection(m.pool(x))),
            main=nn.Conv2d(4, 6, 4, stride=2, padding=1),
            pool=pool,
            projection=nn.Conv2d(4, 6, 1, bias=False),
            norm=nn.BatchNorm2d(6),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, *size), bound=EXACT)
    assert (fused.text == "conv4x4s2(x)") == merges


@pytest.mark.parametrize("include", [True, False])
def test_a_pool_whose_last_window_hangs_over_keeps_its_own_divisor(include: bool) -> None:
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=include)
    model = healthy(
        Lambda(
            lambda m, x: m.main(x) + m.projection(m.pool(x)),
            main=nn.Conv2d(4, 6, 3, stride=2, padding=1),
            pool=pool,
            projection=nn.Conv2d(4, 6, 1),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, 7, 9), bound=EXACT)
    assert "avg_pool2d" in fused.text


@pytest.mark.parametrize("size, ceil", [((8, 8), False), ((7, 9), False), ((7, 9), True)])
@pytest.mark.parametrize("include", [True, False])
def test_an_average_pool_beside_a_convolution_merges_only_where_its_divisor_is_constant(
    size: tuple[int, int], ceil: bool, include: bool
) -> None:
    model = healthy(
        Lambda(
            lambda m, x: m.conv(x) + m.pool(x),
            conv=nn.Conv2d(4, 4, 3, stride=2, padding=1),
            pool=nn.AvgPool2d(3, 2, 1, ceil_mode=ceil, count_include_pad=include),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, *size), bound=EXACT)
    assert (fused.text == "conv3x3s2(x)") == include


def test_a_norm_before_an_average_pool_that_counts_its_padding_keeps_its_shift() -> None:
    model = healthy(nn.Sequential(nn.Tanh(), nn.BatchNorm2d(4), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 5, 1)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert "add(tanh(x), w)" in fused.text and "batch_norm" not in fused.text
    assert any(
        "average pool's padding" in m for m in fused.missed("fold-batch-norm") + fused.missed("fold-channel-affine")
    )


def test_a_converted_module_agrees_with_the_model() -> None:
    """The emitted module, not only the program, on a batch that was not traced."""
    model = positive(healthy(Basic(4, 6, 2, conv_bn(4, 6, 1, stride=2))))
    result = reparam.convert(model, doubles(2, 4, 7, 9))
    x = doubles(5, 4, 7, 9, seed=3)
    with torch.no_grad():
        assert float((result.module(x) - model(x)).abs().max()) <= 1e-12
    assert module_rel(model, result.program, [x]) <= EXACT
