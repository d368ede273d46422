"""Which integers are drawn for an input: what its graph does with them decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam.capture import capture
from reparam.ir import Program, drawn_inputs, feed, whole_range

BYTES = torch.randint(0, 100, (2, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Forward = Callable[..., Any]


class Net(nn.Module):
    """Anything of a table and a layer."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.rows, self.layer, self.call = nn.Embedding(100, 4), nn.Linear(5, 3), forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self, *inputs)


def captured(forward: Forward, *inputs: Tensor) -> Program:
    torch.manual_seed(0)
    return capture(Net(forward).eval(), inputs).program


def drawn(program: Program, batch: int = 4000) -> list[Tensor]:
    values = feed(program, {s: batch for s in program.traced_sizes}, torch.Generator().manual_seed(0))
    return [v for v in values if isinstance(v, Tensor)]


AS_NUMBERS: dict[str, Forward] = {
    "a cast": lambda m, x: m.layer(x.float() / 255),
    "a quotient": lambda m, x: m.layer(x / 255),
    "whole steps": lambda m, x: m.layer((x // 32).float() / 8),
    "bits": lambda m, x: m.layer(((x >> 4) & 3).float()),
    "movements": lambda m, x: m.layer(x.flip(-1).to(torch.int32)[:, None].expand(-1, 2, 5).float()),
    "parts": lambda m, x: m.layer(torch.cat([p.float() for p in x.split(1, 1)], 1)),
    "promotion": lambda m, x: m.layer(x * 0.5 - 1),
    "a comparison": lambda m, x: m.layer((x > 3).float()),
    "a choice": lambda m, x: torch.where(x > 3, x, x // 2).float(),
    "a sum": lambda m, x: x.sum(1).float(),
    "the output": lambda m, x: x // 2,
    "a size": lambda m, x: m.layer(x.float()) * x.shape[0],
}


@pytest.mark.parametrize("forward", AS_NUMBERS.values(), ids=AS_NUMBERS)
def test_bytes_that_are_numbers_are_all_bytes(forward: Forward) -> None:
    (value,) = drawn(captured(forward, BYTES))
    assert value.dtype == torch.uint8 and len(value.unique()) == 256
    assert 0.1 < float((value == 0).float().mean()) < 0.15


AS_INDICES: dict[str, Forward] = {
    "entries": lambda m, x: torch.arange(100.0)[x.long()],
    "gathered": lambda m, x: torch.gather(torch.zeros(1, 100).expand(x.shape[0], 100), 1, x.long()),
    "classes": lambda m, x: F.one_hot(x.long(), 100).float(),
    "entries, behind a sum": lambda m, x: torch.arange(100.0)[x.long() + 1] + x,
    "a table, behind a product": lambda m, x: m.rows(x.long() * 2),
    "shifts": lambda m, x: (torch.ones_like(x) << x).float(),
    "what is divided by, behind a sum": lambda m, x: (100 // (x.int() + 1)).float(),
}


@pytest.mark.parametrize("forward", AS_INDICES.values(), ids=AS_INDICES)
def test_bytes_that_are_anything_else_are_0_and_1(forward: Forward) -> None:
    (value,) = drawn(captured(forward, BYTES.clamp(max=7)))
    assert value.unique().tolist() == [0, 1]


def test_bytes_that_are_looked_up_in_a_table_have_its_rows() -> None:
    (value,) = drawn(captured(lambda m, x: m.rows(x.long()).sum() + x.float(), BYTES))
    assert value.unique().tolist() == list(range(100))


def test_a_declared_range_stays() -> None:
    program = captured(AS_NUMBERS["a cast"], BYTES)
    program.inputs = (replace(program.inputs[0], low=3.0, high=9.0),)
    (value,) = drawn(program)
    assert value.unique().tolist() == list(range(3, 10))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_signed_numbers_have_both_signs(dtype: torch.dtype) -> None:
    (value,) = drawn(captured(AS_NUMBERS["a cast"], BYTES.to(dtype)), 40000)
    limits = torch.iinfo(dtype)
    assert value.min() == limits.min and value.max() > 0.99 * limits.max and value.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
def test_wide_integers_and_truth_values_are_0_and_1(dtype: torch.dtype) -> None:
    program = captured(AS_NUMBERS["a cast"], BYTES.to(dtype))
    assert drawn(program)[0].unique().tolist() == [0, 1]
    assert whole_range(program.inputs[0]) == program.inputs[0]


@pytest.mark.parametrize(("dtype", "most"), [(torch.int64, 2), (torch.uint8, 255), (torch.int8, 127)])
@pytest.mark.parametrize("operator", ["floor", "trunc", "%", "/"])
def test_what_divides_begins_at_1(dtype: torch.dtype, most: int, operator: str) -> None:
    def forward(m: Net, x: Tensor, y: Tensor) -> Tensor:
        y = y[:, None, :].squeeze(1)
        if operator == "%":
            return (x % y).float()
        return torch.div(x, y, rounding_mode=None if operator == "/" else operator)

    program = captured(forward, BYTES.to(dtype), BYTES.to(dtype).clamp(min=1))
    x, y = drawn(program)
    assert (y.min(), y.max()) == (1, most) and x.min() <= 0


def test_a_divisor_that_a_cast_may_make_0_is_1_or_2() -> None:
    wide = BYTES.to(torch.int16).clamp(min=1)
    program = captured(lambda m, x, y: (x // y.to(torch.uint8)).float(), BYTES, wide)
    assert [(d.low, d.high) for d in drawn_inputs(program)] == [(0, 255), (1, float("inf"))]
    assert drawn(program)[1].unique().tolist() == [1, 2]


def _positions_of(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


LENGTHS: dict[str, Forward] = {
    "less": lambda m, x, n: x * (_positions_of(x)[None] < n[:, None]),
    "the other way": lambda m, x, n: x.masked_fill(n[:, None] <= _positions_of(x), 0.0),
    "what is beyond": lambda m, x, n: x.masked_fill(_positions_of(x) >= n[:, None], 0.0),
    "more": lambda m, x, n: x * (n[:, None] > _positions_of(x)),
    "as floats": lambda m, x, n: x * (torch.arange(x.shape[1], dtype=x.dtype).expand_as(x) < n.to(x.dtype)[:, None]),
    "positions that it keeps": lambda m, x, n: x * (m.positions[:, : x.shape[1]] < n[:, None]),
    "beside a quotient": lambda m, x, n: (x * (_positions_of(x) < n[:, None])).sum(1) / n,
}


class Kept(Net):
    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        self.register_buffer("positions", torch.arange(50)[None])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("forward", LENGTHS.values(), ids=LENGTHS)
def test_lengths_are_from_one_to_the_number_of_positions(forward: Forward, dtype: torch.dtype) -> None:
    inputs = torch.randn(3, 5), torch.tensor([1, 5, 2], dtype=dtype)
    program = capture(Kept(forward).eval(), inputs, dynamic=("batch", "inputs_0:1=length")).program
    for length in (5, 11, 1):
        batch = next(s for s in program.traced_sizes if program.traced_sizes[s] == 3)
        free = next(s for s in program.traced_sizes if program.traced_sizes[s] == 5)
        values = feed(program, {batch: 2000, free: length}, torch.Generator().manual_seed(0))
        assert set(values[-1].tolist()) == set(range(1, length + 1))


LAST: dict[str, Forward] = {
    "up to it": lambda m, x, n: x * (_positions_of(x) <= n[:, None]),
    "behind it": lambda m, x, n: x.masked_fill(_positions_of(x) > n[:, None], 0.0),
    "from the other side": lambda m, x, n: x * (n[:, None] >= _positions_of(x)),
    "before": lambda m, x, n: x.masked_fill(n[:, None] < _positions_of(x), 0.0),
    "an index as well": lambda m, x, n: x * (_positions_of(x) <= n[:, None]) + x.gather(1, n[:, None].long()),
}


@pytest.mark.parametrize("forward", LAST.values(), ids=LAST)
def test_positions_are_from_zero_to_the_last(forward: Forward) -> None:
    program = captured(forward, torch.randn(3, 5), torch.tensor([0, 4, 2]))
    assert set(drawn(program)[-1].tolist()) == set(range(5))


def test_positions_of_an_unknown_number_say_nothing() -> None:
    def forward(m: Any, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (x[:, 0] > 0).nonzero()
        return m.layer(x), torch.arange(chosen.shape[0]) < n[:, None]

    program = captured(forward, torch.randn(3, 5), torch.tensor([0, 4, 2]))
    assert set(drawn(program)[-1].tolist()) == {0, 1}


def test_what_is_compared_with_one_number_is_no_length() -> None:
    inputs = torch.randn(3, 5), torch.tensor([1, 0, 1])
    program = capture(Kept(lambda m, x, n: x * (m.positions[0, :1] < n)[:, None]).eval(), inputs).program
    assert set(drawn(program)[-1].tolist()) == {0, 1}
