"""Blocks with skips, concatenations, splits and pairs of streams become chains; what cannot be carried is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import evaluate, is_chain
from support.helpers import EXACT, Lambda, conv_bn, doubles, graph_text, healthy, max_rel, module_rel
from support.plain_blocks import (
    Every,
    ZeroChannels,
    basic,
    bottleneck,
    cross_stage,
    dense,
    inception,
    inverted,
    momentum,
    net,
    perceptron,
    pooled,
    pre_activation,
    projection,
    reversible,
    squeezed,
)
from support.plain_helpers import assert_chain, counts, plain, refusal

X = (2, 3, 8, 6)
EVEN = [(2, 3, 10, 12), (1, 3, 4, 6)]
ODD = [(2, 3, 7, 9), (1, 3, 5, 4)]
FREE = ("batch", "height", "width")
STEM = "relu(conv3x3(x))"


def ratio(model: nn.Module, *shape: int) -> str:
    """What the only chain of a network says about its price."""
    [message] = assert_chain(model, *shape, merges=1).passed("carry-residual")
    return message


# ---- residual blocks -------------------------------------------------------------------------------------------------


def test_the_graph_before_and_after() -> None:
    fused = assert_chain(net(basic()), *X, merges=1, sizes=ODD, dynamic=FREE)
    bn = "batch_norm(conv3x3({}))".format
    assert graph_text(fused.original) == f"a = relu({bn('x')}); relu(add({bn('relu(' + bn('a') + ')')}, a))"
    assert fused.text == f"relu(conv3x3(relu(conv3x3({STEM}))))"
    [remark] = [r for r in fused.outcome.remarks if r.rule == "carry-residual" and r.kind == "passed"]
    assert remark.module == "1" and remark.evidence == "sampled"
    assert remark.message.startswith("a chain of 2 layers, 2.00 x the multiply-accumulates")
    assert remark.macs == 8 * 6 * 2 * 4 * 4 * 9


@given(
    c=st.integers(1, 4),
    kernels=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    dilation=st.integers(1, 2),
    groups=st.booleans(),
    bias=st.booleans(),
    sign=st.sampled_from([1.0, -1.0, 0.5]),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
)
def test_any_same_size_block_is_a_chain(
    c: int,
    kernels: tuple[int, int],
    dilation: int,
    groups: bool,
    bias: bool,
    sign: float,
    size: tuple[int, int],
) -> None:
    a, b = kernels
    options: dict[str, Any] = {"bias": bias, "groups": c if groups else 1}
    model = net(
        Lambda(
            lambda m, x: F.relu(m.b(F.relu(m.a(x))) + sign * x),
            a=nn.Conv2d(c, c, a, padding=dilation * (a // 2), dilation=dilation, **options),
            b=nn.Conv2d(c, c, b, padding=b // 2, **options),
        ),
        c=c,
    )
    x = doubles(2, 3, *size)
    fused = plain(model, x)
    assert is_chain(fused.program) and counts(fused)[1].merges == 0
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_a_strided_block_carries_its_input_at_the_taps_that_the_shortcut_reads() -> None:
    fused = assert_chain(net(basic(4, 8, 2, projection(4, 8, 2))), *X, merges=1, sizes=ODD, dynamic=FREE)
    assert fused.text == f"relu(conv3x3(relu(conv3x3s2({STEM}))))"
    assert "1.45 x" in fused.passed("carry-residual")[0]


@pytest.mark.parametrize(
    "shortcut",
    [projection(4, 4, 2), nn.AvgPool2d(1, 2), nn.MaxPool2d(1, 2), Every(0)],
    ids=["projection", "average of one", "maximum of one", "every second"],
)
def test_a_strided_block_of_equal_width(shortcut: nn.Module) -> None:
    """Its output has the input's width, so that a shortcut that is no identity cannot be told by the channels."""
    fused = assert_chain(net(basic(4, 4, 2, shortcut)), *X, merges=1, sizes=ODD, dynamic=FREE)
    assert fused.text == f"relu(conv3x3(relu(conv3x3s2({STEM}))))"


@pytest.mark.parametrize("start", [0, 1])
def test_every_second_pixel_from_the_first_or_the_second_one_on(start: int) -> None:
    cut = Lambda(lambda m, x: x[:, :, start::2, ::2])
    assert_chain(net(basic(4, 4, 2, cut)), *X, merges=1)


def test_the_cifar_shortcut_without_weights() -> None:
    fused = assert_chain(net(basic(4, 8, 2, Every(4)), basic(8)), *X, merges=2, sizes=ODD, dynamic=FREE)
    assert fused.text == f"relu(conv3x3(relu(conv3x3(relu(conv3x3(relu(conv3x3s2({STEM}))))))))"


def test_the_middle_of_a_bottleneck_is_grouped() -> None:
    """64/16 as 256/64: [W 0; 0 I] fills five bins of 16 channels; the price is 5.0 instead of 15.6."""
    assert "5.00 x the multiply-accumulates, grouped 5" in ratio(net(bottleneck(64, 16), c=64), *X)


def test_a_bottleneck_with_a_projection() -> None:
    """16/16/64 as 64/64/256: the input, 16 channels, is carried instead of the projection."""
    block = bottleneck(16, 16, 64, 1, projection(16, 64))
    assert "1.56 x the multiply-accumulates, grouped 2" in ratio(net(block, c=16), *X)


def test_a_strided_bottleneck() -> None:
    block = bottleneck(64, 32, 128, 2, projection(64, 128, 2))
    assert "2.17 x the multiply-accumulates, grouped 3" in ratio(net(block, c=64), *X)


@pytest.mark.parametrize(("carry", "price"), [("dense", "15.59"), ("grouped", "5.00"), ("auto", "5.00")])
def test_the_price_of_a_bottleneck_by_how_it_is_carried(carry: str, price: str) -> None:
    model = net(bottleneck(64, 16), c=64)
    fused = plain(model, doubles(1, 3, 4, 4), carry=carry)
    [message] = fused.passed("carry-residual")
    assert f"{price} x the multiply-accumulates" in message
    assert ("grouped" in message) == (carry != "dense")
    assert module_rel(model, fused.program, [doubles(2, 3, 4, 4)]) <= EXACT


def test_pre_activation_carries_signed_channels_by_slopes() -> None:
    fused = assert_chain(net(pre_activation(4), pre_activation(4)), *X, merges=2, sizes=ODD, dynamic=FREE)
    assert fused.text.count("prelu") == 2  # behind the stem x is never negative, behind the first block it is


def test_pre_activation_shared_where_the_dimensions_change() -> None:
    fused = assert_chain(net(pre_activation(4, 8, 2), pre_activation(8)), *X, merges=2, sizes=ODD)
    assert "1.45 x" in fused.passed("carry-residual")[0]


def test_inverted_residuals_keep_the_clip_of_their_own_channels_and_carry_past_it() -> None:
    """Outputs really are clipped at 6, and what is carried lies far beyond 6 on both sides."""
    model = net(inverted(), inverted(), act=nn.ReLU6())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("expand.1.weight", "depthwise.1.weight", "project.1.weight")):
                p.mul_(40.0)
    seen: dict[str, float] = {"clipped": 0.0, "carried": 0.0}
    model[1].expand.register_forward_hook(lambda m, a, y: seen.update(clipped=float((y > 6).double().mean())))
    model[2].register_forward_pre_hook(lambda m, a: seen.update(carried=float(a[0].abs().max())))
    with torch.no_grad():
        model(doubles(*X))
    model[1].expand._forward_hooks.clear()
    model[2]._forward_pre_hooks.clear()
    assert seen["clipped"] > 0.2 and seen["carried"] > 60.0
    fused = assert_chain(model, *X, merges=2, sizes=ODD, dynamic=FREE)
    assert fused.text.count("clamp") == 4 and "g16" in fused.text


def test_a_linear_residual() -> None:
    model = healthy(nn.Sequential(perceptron(), nn.Linear(5, 5), nn.ReLU(), perceptron()))
    fused = assert_chain(model, 3, 5, merges=2)
    assert fused.text == "linear(relu(linear(relu(linear(prelu(linear(x), w))))))"


# ---- shortcuts that pool or pad --------------------------------------------------------------------------------------


def test_a_pooled_shortcut_of_an_even_map() -> None:
    fused = assert_chain(net(pooled(4, 8)), *X, merges=1)
    assert fused.text == f"relu(conv3x3(relu(conv3x3s2({STEM}))))"
    assert_chain(net(pooled(4, 8, ceil=True)), *X, merges=1)


@pytest.mark.parametrize(("shape", "dynamic"), [((2, 3, 7, 6), ("batch",)), (X, FREE)], ids=["odd", "free"])
def test_a_pooled_shortcut_of_an_odd_or_free_map_is_refused(shape: tuple[int, ...], dynamic: tuple[str, ...]) -> None:
    """With ceil_mode the last window of an odd map holds fewer elements."""
    model = net(pooled(4, 8, ceil=True))
    fused = plain(model, doubles(*shape), dynamic=dynamic)
    module, message = refusal(fused)
    assert "its average pool divides by fewer elements at the border (odd sizes or padding)" in message
    assert module == "1" and counts(fused)[1].merges == 1
    assert module_rel(model, fused.program, [doubles(*shape)]) <= EXACT


@pytest.mark.parametrize("how", ["pad", "zeros_like", "mul", "new_zeros", "zeros"])
def test_the_shortcut_of_stochastic_depth(how: str) -> None:
    """An average pool, then channels of zeros, which cost nothing to carry."""
    model = net(basic(4, 8, 2, ZeroChannels(4, how)), basic(8))
    fused = assert_chain(model, *X, merges=2 + (how == "mul"))
    assert fused.text == f"relu(conv3x3(relu(conv3x3(relu(conv3x3(relu(conv3x3s2({STEM}))))))))"


# ---- concatenations, branches, pairs ---------------------------------------------------------------------------------


def test_dense_concatenation() -> None:
    fused = assert_chain(net(dense()), *X, merges=3, sizes=ODD, dynamic=FREE)
    assert fused.text.count("conv") == 1 + 2 * 3


def test_branches_of_unequal_depth() -> None:
    fused = assert_chain(net(inception()), *X, merges=1, sizes=ODD, dynamic=FREE)
    assert fused.text.count("conv") == 6  # a layer more than the deepest branch: the first 1x1 stay apart


def test_a_split_of_which_one_part_goes_past_the_blocks() -> None:
    fused = assert_chain(net(cross_stage()), *X, merges=2, sizes=ODD, dynamic=FREE)
    assert fused.text.count("relu") == fused.text.count("conv") == 5


def test_a_reversible_pair() -> None:
    assert_chain(net(reversible()), *X, merges=3, sizes=ODD, dynamic=FREE)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_a_stream_with_momentum(gamma: float) -> None:
    fused = assert_chain(net(momentum(steps=3, gamma=gamma)), *X, merges=5, sizes=ODD)
    convs = fused.text.count("conv")
    assert convs <= 1 + 2 * 3 + 2


@pytest.mark.parametrize("squash", [torch.sigmoid, F.hardsigmoid], ids=["sigmoid", "hardsigmoid"])
def test_a_gate_stays_a_gate_and_the_rest_is_carried(squash: Callable[[Tensor], Tensor]) -> None:
    fused = assert_chain(net(squeezed(4, squash)), *X, merges=1, gates=1, sizes=ODD, dynamic=FREE)
    _, message = refusal(fused)
    assert "a squeeze-excite gate multiplies a value by a function of its means; it stays a gate" in message


def test_a_skip_past_other_blocks() -> None:
    inner = nn.Sequential(basic(), basic())
    model = net(Lambda(lambda m, x: F.relu(m.inner(x) + x), inner=inner))
    assert_chain(model, *X, merges=3, sizes=ODD)


def test_one_layer_called_twice_is_two_layers_of_the_chain() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = net(Lambda(lambda m, x: F.relu(m.c(F.relu(m.c(x))) + x), c=conv))
    assert_chain(model, *X, merges=1)


def test_branches_with_unlike_activations_take_turns() -> None:
    model = net(
        Lambda(
            lambda m, x: F.relu(m.c(torch.cat([F.silu(m.a(x)), F.leaky_relu(m.b(x))], 1))),
            a=nn.Conv2d(4, 3, 3, padding=1),
            b=nn.Conv2d(4, 3, 1),
            c=nn.Conv2d(6, 4, 1),
        )
    )
    assert_chain(model, *X, merges=1)


def test_a_sum_whose_shift_would_meet_a_border_unless_it_is_held() -> None:
    """b = x + a with a bias in a: b is held, or a is, and no border is wrong."""

    def forward(m: Any, x: Tensor) -> Tensor:
        a = m.p(F.relu(m.q(x)))
        b = x + a
        c = a + m.r(b)
        d = b + c
        return d + c + m.t(F.relu(m.s(d)))

    wide: dict[str, Any] = {"padding": 1}
    model = healthy(
        Lambda(
            forward,
            p=nn.Conv2d(3, 3, 1),
            q=nn.Conv2d(3, 3, 1),
            r=nn.Conv2d(3, 3, 3, **wide),
            s=nn.Conv2d(3, 3, 3, **wide),
            t=nn.Conv2d(3, 3, 3, **wide),
        )
    )
    assert_chain(model, 2, 3, 5, 5, merges=5)


def test_what_is_known_of_a_value_holds_for_the_chain_in_its_place() -> None:
    """The concatenation is never negative, but ends in a linear layer as a chain: the pooled skip needs no slopes."""
    grow = Lambda(lambda m, x: torch.cat([x, F.relu(m.b(F.relu(m.a(x))))], 1), a=conv_bn(4, 3), b=conv_bn(3, 2, 1))
    grow.a[0].padding = (1, 1)
    fused = assert_chain(net(grow, basic(6, 6, 2, nn.AvgPool2d(2, 2))), *X, merges=2)
    assert "prelu" not in fused.text


def test_the_chain_of_float32_weights_in_float32() -> None:
    model = net(bottleneck(16, 4), pre_activation(16), c=16).float()
    x = doubles(2, 3, 8, 6).float()
    fused = plain(model, x)
    assert is_chain(fused.program)
    truth = evaluate(fused.original, [x])[0]
    before, after = (float((evaluate(p, [x], None)[0] - truth).norm()) for p in (fused.original, fused.program))
    rms = float(truth.norm())
    assert after <= 2 * before + 4 * torch.finfo(torch.float32).eps * rms
    assert max_rel(fused.original, fused.program, [x]) <= EXACT
