"""collect-sums: recurrences of sums and scalar products become combinations of what enters them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.ir import aten, census, is_call
from reparam.passes.collect_sums import CollectSums
from support.helpers import EXACT, Lambda, apply_exactly, doubles, fuse, graph_text, module_rel, program_of, run_rules

RULES = [CollectSums()]


class Momentum(nn.Module):
    """v <- g v + (1 - g) f(x), x <- x + v from v = 0, with functions that nothing can be carried past."""

    def __init__(self, steps: int, gamma: float = 0.9, width: int = 6) -> None:
        super().__init__()
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Softmax(-1)) for _ in range(steps))
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        for f in self.f:
            v = self.gamma * v + (1 - self.gamma) * f(x)
            x = x + v
        return x


def factors(program: Any) -> list[float]:
    """Of each sum, in order."""
    return [float(n.kwargs.get("alpha", 1)) for n in program.calls() if is_call(n, frozenset({aten.add.Tensor}))]


def test_the_velocity_of_two_steps_disappears() -> None:
    """x_1 = x_0 + (1 - g) f_0, x_2 = x_0 + (1 - g^2) f_0 + (1 - g) f_1."""
    model = Momentum(2).double()
    x = doubles(3, 6)
    fused = fuse(model, x)
    assert factors(fused.program) == pytest.approx([0.1, 0.19, 0.1])
    assert graph_text(fused.program).count("mul") == 0
    before, after = census(fused.original), census(fused.program)
    assert (before.merges, after.merges) == (3, 3)
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_the_form_that_adds_what_comes_in_once_more() -> None:
    """x + momentum(x) = 2 x + 0.19 f_0 + 0.10 f_1."""
    inner = Momentum(2).double()
    model = Lambda(lambda m, x: x + m.inner(x), inner=inner)
    x = doubles(3, 6)
    fused = fuse(model, x)
    assert census(fused.program).merges == 3
    scales = [n.args[1] for n in fused.program.calls() if is_call(n, frozenset({aten.mul.Tensor}))]
    assert scales == [2.0] and factors(fused.program) == pytest.approx([0.1, 0.19, 0.1])
    assert module_rel(model, fused.program, [x]) <= EXACT


@pytest.mark.parametrize(("steps", "merges"), [(1, 1), (2, 3), (3, 5), (5, 9)])
def test_never_more_merges_than_the_recurrence_without_its_zero_has(steps: int, merges: int) -> None:
    model = Momentum(steps).double()
    x = doubles(3, 6)
    fused = fuse(model, x)
    assert census(fused.program).merges == merges
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_a_later_result_starts_from_an_earlier_one_when_that_is_shorter() -> None:
    model = Lambda(lambda m, x: (y := 2 * (0.5 * (x.exp() + x.cos()) + x.sin()), m.f(y) * 0.25 + y), f=nn.Softmax(-1))
    x = doubles(3, 6)
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert census(fused.program).merges == 3
    assert census(fused.program).nodes < census(fused.original).nodes


@given(steps=st.integers(1, 4), gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]), size=st.integers(1, 5))
def test_property(steps: int, gamma: float, size: int) -> None:
    model = Momentum(steps, gamma, size).double()
    x = doubles(2, size)
    fused = run_rules(program_of(model, x), *RULES)
    before, after = census(fused.original), census(fused.program)
    assert after.merges <= before.merges and after.nodes <= before.nodes
    assert module_rel(model, fused.program, [x]) <= EXACT


FORMS: dict[str, tuple[Any, str, int, int]] = {
    "a factor": (lambda a, b, c: a + 0.5 * b, "add(exp(x), cos(x), alpha=0.5)", 2, 1),
    "two factors": (lambda a, b, c: 2 * a + 3 * b, "add(mul(exp(x), 2.0), cos(x), alpha=3.0)", 3, 2),
    "a difference": (lambda a, b, c: a - 0.5 * b, "add(exp(x), cos(x), alpha=-0.5)", 2, 1),
    "a quotient": (lambda a, b, c: a / 4 + b, "add(cos(x), exp(x), alpha=0.25)", 2, 1),
    "a sign": (lambda a, b, c: -a + b, "add(cos(x), exp(x), alpha=-1.0)", 2, 1),
    "a sum with a factor": (lambda a, b, c: torch.add(a, 0.5 * b, alpha=3), "add(exp(x), cos(x), alpha=1.5)", 2, 1),
    "a difference with one": (lambda a, b, c: torch.sub(a, 0.5 * b, alpha=3), "add(exp(x), cos(x), alpha=-1.5)", 2, 1),
    "a value twice": (lambda a, b, c: (a + 0.5 * b) + 2 * a, "add(mul(exp(x), 3.0), cos(x), alpha=0.5)", 4, 2),
    "of a sum": (
        lambda a, b, c: a + 0.5 * (b - c),
        "add(add(exp(x), cos(x), alpha=0.5), sin(x), alpha=-0.5)",
        3,
        2,
    ),
    "two without a factor": (lambda a, b, c: a + b + 0.5 * c, "add(add(exp(x), cos(x)), sin(x), alpha=0.5)", 3, 2),
    "factors of the sums alone": (
        lambda a, b, c: torch.add(torch.add(a, b, alpha=0.5), b, alpha=0.5),
        "add(exp(x), cos(x))",
        2,
        1,
    ),
    "with zeros": (lambda a, b, c: torch.zeros_like(a) + 0.5 * a + b, "add(cos(x), exp(x), alpha=0.5)", 4, 1),
}


@pytest.mark.parametrize(("form", "text", "before", "after"), FORMS.values(), ids=FORMS)
def test_what_becomes_of_a_sum(form: Any, text: str, before: int, after: int) -> None:
    done = apply_exactly(Lambda(lambda m, x: form(x.exp(), x.cos(), x.sin())), doubles(3, 6), rules=RULES, bound=EXACT)
    assert done.text == text
    what = "1 combination of what enters them"
    (remark,) = done.outcome.remarks
    assert remark.message == f"{before} sums and products became {after}: {what}"
    assert remark.node == [n.name for n in done.original.calls()][-1]  # where the set ends


def test_two_results_are_two_combinations() -> None:
    """The second starts from the first, which is shorter."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.exp() + 0.5 * (x.cos() + x.tan())
        return y.sigmoid(), y + 0.5 * x.sin()

    done = apply_exactly(Lambda(forward), doubles(3, 6), rules=RULES, bound=EXACT)
    assert done.passed("collect-sums") == ["5 sums and products became 3: 2 combinations of what enters them"]
    assert done.text.endswith("sigmoid(a), add(a, sin(x), alpha=0.5)")


def test_a_product_that_is_read_elsewhere_is_a_result_without_a_sum() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        p = 0.5 * (3.0 * x.exp())
        return p.sigmoid(), p + 0.5 * x.cos()

    done = apply_exactly(Lambda(forward), doubles(3, 6), rules=RULES, bound=EXACT)
    assert done.passed("collect-sums") == ["4 sums and products became 3: 2 combinations of what enters them"]


def test_what_an_earlier_result_has_and_a_later_one_lacks_is_not_taken_from_it() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        p, q = 0.5 * x.exp(), 0.25 * x.tan()
        return (x.cos() + p + q).sigmoid(), p + q + 0.5 * x.sin()

    done = apply_exactly(Lambda(forward), doubles(3, 6), rules=RULES, bound=EXACT)
    assert done.passed("collect-sums") == ["7 sums and products became 5: 2 combinations of what enters them"]


SILENT: dict[str, Any] = {
    "a number": lambda a, b, c: a + 1.0,
    "sums alone": lambda a, b, c: (a + b) + a,
    "over zero": lambda a, b, c: (a + b / 0.0).clamp(0, 1),
    "a free size": lambda a, b, c: a + b * a.shape[0],
    "whole numbers": lambda a, b, c: a.long() + 2 * b.long(),
    "two precisions": lambda a, b, c: a + 0.5 * b.float(),
    "another shape": lambda a, b, c: a + 0.5 * b[:1],
    "a constant": lambda a, b, c: a + 0.5 * torch.ones(3, 6, dtype=torch.float64),
    "products alone": lambda a, b, c: 0.5 * (2.0 * a.tan()),
    "what cancels out": lambda a, b, c: (a + 0.5 * b) - 0.5 * b,
    "as many calls": lambda a, b, c: torch.add(a, b, alpha=0.5),
}


@pytest.mark.parametrize("form", SILENT.values(), ids=SILENT)
def test_silent_about_what_is_no_combination_or_no_shorter(form: Any) -> None:
    program = program_of(Lambda(lambda m, x: form(x.exp(), x.cos(), x.sin())), doubles(3, 6))
    done = run_rules(program, *RULES)
    assert done.text == graph_text(program) and not done.outcome.remarks


# ---- what is left alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward, scaled",
    [
        (lambda m, x: x.exp() + x.cos() + x.sin(), 0),
        (lambda m, x: x.exp() - 0.5 * x.cos()[:, :1], 0),
        (lambda m, x: 0.5 * x.exp() * x.cos(), 0),
        (lambda m, x: torch.div(x.exp() + x.cos(), 2.0, rounding_mode="floor"), 0),
        (lambda m, x: (x.exp() + 0.5 * x.cos()) * m.w, 1),  # the sum before it takes its own factor
    ],
    ids=["no factors", "broadcast", "a product of data", "a rounded quotient", "a weight"],
)
def test_silent_where_nothing_is_gained_or_the_factor_is_no_number(forward: Any, scaled: int) -> None:
    model = Lambda(forward, w=nn.Buffer(torch.rand(6, dtype=torch.float64)))
    fused = run_rules(program_of(model, doubles(3, 6)), *RULES)
    sums = [n for n in fused.program.calls() if is_call(n, frozenset({aten.add.Tensor})) and n.kwargs]
    assert module_rel(model, fused.program, [doubles(3, 6)]) <= EXACT
    assert len(sums) == len(fused.passed("collect-sums")) == scaled


def test_a_difference_of_equal_values_is_left_alone() -> None:
    model = Lambda(lambda m, x: (0.5 * x.exp() - 0.5 * x.exp()) + 0.0 * x.cos())
    fused = run_rules(program_of(model, doubles(3, 6)), *RULES)
    assert not fused.passed("collect-sums")


# ---- negative control ------------------------------------------------------------------------------------------------


def test_a_factor_that_is_off_is_noticed() -> None:
    model = Momentum(2).double()
    x = doubles(3, 6)
    fused = fuse(model, x)
    scaled = [n for n in fused.program.calls() if n.kwargs.get("alpha")]
    assert len(scaled) == 3
    for k, node in enumerate(scaled):
        copy = fused.program.copy()
        twin = [n for n in copy.calls() if n.kwargs.get("alpha")][k]
        twin.kwargs = {"alpha": float(node.kwargs["alpha"]) + 1e-6}  # type: ignore[arg-type]
        assert module_rel(model, copy, [x]) > 1e3 * EXACT


def test_a_sum_with_the_first_velocity_of_zero_is_no_sum_that_could_be_saved() -> None:
    """Three halving steps: x_3 over what enters has more terms than the recurrence has sums of two values."""
    fused = run_rules(program_of(Momentum(3, 0.5).double(), doubles(2, 6)), *RULES)
    assert census(fused.program).merges == census(fused.original).merges == 5
