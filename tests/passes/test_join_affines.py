"""join-affines: products and sums with constants in a row become at most one of each."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.passes.join_affines import JoinAffines
from support.helpers import Lambda, apply_exactly, doubles, graph_text, program_of, run_rules, vector

STEPS = {
    "mul": lambda x: x * 1.5,
    "div": lambda x: x / 0.75,
    "add": lambda x: x + 0.5,
    "rsub": lambda x: 2.0 - x,
    "neg": lambda x: -x,
}


@given(st.lists(st.sampled_from([*STEPS, "channels"]), min_size=2, max_size=5))
def test_property(names: list[str]) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x.sin()
        for name in names:
            x = x * m.c if name == "channels" else STEPS[name](x)
        return x.tanh()

    done = apply_exactly(Lambda(forward, c=vector(3, 1)), doubles(2, 3, 4), rules=[JoinAffines()], bound=1e-14)
    calls = [n for n in done.program.calls()]
    assert len(calls) - 2 <= 2


def test_preprocessing_is_one_product_and_one_sum() -> None:
    done = apply_exactly(
        Lambda(lambda _, x: torch.tanh(2 * (x / 255) - 1)), doubles(2, 3, 4), rules=[JoinAffines()], bound=1e-14
    )
    assert len(list(done.program.calls())) == 3


def test_a_value_in_between_that_is_read_elsewhere_stays() -> None:
    program = program_of(Lambda(lambda _, x: ((y := x * 2.0) * 3.0).tanh() + y.cos()), doubles(2, 3))
    assert graph_text(run_rules(program, JoinAffines()).program) == graph_text(program)


def test_constants_along_two_axes_do_not_mix() -> None:
    model = Lambda(lambda m, x: (x * m.a) * m.b * 2.0, a=vector(3, 1), b=vector(4))
    done = apply_exactly(model, doubles(2, 3, 4), rules=[JoinAffines()], bound=1e-14)
    assert done.text.count("mul") >= 2
