"""Affines carried forward: what every operator on the way makes of a scale and a shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from reparam.algebra import Pair, Route, forward_all
from reparam.ir import Program, Refusal, aten
from support.helpers import EXACT, Lambda, doubles, program_of

Binary = Callable[[Any, Any], Tensor]
SHAPE = (2, 4, 3, 5)


def behind(meet: Binary, *, both: bool = False) -> Program:
    """conv(meet(tanh x, tanh y)), without padding; the calls of tanh stand for what carries an affine."""
    model = Lambda(lambda m, x, y: m.conv(meet(torch.tanh(x), torch.tanh(y))), conv=nn.Conv2d(4, 3, 2))
    return program_of(model.double(), doubles(*SHAPE), doubles(*SHAPE, seed=8))


def carriers(program: Program) -> list[fx.Node]:
    return [n for n in program.calls() if n.target is aten.tanh.default]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)


def sink(route: Route | Refusal) -> Pair:
    assert isinstance(route, Route)
    [step] = [s for s in route.steps if s.action == "sink"]
    return step.pair


def assert_equal(vector: Tensor | None, wanted: Tensor) -> None:
    assert vector is not None
    assert float((vector - wanted.reshape(-1)).abs().max()) <= EXACT


# ---- sums and differences ----------------------------------------------------------------------------------------

MEETINGS: dict[str, Binary] = {
    "add": lambda a, b: a + b,
    "add, alpha 3": lambda a, b: torch.add(a, b, alpha=3),
    "sub": lambda a, b: a - b,
    "sub, alpha 3": lambda a, b: torch.sub(a, b, alpha=3),
    "sub, alpha -0.5": lambda a, b: torch.sub(a, b, alpha=-0.5),
    "rsub": torch.rsub,
    "rsub, alpha 3": lambda a, b: torch.rsub(a, b, alpha=3),
}
SHIFT, OTHER = column(1.0, -2.0, 0.5, 4.0), column(-3.0, 0.25, 1.5, -1.0)
NONE = torch.zeros(1, 4, 1, 1, dtype=torch.float64)


@pytest.mark.parametrize("name", MEETINGS)
@pytest.mark.parametrize("sides", [(True, False), (False, True), (True, True)], ids=["left", "right", "both"])
def test_a_shift_keeps_its_sign_and_factor_through_a_sum(name: str, sides: tuple[bool, bool]) -> None:
    """What arrives at the layer is what torch makes of the shifts themselves, on either side and on both."""
    program = behind(MEETINGS[name])
    shifts = [s if there else NONE for s, there in zip((SHIFT, OTHER), sides, strict=True)]
    wanted = MEETINGS[name](*shifts)
    starts = {n: Pair(None, s) for n, s, there in zip(carriers(program), shifts, sides, strict=True) if there}
    pair = sink(forward_all(program, starts))
    assert pair.scale is None
    assert_equal(pair.shift, wanted)


@pytest.mark.parametrize("name", MEETINGS)
def test_shifts_that_cancel_are_gone(name: str) -> None:
    """Where both sides bring the same values, the other one is scaled so that nothing is left of them."""
    program = behind(MEETINGS[name])
    left, right = (float(MEETINGS[name](*(torch.tensor(v) for v in at))) for at in ((1.0, 0.0), (0.0, 1.0)))
    one, other = carriers(program)
    pair = sink(forward_all(program, {one: Pair(None, SHIFT * right), other: Pair(None, -SHIFT * left)}))
    assert pair.trivial
