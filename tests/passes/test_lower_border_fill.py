"""lower-border-fill: pad with a constant per channel, written as slice assignments, becomes pad(x - v) + v."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.passes.fold_constants import FoldConstants
from reparam.passes.lower_border_fill import LowerBorderFill
from support.filled_borders import Fill, Filled, all_sides
from support.helpers import Lambda, assert_evidence_bites, doubles, graph_text, max_rel, program_of, run_rules


def three_sides(y: Tensor, v: Tensor, p: int) -> None:
    y[:, :, :p, :] = v
    y[:, :, -p:, :] = v
    y[:, :, :, :p] = v


def too_deep(y: Tensor, v: Tensor, p: int) -> None:
    all_sides(y, v, p + 1)


def two_values(y: Tensor, v: Tensor, p: int) -> None:
    all_sides(y, v, p)
    y[:, :, :p, :] = 2 * v


def test_after() -> None:
    done = run_rules(program_of(Filled(3, 1), doubles(2, 3, 5, 5)), FoldConstants(), LowerBorderFill())
    assert graph_text(done.program) == "add(pad(add(x, w), [1, 1, 1, 1]), w)"


def by_numbers(y: Tensor, v: Tensor, p: int) -> None:
    """All sides of a map of 8 x 8, and of none that is larger."""
    y[:, :, :1, :] = v
    y[:, :, 7:8, :] = v
    y[:, :, :, :1] = v
    y[:, :, :, 7:8] = v


def by_larger_numbers(y: Tensor, v: Tensor, p: int) -> None:
    """All sides of a map of 11 x 11, and of none that is smaller."""
    y[:, :, :1, :] = v
    y[:, :, 10:11, :] = v
    y[:, :, :, :1] = v
    y[:, :, :, 10:11] = v


def by_numbers_far_away(y: Tensor, v: Tensor, p: int) -> None:
    """All sides of maps of at most 200 rows."""
    all_sides(y, v, p)
    y[:, :, :200, :1] = v


@pytest.mark.parametrize(
    "fill", [three_sides, too_deep, two_values, by_numbers, by_larger_numbers, by_numbers_far_away]
)
def test_another_fill_is_left_alone(fill: Fill) -> None:
    x = doubles(2, 3, 6, 6)
    program = run_rules(program_of(Filled(3, 1, fill), x, dynamic=("height", "width")), FoldConstants()).program
    done = run_rules(program, LowerBorderFill())
    assert done.text == graph_text(program) and not done.outcome.remarks
    assert max_rel(done.original, done.program, [x]) == 0.0


def test_where_sizes_are_fixed_the_border_may_lie_at_numbers() -> None:
    x = doubles(2, 3, 6, 6)
    done = run_rules(program_of(Filled(3, 1, by_numbers), x, dynamic=()), FoldConstants(), LowerBorderFill())
    assert done.text == "add(pad(add(x, w), [1, 1, 1, 1]), w)"
    assert max_rel(done.original, done.program, [x]) <= 1e-15


def test_an_input_that_is_no_tensor_has_no_sizes() -> None:
    def forward(m: nn.Module, x: Tensor, times: float) -> Tensor:
        return m.inner(x) * times  # type: ignore[operator, no-any-return]

    x = doubles(2, 3, 5, 5)
    program = program_of(Lambda(forward, inner=Filled(3, 1)), x, 2.0, dynamic=("height", "width"))
    assert not all(isinstance(n.meta["val"], Tensor) for n in program.placeholders)
    done = run_rules(program, FoldConstants(), LowerBorderFill())
    assert done.text == "mul(add(pad(add(x, w), [1, 1, 1, 1]), w), 2.0)"


def test_the_shifts_are_the_value_on_the_border() -> None:
    model = Filled(3, 1)
    with torch.no_grad():
        model.value.copy_(torch.tensor([0.5, 0.0, -2.0]))
    program = program_of(nn.Sequential(model), doubles(2, 3, 5, 5))
    done = run_rules(program, FoldConstants(), LowerBorderFill())
    assert done.passed("lower-border-fill") == ["the filled border became a zero pad between two shifts"]
    values = {name: c.value.flatten().tolist() for name, c in done.program.constants.items()}
    assert values == {"0.shift": [-0.5, 0.0, 2.0], "0.shift__1": [0.5, 0.0, -2.0]}


class Other(nn.Module):
    """A fill by `form` of a value and the constant."""

    def __init__(self, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.form, self.value = form, nn.Parameter(doubles(1, 3, 1, 1, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.value)


def filled(y: Tensor, v: Tensor, rows: bool = False) -> Tensor:
    all_sides(y, v[..., :1] if rows else v, 1)
    if rows:
        y[:, :, :1, :] = v
    return y


def by_rows(x: Tensor, v: Tensor) -> Tensor:
    """A border whose rows of eight have each its own multiple of `v`."""
    y = F.pad(x, [1] * 4)
    rows = v * torch.linspace(1, 2, 8, dtype=x.dtype).reshape(8, 1)
    y[:, :, :, :1] = rows
    y[:, :, :, -1:] = rows
    y[:, :, :1, :] = rows[:, :, :1]
    y[:, :, -1:, :] = rows[:, :, -1:]
    return y


def by_a_pixel(x: Tensor, v: Tensor) -> Tensor:
    """A border of what one place of the map holds, of the first sample alone."""
    y = F.pad(x[:1], [1] * 4)
    return filled(y, y[:, :, 3:4, 3:4].clone())


def by_itself(x: Tensor, v: Tensor) -> Tensor:
    """A cropped map whose first row is written to where it is."""
    y = F.pad(x, [-1] * 4)
    y[:, :, :1, :] = y[:, :, :1, :].clone()
    return y


@pytest.mark.parametrize(
    "form",
    [
        by_a_pixel,
        by_itself,
        lambda x, v: by_rows(x, v.abs()),
        lambda x, v: by_rows(x, -v.abs()),
        lambda x, v: filled(x.clone(), v),
        lambda x, v: filled(F.pad(x, [2] * 4)[:, :, 1:-1, 1:-1], v),
        lambda x, v: filled(F.pad(x, [1] * 4).sin(), v),
        lambda x, v: filled(F.pad(x, [1] * 4), F.pad(x, [1] * 4)[:, :, :1, :1]),
        lambda x, v: filled(F.pad(x, [1] * 4), x.mean((2, 3), keepdim=True)),
        lambda x, v: filled(F.pad(x, [0] * 4), v),
        lambda x, v: filled(F.pad(x, [-1] * 4), v),
        lambda x, v: filled(F.pad(x, [1] * 4), v * torch.linspace(1, 2, 2, dtype=x.dtype).reshape(2, 1, 1, 1)),
        lambda x, v: filled(F.pad(x, [1] * 4), v * torch.linspace(1, 2, 8, dtype=x.dtype), rows=True),
    ],
    ids=[
        "what one place holds",
        "what is there",
        "a constant for each row",
        "a constant for each row, negative",
        "no pad",
        "a cut pad",
        "something in between",
        "what another pad holds",
        "data",
        "nothing padded",
        "cropped",
        "a constant for each sample",
        "a constant for each column",
    ],
)
def test_what_is_no_filled_border_is_left_alone(form: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = run_rules(program_of(Other(form), doubles(2, 3, 6, 6), dynamic=()), FoldConstants()).program
    done = run_rules(program, LowerBorderFill())
    assert done.text == graph_text(program) and not done.outcome.remarks


def test_what_a_pad_holds_does_not_matter_where_all_of_it_is_filled() -> None:
    """Nor does a copy in between."""
    for form in (
        lambda x, v: filled(F.pad(x, [1] * 4).clone(), v),
        lambda x, v: filled(F.pad(x, [1] * 4, value=3.0), v),
        lambda x, v: filled(F.pad(x, [1] * 4, mode="reflect"), v),
    ):
        done = run_rules(program_of(Other(form), doubles(2, 3, 6, 6)), FoldConstants(), LowerBorderFill())
        assert done.text == "add(pad(add(x, w), [1, 1, 1, 1]), w)"
        assert max_rel(done.original, done.program, [doubles(2, 3, 6, 6)]) <= 1e-15


def test_a_wrong_value_is_caught() -> None:
    program = program_of(Filled(3, 1), doubles(2, 3, 5, 5))
    assert_evidence_bites(program, LowerBorderFill(), FoldConstants())


def test_dtype_is_kept() -> None:
    net = Filled(3, 1).float()
    done = run_rules(program_of(net, torch.randn(2, 3, 5, 5)), FoldConstants(), LowerBorderFill())
    assert done.program.output.args[0][0].meta["val"].dtype == torch.float32  # type: ignore[index,union-attr]
