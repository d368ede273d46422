"""The check of one rewrite: right ones pass, and wrong ones fail however little or however rarely they differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.algebra import Layer, read_layer, scale_outputs, weights, write_layer
from reparam.algebra.kernels import scale_inputs
from reparam.check import Evidence
from reparam.check import rewrite_check as subject
from reparam.check.rewrite_check import _draw
from reparam.errors import RuleError
from reparam.ir import BATCH_NORMS, CONVS, TRANSPOSED_CONVS, Program, aten
from support.believing import Build, Replace, evidence_of
from support.helpers import Conv, Lambda, convolutions, doubles, fingerprint, healthy, program_of, run_rules, vector


def layer_of(program: Program, node: fx.Node) -> Layer:
    layer = read_layer(program, node)
    assert layer is not None
    return layer


def rewritten(change: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]) -> Build:
    """The same layer with changed weights."""

    def build(program: Program, node: fx.Node) -> fx.Node:
        layer = layer_of(program, node)
        return write_layer(program, layer, *change(*weights(program, layer)))

    return build


def same(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return w.clone(), b


# ---- right rewrites pass, with the kind of evidence that their region allows --------------------------------------


def _rarely_read() -> Conv:
    """Of stride 2 and padding 1, so that a map of one pixel shows it nothing but padding."""
    return Conv(nn.Conv2d(1, 1, 1, stride=(1, 2), padding=(0, 1), bias=False), (2, 1, 1, 2), 2, 1)


def _of_many_impulses() -> Conv:
    """560 of them, and 5500 numbers on both sides of each: a little more than are tried."""
    module = nn.ConvTranspose3d(
        2, 1, (2, 2, 3), stride=(2, 3, 1), padding=(0, 1, 0), dilation=(1, 2, 2), output_padding=(0, 0, 1), bias=False
    )
    return Conv(module, (2, 2, 5, 7, 8), 3, 1)


@example(conv=_of_many_impulses())
@given(conv=convolutions() | convolutions(transposed=True))
@patch.object(subject, "BASIS_ELEMENTS", 10**8)  # no network of these is too large
def test_a_copy_of_a_layer_is_proven_on_the_basis(conv: Conv) -> None:
    x = doubles(*conv.shape)
    result = evidence_of(conv.module.double(), CONVS | TRANSPOSED_CONVS, rewritten(same), x)
    assert result == Evidence("basis", 0.0, result.bound, True)


@example(conv=_rarely_read(), by=1e-6)
@given(conv=convolutions() | convolutions(transposed=True), by=st.sampled_from([1e-6, 1e-9, -1e-11]))
def test_any_single_tap_that_is_off_is_noticed(conv: Conv, by: float) -> None:
    """Every entry of the kernel is reached by some impulse, whatever the geometry."""
    module: Any = conv.module.double()
    with torch.no_grad():
        module.weight.copy_(0.5 + torch.rand_like(module.weight))
    x = doubles(*conv.shape)
    read = [i for i in range(module.weight.numel()) if _is_read(module, i, x)]
    assume(read)
    index = read[int(torch.randint(len(read), ()))]

    def change(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        w = w.clone()
        w.view(-1)[index] *= 1 + by
        return w, b

    result = evidence_of(module, CONVS | TRANSPOSED_CONVS, rewritten(change), x)
    assert not result.ok and result.max_abs > result.bound


def _is_read(module: Any, index: int, x: Tensor) -> bool:
    """Whether this entry meets any input at this size (a tap that lies in the padding at every position does not)."""
    single = torch.zeros_like(module.weight)
    single.view(-1)[index] = 1.0
    kept = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.copy_(single)
        bias = 0 if module.bias is None else module.bias.view(-1, *[1] * (x.dim() - 2))
        seen = bool(((module(torch.ones_like(x)) - bias).abs() > 0.5).any())
        module.weight.copy_(kept)
    return seen


def test_what_is_not_affine_is_sampled_and_says_so() -> None:
    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.clamp_min.default, (node.args[0], 0.0), like=node)

    result = evidence_of(nn.ReLU(), frozenset({aten.relu.default}), build, doubles(2, 4, 5, 6))
    assert result.kind == "sampled" and result.ok and result.max_abs == 0.0


def test_a_region_too_large_for_every_impulse_is_sampled() -> None:
    model = nn.Conv2d(256, 256, 3, padding=1).double()
    result = evidence_of(model, CONVS, rewritten(same), doubles(1, 256, 14, 14))
    assert result.kind == "sampled" and result.ok


def test_samples_are_drawn_in_the_proven_range() -> None:
    """relu(x) = x where x >= 0 is known, and only there."""

    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.clone.default, (node.args[0],), like=node)

    x = doubles(2, 4, 5, 6)
    relu = frozenset({aten.relu.default})
    assert evidence_of(nn.ReLU(), relu, build, x, range=(0.0, math.inf)).ok
    assert evidence_of(nn.ReLU(), relu, build, x, range=(0.0, 1.0)).ok
    assert not evidence_of(nn.ReLU(), relu, build, x).ok
    assert not evidence_of(nn.ReLU(), relu, build, x, range=(-1e-3, math.inf)).ok
    assert not evidence_of(nn.ReLU(), relu, build, x, range=(-math.inf, 5.0)).ok


@pytest.mark.parametrize(
    "low, high",
    [
        (-math.inf, math.inf),
        (0.0, math.inf),
        (-5.0, math.inf),
        (-math.inf, 5.0),
        (2.0, math.inf),
        (-math.inf, -2.0),
        (-1e6, 1e6),
        (0.0, 6.0),
        (-1.0, 1.0),
        (0.25, 0.25),
    ],
)
def test_the_draws_cover_their_interval(low: float, high: float) -> None:
    """Every sign that can occur, values about zero where it lies inside, the ends, and nothing outside."""
    x = _draw((2, 4, 5, 5), low, high, torch.Generator().manual_seed(3))
    assert x.dtype == torch.float64 and bool(torch.isfinite(x).all())
    assert float(x.min()) >= low and float(x.max()) <= high
    if low < 0 < high:
        assert bool((x > 0).any() and (x < 0).any())
        assert float(x.abs().min()) < 0.1 * min(-low, high, 10)
    for end in (low, high):
        assert math.isinf(end) or abs(end) > 10 or float((x - end).abs().min()) < 0.1
    if math.isinf(low) or math.isinf(high):
        assert float(x.abs().max()) > 5
    elif high > 10:
        assert float(x.max()) > high / 2 and float(x.min()) < low / 2


# ---- wrong rewrites fail -----------------------------------------------------------------------------------------


def _naive_shift(program: Program, node: fx.Node) -> fx.Node:
    """conv(x + t) with the shift in the bias: right inside, wrong on a zero-padded border."""
    layer = layer_of(program, node)
    shift = program.tensor(layer.x.args[1])
    assert shift is not None
    weight, bias = weights(program, layer)
    folded = scale_inputs("conv", weight, bias, layer.geometry.groups, None, shift.reshape(-1))
    return write_layer(program, layer, *folded, x=layer.x.args[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("padding, right", [(0, True), (1, False), ((0, 1), False), ((2, 0), False)])
@pytest.mark.parametrize("size", [(3, 4), (40, 40)])
def test_a_difference_on_the_border_alone_is_seen(padding: Any, right: bool, size: tuple[int, int]) -> None:
    """Also where the map is so large that the border is a small part of it."""
    model = Lambda(lambda m, x: m.conv(x + m.t), conv=nn.Conv2d(4, 4, 3, padding=padding), t=vector(4, 1, 1)).double()
    assert evidence_of(model, CONVS, _naive_shift, doubles(2, 4, *size)).ok == right


def _padded_on(left: int, right: int) -> Build:
    def build(program: Program, node: fx.Node) -> fx.Node:
        layer = layer_of(program, node)
        x = program.call(aten.pad.default, (layer.x, [left, right, 1, 1]), like=node)
        args = (x, layer.weight, layer.bias, [2, 2], [0, 0])
        return program.call(aten.conv2d.default, args, like=node)

    return build


@pytest.mark.parametrize("width", [7, 8, 30])
def test_a_padding_on_the_wrong_side_is_seen(width: int) -> None:
    model = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    x = doubles(2, 2, 9, width)
    assert evidence_of(model, CONVS, _padded_on(1, 1), x).ok
    if width % 2 == 0:  # with an even width the padding behind is never read
        assert evidence_of(model, CONVS, _padded_on(1, 0), x, dynamic=()).ok
    assert not evidence_of(model, CONVS, _padded_on(0, 2), x).ok


def _swapped(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    order = [1, 0, *range(2, w.shape[0])]
    return w[order], None if b is None else b[order]


def _flipped(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return w.flip(-1), b


def _no_bias(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return w, None


def _last_bias(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    assert b is not None
    b = b.clone()
    b[-1] += 1e-9
    return w, b


def _rounded(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return w.float().double(), b


def _nan(w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    w = w.clone()
    w.view(-1)[3] = math.nan
    return w, b


@pytest.mark.parametrize("change", [_swapped, _flipped, _no_bias, _last_bias, _rounded, _nan], ids=lambda f: f.__name__)
@pytest.mark.parametrize("channels", [4, 192])
def test_wrong_weights_are_seen_on_the_basis_and_in_samples(change: Any, channels: int) -> None:
    model = nn.Conv2d(channels, channels, 3, padding=1).double()
    with torch.no_grad():
        model.weight.copy_(0.01 * doubles(*model.weight.shape))  # not representable in float32
    result = evidence_of(model, CONVS, rewritten(change), doubles(1, channels, 8, 8))
    assert result.kind == ("basis" if channels == 4 else "sampled")
    assert not result.ok


def test_a_dilation_or_stride_or_group_that_is_wrong_is_seen() -> None:
    model = nn.Conv2d(4, 4, 3, padding=1).double()

    def build(program: Program, node: fx.Node) -> fx.Node:
        layer = layer_of(program, node)
        return program.call(aten.conv2d.default, (layer.x, layer.weight, layer.bias, [1, 1], [2, 2], [2, 2]), like=node)

    assert not evidence_of(model, CONVS, build, doubles(2, 4, 7, 8)).ok

    def shuffled(program: Program, node: fx.Node) -> fx.Node:
        layer = layer_of(program, node)
        x = program.call(aten.channel_shuffle.default, (layer.x, 2), like=node)
        return program.call(aten.conv2d.default, (x, layer.weight, layer.bias, [1, 1], [1, 1]), like=node)

    assert not evidence_of(model, CONVS, shuffled, doubles(2, 4, 7, 8)).ok


def test_a_norm_folded_with_another_epsilon_is_seen() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=1e-3)))

    def build(eps: float) -> Build:
        def fold(program: Program, node: fx.Node) -> fx.Node:
            norm: Any = model[1]
            layer = layer_of(program, node.args[0])  # type: ignore[arg-type]
            scale = (norm.weight / (norm.running_var + eps).sqrt()).detach()
            shift = (norm.bias - norm.running_mean * scale).detach()
            weight, bias = weights(program, layer)
            return write_layer(program, layer, *scale_outputs("conv", weight, bias, 1, scale, shift), like=node)

        return fold

    x = doubles(2, 4, 6, 7)
    assert evidence_of(model, BATCH_NORMS, build(1e-3), x).ok
    assert not evidence_of(model, BATCH_NORMS, build(1.0001e-3), x).ok


def test_a_product_that_is_wrong_only_far_out_is_seen() -> None:
    """clamp(x, -6, 6) is x for most normal samples: the draws reach further than that."""

    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.clone.default, (node.args[0],), like=node)

    clamp = Lambda(lambda m, x: x.clamp(-6, 6))
    assert not evidence_of(clamp, frozenset({aten.clamp.default}), build, doubles(2, 4, 8, 8)).ok


# ---- the region --------------------------------------------------------------------------------------------------


def test_branches_whose_sizes_agree_only_at_the_traced_size_are_checked_there() -> None:
    """A 2x2 and a 1x1 of stride 2 agree for even sizes alone, so no smaller odd map may be used."""
    model = Lambda(
        lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 2, stride=2, dilation=1), b=nn.Conv2d(4, 4, 1, stride=2)
    ).double()

    def build(off: float) -> Build:
        def merge(program: Program, node: fx.Node) -> fx.Node:
            first, second = (layer_of(program, a) for a in node.args[:2])  # type: ignore[arg-type]
            (wa, ba), (wb, bb) = weights(program, first), weights(program, second)
            assert ba is not None and bb is not None
            wide = wa.clone()
            wide[:, :, :1, :1] += wb * (1 + off)
            return write_layer(program, first, wide, ba + bb, like=node)

        return merge

    for size in (6, 8, 20):
        x = doubles(2, 4, size, size)
        assert evidence_of(model, frozenset({aten.add.Tensor}), build(0.0), x).ok
        assert not evidence_of(model, frozenset({aten.add.Tensor}), build(1e-9), x).ok


@pytest.mark.parametrize("pad", [[-1, -1, -1, -1], [-2, 0, 0, -2], [1, -1, 0, 0]])
def test_a_cropping_pad_leaves_enough_to_check(pad: list[int]) -> None:
    model = Lambda(lambda m, x: m.conv(F.pad(x, pad)), conv=nn.Conv2d(4, 4, 1)).double()

    def build(program: Program, node: fx.Node) -> fx.Node:
        layer = layer_of(program, node)
        x = program.clone(layer.x, {})
        return write_layer(program, layer, *weights(program, layer), x=x)

    result = evidence_of(model, CONVS, build, doubles(2, 4, 7, 8))
    assert result.ok and result.kind == "basis"


def test_another_shape_is_a_bug_of_the_rule() -> None:
    def build(program: Program, node: fx.Node) -> fx.Node:
        layer = layer_of(program, node)
        return program.call(aten.conv2d.default, (layer.x, layer.weight, layer.bias), like=node)

    with pytest.raises(RuleError, match="another shape"):
        evidence_of(nn.Conv2d(4, 4, 3, padding=1).double(), CONVS, build, doubles(2, 4, 6, 6))


def test_dropping_an_input_is_a_bug_of_the_rule() -> None:
    def build(program: Program, node: fx.Node) -> fx.Node:
        return program.call(aten.clone.default, (node.args[0],), like=node)

    model = Lambda(lambda m, x, z: x + z)
    with pytest.raises(RuleError, match="dropped an input"):
        evidence_of(model, frozenset({aten.add.Tensor}), build, doubles(2, 4), doubles(2, 4, seed=8))


def test_the_bound_grows_with_the_values_and_not_with_wishes() -> None:
    """Huge and tiny weights: the same relative error is found in both, and rounding is accepted in both."""
    for magnitude in (1e-12, 1.0, 1e12):
        model = nn.Conv2d(4, 4, 3).double()
        with torch.no_grad():
            model.weight.mul_(magnitude)
            model.bias.mul_(magnitude)  # type: ignore[union-attr]
        x = doubles(2, 4, 6, 6)
        off = evidence_of(model, CONVS, rewritten(lambda w, b: (w * (1 + 1e-10), b)), x)
        assert not off.ok and off.bound < 1e-11 * magnitude
        last_bit = evidence_of(model, CONVS, rewritten(lambda w, b: ((w * 3) / 3, b)), x)
        assert last_bit.ok


def test_a_rejected_rewrite_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).double()
    program = program_of(model, doubles(2, 4, 8, 8))
    rule: Any = Replace(CONVS, rewritten(lambda w, b: (w * (1 + 1e-9), b)))
    fused = run_rules(program, rule)
    assert fingerprint(fused.program) == fingerprint(program)
    assert fused.outcome.rejected == 2
    assert all("rejected by its own check: float64 difference" in m for m in fused.missed("replace"))


# ---- complex values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [False, True])
def test_complex_values_at_the_border_of_a_rewrite_are_drawn_with_both_parts(wrong: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft(x).reciprocal())

    def build(program: Program, node: fx.Node) -> fx.Node:
        values = program.call(aten.conj_physical.default, (node.args[0],), like=node) if wrong else node.args[0]
        return program.call(aten.reciprocal.default, (values,), like=node)

    result = evidence_of(Lambda(forward), {aten.reciprocal.default}, build, doubles(2, 4))
    assert result.kind == "sampled" and result.ok is not wrong
