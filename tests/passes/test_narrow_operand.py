"""narrow-operand: constants in the shape of a value give way to constants that broadcast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.passes.narrow_operand import NarrowOperand
from support.helpers import Fused, Lambda, doubles, fuse_exactly, graph_text, module_rel, program_of, run_rules, vector

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


def narrowed(form: Form) -> Fused:
    """Only this rule, on a function of a constant (3, 1, 1) and of the input."""
    model = Lambda(lambda m, x: form(m.c, x), c=vector(3, 1, 1))
    program = program_of(model, doubles(2, 3, 4, 5), dynamic=())
    done = run_rules(program, NarrowOperand())
    assert module_rel(model, done.program, [doubles(2, 3, 4, 5)]) <= 1e-14
    return done


ALONE: dict[str, tuple[Form, str]] = {
    "expand_as": (lambda c, x: x - c.expand_as(x), "sub(x, w)"),
    "on the left": (lambda c, x: c.expand_as(x) / x, "div(w, x)"),
    "on the left and smaller": (lambda c, x: c.expand(3, 4, 1) / x, "div(w, x)"),
    "plus nothing": (lambda c, x: x * (torch.ones_like(x) + 0.0), "mul(x, 1.0)"),
    "arithmetic of weights": (lambda c, x: x - (c.expand_as(x) / c - 2.0), "sub(x, sub(div(w, w), 2.0))"),
    "a factor": (lambda c, x: torch.sub(x, c.expand_as(x), alpha=3), "sub(x, w, alpha=3)"),
    "a fill": (lambda c, x: x * torch.full_like(x, 2.5), "mul(x, 2.5)"),
    "zeros": (lambda c, x: x + torch.zeros(2, 3, 4, 5, dtype=x.dtype), "add(x, 0.0)"),
    "ones": (lambda c, x: x + torch.ones(2, 3, 4, 5, dtype=x.dtype), "add(x, 1.0)"),
    "full": (lambda c, x: x + torch.full((2, 3, 4, 5), 3, dtype=x.dtype), "add(x, 3.0)"),
    "a sum of fills": (lambda c, x: x + (torch.ones_like(x) + 2.0), "add(x, 3.0)"),
    "a difference of fills": (lambda c, x: x + (torch.ones_like(x) - 3.0), "add(x, -2.0)"),
    "a product of fills": (lambda c, x: x + torch.ones_like(x) * 3.0, "add(x, 3.0)"),
    "a quotient of fills": (lambda c, x: x + torch.ones_like(x) / 4.0, "add(x, 0.25)"),
    "a number before a weight": (lambda c, x: x + torch.full_like(x, 2.0) * c.expand_as(x), "add(x, mul(w, 2.0))"),
    "a number behind a weight": (lambda c, x: x - (c.expand_as(x) - 2.0), "sub(x, sub(w, 2.0))"),
    "a number before a narrow weight": (lambda c, x: x + filled(2, 4, 1) * c, "add(x, mul(w, 2.0))"),
    "two weights": (lambda c, x: x - c.expand_as(x) / c, "sub(x, div(w, w))"),
}


@pytest.mark.parametrize(("form", "text"), ALONE.values(), ids=ALONE)
def test_what_stands_in_its_place(form: Form, text: str) -> None:
    done = narrowed(form)
    assert done.text == text and done.outcome.rejected == 0


def test_it_says_which_call_is_gone() -> None:
    done = narrowed(lambda c, x: (x - c.expand_as(x)) * torch.full_like(x, 2.5))
    assert done.passed("narrow-operand") == [
        "its operand broadcasts without expand",
        "its operand broadcasts without full",
    ]


@pytest.mark.parametrize(("calls", "narrow"), [(7, True), (8, False)])
@pytest.mark.parametrize("step", ["expand", "double"])
def test_it_looks_at_eight_calls(step: str, calls: int, narrow: bool) -> None:
    def form(c: Tensor, x: Tensor) -> Tensor:
        y = c if step == "expand" else torch.ones_like(x)
        for _ in range(calls):
            y = y.expand_as(x) if step == "expand" else y + y
        return x - y

    done = narrowed(form)
    assert bool(done.passed("narrow-operand")) == narrow
    assert narrow or done.text == graph_text(done.original)


def filled(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


OTHERS: dict[str, Form] = {
    "decides the shape": lambda c, x: x.sum((0, 2, 3), keepdim=True) + c.expand(2, 3, 4, 5),
    "depends on the input": lambda c, x: x + x[:, :1].expand_as(x),
    "rounds": lambda c, x: torch.div(x, c.expand_as(x), rounding_mode="floor"),
    "a weight already": lambda c, x: x + c,
    "a number already": lambda c, x: x + 2.0,
    "a number on the left": lambda c, x: torch.full_like(x, 2.0) - x,
    "another precision": lambda c, x: x + c.float().expand_as(x),
    "whole numbers": lambda c, x: x.long() + torch.ones_like(x.long()),
    "whole numbers beside others": lambda c, x: x + torch.ones_like(x.long()),
    "infinite": lambda c, x: torch.maximum(x - torch.full_like(x, torch.inf), x),
    "over zero": lambda c, x: torch.maximum(x - filled(1, 3, 1, 1) / filled(0, 4, 1), x),
    "a number minus a weight": lambda c, x: x + (filled(1, 4, 1) - c),
    "a number over a weight": lambda c, x: x + filled(1, 4, 1) / c,
    "a factor in between": lambda c, x: x + torch.add(c.expand_as(x), c, alpha=2),
    "one part of data": lambda c, x: x + (c.expand_as(x) + x.sum()),
    "data in front": lambda c, x: x + (x.sum() + c.expand_as(x)),
    "a function": lambda c, x: x + c.expand_as(x).sin(),
}


@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_other_operands_stay(form: Form) -> None:
    program = program_of(Lambda(lambda m, x: form(m.c, x), c=vector(3, 1, 1)), doubles(2, 3, 4, 5), dynamic=())
    done = run_rules(program, NarrowOperand())
    assert done.text == graph_text(program) and not done.outcome.remarks


@pytest.mark.parametrize(
    "form",
    [lambda c, x: x - torch.ones_like(x) * x.shape[0], lambda c, x: x - torch.full_like(x, x.shape[0])],
    ids=["a product with it", "filled with it"],
)
def test_a_size_that_is_free_is_no_number(form: Form) -> None:
    program = program_of(Lambda(lambda m, x: form(m.c, x), c=vector(3, 1, 1)), doubles(2, 3, 4, 5))
    done = run_rules(program, NarrowOperand())
    assert done.text == graph_text(program) and not done.outcome.remarks
