"""Re-parameterisation blocks of published networks: each one fuses to a single convolution, without model code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from support.blocks import (
    ACNet,
    DilatedReparam,
    DiverseBranch,
    LargeKernel,
    MobileOne,
    PaddedPointwise,
    QARepVGG,
    RepConv,
    RepGhost,
    RepMixer,
    RepVGG,
    RepViTMixer,
    ResidualDepthwise,
    branch,
    branch_1x1_avg,
    branch_1x1_kxk,
)
from support.choice import crossed, mostly_in_sweeps
from support.helpers import EXACT, assert_verification_bites, doubles, fuse_exactly, graph_text, healthy

# ---- RepVGG and its relatives ------------------------------------------------------------------------------------

GEOMETRIES = [(6, 6, 1, 1), (6, 6, 2, 1), (6, 12, 1, 2), (6, 9, 2, 3), (6, 6, 1, 6), (6, 6, 2, 6)]


def strided(kernel: str, stride: int, groups: int) -> str:
    return kernel + (f"s{stride}" if stride > 1 else "") + (f"g{groups}" if groups > 1 else "")


@pytest.mark.parametrize("block, geometry", crossed((RepVGG, RepConv, QARepVGG, MobileOne), GEOMETRIES))
def test_a_repvgg_like_block_is_one_convolution(
    block: Callable[..., nn.Module], geometry: tuple[int, int, int, int]
) -> None:
    c_in, c_out, stride, groups = geometry
    model = healthy(block(c_in, c_out, stride=stride, groups=groups))
    x = doubles(2, c_in, 7, 10)
    fused = fuse_exactly(model, x, bound=EXACT)
    act = "silu" if block is RepConv else "relu"
    assert fused.text == f"{act}({strided('conv3x3', stride, groups)}(x))"
    assert_verification_bites(fused, [x], bound=EXACT)


@pytest.mark.parametrize("dynamic", [("batch",), ("batch", "height", "width"), ()])
@pytest.mark.parametrize("stride", [1, 2])
def test_repvgg_is_one_convolution_for_every_choice_of_free_sizes(dynamic: Sequence[str], stride: int) -> None:
    model = healthy(RepVGG(4, 4, stride=stride))
    fused = fuse_exactly(model, doubles(2, 4, 9, 8), bound=EXACT, dynamic=dynamic)
    assert fused.text == f"relu({strided('conv3x3', stride, 1)}(x))"


def test_repvgg_with_squeeze_excite_keeps_the_gate_and_one_convolution_before_it() -> None:
    model = healthy(RepVGG(6, 6, se=True))
    fused = fuse_exactly(model, doubles(2, 6, 5, 8), bound=EXACT)
    assert fused.text.startswith("a = conv3x3(x); relu(mul(a, sigmoid(conv1x1(relu(conv1x1(")


def test_a_stack_of_repvgg_blocks_is_a_chain_of_convolutions() -> None:
    model = healthy(nn.Sequential(RepVGG(3, 6, stride=2), RepVGG(6, 6), RepVGG(6, 6, groups=2), RepVGG(6, 8, stride=2)))
    fused = fuse_exactly(model, doubles(2, 3, 17, 16), bound=EXACT)
    assert fused.text == "relu(conv3x3s2(relu(conv3x3g2(relu(conv3x3(relu(conv3x3s2(x))))))))"


@pytest.mark.parametrize("c_in, c_out", [(6, 6), (6, 10)])
def test_a_pointwise_mobileone_block_is_one_convolution(c_in: int, c_out: int) -> None:
    fused = fuse_exactly(healthy(MobileOne(c_in, c_out, k=1)), doubles(2, c_in, 5, 6), bound=EXACT)
    assert fused.text == "relu(conv1x1(x))"


# ---- asymmetric, dilated and large kernels -----------------------------------------------------------------------


@pytest.mark.parametrize("c_in, c_out, stride, groups", GEOMETRIES)
@pytest.mark.parametrize("k", [3, 5])
def test_acnet_is_one_convolution(c_in: int, c_out: int, stride: int, groups: int, k: int) -> None:
    x = doubles(2, c_in, 8, 9)
    fused = fuse_exactly(healthy(ACNet(c_in, c_out, k, stride, groups)), x, bound=EXACT)
    assert fused.text == strided(f"conv{k}x{k}", stride, groups) + "(x)"
    assert_verification_bites(fused, [x], bound=EXACT)


@pytest.mark.parametrize("k, stride, dynamic", crossed([7, 9], [1, 2], [("batch",), ("batch", "height", "width")]))
def test_the_dilated_block_is_one_convolution(k: int, stride: int, dynamic: Sequence[str]) -> None:
    x = doubles(2, 4, 15, 14)
    fused = fuse_exactly(healthy(DilatedReparam(4, k, stride)), x, bound=EXACT, dynamic=dynamic)
    assert fused.text == strided(f"conv{k}x{k}", stride, 4) + "(x)"
    assert_verification_bites(fused, [x], bound=EXACT)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_large_kernel_block_is_one_convolution(stride: int) -> None:
    x = doubles(2, 3, 17, 16)
    fused = fuse_exactly(healthy(LargeKernel(3, stride=stride)), x, bound=EXACT)
    assert fused.text == f"relu({strided('conv13x13', stride, 3)}(x))"


# ---- blocks whose skip is not a plain norm -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "block, expected",
    [
        (RepMixer, "conv3x3g6(x)"),
        (RepViTMixer, "conv3x3g6(x)"),
        (RepGhost, "relu(conv3x3g6(x))"),
        (ResidualDepthwise, "conv3x3g6(x)"),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_a_depthwise_block_with_a_skip_is_one_convolution(
    block: Callable[[int], nn.Module], expected: str, size: tuple[int, int]
) -> None:
    x = doubles(2, 6, *size)
    fused = fuse_exactly(healthy(block(6)), x, bound=EXACT)
    assert fused.text == expected
    assert_verification_bites(fused, [x], bound=EXACT)


def test_averaged_heads_behind_norms_are_one_linear_layer() -> None:
    """RepViT's classifier: the mean of two heads, each a linear layer behind its own norm."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))
            self.b = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
            return (self.a(x) + self.b(x)) / 2

    fused = fuse_exactly(healthy(Heads()), doubles(3, 6, 4, 5), bound=EXACT)
    assert fused.text.startswith("linear(") and fused.text.count("linear") == 1
    assert not any(word in fused.text for word in ("add", "div", "batch_norm"))


# ---- diverse branch block ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner, k, stride", crossed([None, 6], [3, 5], [1, 2]))
def test_the_1x1_kxk_branch_with_its_own_border_is_one_convolution(inner: int | None, k: int, stride: int) -> None:
    x = doubles(2, 4, 9, 8)
    fused = fuse_exactly(healthy(branch_1x1_kxk(4, 6, k, stride, 1, inner)), x, bound=EXACT)
    assert fused.text == strided(f"conv{k}x{k}", stride, 1) + "(x)"
    assert_verification_bites(fused, [x], bound=EXACT)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_1x1_avg_branch_with_its_own_border_is_one_convolution(stride: int) -> None:
    """The pool alone makes 9 taps of a 1x1, which costs more: it is merged only beside a k x k branch of the block."""
    model = healthy(nn.Sequential(branch_1x1_avg(4, 6, 3, stride, 1)))

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.avg, self.dense = model, branch(4, 6, 3, stride=stride, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.avg(x) + self.dense(x)

    x = doubles(2, 4, 9, 8)
    fused = fuse_exactly(healthy(Beside()), x, bound=EXACT)
    assert fused.text == strided("conv3x3", stride, 1) + "(x)"


DIVERSE = (
    (4, 6, 3, 1, 1, 4),
    (4, 6, 3, 2, 1, 4),
    (4, 4, 3, 1, 1, None),
    (4, 8, 3, 2, 2, None),
    (6, 6, 3, 1, 6, None),
    (6, 6, 3, 2, 6, None),
    (4, 6, 5, 1, 1, None),
)


@pytest.mark.parametrize(
    "c_in, c_out, k, stride, groups, inner", mostly_in_sweeps(DIVERSE, DIVERSE[0], DIVERSE[3], DIVERSE[4])
)
def test_the_diverse_branch_block_is_one_convolution(
    c_in: int, c_out: int, k: int, stride: int, groups: int, inner: int | None
) -> None:
    x = doubles(2, c_in, 9, 8)
    fused = fuse_exactly(healthy(DiverseBranch(c_in, c_out, k, stride, groups, inner)), x, bound=EXACT)
    assert fused.text == f"relu({strided(f'conv{k}x{k}', stride, groups)}(x))", graph_text(fused.program)
    assert_verification_bites(fused, [x], bound=EXACT)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_padded_pointwise_convolution_before_a_valid_one_is_one_convolution(stride: int) -> None:
    x = doubles(2, 4, 7, 8)
    fused = fuse_exactly(healthy(PaddedPointwise(4, 4, 5, stride)), x, bound=EXACT)
    assert fused.text == strided("conv3x3", stride, 1) + "(x)"
