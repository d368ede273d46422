"""The small network that steps are taken on is the masked one, before and after its weights change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reparam.ir import Program, evaluate
from reparam.pruning.gated import with_gates
from reparam.pruning.narrow import Narrow, narrowed
from reparam.pruning.running import set_weight
from support.choice import mostly_in_sweeps
from support.prunable import NETS, fused, half_off, images


def run(program: Program, x: Tensor) -> Tensor:
    return evaluate(program, [x], torch.float64)[0]


def changed(small: Narrow) -> None:
    """Every weight that is not zero moves, and every bias."""
    torch.manual_seed(3)
    for kept in small.kept:
        for node in (kept.new.weight, kept.new.bias):
            if node is not None:
                value = small.program.constants[str(node.target)].value.detach()
                moved = value + 0.3 * torch.randn_like(value) * ((value != 0) | (node is kept.new.bias))
                set_weight(small.program, str(node.target), moved)


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-5 * b.norm())


@pytest.mark.parametrize("coupled", (True, False))
@pytest.mark.parametrize("name", mostly_in_sweeps(NETS, "residual", "attention"))
def test_what_becomes_of_small_weights_becomes_of_the_masked_network(name: str, coupled: bool) -> None:
    gated, x = with_gates(fused(name), coupled=coupled), images(16, seed=2)
    half_off(gated)
    before = run(gated.program, x)
    small = narrowed(gated)
    assert small is not None
    assert sum(c.value.numel() for c in small.program.constants.values()) < sum(
        v.numel() for v in gated.original.values()
    )
    assert close(run(small.program, x), before)
    changed(small)
    assert torch.equal(run(gated.program, x), before), "the weights are not its own"
    after = run(small.program, x)
    assert not close(after, before)
    small.hand_back(gated)
    assert close(run(gated.program, x), after)
    masks = gated.masks()
    assert any(bool((m == 0).any()) for m in masks.values())
