"""The small network that steps are taken on is the masked one, before and after its weights change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from reparam.capture import capture
from reparam.emit import finalize
from reparam.ir import Program, evaluate
from reparam.passes import phases_of
from reparam.pruning.equations import as_rows, from_rows
from reparam.pruning.gated import Gated, with_gates
from reparam.pruning.narrow import Narrow, narrowed
from reparam.pruning.running import set_weight
from reparam.rewrite import Driver
from support.choice import mostly_in_sweeps
from support.prunable import NETS, conv_bn, fused, half_off, images


def run(program: Program, x: Tensor) -> Tensor:
    return evaluate(program, [x], torch.float64)[0]


def changed(small: Narrow) -> None:
    """Every weight that is not zero moves, but for those that are fixed, and the biases of such rows, as in a refit."""
    torch.manual_seed(3)
    for kept in small.kept:
        layer = kept.new
        rows = as_rows(layer, small.program.constants[str(layer.weight.target)].value.detach())
        free = (rows != 0) & ~kept.fixed.reshape(-1, *[1] * (rows.dim() - 2))
        moved = rows + 0.3 * torch.randn_like(rows) * free
        set_weight(small.program, str(layer.weight.target), from_rows(layer, moved))
        if layer.bias is not None:
            bias = small.program.constants[str(layer.bias.target)].value.detach()
            alive = (rows != 0).flatten(1).any(1)
            set_weight(small.program, str(layer.bias.target), bias + 0.3 * torch.randn_like(bias) * alive)


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


class Bent(nn.Module):
    """Activations that are no zero at zero, in front of borders of zeros and of none."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.one, self.two, self.three = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 8, kernel=1)
        self.up, self.act, self.head = nn.ConvTranspose2d(8, 6, 2, 2), activation, nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.one, self.two, self.three, self.up):
            x = self.act(layer(x))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


@pytest.mark.parametrize("activation", (nn.ReLU(), nn.Sigmoid(), nn.Softplus()), ids=lambda a: type(a).__name__)
def test_channels_that_are_constant_are_one_that_stays(activation: nn.Module) -> None:
    """Rows of zeros whose batch norms go on, as masks of weights leave them."""
    torch.manual_seed(0)
    reference = Bent(activation).eval()
    pruned = copy.deepcopy(reference)
    for layer in (pruned.one, pruned.two, pruned.three):
        layer[0].weight.data[::2] = 0.0  # type: ignore[index, union-attr]
    x = images(16, seed=2)
    gated = Gated(convert_and_keep(pruned), {}, (), {})
    small = narrowed(gated)
    assert small is not None and any(bool(k.fixed.any()) for k in small.kept)
    before = run(gated.program, x)
    assert close(run(small.program, x), before)
    changed(small)
    after = run(small.program, x)
    small.hand_back(gated)
    assert close(run(gated.program, x), after) and not close(after, before)


def convert_and_keep(module: nn.Module) -> Program:
    """Norms folded, and nothing removed."""
    program = capture(module, (images(2),)).program.copy()
    Driver(program, allow_cost=False).run([p for p in phases_of("fused") if p.name in ("clean", "fold")])
    return finalize(program)
