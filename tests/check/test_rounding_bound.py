"""The rounding bound of a region is as large as its arithmetic can make it, and no rewrite is refused for less."""

from __future__ import annotations

import pytest
from torch import nn

from reparam.check.rounding_bound import magnitudes
from reparam.ir import evaluate_region
from support.helpers import Lambda, doubles, fuse, healthy, program_of, vector

MAPS = (3, 4, 5, 6)
H = 1e-7


@pytest.mark.parametrize(
    "norm, shape",
    [
        (nn.BatchNorm2d(4), MAPS),
        (nn.BatchNorm2d(4, track_running_stats=False), MAPS),
        (nn.BatchNorm1d(4, affine=False, track_running_stats=False), (5, 4)),
        (nn.InstanceNorm2d(4, affine=True), MAPS),
        (nn.InstanceNorm1d(4), (3, 4, 5)),
        (nn.GroupNorm(2, 4), MAPS),
        (nn.LayerNorm(6), MAPS),
        (nn.LayerNorm((5, 6), elementwise_affine=False), MAPS),
        (Lambda(lambda m, x: nn.functional.rms_norm(x, [6], m.w, 1e-5), w=vector(6)), MAPS),
        (Lambda(lambda m, x: nn.functional.rms_norm(x, [5, 6])), MAPS),
    ],
)
def test_a_norm_amplifies_a_small_change_by_no_more_than_its_bound(norm: nn.Module, shape: tuple[int, ...]) -> None:
    """Every value moves by a part h of its size. Some rows are nearly constant, which a norm amplifies the most."""
    x = doubles(*shape)
    x[0] = 3.0 + 1e-3 * x[0]
    program = program_of(healthy(norm), x)
    [source] = program.placeholders
    region = [n for n in program.graph.nodes if n.op in ("get_attr", "call_function")]
    moved = x * (1 + H * doubles(*shape, seed=1).sign())
    before, after = (evaluate_region(program, region, {source: v}) for v in (x, moved))
    bound = magnitudes(program, region, before)[region[-1]]
    change = (after[region[-1]] - before[region[-1]]).abs()
    assert bound.shape == change.shape and bool((change <= 1.01 * H * bound).all())
    assert bool((change >= 0.05 * H * bound).any()), "the bound says nothing"


def test_a_norm_of_a_single_value_is_folded_into() -> None:
    """Its output is its shift: all that is left of the value is rounding, hundreds of times amplified."""
    model = healthy(nn.Sequential(nn.GroupNorm(2, 2), nn.BatchNorm2d(2)), seed=1)
    fused = fuse(model, doubles(64, 2, 1, 1))
    assert fused.outcome.rejected == 0 and fused.text == "group_norm(x, 2, w, w)"
