"""The algebra on weights against torch's own convolutions, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.algebra import average_kernel, column, dirac, expand_groups, scale_outputs
from reparam.algebra.kernels import Kind, add_shifts, batch_norm_affine, compose, dilate, embed, scale_inputs
from support.helpers import EXACT, Conv, convolutions, doubles

CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype == torch.float64
    assert float((a - b).abs().max()) <= EXACT * max(float(a.abs().max()), 1e-300)


def _run(conv: Conv, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    m: Any = conv.module
    if isinstance(m, nn.modules.conv._ConvTransposeNd):
        options = (m.stride, m.padding, m.output_padding, m.groups, m.dilation)
        return TRANSPOSED[conv.rank](x, weight, bias, *options)
    return CONV[conv.rank](x, weight, bias, m.stride, m.padding, m.dilation, m.groups)


def _weights(conv: Conv) -> tuple[Tensor, Tensor | None, int]:
    m: Any = conv.module.double()
    return m.weight.detach(), None if m.bias is None else m.bias.detach(), m.groups


@st.composite
def affines(draw: st.DrawFn) -> tuple[bool, bool]:
    return draw(st.booleans()), draw(st.booleans())


@given(conv=convolutions() | convolutions(transposed=True), parts=affines())
def test_scale_outputs_is_an_affine_after_the_layer(conv: Conv, parts: tuple[bool, bool]) -> None:
    weight, bias, groups = _weights(conv)
    x = doubles(*conv.shape)
    scale = doubles(conv.c_out, seed=1) if parts[0] else None
    shift = doubles(conv.c_out, seed=2) if parts[1] else None
    kind: Kind = "transposed" if isinstance(conv.module, nn.modules.conv._ConvTransposeNd) else "conv"
    y = _run(conv, x, weight, bias)
    y = y * column(scale, y.dim(), 1) if scale is not None else y
    y = y + column(shift, y.dim(), 1) if shift is not None else y
    close(y, _run(conv, x, *scale_outputs(kind, weight, bias, groups, scale, shift)))


@given(conv=convolutions(padded=False), parts=affines())
def test_scale_inputs_is_an_affine_before_a_layer_without_padding(conv: Conv, parts: tuple[bool, bool]) -> None:
    weight, bias, groups = _weights(conv)
    x = doubles(*conv.shape)
    scale = doubles(x.shape[1], seed=1) if parts[0] else None
    shift = doubles(x.shape[1], seed=2) if parts[1] else None
    y = x * column(scale, x.dim(), 1) if scale is not None else x
    y = y + column(shift, x.dim(), 1) if shift is not None else y
    close(_run(conv, y, weight, bias), _run(conv, x, *scale_inputs("conv", weight, bias, groups, scale, shift)))


@given(conv=convolutions() | convolutions(transposed=True))
def test_a_scale_before_any_layer_is_exact_on_the_border(conv: Conv) -> None:
    weight, bias, groups = _weights(conv)
    x = doubles(*conv.shape)
    scale = doubles(x.shape[1], seed=1)
    kind: Kind = "transposed" if isinstance(conv.module, nn.modules.conv._ConvTransposeNd) else "conv"
    truth = _run(conv, x * column(scale, x.dim(), 1), weight, bias)
    close(truth, _run(conv, x, *scale_inputs(kind, weight, bias, groups, scale, None)))


def test_linear_layers_scale_alike() -> None:
    x, weight, bias = doubles(3, 4), doubles(5, 4, seed=1), doubles(5, seed=2)
    scale, shift = doubles(5, seed=3), doubles(5, seed=4)
    close(
        F.linear(x, weight, bias) * scale + shift,
        F.linear(x, *scale_outputs("linear", weight, bias, 1, scale, shift)),
    )
    scale, shift = doubles(4, seed=5), doubles(4, seed=6)
    truth = F.linear(x * scale + shift, weight, bias)
    close(truth, F.linear(x, *scale_inputs("linear", weight, bias, 1, scale, shift)))


def test_a_shift_does_not_fold_into_a_transposed_convolution() -> None:
    with pytest.raises(ValueError, match="a shift does not fold into a transposed convolution"):
        scale_inputs("transposed", doubles(4, 3, 3, 3), None, 1, None, doubles(4))


def test_a_shift_that_cancels_on_paper_is_zero_and_no_other_is() -> None:
    a = torch.tensor([0.1 + 0.2, 1.0, 1.0, 0.0, 1e-30], dtype=torch.float64)
    b = torch.tensor([-0.3, -1.0, -1.0 + 1e-12, 1e-300, 1e-30], dtype=torch.float64)
    total = add_shifts(a, b)
    assert total[:2].tolist() == [0.0, 0.0]  # 0.1 + 0.2 - 0.3 is 5.6e-17 in float64
    assert total[2:].tolist() == (a + b)[2:].tolist()
    assert bool((total[2:] != 0).all())


def test_rounding_of_differences_is_dropped_where_all_of_a_sum_is_rounding() -> None:
    shift = torch.tensor([1.0, 2.0, -3.0, 1e-4, -5e-5], dtype=torch.float64)  # the last two as differences of the like
    other = -(shift + torch.tensor([1, -2, 3, 2, -1], dtype=torch.float64) * 2e-16)
    assert bool((add_shifts(shift, other) == 0).all())
    other[0] += 1e-9  # no rounding: then each entry is measured by its own parts
    kept = add_shifts(shift, other)
    assert float(kept[0]) == pytest.approx(1e-9, rel=1e-3)
    assert bool((kept[1:] != 0).any())
    tiny = torch.tensor([1e10, 1.0], dtype=torch.float64)
    assert float(add_shifts(tiny, -tiny + torch.tensor([0.0, 1e-8]).double())[1]) == pytest.approx(1e-8)


@given(
    groups=st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (6, 2), (2, 1), (1, 1)]),
    per=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.lists(st.integers(1, 3), min_size=0, max_size=3),
)
def test_expand_groups_writes_zeros_between_groups(
    groups: tuple[int, int], per: tuple[int, int], kernel: list[int]
) -> None:
    g, target = groups
    weight = doubles(g * per[0], per[1], *kernel)
    wide = expand_groups(weight, g, target)
    assert wide.shape == (g * per[0], per[1] * g // target, *kernel)
    conv = CONV[max(len(kernel), 1)]
    x = doubles(2, g * per[1], *(kernel or [1]), seed=3)
    a, b = (w if kernel else w[..., None] for w in (weight, wide))
    close(conv(x, a, groups=g), conv(x, b, groups=target))


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3))
def test_dilate_writes_the_zeros_of_a_dilation(axes: list[tuple[int, int]]) -> None:
    kernel, dilation = [k for k, _ in axes], [d for _, d in axes]
    weight = doubles(3, 2, *kernel)
    size = [d * (k - 1) + 2 for k, d in axes]
    x = doubles(2, 2, *size, seed=1)
    conv = CONV[len(axes)]
    close(conv(x, weight, dilation=dilation), conv(x, dilate(weight, dilation)))


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    before=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    after=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_embed_moves_a_kernel_by_the_zeros_around_it(
    kernel: tuple[int, int], before: tuple[int, int], after: tuple[int, int]
) -> None:
    weight, x = doubles(3, 2, *kernel), doubles(1, 2, 9, 8, seed=1)
    size = [k + b + a for k, b, a in zip(kernel, before, after, strict=True)]
    wide = embed(weight, before, size)
    small, large = F.conv2d(x, weight), F.conv2d(x, wide)
    rows, columns = (slice(b, b + n) for b, n in zip(before, large.shape[2:], strict=True))
    close(small[:, :, rows, columns], large)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("ndim", [0, 1, 2, 3])
def test_dirac_is_the_identity(groups: int, ndim: int) -> None:
    weight = dirac(6, groups, ndim)
    assert weight.shape == (6, 6 // groups, *[1] * ndim)
    x = doubles(2, 6, *[4] * ndim)
    if ndim == 0:
        assert torch.equal(F.linear(x, expand_groups(weight, groups, 1)), x)
    else:
        assert torch.equal(CONV[ndim](x, weight, groups=groups), x)


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    divisor=st.sampled_from([None, 1, 5]),
)
def test_average_kernel_is_average_pooling(kernel: tuple[int, int], stride: int, divisor: int | None) -> None:
    x = doubles(2, 3, 7, 8)
    pad = (kernel[0] // 2, kernel[1] // 2)
    truth = F.avg_pool2d(x, kernel, stride, pad, divisor_override=divisor)
    close(truth, F.conv2d(x, average_kernel(3, kernel, divisor), None, stride, pad, 1, 3))


@given(
    kernels=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=0, max_size=3),
    step=st.integers(1, 3),
    groups=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (2, 4), (4, 4)]),
    middle=st.sampled_from([4, 8]),
)
def test_compose_is_one_layer_after_another(
    kernels: list[tuple[int, int]], step: int, groups: tuple[int, int], middle: int
) -> None:
    """With four channels between them a layer of four groups is depthwise."""
    g1, g2 = groups
    ndim = len(kernels)
    k1, k2 = [k for k, _ in kernels], [k for _, k in kernels]
    first, second = doubles(middle, 4 // g1, *k1), doubles(4, middle // g2, *k2, seed=1)
    joint = compose(first, g1, second, g2, [step] * ndim)
    shared = math.gcd(g1, g2)
    assert joint.shape == (4, 4 // shared, *(a + step * (b - 1) for a, b in kernels))
    if ndim == 0:
        x = doubles(3, 4, seed=2)
        wide = [expand_groups(w, g, 1) for w, g in ((first, g1), (second, g2), (joint, shared))]
        close(F.linear(F.linear(x, wide[0]), wide[1]), F.linear(x, wide[2]))
        return
    x = doubles(2, 4, *(a + step * (b - 1) + 3 for a, b in kernels), seed=2)
    conv = CONV[ndim]
    close(conv(conv(x, first, None, step, 0, 1, g1), second, groups=g2), conv(x, joint, None, step, 0, 1, shared))


@given(
    values=st.lists(
        st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 1e6)), min_size=1, max_size=5
    ),
    eps=st.sampled_from([1e-3, 1e-5, 1e-12]),
    affine=st.booleans(),
)
def test_batch_norm_affine_is_evaluated_batch_norm(
    values: Sequence[tuple[float, float, float, float]], eps: float, affine: bool
) -> None:
    gamma, beta, mean, var = (torch.tensor(v, dtype=torch.float64) for v in zip(*values, strict=True))
    x = doubles(6, len(values))
    weights = (gamma, beta) if affine else (None, None)
    truth = F.batch_norm(x, mean, var, *weights, False, 0.1, eps)
    scale, shift = batch_norm_affine(*weights, mean, var, eps)
    bound = 1e-13 * ((scale * x).abs() + (scale * mean).abs() + 3)
    assert bool(((scale * x + shift - truth).abs() <= bound).all())


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_what_is_rounding_is_measured_by_the_size_of_the_parts(scale: float) -> None:
    shift = scale * torch.tensor([1.0, 2.0, -3.0, 1e-4, -5e-5], dtype=torch.float64)
    other = -(shift + scale * torch.tensor([1, -2, 3, 2, -1], dtype=torch.float64) * 2e-16)
    assert bool((add_shifts(shift, other) == 0).all())
    other[0] += scale * 1e-9
    assert float(add_shifts(shift, other)[0]) == pytest.approx(scale * 1e-9, rel=1e-3)


def test_no_shifts_are_added_to_none() -> None:
    assert add_shifts(doubles(0), doubles(0)).shape == (0,)


def test_new_kernels_lie_where_the_weights_do() -> None:
    there = torch.empty(1, device="meta")
    assert dirac(6, 2, 2, like=there).device == there.device
    assert average_kernel(6, (2, 3), None, like=there).device == there.device
    assert dirac(6, 2, 2).device.type == average_kernel(6, (2, 3), None).device.type == "cpu"


def test_a_number_for_each_axis_is_asked_for() -> None:
    weight = doubles(3, 2, 3, 1)
    with pytest.raises(ValueError, match="zip"):
        embed(weight, (1,), (5, 5))
    with pytest.raises(ValueError, match="zip"):
        dilate(weight, (2,))
