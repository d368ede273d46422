"""What the tests of `shrink` share: layers with zero rows and columns, the rule by itself, and how wide layers are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reparam.ir import WEIGHTED, Program, arguments, is_call, shape_of
from reparam.passes.shrink import Shrink
from support.helpers import EXACT, Fused, module_rel, program_of, run_rules


def widths(program: Program) -> list[tuple[int, ...]]:
    """The first two sizes of every layer's weight, in order."""
    return [shape_of(arguments(n)["weight"])[:2] for n in program.calls() if is_call(n, WEIGHTED)]


def zero(layer: nn.Module, rows: Any = (), columns: Any = (), *, bias: bool = False) -> None:
    """Sets rows and columns of a layer's weight to zero, and with `bias` the biases of the rows."""
    with torch.no_grad():
        layer.weight[list(rows)] = 0
        layer.weight[:, list(columns)] = 0
        if bias and layer.bias is not None:
            layer.bias[list(rows)] = 0


def shrunk(model: nn.Module, *inputs: Tensor, pays: float = 0) -> Fused:
    """Only the rule itself; the result agrees with the module at the traced batch and at another."""
    model = model.double().eval()
    done = run_rules(program_of(model, *inputs), Shrink(pays))
    assert done.outcome.rejected == 0
    for batch in (2, 3):
        assert module_rel(model, done.program, [torch.cat([x, x])[:batch] for x in inputs]) <= EXACT
    return done


class Wired(nn.Module):
    """Layers, and how a function of the inputs runs through them."""

    def __init__(self, run: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)
