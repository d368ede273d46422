"""Writes through views: the value that owns the storage changes, and so does every view of it that is read later."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.capture.functionalize import functionalize_locally
from reparam.ir import evaluate, op_name
from support.helpers import Lambda, doubles, module_rel, program_of


def _slices(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = 0.5
    y[:, :, ::2] *= 2
    return y


def _view_of_a_view(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    row = y.transpose(1, 2)[:, 0]
    row[:, 1].add_(1)
    y.mul_(3)
    return y, row


def _moved(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    y.permute(3, 0, -3, 2)[1].neg_()
    return y


def _reshaped(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    y.view(y.shape[0], -1)[:, ::3].exp_()
    y.unsqueeze(1).squeeze(1)[0] = 1
    return y


def _read_by_a_wider_view(m: Any, x: Tensor) -> Tensor:
    y = x[:, :1] * 2
    wide = y.expand(-1, 3, -1, -1)
    y.detach().add_(1)
    return wide * 2


def _result_of_the_write(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    part = y[:, 0].add_(1)
    y.mul_(2)
    return part, y


def _pieces(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    """The results of a split, a chunk and an unbind, some of which are read or picked behind a write."""
    y = x * 2
    first, second = y.split((1, 2), 1)
    second.mul_(3)
    above, below = first.chunk(2, -1)
    below.add_(above[..., :2])
    rows = y.unbind(2)
    rows[-1].neg_()
    y[:, 0].exp_()
    return first, second, below, rows[0], rows[-1]


def _pieces_picked_late(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    pieces = y.split(1, 1)
    pieces[0].mul_(3)
    return torch.cat([pieces[1], pieces[0]], 1) + y.chunk(2, 1)[0][:, :1]


def _other_dtypes(m: Any, x: Tensor) -> tuple[Tensor, ...]:
    """What is written into a tensor has its dtype."""
    half, whole = torch.zeros(x.shape, dtype=torch.float16), (x * 10).to(torch.int32)
    half.add_(x)
    whole[:, 0].add_((x[:, 0] * 3).long())
    above = x * 2
    above[:, 1:].gt_(0.5)
    return half * 1000, whole, above


LOCAL: dict[Callable[..., Any], int] = {
    _slices: 3,  # y[...] *= 2 writes to the slice, and then the slice to itself
    _view_of_a_view: 2,
    _moved: 1,
    _reshaped: 2,
    _read_by_a_wider_view: 1,
    _result_of_the_write: 2,
    _pieces: 4,
    _pieces_picked_late: 1,
    _other_dtypes: 2,
}


@pytest.mark.parametrize("forward", LOCAL)
@pytest.mark.parametrize("free", [(), ("batch",)])
def test_writes_through_views_need_no_functionalisation_of_torch(
    forward: Callable[..., Any], free: tuple[str, ...]
) -> None:
    model, x = Lambda(forward), doubles(2, 3, 4, 5)
    shapes = (({0: torch.export.Dim.AUTO},),) if free else None
    graph = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False).graph
    assert functionalize_locally(graph) == LOCAL[forward]
    assert not any(n.target._schema.is_mutable for n in graph.nodes if hasattr(n.target, "_schema"))
    program, other = program_of(model, x, dynamic=free), doubles(3 if free else 2, 3, 4, 5, seed=1)
    with torch.no_grad():
        wanted = pytree.tree_leaves(model(other.clone()))
    for theirs, ours in zip(wanted, evaluate(program, [other], None), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_values_that_no_view_reads_later_count_as_no_writes_through_views() -> None:
    graph = torch.export.export(Lambda(lambda m, x: x.add(1).mul_(2)), (doubles(2, 3),), strict=False).graph
    assert functionalize_locally(graph) == 0


def _dropout(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    torch.dropout(y, 0.5, False).add_(1)
    return y


def test_what_may_be_a_copy_is_left_to_torch() -> None:
    model, x = Lambda(_dropout), doubles(2, 3, 4, 5)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=False)
    assert functionalize_locally(exported.graph) is None
    assert module_rel(model, program_of(model, x), [x]) == 0


class _Writing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 1:3] = 0.5
        y[:, :, ::2] *= 2
        return y


def test_each_write_is_one_scatter_at_the_line_that_made_it() -> None:
    program = program_of(_Writing(), doubles(2, 3, 4, 5))
    scattered = [n for n in program.calls() if op_name(n) == "slice_scatter"]
    assert ["y[:, 1:3] = 0.5" in n.meta["stack"] for n in scattered] == [True, False, False]


def _sliced(dice: random.Random, x: Tensor) -> Tensor:
    axis = dice.randrange(x.dim())
    start = dice.randint(-x.shape[axis], x.shape[axis] - 1)
    return x[(slice(None),) * axis + (slice(start, None, dice.choice((1, 2))),)]


def _selected(dice: random.Random, x: Tensor) -> Tensor:
    axis = dice.randrange(x.dim())
    return x.select(axis, dice.randrange(x.shape[axis])) if x.dim() > 1 else x


def _transposed(dice: random.Random, x: Tensor) -> Tensor:
    return x.transpose(dice.randrange(x.dim()), dice.randrange(-x.dim(), x.dim()))


def _permuted(dice: random.Random, x: Tensor) -> Tensor:
    return x.permute(dice.sample(range(x.dim()), x.dim()))


VIEWS: tuple[Callable[[random.Random, Tensor], Tensor], ...] = (
    _sliced,
    _selected,
    _transposed,
    _permuted,
    lambda dice, x: x.unsqueeze(dice.randint(0, x.dim())),
    lambda dice, x: x.squeeze(dice.randrange(x.dim())) if x.numel() > x.shape[0] else x,
    lambda dice, x: x.detach(),
    lambda dice, x: x * 2,
)
WRITES: tuple[Callable[[random.Random, Tensor], Tensor], ...] = (
    lambda dice, x: x.add_(dice.uniform(-1, 1)),
    lambda dice, x: x.relu_(),
    lambda dice, x: x.copy_(x.sum() / 8),
    lambda dice, x: x[:1].fill_(0.25),
)


def _random(seed: int) -> Callable[..., tuple[Tensor, ...]]:
    """A forward of views and writes, all of them of values that were made before."""

    def forward(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        dice = random.Random(seed)
        values = [x * 3, x + 1]
        for _ in range(dice.randint(4, 12)):
            step = dice.choice(VIEWS if dice.random() < 0.6 else WRITES)
            values.append(step(dice, dice.choice(values)))
        return tuple(v * 1.0 for v in dice.sample(values, min(len(values), 5)))

    return forward


@pytest.mark.parametrize("seed", range(24))
def test_views_and_writes_in_any_order(seed: int) -> None:
    model, x = Lambda(_random(seed)), doubles(2, 4, 3, 2)
    assert module_rel(model, program_of(model, x), [x]) == 0
