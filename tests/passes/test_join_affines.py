"""join-affines: products and sums with constants in a row become at most one of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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


CHAINS = {
    "preprocessing": (lambda m, x: 2 * (x / 0.5) - 1, 3, "add(mul(sin(x), 4.0), -1.0)"),
    "products": (lambda m, x: x * 2 * 3, 2, "mul(sin(x), 6.0)"),
    "a factor of one": (lambda m, x: -(x.neg() - 1), 3, "add(sin(x), 1.0)"),
    "nothing": (lambda m, x: -x.neg(), 2, "sin(x)"),
    "weights": (lambda m, x: x * m.c * 2, 2, "mul(sin(x), w)"),
    "behind a product of data": (lambda m, x: (x * x.cos()) * 2 * 3, 2, "a = sin(x); mul(mul(a, cos(a)), 6.0)"),
    "before a batch norm": (lambda m, x: m.n(x * 2 * 3), 2, "batch_norm(mul(sin(x), 6.0))"),
}


@pytest.mark.parametrize(("chain", "count", "text"), CHAINS.values(), ids=CHAINS)
def test_a_chain_is_joined_at_once(chain: Callable[..., Tensor], count: int, text: str) -> None:
    model = Lambda(lambda m, x: chain(m, x.sin()), c=vector(3, 1), n=nn.BatchNorm1d(3)).double()
    done = apply_exactly(model, doubles(2, 3, 4), rules=[JoinAffines()], bound=1e-14)
    assert done.text == text
    assert [r.message for r in done.outcome.remarks] == [f"{count} products and sums in a row became fewer"]


def test_the_new_weights_are_called_after_what_they_do() -> None:
    block = Lambda(lambda m, x: x * m.a * m.a + m.b + m.b, a=vector(3, 1), b=vector(3, 1))
    done = apply_exactly(nn.Sequential(block), doubles(2, 3, 4), rules=[JoinAffines()], bound=1e-14)
    assert sorted(done.program.constants) == ["0.scale", "0.shift"]
    assert {tuple(c.value.shape) for c in done.program.constants.values()} == {(3, 1)}


def test_a_single_product_with_one_is_no_chain() -> None:
    done = apply_exactly(Lambda(lambda _, x: x * 1.0), doubles(2, 3), rules=[JoinAffines()], bound=1e-14)
    assert done.text == "mul(x, 1.0)" and not done.outcome.remarks


def test_before_several_readers_a_chain_ends() -> None:
    """Also where the first of them is a product again."""
    model = Lambda(lambda _, x: ((y := x * 2.0 * 3.0) * 5.0).tanh() + y.cos())
    done = apply_exactly(model, doubles(2, 3), rules=[JoinAffines()], bound=1e-14)
    assert done.text == "a = mul(x, 6.0); add(tanh(mul(a, 5.0)), cos(a))"


def test_a_value_in_between_that_is_read_elsewhere_stays() -> None:
    program = program_of(Lambda(lambda _, x: ((y := x * 2.0) * 3.0).tanh() + y.cos()), doubles(2, 3))
    assert graph_text(run_rules(program, JoinAffines()).program) == graph_text(program)


@pytest.mark.parametrize("size", [2, 3])
def test_constants_along_two_axes_do_not_mix(size: int) -> None:
    model = Lambda(lambda m, x: (x * m.a) * m.b * 2.0, a=vector(size, 1), b=vector(size))
    done = apply_exactly(model, doubles(2, size, size), rules=[JoinAffines()], bound=1e-14)
    assert done.text == "mul(mul(mul(x, w), w), 2.0)"
