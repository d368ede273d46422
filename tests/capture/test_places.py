"""The lines of a model that its nodes come from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils import _traceback
from torch.utils._traceback import CapturedTraceback

from reparam.capture.places import frames_made_once, line_of
from support.helpers import doubles, program_of


def test_the_frames_of_traces_are_made_once_and_are_the_same() -> None:
    make, trace = _traceback._extract_symbolized_tb, CapturedTraceback.extract(skip=1)
    usual = trace.summary()
    with frames_made_once():
        first, second = trace.summary(), trace.summary()
    assert usual == first == second and usual.format() == first.format()
    assert all(a is b for a, b in zip(first, second, strict=True)) and first[0] is not usual[0]
    assert _traceback._extract_symbolized_tb is make


class TwoLines(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sin()
        return y.cos()


def test_every_node_has_the_line_that_made_it() -> None:
    lines = [line_of(node) for node in program_of(TwoLines(), doubles(2, 3)).calls()]
    assert [line.code for line in lines if line is not None] == ["y = x.sin()", "return y.cos()"]
