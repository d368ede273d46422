"""move-shift: a constant on one side of an addition goes into the layer on the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reparam.passes.move_shift import MoveShift
from support.helpers import Lambda, apply_exactly, doubles, graph_text, program_of, run_rules, vector

FORMS = {
    "behind": (lambda m, x: (x.sin() + m.t) + m.c(x.cos()), "'c'"),
    "in front": (lambda m, x: m.c(x.cos()) + (x.sin() + m.t), "'c'"),
    "through a slice": (lambda m, x: (x.sin() + m.t) + m.wide(x.cos())[:, 2:6], "'wide'"),
    "several": (lambda m, x: (x.sin() + m.t) + torch.cat((m.two(x.cos()), m.c(x)[:, :2]), 1), "'two', 'c'"),
}


@pytest.mark.parametrize(("form", "layers"), FORMS.values(), ids=FORMS)
def test_layer_on_the_other_side_takes_it(form: Callable[..., Tensor], layers: str) -> None:
    convs = {"c": nn.Conv2d(4, 4, 3, padding=1), "wide": nn.Conv2d(4, 6, 1), "two": nn.Conv2d(4, 2, 1)}
    model = Lambda(form, t=vector(4, 1, 1), **convs).double()
    done = apply_exactly(model, doubles(2, 4, 5, 5), rules=[MoveShift()], bound=1e-14)
    assert done.text.count("add") == 1
    assert done.passed("move-shift") == [f"the constant moved to {layers}"]


@pytest.mark.parametrize(
    "form",
    [
        lambda m, x: (x.sin() + m.t) + x.cos(),
        lambda m, x: ((y := x.sin() + m.t) + m.c(x.cos())) * y.cos(),
        lambda m, x: torch.add(x.sin() + m.t, m.c(x.cos()), alpha=2),
        lambda m, x: (x.sin() + m.t) + (z := m.c(x.cos())) * z.tanh(),
        lambda m, x: ((y := m.c(x.cos())) + m.t) + y,
        lambda m, x: (m.t - x.sin()) + m.c(x.cos()),
        lambda m, x: (x.sin() + m.t) + m.c(x[:1].cos()),
        lambda m, x: (x.sin() + m.t) + m.u,
        lambda m, x: (x.sin() + m.t) + 1.0,
    ],
    ids=[
        "no layer",
        "read elsewhere",
        "a factor",
        "the layer is read elsewhere",
        "one layer on both sides",
        "a difference",
        "another shape",
        "two constants",
        "a number",
    ],
)
def test_it_stays(form: Callable[..., Tensor]) -> None:
    model = Lambda(form, t=vector(4, 1, 1), u=vector(2, 4, 5, 5), c=nn.Conv2d(4, 4, 3, padding=1)).double()
    program = program_of(model, doubles(2, 4, 5, 5), dynamic=())
    done = run_rules(program, MoveShift())
    assert done.text == graph_text(program) and not done.outcome.remarks
