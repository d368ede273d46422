"""merge-transposed: a sum of two transposed convolutions of one value is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.merge_transposed import MergeTransposed
from support.helpers import (
    EXACT,
    TRANSPOSED_BY_RANK,
    Fused,
    Lambda,
    assert_evidence_bites,
    doubles,
    fuse_exactly,
    graph_text,
    healthy,
    max_rel,
    program_of,
    run_rules,
)

RULE = "merge-transposed"


def summed(first: nn.Module, second: nn.Module, add: Any = torch.add) -> nn.Module:
    return healthy(Lambda(lambda m, x: add(m.a(x), m.b(x)), a=first, b=second))


def merged(model: nn.Module, *shape: int) -> Fused:
    return run_rules(program_of(model, doubles(*shape)), MergeTransposed())


def deconv(kernel: Any, **options: Any) -> nn.Module:
    return nn.ConvTranspose2d(4, 6, kernel, **options)


def test_before_and_after() -> None:
    done = merged(summed(deconv(4, stride=2, padding=1), deconv(2, stride=2)), 2, 4, 5, 6)
    assert graph_text(done.original) == "add(deconv4x4s2(x), deconv2x2s2(x))"
    assert graph_text(done.program) == "deconv4x4s2(x)"
    assert done.passed(RULE) == ["'a' and 'b' became one transposed convolution"]
    assert max_rel(done.original, done.program, [doubles(3, 4, 7, 4)]) <= EXACT


@given(data=st.data(), rank=st.integers(1, 3), stride=st.integers(1, 3), dilation=st.integers(1, 2))
def test_property(data: st.DataObject, rank: int, stride: int, dilation: int) -> None:
    """The second one's output padding makes its output as large as that of the first, where torch lets it."""
    room = max(stride, dilation)
    extra = data.draw(st.integers(0, room - 1), label="output padding")
    first, padding = data.draw(st.integers(1, 4), label="kernel"), data.draw(st.integers(0, 1), label="padding")
    others = [
        (kernel, other, extra + dilation * (first - kernel) - 2 * (padding - other))
        for kernel in range(1, 5)
        for other in range(2)
    ]
    fitting = [o for o in others if 0 <= o[-1] < room]
    second = data.draw(st.sampled_from(fitting), label="the other's kernel, padding and output padding")
    groups, bias = data.draw(st.integers(1, 2), label="groups"), data.draw(st.booleans(), label="bias")
    made = [
        TRANSPOSED_BY_RANK[rank](4, 2, k, stride, p, e, groups, b, dilation)
        for (k, p, e), b in zip(((first, padding, extra), second), (bias, True), strict=True)
    ]
    shape = (2, 4, *[data.draw(st.integers(4, 5), label="size")] * rank)
    done = merged(summed(*made), *shape)
    assert max_rel(done.original, done.program, [doubles(*shape, seed=3)]) <= EXACT
    if not done.passed(RULE):
        assert done.missed(RULE)


@pytest.mark.parametrize(
    "add", [torch.sub, torch.rsub, lambda a, b: torch.add(a, b, alpha=3), lambda a, b: torch.sub(a, b, alpha=-2)]
)
def test_differences_and_factors(add: Any) -> None:
    done = merged(summed(deconv(3, padding=1), deconv(1), add), 2, 4, 5, 6)
    assert done.passed(RULE) and max_rel(done.original, done.program, [doubles(3, 4, 7, 4)]) <= EXACT


@pytest.mark.parametrize(
    "layers",
    [
        (deconv(1), deconv(3, padding=2, dilation=2)),
        (deconv(3, padding=2, dilation=2), deconv(1)),
        (deconv(1, dilation=3, output_padding=1), deconv(2)),
        (deconv(1, dilation=3, output_padding=2), deconv(1, dilation=3, output_padding=2)),
    ],
)
def test_a_kernel_of_one_tap_has_any_dilation(layers: tuple[nn.Module, nn.Module]) -> None:
    done = merged(summed(*layers), 2, 4, 5, 6)
    assert done.passed(RULE) and max_rel(done.original, done.program, [doubles(3, 4, 7, 4)]) <= EXACT


def test_a_size_that_is_free_is_told() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.c(x)
        size = list(x.shape[2:])
        total: Tensor = m.a(y, output_size=size) + m.b(y, output_size=size)
        return total

    layers = {k: nn.ConvTranspose2d(6, 6, 3, 2, 1) for k in "ab"}
    model = healthy(Lambda(forward, c=nn.Conv2d(4, 6, 3, 2, 1), **layers))
    program = program_of(model, doubles(2, 4, 8, 10), dynamic=("batch", "height", "width"))
    done = run_rules(program, MergeTransposed())
    assert done.missed(RULE) == ["two transposed convolutions stay: a padding of theirs is computed from a free size"]


def test_three_of_them_with_norms() -> None:
    layers = {
        "a": nn.Sequential(deconv(4, stride=2, padding=1, bias=False), nn.BatchNorm2d(6)),
        "b": nn.Sequential(deconv(2, stride=2), nn.BatchNorm2d(6)),
        "c": deconv(4, stride=2, padding=1),
    }
    model = healthy(Lambda(lambda m, x: torch.relu(m.a(x) + m.b(x) + m.c(x)), **layers))
    done = fuse_exactly(model, doubles(2, 4, 5, 6), bound=EXACT)
    assert done.text.count("deconv") == 1 and "batch_norm" not in done.text


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (deconv(3, padding=1, groups=2), deconv(1), "their strides or groups differ"),
        (deconv(3, padding=2, dilation=2), deconv(3, padding=1), "their dilations differ"),
        (
            deconv(3, padding=2, dilation=2),
            deconv(2, padding=1, dilation=2),
            "the taps of one lie between those of the other",
        ),
        (deconv(2, padding=1, dilation=2), deconv(3, padding=1), "their dilations differ"),
        (deconv((5, 1), padding=(2, 0)), deconv((1, 5), padding=(0, 2)), "one kernel for both would cost more"),
        (deconv(1, padding=1, dilation=5, output_padding=4), deconv(3), "no padding of torch's aligns their kernels"),
    ],
)
def test_refused_with_the_reason(first: nn.Module, second: nn.Module, reason: str) -> None:
    model = summed(first, second)
    done = merged(model, 2, 4, 5, 6)
    assert graph_text(done.program) == graph_text(done.original)
    assert done.missed(RULE) == [f"two transposed convolutions stay: {reason}"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(x) + m.b(x.sin()),
        lambda m, x: m.a(x) + m.c(x),
        lambda m, x: (y := m.a(x)) + m.b(x) + y.sin(),
        lambda m, x: m.a(x) + m.b(x)[:, :1],
        lambda m, x: m.a(x) + 1.0,
        lambda m, x: (y := m.a(x)) + y,
    ],
    ids=["of two values", "a convolution", "read elsewhere", "a part", "a number", "itself"],
)
def test_silent_about_other_sums(forward: Any) -> None:
    layers = {"a": deconv(3, padding=1), "b": deconv(1), "c": nn.Conv2d(4, 6, 1)}
    done = merged(healthy(Lambda(forward, **layers)), 2, 4, 5, 6)
    assert graph_text(done.program) == graph_text(done.original) and not done.outcome.remarks


def test_its_evidence_bites() -> None:
    assert_evidence_bites(program_of(summed(deconv(3, padding=1), deconv(1)), doubles(2, 4, 5, 6)), MergeTransposed())
