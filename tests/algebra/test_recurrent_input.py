"""An affine of the input of a recurrent layer goes into the weights of its first layer, for each gate and direction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from reparam.algebra import Pair, execute, forward, forward_all
from reparam.ir import RECURRENT, Refusal, aten, evaluate, is_call
from reparam.passes.equalize import Equalize
from reparam.passes.fold_batch_norm import FoldBatchNorm
from reparam.passes.fold_channel_affine import FoldChannelAffine
from reparam.passes.leave_shift import LeaveShift
from support.by_hand import ByHand
from support.helpers import (
    EXACT,
    Fused,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    doubles,
    fuse_exactly,
    healthy,
    module_rel,
    program_of,
    run_rules,
    vector,
)

RULES = [FoldBatchNorm(), FoldChannelAffine()]
KINDS: dict[str, Any] = {
    "lstm": nn.LSTM,
    "projected": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


def scaled_and_shifted(layer: nn.Module, scale: Tensor | None, shift: Tensor | None) -> nn.Module:
    """tanh(x) with a factor and a summand, before a recurrent layer, of which all results are given."""

    def compute(m: Any, x: Tensor) -> Any:
        x = torch.tanh(x)
        x = x if scale is None else x * m.scale
        return m.layer(x if shift is None else x + m.shift)

    parts = {"scale": scale, "shift": shift}
    return Lambda(compute, layer=layer, **{k: nn.Parameter(v) for k, v in parts.items() if v is not None}).double()


def left(fused: Fused) -> list[str]:
    """The sums and products that stay."""
    return [n.name for n in fused.program.calls() if n.target in (aten.mul.Tensor, aten.add.Tensor)]


OPTIONS = st.fixed_dictionaries(
    {"num_layers": st.integers(1, 3)} | dict.fromkeys(("bidirectional", "batch_first", "bias"), st.booleans())
)
FACTORS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda each: None,
    "each": lambda each: each,
    "negative": lambda each: -each.abs(),
    "zeros": lambda each: each * torch.tensor([1.0, 0.0, 1.0, 0.0]),
    "one for all": lambda each: each[:1],
}


@given(
    kind=st.sampled_from(sorted(KINDS)),
    options=OPTIONS,
    batched=st.booleans(),
    factor=st.sampled_from(sorted(FACTORS)),
    shifted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_affine_before_any_layer(
    kind: str, options: dict[str, Any], batched: bool, factor: str, shifted: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    shift = doubles(4, seed=seed + 1) if shifted else None
    model = scaled_and_shifted(KINDS[kind](4, 3, **options), FACTORS[factor](doubles(4, seed=seed)), shift)
    fused = apply_exactly(model, doubles(*([2] if batched else []), 5, 4), rules=RULES, bound=EXACT)
    assert bool(left(fused)) == (shifted and not options["bias"])
    assert not fused.outcome.rejected


@given(kind=st.sampled_from(sorted(KINDS)), bidirectional=st.booleans(), entry=st.integers(0, 10**6))
def test_any_single_entry_of_a_new_weight_is_checked(kind: str, bidirectional: bool, entry: int) -> None:
    layer = KINDS[kind](3, 3, bidirectional=bidirectional)
    model, x = scaled_and_shifted(layer, vector(3), None), doubles(4, 2, 3)
    assert assert_no_wrong_entry_is_accepted(program_of(model, x), FoldChannelAffine(), entry, [x])


# ---- what becomes of the weights ---------------------------------------------------------------------------------


def test_the_first_layer_alone_has_new_weights_in_each_direction() -> None:
    layer = nn.GRU(4, 3, num_layers=2, bidirectional=True)
    fused = apply_exactly(scaled_and_shifted(layer, vector(4), vector(4)), doubles(5, 2, 4), rules=RULES, bound=EXACT)
    before, after = fused.original, fused.program
    changed = {
        c.origin
        for c in after.constants.values()
        if not any(c.value.data_ptr() == old.value.data_ptr() for old in before.constants.values())
    }
    ends = ("", "_reverse")
    assert changed == {f"layer.{w}_ih_l0{end}" for w in ("weight", "bias") for end in ends}
    weight = next(c for c in after.constants.values() if c.origin == "layer.weight_ih_l0")
    torch.testing.assert_close(weight.value, layer.weight_ih_l0.double() * vector(4), rtol=EXACT, atol=0)


def test_a_scale_alone_leaves_the_biases_as_they_are() -> None:
    fused = apply_exactly(
        scaled_and_shifted(nn.LSTM(4, 3), vector(4), None), doubles(5, 2, 4), rules=RULES, bound=EXACT
    )
    kept = {n for n, c in fused.program.constants.items() if not c.folded and "__" not in n}
    assert kept == {"layer.bias_ih_l0", "layer.bias_hh_l0", "layer.weight_hh_l0"}


def test_weights_that_another_layer_reads_stay_for_it() -> None:
    """The same GRU once with the affine and once without."""
    model = Lambda(lambda m, x: m.r(torch.tanh(x) * m.s)[0] + m.r(torch.sin(x))[0], r=nn.GRU(4, 3), s=vector(4))
    fused = apply_exactly(model.double(), doubles(5, 2, 4), rules=RULES, bound=EXACT)
    assert fused.passed("fold-channel-affine") == ["folded into the input of 'r'"]
    origins = sorted(c.origin for c in fused.program.constants.values())
    assert origins.count("r.weight_ih_l0") == 2 and origins.count("r.weight_hh_l0") == 1


def test_the_dtype_of_each_weight_is_kept() -> None:
    model = scaled_and_shifted(nn.LSTM(4, 3), vector(4), vector(4)).float()
    made = run_rules(program_of(model, torch.randn(5, 2, 4)), *RULES).program
    assert {c.dtype for c in made.constants.values()} == {torch.float32}


# ---- networks ----------------------------------------------------------------------------------------------------


def test_norms_between_convolutions_and_recurrent_layers() -> None:
    """conv -> relu -> norm -> gru -> norm -> lstm: no norm is left."""

    def compute(m: Any, x: Tensor) -> Tensor:
        x = m.first(m.one(torch.relu(m.conv(x))).transpose(1, 2))[0]
        return m.second(m.two(x.transpose(1, 2)).transpose(1, 2))[0]

    model = Lambda(
        compute,
        conv=nn.Conv1d(3, 6, 3),
        one=nn.BatchNorm1d(6),
        first=nn.GRU(6, 4, bidirectional=True, batch_first=True),
        two=nn.BatchNorm1d(8),
        second=nn.LSTM(8, 4, num_layers=2, batch_first=True),
    )
    fused = fuse_exactly(healthy(model), doubles(2, 3, 9), bound=EXACT)
    assert fused.passed("fold-batch-norm") == ["folded into the input of 'first'", "folded into the input of 'second'"]
    assert "batch_norm" not in fused.text and not left(fused)


def test_a_map_whose_rows_are_the_steps() -> None:
    """As in networks that read text: channels times height are the features, the width the time."""

    def compute(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(x) if m.conv is None else m.norm(torch.relu(m.conv(x)))
        return m.rnn(x.permute(3, 0, 1, 2).flatten(2))[0]

    model = Lambda(compute, conv=nn.Conv2d(1, 3, 3), norm=nn.BatchNorm2d(3), rnn=nn.LSTM(12, 5, bidirectional=True))
    fused = fuse_exactly(healthy(model), doubles(2, 1, 6, 8), bound=EXACT)
    assert fused.passed("fold-batch-norm") == ["folded into the input of 'rnn'"]


def test_the_affine_of_a_layer_norm() -> None:
    model = Lambda(lambda m, x: m.rnn(m.norm(x))[0], norm=nn.LayerNorm(6), rnn=nn.GRU(6, 4, bidirectional=True))
    fused = fuse_exactly(healthy(model), doubles(5, 2, 6), bound=EXACT)
    assert fused.passed("fold-norm-affine") == ["affine folded into 1 layer(s)"]


def test_a_recurrent_layer_beside_a_linear_one() -> None:
    model = Lambda(
        lambda m, x: m.rnn(y := m.norm(torch.tanh(x)).transpose(1, 2))[0] + m.skip(y),
        norm=nn.BatchNorm1d(6),
        rnn=nn.GRU(6, 4, batch_first=True),
        skip=nn.Linear(6, 4),
    )
    fused = apply_exactly(healthy(model), doubles(2, 6, 5), rules=RULES, bound=EXACT)
    assert fused.passed("fold-batch-norm") == ["folded into the input of 'rnn', 'skip'"]


def test_states_that_are_given_stay_as_they_are() -> None:
    model = Lambda(
        lambda m, x, h, c: m.rnn(m.norm(x).transpose(1, 2), (h, c)),
        norm=nn.BatchNorm1d(6),
        rnn=nn.LSTM(6, 4, batch_first=True),
    )
    inputs = doubles(2, 6, 5), doubles(1, 2, 4), doubles(1, 2, 4, seed=8)
    fused = run_rules(program_of(healthy(model), *inputs, dynamic=()), *RULES)
    assert fused.passed("fold-batch-norm") == ["folded into the input of 'rnn'"]
    assert module_rel(model, fused.program, inputs) <= EXACT


def test_a_shift_that_finds_no_bias_is_left_as_a_sum() -> None:
    norm, rnn = nn.BatchNorm1d(6), nn.LSTM(6, 4, batch_first=True, bias=False)
    model = Lambda(lambda m, x: m.rnn(m.norm(torch.tanh(x)).transpose(1, 2))[0], norm=norm, rnn=rnn)
    fused = apply_exactly(healthy(model), doubles(2, 6, 5), rules=[*RULES, LeaveShift()], bound=EXACT)
    assert fused.passed("leave-shift") == ["scale folded, the shift left standing (6 parameters)"]


def test_a_wrong_weight_is_caught() -> None:
    model = Lambda(
        lambda m, x: m.rnn(m.norm(torch.tanh(x)).transpose(1, 2))[0],
        norm=nn.BatchNorm1d(6),
        rnn=nn.LSTM(6, 4, batch_first=True),
    )
    assert_evidence_bites(program_of(healthy(model), doubles(2, 6, 5)), FoldBatchNorm())


def test_ranges_are_not_evened_out_into_a_recurrent_layer() -> None:
    model = Lambda(lambda m, x: m.rnn(torch.relu(m.lin(x)))[0], lin=nn.Linear(5, 6), rnn=nn.GRU(6, 4)).double()
    with torch.no_grad():
        model.lin.weight[0] *= 100
    fused = apply_exactly(model, doubles(3, 2, 5), rules=[Equalize()], bound=EXACT)
    assert not fused.passed("equalize")


# ---- refusals ----------------------------------------------------------------------------------------------------

LIES = "the affine does not lie along the features that this recurrent layer reads"
BIASES = "a shift does not fold into a recurrent layer without biases"
STATE = "the affine reaches the state with which this recurrent layer starts, which takes none"
COMPUTED = "the weights of this recurrent layer are computed"


class Gru(ByHand):
    """A GRU of 3 features and a state of 2 behind a tanh."""

    def __init__(self, *, biases: bool = True) -> None:
        super().__init__()
        self.start = self.call(aten.tanh.default, self.input(5, 2, 3))
        self.state = self.weight(doubles(1, 2, 2), "state")
        self.weights = [self.weight(doubles(6, n, seed=n), "w") for n in (3, 2)]
        self.weights += [self.weight(doubles(6, seed=n), "b") for n in (3, 2)] if biases else []

    def run(self, x: fx.Node | None = None, state: fx.Node | None = None) -> fx.Node:
        options = [len(self.weights) > 2, 1, 0.0, False, False, False]
        node = self.call(aten.gru.input, x or self.start, state or self.state, self.weights, *options)
        self.returns(self.call(_first, node))
        return node


def _first(values: Any) -> Any:
    return values[0]


def refused(graph: Gru, node: fx.Node, pair: Pair) -> str:
    found = forward(graph.program, graph.start, pair)
    assert isinstance(found, Refusal) and found.node is node
    return found.reason


ALONG = doubles(1, 1, 3)


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 2, 1), (5, 1, 3)], ids=["steps", "samples", "steps and features"])
@pytest.mark.parametrize("part", ["scale", "shift"])
def test_an_affine_along_another_axis_is_refused(shape: tuple[int, ...], part: str) -> None:
    graph = Gru()
    assert refused(graph, graph.run(), Pair(**{part: doubles(*shape)})) == LIES


def test_a_shift_without_biases_is_refused_and_a_scale_is_not() -> None:
    graph = Gru(biases=False)
    node = graph.run()
    assert refused(graph, node, Pair(ALONG, ALONG)) == BIASES
    assert not isinstance(forward(graph.program, graph.start, Pair(ALONG)), Refusal)


@pytest.mark.parametrize("both", [True, False])
def test_an_affine_that_reaches_the_state_is_refused(both: bool) -> None:
    graph = Gru()
    cut = graph.call(aten.slice.Tensor, graph.call(aten.slice.Tensor, graph.start, 0, 0, 1), 2, 0, 2)
    other = None if both else graph.call(aten.sin.default, graph.program.placeholders[0])
    assert refused(graph, graph.run(other, cut), Pair(ALONG)) == STATE


def test_an_affine_that_reaches_the_weights_is_refused() -> None:
    graph = Gru()
    rows = graph.call(aten.repeat.default, graph.call(aten.slice.Tensor, graph.start, 0, 0, 3), [1, 1, 1])
    graph.weights[1] = graph.call(aten.slice.Tensor, graph.call(aten.reshape.default, rows, [6, 3]), 1, 0, 2)
    node = graph.run()
    reason = "gru uses the value in a way that an affine cannot follow"
    assert refused(graph, node, Pair(torch.full((1, 1, 1), 2.0).double())) == reason


@pytest.mark.parametrize("place", [0, 2], ids=["weight", "bias"])
def test_weights_of_the_input_that_are_computed_are_refused(place: int) -> None:
    graph = Gru()
    graph.weights[place] = graph.call(aten.sin.default, graph.weights[place])
    assert refused(graph, graph.run(), Pair(ALONG)) == COMPUTED


@pytest.mark.parametrize("place", [1, 3], ids=["weight", "bias"])
def test_those_of_the_state_may_be_computed(place: int) -> None:
    graph = Gru()
    graph.weights[place] = graph.call(aten.sin.default, graph.weights[place])
    node = graph.run()
    route = forward(graph.program, graph.start, Pair(ALONG, ALONG))
    assert not isinstance(route, Refusal) and route.sinks == (node,)


def test_one_scale_for_all_and_the_affine_itself() -> None:
    """The new call on x is the old one on a x + t."""
    graph = Gru()
    node = graph.run()
    pair = Pair(torch.full((1, 1, 1), -3.0).double(), ALONG)
    route = forward_all(graph.program, {graph.start: pair})
    assert not isinstance(route, Refusal)
    made = execute(graph.program, route, {graph.start: graph.start})[node]
    assert is_call(made, RECURRENT)
    affine = graph.call(aten.add.Tensor, graph.call(aten.mul.Tensor, graph.start, -3.0), graph.weight(ALONG, "t"))
    old = graph.program.clone(node, {graph.start: affine}, like=graph.program.output)
    pieces = [graph.call(_first, n) for n in (made, old)]
    new, wanted = evaluate(graph.returns(*pieces), [doubles(5, 2, 3, seed=3)])
    torch.testing.assert_close(new, wanted, rtol=EXACT, atol=EXACT)
