"""An affine behind an embedding goes into its table; one behind a sum with a constant goes into the constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.algebra import Pair, Route, backward
from reparam.ir import Refusal, aten
from reparam.passes.fold_batch_norm import FoldBatchNorm
from reparam.passes.fold_channel_affine import FoldChannelAffine
from support.by_hand import ByHand
from support.helpers import (
    EXACT,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    doubles,
    fuse_exactly,
    healthy,
    program_of,
    run_rules,
    vector,
)
from support.sums import SUMS

RULES = [FoldBatchNorm(), FoldChannelAffine()]
FACTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "each": lambda each: each,
    "negative": lambda each: -each.abs(),
    "zeros": lambda each: each * torch.tensor([1.0, 0.0, 1.0, 0.0]),
    "one for all": lambda each: each[:1],
}


def indices(*shape: int, rows: int = 7) -> Tensor:
    return torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(5))


# ---- tables ------------------------------------------------------------------------------------------------------


@given(
    factor=st.sampled_from([None, *sorted(FACTORS)]),
    shifted=st.booleans(),
    padding=st.sampled_from([None, 0, 3]),
    shape=st.sampled_from([(2,), (2, 5), (2, 3, 4)]),
    seed=st.integers(0, 1000),
)
def test_any_affine_behind_a_table(
    factor: str | None, shifted: bool, padding: int | None, shape: tuple[int, ...], seed: int
) -> None:
    """Every row takes it, that of the padding too."""
    torch.manual_seed(seed)
    given = {} if factor is None else {"scale": nn.Parameter(FACTORS[factor](doubles(4, seed=seed)))}
    if shifted:
        given["shift"] = nn.Parameter(doubles(4, seed=seed + 1))

    def compute(m: Any, i: Tensor) -> Tensor:
        x: Tensor = m.table(i)
        x = x * m.scale if "scale" in given else x
        return torch.tanh(x + m.shift if "shift" in given else x)

    model = Lambda(compute, table=nn.Embedding(7, 4, padding_idx=padding), **given).double()
    fused = apply_exactly(model, indices(*shape), rules=RULES, bound=EXACT)
    assert fused.text.startswith("tanh(embedding(w, x") and not fused.outcome.rejected
    [table] = fused.program.constants.values()
    wanted = model.table.weight * getattr(model, "scale", 1.0) + getattr(model, "shift", 0.0)
    torch.testing.assert_close(table.value, wanted.detach(), rtol=EXACT, atol=EXACT)


@given(entry=st.integers(0, 10**6))
def test_any_single_entry_of_a_new_table_is_checked(entry: int) -> None:
    model = Lambda(lambda m, i: m.table(i) * m.scale, table=nn.Embedding(3, 4), scale=vector(4)).double()
    i = indices(20, rows=3)
    assert assert_no_wrong_entry_is_accepted(program_of(model, i), FoldChannelAffine(), entry, [i])


def test_a_norm_behind_a_table() -> None:
    table, norm = nn.Embedding(7, 4), nn.BatchNorm1d(4)
    model = Lambda(lambda m, i: torch.relu(m.norm(m.table(i).transpose(1, 2))), table=table, norm=norm)
    fused = apply_exactly(healthy(model), indices(2, 5), rules=RULES, bound=EXACT)
    assert fused.passed("fold-batch-norm") == ["folded into the output of 'table'"]
    assert fused.text == "relu(transpose(embedding(w, x), 1, 2))"


def test_a_wrong_table_is_caught() -> None:
    model = Lambda(lambda m, i: m.norm(m.table(i).transpose(1, 2)), table=nn.Embedding(7, 4), norm=nn.BatchNorm1d(4))
    assert_evidence_bites(program_of(healthy(model), indices(4, 9)), FoldBatchNorm())


def test_a_table_that_is_tied_to_the_last_layer_is_not_kept_twice() -> None:
    table, head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    head.weight = table.weight
    model = Lambda(lambda m, i: m.head(torch.tanh(m.table(i) * 2.0)), table=table, head=head).double()
    old = table.weight.detach().clone()
    fused = apply_exactly(model, indices(2, 5), rules=RULES, bound=EXACT)
    assert fused.text == "linear(tanh(mul(embedding(w, x), 2.0)))"
    assert torch.equal(table.weight, old) and len(fused.program.constants) == 1
    [told] = fused.missed("fold-channel-affine")
    assert "the table of this embedding is read elsewhere as well, and would be kept twice" in told


def test_a_table_that_is_no_parameter_stays_none() -> None:
    model = Lambda(lambda m, i: nn.functional.embedding(i, m.table) * 2.0)
    model.register_buffer("table", doubles(7, 4))
    fused = apply_exactly(model, indices(2, 5), rules=RULES, bound=EXACT)
    assert [c.trainable for c in fused.program.constants.values()] == [False]


def test_words_and_positions_before_a_norm() -> None:
    """The table takes the scale, the positions the scale and the shift."""
    model = Lambda(
        lambda m, i: torch.relu(m.norm((m.table(i) + m.positions[: i.shape[1]]).transpose(1, 2))),
        table=nn.Embedding(7, 4),
        positions=nn.Parameter(doubles(9, 4)),
        norm=nn.BatchNorm1d(4),
    )
    fused = fuse_exactly(healthy(model), indices(2, 5), bound=EXACT)
    assert fused.passed("fold-batch-norm") == ["folded into the output of 'table', 'add'"]
    assert fused.text == "relu(transpose(add(embedding(w, x), w), 1, 2))"


# ---- constants that are added ------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(sorted(SUMS)),
    factor=st.sampled_from([None, *sorted(FACTORS)]),
    shifted=st.booleans(),
    lead=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_spelling_of_a_sum_with_a_map(
    name: str, factor: str | None, shifted: bool, lead: bool, seed: int
) -> None:
    """The layer takes the scale, the map the scale and the shift."""
    column = (-1, 1, 1)
    given = {} if factor is None else {"scale": nn.Parameter(FACTORS[factor](doubles(4, seed=seed)).reshape(column))}
    if shifted:
        given["shift"] = nn.Parameter(doubles(4, seed=seed + 1).reshape(column))

    def compute(m: Any, x: Tensor) -> Tensor:
        x = SUMS[name](m.conv(x), m.map)
        x = x * m.scale if "scale" in given else x
        return torch.tanh(x + m.shift if "shift" in given else x)

    plane = nn.Parameter(doubles(*([1] if lead else []), 4, 3, 5, seed=seed + 2))
    model = Lambda(compute, conv=nn.Conv2d(3, 4, 1), map=plane, **given).double()
    fused = apply_exactly(model, doubles(2, 3, 3, 5), rules=RULES, bound=EXACT)
    operators = [str(n.target).split(".")[1] for n in fused.program.calls()]
    assert len(operators) == 3 and not fused.outcome.rejected, operators


@given(entry=st.integers(0, 10**6))
def test_any_single_entry_of_a_new_map_is_checked(entry: int) -> None:
    plane = nn.Parameter(doubles(4, 2, 2))
    model = healthy(
        Lambda(lambda m, x: m.norm(m.conv(x) + m.map), conv=nn.Conv2d(3, 4, 1), map=plane, norm=nn.BatchNorm2d(4))
    )
    x = doubles(2, 3, 2, 2)
    assert assert_no_wrong_entry_is_accepted(program_of(model, x), FoldBatchNorm(), entry, [x])


def test_a_shift_alone_asks_nothing_of_the_data() -> None:
    """x is an input, which takes no affine."""
    model = Lambda(
        lambda m, x: torch.tanh(x + m.map + m.shift), map=nn.Parameter(doubles(4, 5)), shift=vector(5)
    ).double()
    fused = apply_exactly(model, doubles(2, 4, 5), rules=RULES, bound=EXACT)
    assert fused.text == "tanh(add(x, w))"
    assert fused.passed("fold-channel-affine") == ["folded into the output of 'add'"]


def test_a_map_that_is_read_elsewhere_stays_for_it() -> None:
    plane = nn.Parameter(doubles(4, 3, 5))
    model = Lambda(
        lambda m, x: (m.conv(x) + m.map) * 2.0 + torch.tanh(x) * m.map, conv=nn.Conv2d(4, 4, 1), map=plane
    ).double()
    fused = apply_exactly(model, doubles(2, 4, 3, 5), rules=RULES, bound=EXACT)
    assert fused.passed("fold-channel-affine") == ["folded into the output of 'conv', 'add'"]
    assert sorted(c.origin for c in fused.program.constants.values()).count("map") == 2


# ---- refusals ----------------------------------------------------------------------------------------------------

LARGER = "the constant that is added would become larger"
INFINITE = "the constant that is added is not finite"
SUM = "the affine does not pass back through this add"
FEATURES = "the affine does not lie along the features of this embedding"
COMPUTED = "the table of this embedding is computed"


def asked(graph: ByHand, node: fx.Node, pair: Pair) -> Route | Refusal:
    user = graph.call(aten.tanh.default, node)
    graph.returns(user)
    return backward(graph.program, user, node, pair)


def reason(graph: ByHand, node: fx.Node, pair: Pair) -> str:
    found = asked(graph, node, pair)
    assert isinstance(found, Refusal) and found.node is node
    return found.reason


def linear(graph: ByHand, *shape: int) -> fx.Node:
    x = graph.input(*shape)
    return graph.call(aten.linear.default, x, graph.weight(doubles(4, shape[-1], seed=2), "linear"))


def table(graph: ByHand) -> tuple[fx.Node, fx.Node]:
    return graph.weight(doubles(7, 4), "table"), graph.input(2, 5, dtype=torch.int64)


@pytest.mark.parametrize("shape", [(1, 5, 1), (2, 1, 1), (1, 5, 4)], ids=["positions", "samples", "positions too"])
@pytest.mark.parametrize("part", ["scale", "shift"])
def test_a_table_takes_an_affine_along_its_features_alone(shape: tuple[int, ...], part: str) -> None:
    graph = ByHand()
    node = graph.call(aten.embedding.default, *table(graph))
    assert reason(graph, node, Pair(**{part: doubles(*shape)})) == FEATURES


def test_a_table_that_is_computed_takes_nothing() -> None:
    graph = ByHand()
    weight, i = table(graph)
    node = graph.call(aten.embedding.default, graph.call(aten.tanh.default, weight), i)
    assert reason(graph, node, Pair(doubles(1, 1, 4))) == COMPUTED


@pytest.mark.parametrize("part", ["scale", "shift"])
def test_a_constant_does_not_grow(part: str) -> None:
    """It varies along two axes, and would along three."""
    graph = ByHand()
    x = graph.call(aten.conv1d.default, graph.input(2, 3, 5), graph.weight(doubles(4, 3, 1), "conv"))
    node = graph.call(aten.add.Tensor, x, graph.weight(doubles(2, 1, 5), "map"))
    assert reason(graph, node, Pair(**{part: doubles(1, 4, 1)})) == LARGER


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_constant_that_is_infinite_takes_nothing(value: float) -> None:
    """0 times infinity is no number, and a negative factor would turn a mask around."""
    graph = ByHand()
    mask = torch.zeros(5, 4).double()
    mask[0, 1] = value
    node = graph.call(aten.add.Tensor, linear(graph, 2, 5, 3), graph.weight(mask))
    assert reason(graph, node, Pair(doubles(1, 1, 4))) == INFINITE


OTHERS: dict[str, Callable[[ByHand, fx.Node], tuple[Any, dict[str, Any]]]] = {
    "whole numbers": lambda g, x: (g.weight(torch.arange(20).reshape(5, 4)), {}),
    "data that broadcast": lambda g, x: (g.weight(doubles(2, 3, 5, 4)), {}),
    "no multiple": lambda g, x: (g.weight(doubles(5, 4)), {"alpha": 0}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_sums_whose_constant_takes_nothing(name: str) -> None:
    graph = ByHand()
    x = linear(graph, 1, 5, 3)
    constant, options = OTHERS[name](graph, x)
    node = graph.call(aten.add.Tensor, x, constant, **options)
    assert reason(graph, node, Pair(doubles(*[1] * (len(node.meta["val"].shape) - 1), 4))) == SUM


def test_a_multiple_by_a_size() -> None:
    graph = ByHand()
    size = graph.call(aten.sym_size.int, graph.input(3, free=(0,)), 0)
    node = graph.call(aten.add.Tensor, linear(graph, 2, 5, 3), graph.weight(doubles(5, 4)), alpha=size)
    assert reason(graph, node, Pair(doubles(1, 1, 4))) == SUM


def test_data_that_take_no_scale_are_named() -> None:
    graph = ByHand()
    x = graph.input(2, 5, 4)
    found = asked(graph, graph.call(aten.add.Tensor, x, graph.weight(doubles(5, 4))), Pair(doubles(1, 1, 4)))
    assert isinstance(found, Refusal) and found.node is x


def test_the_dtype_of_each_constant_is_kept() -> None:
    model = Lambda(
        lambda m, i: torch.relu(m.norm((m.table(i) + m.positions).transpose(1, 2))),
        table=nn.Embedding(7, 4),
        positions=nn.Parameter(torch.randn(5, 4)),
        norm=nn.BatchNorm1d(4),
    )
    made = run_rules(program_of(healthy(model).float(), indices(2, 5)), *RULES).program
    assert len(made.constants) == 2 and {c.dtype for c in made.constants.values()} == {torch.float32}
