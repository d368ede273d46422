"""move-shift: a constant on one side of an addition goes into the layer on the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reparam.passes.move_shift import MoveShift
from support.helpers import Lambda, apply_exactly, doubles, program_of, run_rules, vector

FORMS = {
    "behind": lambda m, x: (x.sin() + m.t) + m.c(x.cos()),
    "in front": lambda m, x: m.c(x.cos()) + (x.sin() + m.t),
    "through a slice": lambda m, x: (x.sin() + m.t) + m.wide(x.cos())[:, 2:6],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_layer_on_the_other_side_takes_it(form) -> None:  # type: ignore[no-untyped-def]
    model = Lambda(form, t=vector(4, 1, 1), c=nn.Conv2d(4, 4, 3, padding=1), wide=nn.Conv2d(4, 6, 1)).double()
    done = apply_exactly(model, doubles(2, 4, 5, 5), rules=[MoveShift()], bound=1e-14)
    assert done.text.count("add") == 1


@pytest.mark.parametrize(
    "form",
    [
        lambda m, x: (x.sin() + m.t) + x.cos(),
        lambda m, x: ((y := x.sin() + m.t) + m.c(x.cos())) * y.cos(),
        lambda m, x: torch.add(x.sin() + m.t, m.c(x.cos()), alpha=2),
        lambda m, x: (x.sin() + m.t) + (z := m.c(x.cos())) * z.tanh(),
    ],
    ids=["no layer", "read elsewhere", "a factor", "the layer is read elsewhere"],
)
def test_it_stays(form) -> None:  # type: ignore[no-untyped-def]
    model = Lambda(form, t=vector(4, 1, 1), c=nn.Conv2d(4, 4, 3, padding=1)).double()
    assert not run_rules(program_of(model, doubles(2, 4, 5, 5)), MoveShift()).passed("move-shift")
