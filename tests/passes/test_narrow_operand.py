"""narrow-operand: constants in the shape of a value give way to constants that broadcast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.passes.narrow_operand import NarrowOperand
from support.helpers import doubles, fuse_exactly, graph_text, max_rel, program_of, run_rules

Form = Callable[[Tensor, Tensor], Tensor]
FORMS: dict[str, Form] = {
    "expand_as": lambda c, x: x - c.expand_as(x),
    "expand": lambda c, x: x * c.expand(x.shape[0], -1, x.shape[2], x.shape[3]),
    "on the left": lambda c, x: c.expand_as(x) - x,
    "ones_like": lambda c, x: x - torch.ones_like(x) * c,
    "full_like": lambda c, x: x / torch.full_like(x, 2.5),
    "arithmetic of fills": lambda c, x: x + (torch.full_like(x, 2.0) - torch.ones_like(x) / 4) * c.expand_as(x),
}


class Net(nn.Module):
    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.conv = form, nn.Conv2d(3, 4, 3).double()
        self.register_buffer("c", doubles(1, 3, 1, 1) + 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.form(self.c, x)).relu()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_constant_in_the_shape_of_the_input_folds_into_the_convolution(form: Form) -> None:
    done = fuse_exactly(Net(form), doubles(2, 3, 7, 7), bound=1e-13)
    assert done.text == "relu(conv3x3(x))"


@pytest.mark.parametrize(
    "form",
    [
        lambda c, x: x.sum((0, 2, 3), keepdim=True) + c.expand(2, 3, 7, 7),
        lambda c, x: x + x[:, :1].expand_as(x),
        lambda c, x: torch.div(x, c.expand_as(x), rounding_mode="floor"),
    ],
    ids=["decides the shape", "depends on the input", "rounds"],
)
def test_other_operands_stay(form: Form) -> None:
    x = doubles(2, 3, 7, 7)
    program = program_of(Net(form), x, dynamic=())
    done = run_rules(program, NarrowOperand())
    assert "expand" in graph_text(done.program)
    assert max_rel(done.original, done.program, [x]) == 0.0
