"""Traps that published converters fell into: one test each, against the module itself in float64.

Each trap is a shape of network where the obvious rewrite is wrong. The rewrite must be exact or refused, never both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture import capture
from reparam.errors import InputError
from support.helpers import EXACT, Lambda, conv_bn, doubles, fuse, fuse_exactly, healthy

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
