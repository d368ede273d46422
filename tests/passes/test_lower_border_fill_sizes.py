"""lower-border-fill on borders and maps of every size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reparam.passes.fold_constants import FoldConstants
from reparam.passes.lower_border_fill import LowerBorderFill
from support.filled_borders import Filled
from support.helpers import doubles, graph_text, max_rel, program_of, run_rules


@given(channels=st.integers(1, 4), p=st.integers(1, 3), height=st.integers(1, 6), width=st.integers(4, 7))
def test_property(channels: int, p: int, height: int, width: int) -> None:
    x = doubles(2, channels, height, width)
    done = run_rules(program_of(Filled(channels, p), x), FoldConstants(), LowerBorderFill())
    assert "scatter" not in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) <= 1e-15
    other = doubles(3, channels, height, width, seed=9)
    assert max_rel(done.original, done.program, [other]) <= 1e-15
