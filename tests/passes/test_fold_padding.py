"""fold-padding: a zero pad in front of a convolution becomes its own padding."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.passes import fold_padding
from reparam.passes.fold_padding import FoldPadding
from support.helpers import Lambda, doubles, graph_text, max_rel, program_of, run_rules


class Padded(nn.Module):
    def __init__(self, pad: list[int], conv: nn.Module, mode: str = "constant", value: float = 0.0) -> None:
        super().__init__()
        self.pad, self.conv, self.mode, self.value = pad, conv.double(), mode, value

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad, self.mode, self.value if self.mode == "constant" else None))


@given(
    height=st.integers(0, 3),
    width=st.integers(0, 3),
    own=st.integers(0, 2),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    size=st.integers(6, 9),
)
def test_property(height: int, width: int, own: int, stride: int, dilation: int, groups: int, size: int) -> None:
    conv = nn.Conv2d(4, 8, 3, stride, own, dilation, groups)
    x = doubles(2, 4, size, size + 1)
    done = run_rules(program_of(Padded([width, width, height, height], conv), x), FoldPadding())
    assert "pad" not in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) <= 1e-14


def test_before_and_after() -> None:
    done = run_rules(program_of(Padded([1, 1, 2, 2], nn.Conv2d(3, 4, 3)), doubles(2, 3, 6, 6)), FoldPadding())
    assert graph_text(done.original) == "conv3x3(pad(x, [1, 1, 2, 2], constant, 0.0))"
    assert graph_text(done.program) == "conv3x3(x)"
    assert done.passed("fold-padding") == ["took over the zero pad before it"]


def test_uneven_pad_is_refused_with_the_reason() -> None:
    done = run_rules(program_of(Padded([0, 1, 0, 1], nn.Conv2d(3, 4, 3)), doubles(2, 3, 6, 6)), FoldPadding())
    assert "pad" in graph_text(done.program)
    assert any("uneven" in r.message for r in done.outcome.remarks if r.kind == "missed")


@pytest.mark.parametrize(("mode", "value"), [("reflect", 0.0), ("replicate", 0.0), ("constant", 1.0)])
def test_other_padding_is_left_alone(mode: str, value: float) -> None:
    x = doubles(2, 3, 6, 6)
    done = run_rules(program_of(Padded([1, 1, 1, 1], nn.Conv2d(3, 4, 3), mode, value), x), FoldPadding())
    assert "pad" in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) == 0.0


def test_a_pad_that_something_else_reads_stays_for_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3).double()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            padded = F.pad(x, [1, 1, 1, 1])
            return self.conv(padded), padded

    x = doubles(2, 3, 6, 6)
    done = run_rules(program_of(Two(), x), FoldPadding())
    assert "pad" in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) <= 1e-14


def test_wrong_padding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold_padding.replace

    def one_too_many(geometry: Any, *, padding: Any) -> Any:
        return right(geometry, padding=(padding[0], (padding[1][0] + 1, padding[1][1] + 1)))

    monkeypatch.setattr(fold_padding, "replace", one_too_many)
    program = program_of(Padded([1, 1, 1, 1], nn.Conv2d(3, 4, 3, stride=(1, 4))), doubles(2, 3, 6, 6))
    before = graph_text(program)
    done = run_rules(program, FoldPadding())
    assert done.outcome.rejected == 1
    assert graph_text(done.program) == before


@pytest.mark.parametrize("kind", ["weights of the data", "one sample"])
def test_a_convolution_that_is_no_layer_with_fixed_weights_keeps_the_pad_before_it(kind: str) -> None:
    weight = nn.Parameter(doubles(4, 3, 3, 3))

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        padded = F.pad(x, [1, 1, 1, 1])
        return F.conv2d(padded[0], m.w) if kind == "one sample" else F.conv2d(padded, m.w * x.sum())

    done = run_rules(program_of(Lambda(forward, w=weight), doubles(2, 3, 5, 5)), FoldPadding())
    assert "pad" in done.text and not done.outcome.remarks
