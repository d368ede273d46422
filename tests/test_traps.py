"""Traps that published converters fell into: one test each, against the module itself in float64.

Each trap is a shape of network where the obvious rewrite is wrong. The rewrite must be exact or refused, never both.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import EXACT, Lambda, conv_bn, doubles, fuse, fuse_exactly, healthy, module_rel, positive
from torch import Tensor, nn

import reparam
from reparam.capture import capture
from reparam.errors import CaptureError, InputError

# ---- sharing -----------------------------------------------------------------------------------------------------


def test_a_convolution_called_twice_is_folded_for_each_call() -> None:
    model = healthy(
        Lambda(
            lambda m, x: F.relu(m.b1(m.conv(F.relu(m.b0(m.conv(x)))))),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            b0=nn.BatchNorm2d(4),
            b1=nn.BatchNorm2d(4),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "relu(conv3x3(relu(conv3x3(x))))"


def test_a_convolution_and_its_norm_called_twice_share_nothing_after_folding() -> None:
    model = healthy(Lambda(lambda m, x: m.block(F.relu(m.block(x))), block=conv_bn(padding=1)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "conv3x3(relu(conv3x3(x)))"


def test_one_norm_shared_by_two_convolutions_is_folded_into_both() -> None:
    model = healthy(
        Lambda(
            lambda m, x: torch.cat([m.bn(m.a(x)), F.relu(m.bn(m.b(x)))], 1),
            a=nn.Conv2d(4, 4, 3, padding=1),
            b=nn.Conv2d(4, 4, 1),
            bn=nn.BatchNorm2d(4),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "cat([conv3x3(x), relu(conv1x1(x))], 1)"


def test_the_callers_model_and_its_tied_weights_are_not_touched() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    twin = nn.Conv2d(4, 4, 3, padding=1)
    twin.weight = conv.weight
    model = healthy(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), twin, nn.BatchNorm2d(4), nn.ReLU(), twin))
    before = copy.deepcopy(model.state_dict())
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "conv3x3(relu(conv3x3(relu(conv3x3(x)))))"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert conv.weight is twin.weight
    names = [
        n for n in fused.original.constants if n.endswith("weight") and fused.original.constants[n].value.dim() == 4
    ]
    assert len(names) == 1  # tied: one entry before; two folded ones and the untouched one after
    assert sum(c.value.dim() == 4 for c in fused.program.constants.values()) == 3


def test_a_second_user_of_the_convolution_blocks_the_fold_and_is_named() -> None:
    model = healthy(
        Lambda(
            lambda m, x: torch.cat([F.relu(m.bn(y := m.conv(x))), torch.tanh(y)], 1),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            bn=nn.BatchNorm2d(4),
        )
    )
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "a = conv3x3(x); cat([relu(batch_norm(a)), tanh(a)], 1)"
    assert any("also used by 'tanh'" in m for m in fused.missed("fold-batch-norm"))


def test_an_output_in_the_middle_is_a_user() -> None:
    model = healthy(
        Lambda(lambda m, x: (m.bn(y := m.conv(x)), y), conv=nn.Conv2d(4, 4, 3, padding=1), bn=nn.BatchNorm2d(4))
    )
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "a = conv3x3(x); batch_norm(a), a"
    assert any("also used by 'output'" in m for m in fused.missed("fold-batch-norm"))


def test_what_a_forward_hook_computes_is_captured_and_noted() -> None:
    model = healthy(conv_bn(padding=1))
    model[0].register_forward_hook(lambda module, args, y: 2 * torch.tanh(y))
    x = doubles(2, 4, 5, 6)
    captured = capture(model, (x,))
    assert any("module '0' has hooks" in note and "side effects are not" in note for note in captured.notes)
    fused = fuse_exactly(model, x, bound=EXACT)
    assert "tanh(conv3x3(x))" in fused.text


def test_a_pre_hook_that_scales_the_input_is_folded_like_any_scale() -> None:
    model = healthy(conv_bn(padding=1))
    model[0].register_forward_pre_hook(lambda module, args: (3 * args[0],))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "conv3x3(x)"


# ---- norms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_transposed_convolution_with_groups_is_folded_over_its_own_output_axis(groups: int, stride: int) -> None:
    conv = nn.ConvTranspose2d(4, 8, 3, stride=stride, padding=1, output_padding=stride - 1, groups=groups)
    model = healthy(nn.Sequential(conv, nn.BatchNorm2d(8)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    marks = ("s2" if stride > 1 else "") + (f"g{groups}" if groups > 1 else "")
    assert fused.text == f"deconv3x3{marks}(x)"


def test_a_shift_before_a_transposed_convolution_stays_where_it_is() -> None:
    model = healthy(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "deconv3x3s2g2(add(relu(x), w))"
    assert any("transposed convolution changes its border" in m for m in fused.missed("fold-channel-affine"))


def test_a_norm_without_affine_is_folded() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)))
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


def test_a_norm_without_momentum_is_folded() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, momentum=None)))
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


def test_a_norm_by_batch_statistics_is_kept_and_the_reason_given() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)))
    fused = fuse_exactly(model, doubles(3, 4, 5, 6), bound=EXACT)
    assert fused.text == "batch_norm(conv3x3(x))"
    missed = fused.missed("fold-batch-norm")
    assert len(missed) == 1 and "statistics of each batch" in missed[0] and "track_running_stats=True" in missed[0]


def test_a_norm_that_is_told_to_train_in_evaluation_mode_is_kept() -> None:
    model = healthy(
        Lambda(
            lambda m, x: F.batch_norm(m.conv(x), None, None, m.bn.weight, m.bn.bias, training=True),
            conv=nn.Conv2d(4, 4, 3),
            bn=nn.BatchNorm2d(4),
        )
    )
    fused = fuse_exactly(model, doubles(3, 4, 5, 6), bound=EXACT)
    assert fused.text == "batch_norm(conv3x3(x))"


@pytest.mark.parametrize("variance", [0.0, 1e-30, 1e30])
def test_an_extreme_running_variance_is_folded_exactly(variance: float) -> None:
    model = healthy(conv_bn(padding=1))
    assert isinstance(model[1].running_var, Tensor)
    model[1].running_var[2] = variance
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_statistics_that_give_no_finite_scale_are_refused_by_the_layers_name(value: float) -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    assert isinstance(model[1].running_var, Tensor)
    model[1].running_var[2] = value
    if value == float("inf"):  # 1/sqrt(inf) is zero, a finite scale: the channel is constant
        assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "relu(conv3x3(x))"
        return
    fused = fuse(model, doubles(2, 4, 5, 6))
    assert fused.text == "relu(batch_norm(conv3x3(x)))"
    [remark] = [r for r in fused.outcome.remarks if r.kind == "missed" and r.rule == "fold-batch-norm"]
    assert remark.module == "1" and "no finite scale (channel 2" in remark.message


def test_nan_statistics_stop_a_conversion_and_name_the_weight() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    assert isinstance(model[1].running_mean, Tensor)
    model[1].running_mean[1] = float("nan")
    with pytest.raises(InputError, match=r"'1\.running_mean' holds NaN"):
        reparam.convert(model, doubles(2, 4, 5, 6))


def test_a_model_in_training_mode_is_captured_in_evaluation_mode_and_given_back_as_it_was() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)))
    model.train()
    model[0].eval()
    captured = capture(model, (doubles(2, 4, 5, 6),))
    assert any("training mode" in note for note in captured.notes)
    assert [m.training for m in model.modules()] == [True, False, True, True]
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


@pytest.mark.parametrize("between", [nn.ReLU(), nn.LeakyReLU(0.1), nn.MaxPool2d(2)], ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_only_a_positive_scale_passes_a_relu_or_a_max_pool(between: nn.Module, sign: float) -> None:
    scale = nn.Parameter(torch.tensor([0.5, sign, 2.0, 0.0], dtype=torch.float64).reshape(4, 1, 1))
    model = Lambda(lambda m, x: m.head(m.between(torch.tanh(x) * m.scale)), between=between, scale=scale)
    model.head = nn.Conv2d(4, 5, 3, padding=1)
    fused = fuse_exactly(model.double(), doubles(2, 4, 6, 6), bound=EXACT)
    assert ("mul(tanh(x), w)" in fused.text) == (sign < 0)
    assert any("negative scale through (1 channels)" in m for m in fused.missed("fold-channel-affine")) == (sign < 0)


# ---- constants that only look like channel affines ---------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4, 4, 1), (4, 4), (1, 1, 4, 4)])
@pytest.mark.parametrize("operation", [torch.mul, torch.add])
def test_a_constant_along_another_axis_of_the_same_length_is_no_channel_affine(
    shape: tuple[int, ...], operation: Callable[..., Tensor]
) -> None:
    model = healthy(
        Lambda(
            lambda m, x: operation(m.conv(x), m.factor),
            conv=nn.Conv2d(3, 4, 3, padding=1),
            factor=nn.Parameter(doubles(*shape)),
        )
    )
    fused = fuse_exactly(model, doubles(2, 3, 4, 4), bound=EXACT)
    assert "(conv3x3(x), w)" in fused.text


def test_a_constant_over_the_batch_axis_is_no_channel_affine() -> None:
    model = healthy(
        Lambda(
            lambda m, x: m.conv(x) * m.factor,
            conv=nn.Conv2d(3, 4, 3, padding=1),
            factor=nn.Parameter(doubles(2, 1, 1, 1)),
        )
    )
    fused = fuse_exactly(model, doubles(2, 3, 4, 4), bound=EXACT, dynamic=())
    assert fused.text == "mul(conv3x3(x), w)"


def test_a_constant_that_broadcasts_the_value_up_is_no_channel_affine() -> None:
    model = healthy(
        Lambda(lambda m, x: m.linear(x) * m.factor, linear=nn.Linear(3, 1), factor=nn.Parameter(doubles(4)))
    )
    fused = fuse_exactly(model, doubles(2, 3), bound=EXACT)
    assert fused.text == "mul(linear(x), w)"


# ---- geometry ----------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("name", _GEOMETRIES)
@pytest.mark.parametrize("size", [(7, 8), (5, 5)])
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


# ---- dtypes and layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_model_is_folded_in_float64_and_cast_once(dtype: torch.dtype) -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())).to(dtype)
    x = doubles(2, 4, 5, 6).to(dtype)
    fused = fuse(model, x)
    assert fused.text == "relu(conv3x3(x))"
    assert all(c.value.dtype == torch.float64 and c.dtype == dtype for c in fused.program.constants.values())
    result = reparam.convert(model, x)
    assert {v.dtype for v in result.module.state_dict().values()} == {dtype}
    assert result.module(x).dtype == dtype
    conv, norm = model[0], model[1]
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    exact = (conv.weight.double() * scale[:, None, None, None]).to(dtype)
    [weight] = [v for v in result.module.state_dict().values() if v.dim() == 4]
    assert torch.equal(weight, exact)


def test_a_running_variance_beyond_float16_is_folded_before_the_cast() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))).float()
    with torch.no_grad():
        model[0].weight.mul_(1e4)
        model[1].running_var.mul_(1e8)
        model[1].running_mean.mul_(1e2)
    x = doubles(2, 4, 5, 6).float()
    result = reparam.convert(model, x, dtype=torch.float16)
    assert {v.dtype for v in result.module.state_dict().values()} == {torch.float16}
    truth, half = model.double()(x.double()), result.module(x.half()).double()
    assert float((truth - half).detach().abs().max() / truth.detach().abs().max()) < 4e-3
    with torch.no_grad():
        overflowing = copy.deepcopy(model).half()
        assert bool(torch.isinf(overflowing[1].running_var).any())  # the trap: casting first loses the statistics


def test_channels_last_models_and_inputs() -> None:
    model = healthy(
        Lambda(
            lambda m, x: m.head(F.relu(m.block(x)).flatten(1)),
            block=conv_bn(4, 4, padding=1),
            head=nn.Linear(4 * 5 * 6, 3),
        )
    ).to(memory_format=torch.channels_last)
    x = doubles(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    assert fuse_exactly(model, x, bound=EXACT).text.startswith("linear(")
    module = reparam.convert(model, x).module
    for layout in (torch.channels_last, torch.contiguous_format):
        y = module(x.contiguous(memory_format=layout))
        assert float((y - model(x)).detach().abs().max()) <= 1e-12


def test_a_view_captured_on_one_layout_runs_on_another() -> None:
    """`.view` on a channels_last tensor raises in eager mode; the converted model must take both."""
    model = healthy(Lambda(lambda m, x: m.head((x * 2).view(x.shape[0], -1)), head=nn.Linear(24, 3)))
    x = doubles(2, 4, 2, 3)
    module = reparam.convert(model, x).module
    turned = x.contiguous(memory_format=torch.channels_last)
    assert float((module(turned) - model(x)).detach().abs().max()) <= 1e-12


def test_an_empty_batch_gives_an_empty_result() -> None:
    model = healthy(
        nn.Sequential(conv_bn(4, 4, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    )
    module = reparam.convert(model, doubles(2, 4, 5, 6)).module
    assert module(torch.zeros(0, 4, 5, 6, dtype=torch.float64)).shape == (0, 3)


# ---- inputs and outputs ------------------------------------------------------------------------------------------


def test_scalar_tensor_inputs_and_python_numbers() -> None:
    model = healthy(Lambda(lambda m, x, t, k: m.block(x) * t + k, block=conv_bn(4, 4, padding=1)))
    x, t = doubles(2, 4, 5, 6), torch.tensor(1.5, dtype=torch.float64)
    fused = fuse_exactly(model, x, t, 2, bound=EXACT)
    assert "batch_norm" not in fused.text


def test_integer_inputs() -> None:
    model = healthy(nn.Sequential(nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 3)))
    fused = fuse_exactly(model, torch.randint(0, 11, (2, 5)), bound=EXACT)
    assert fused.text.startswith("linear(layer_norm(embedding(")


@dataclasses.dataclass
class Detection:
    boxes: Tensor
    scores: Tensor


def test_several_inputs_and_outputs_in_a_dict_and_a_dataclass() -> None:
    model = healthy(
        Lambda(
            lambda m, a, b: {"sum": m.p(a) + m.q(b), "found": Detection(m.p(a), torch.sigmoid(m.q(b))), "same": a},
            p=conv_bn(4, 4, padding=1),
            q=conv_bn(4, 4, 1),
        )
    )
    a, b = doubles(2, 4, 5, 6), doubles(2, 4, 5, 6, seed=8)
    fused = fuse(model, a, b)
    assert "batch_norm" not in fused.text
    truth = model(a, b)
    module = reparam.convert(model, a, b).module
    result = module(a, b)
    assert isinstance(result["found"], Detection)
    assert torch.equal(result["same"], a)
    for one, two in ((truth["sum"], result["sum"]), (truth["found"].scores, result["found"].scores)):
        assert float((one - two).abs().max()) <= 1e-12


def test_the_same_tensor_given_for_two_inputs_makes_two_inputs() -> None:
    model = healthy(Lambda(lambda m, a, b: m.conv(a) - b, conv=nn.Conv2d(4, 4, 3, padding=1)))
    x = doubles(2, 4, 5, 6)
    fused = fuse(model, x, x)
    assert fused.text == "sub(conv3x3(x0), x1)"
    assert module_rel(model, fused.program, [x, doubles(2, 4, 5, 6, seed=8)]) <= EXACT


def test_an_output_used_twice() -> None:
    model = healthy(Lambda(lambda m, x: (y := m.block(x), y, F.relu(y)), block=conv_bn(4, 4, padding=1)))
    fused = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert fused.text == "a = conv3x3(x); a, a, relu(a)"


def test_a_model_that_returns_its_input() -> None:
    model = healthy(nn.Sequential(nn.Dropout(), nn.Identity()))
    x = doubles(2, 4)
    assert fuse_exactly(model, x, bound=0.0).text == "x"
    assert torch.equal(reparam.convert(model, x).module(x), x)


# ---- dead weight -------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate) / (1 - self.rate)


def test_dead_weight_in_evaluation_mode_disappears() -> None:
    model = healthy(
        Lambda(
            lambda m, x: (
                m.drop(m.path(m.conv(x).contiguous().to(torch.float64)[:, :, :, :].clone().detach())) * 1.0 + 0
            ),
            conv=nn.Sequential(nn.Identity(), nn.Conv2d(4, 4, 3, padding=1), nn.Dropout2d(0.3), nn.BatchNorm2d(4)),
            path=DropPath(0.5),
            drop=nn.Sequential(nn.Dropout(0.1), nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.1)),
        )
    )
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


def test_stochastic_depth_of_torchvision_disappears() -> None:
    ops = pytest.importorskip("torchvision.ops")
    model = healthy(
        Lambda(
            lambda m, x: x + m.path(m.block(x)), block=conv_bn(4, 4, padding=1), path=ops.StochasticDepth(0.5, "row")
        )
    )
    assert fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT).text == "conv3x3(x)"


def test_dropout_that_stays_on_in_evaluation_mode_is_not_dropped() -> None:
    """Monte-Carlo dropout draws random numbers: it must not be taken for the identity."""
    model = healthy(Lambda(lambda m, x: F.dropout(m.conv(x), 0.5, training=True), conv=nn.Conv2d(4, 4, 1)))
    fused = fuse(model, doubles(2, 4, 5, 6))
    assert fused.text == "dropout(conv1x1(x), 0.5, True)"


# ---- control flow ------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # this line is in the message
            return x
        return -x


def test_data_dependent_control_flow_names_the_line() -> None:
    with pytest.raises(CaptureError) as error:
        capture(Branching(), (doubles(2, 4),))
    text = str(error.value)
    assert "Branching cannot be captured as one graph" in text
    assert "if x.sum() > 0:" in text and "test_traps.py:" in text
    assert "depends on the data" in text


def test_a_converted_module_agrees_with_the_model() -> None:
    """The emitted module, not only the program, on a batch that was not traced."""
    model = positive(healthy(Basic(4, 6, 2, conv_bn(4, 6, 1, stride=2))))
    result = reparam.convert(model, doubles(2, 4, 7, 9))
    x = doubles(5, 4, 7, 9, seed=3)
    with torch.no_grad():
        assert float((result.module(x) - model(x)).abs().max()) <= 1e-12
    assert module_rel(model, result.program, [x]) <= EXACT
