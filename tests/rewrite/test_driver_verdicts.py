"""What the driver makes of a rewrite: faults, refusals and rejections without a trace, price, check and place."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import fx

from reparam.check import Claim, Evidence
from reparam.check.claim_check import Slot
from reparam.errors import InputError, RuleError, UnknownSizeError
from reparam.ir import Program, aten, ranges_of
from reparam.report import Remark
from reparam.rewrite import Driver, Phase, Rewrite, verifying
from support.by_hand import ByHand
from support.toy_rules import (
    ABS,
    ADD,
    GOOD,
    LINEAR,
    MUL,
    NEG,
    RELU,
    SIGMOID,
    TANH,
    Make,
    Note,
    Toy,
    chain,
    copied,
    drive,
    heard,
    listening,
    names,
    node_of,
    operand,
    texts,
    trust,
)

# ---- rules that fail -----------------------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


def half_way(error: Exception) -> Make:
    def make(program: Program, node: fx.Node) -> Rewrite:
        program.call(MUL, (operand(node), program.weight(torch.ones(3), "half", like=node)), like=node)
        raise error

    return make


def misfit(program: Program, node: fx.Node) -> Rewrite:
    return Rewrite({node: program.call(aten.sum.dim_IntList, (operand(node), [1]), like=node)}, "of another shape")


def inputless(program: Program, node: fx.Node) -> Rewrite:
    return Rewrite({node: program.weight(torch.ones(2, 3), "ones", like=node)}, "of nothing")


FAILING = {
    "asked": (Toy(says=raising(KeyError("no\nthird"))), "'no\\nthird'"),
    "asked, of itself": (Toy(says=raising(RuleError("it is so"))), "it is so"),
    "half way": (Toy(("relu_default",), half_way(ZeroDivisionError("by\nnothing"))), "by"),
    "half way, of itself": (Toy(("relu_default",), half_way(RuleError("it is so"))), "it is so"),
    "another shape": (
        Toy(("relu_default",), misfit),
        "the new value of relu_default has another shape than the old one",
    ),
    "no input": (
        Toy(("relu_default",), inputless),
        "the rewrite dropped an input: the old value depends on 'x0', the new one does not",
    ),
}


@pytest.mark.parametrize(("rule", "told"), FAILING.values(), ids=FAILING)
def test_a_fault_of_a_rule_costs_its_rewrite_alone_and_is_raised_in_tests(rule: Toy, told: str) -> None:
    program = chain(TANH, RELU, SIGMOID)
    before, asked = names(program), []
    with verifying(False), heard() as lines:
        remarks = drive(program, rule, listening(asked))
    message = f"left out for a fault in this rewrite ({told})"
    assert remarks == [Remark("missed", "toy", "m1", "relu_default", message)]
    warned, missed = lines[0], lines[1]
    assert warned[0] == "WARNING" and warned[1].startswith(f"toy failed at relu_default: {told}")
    assert missed == ("DEBUG", f"not toy at m1: {message}")
    assert names(program) == before and program.constants == {}
    assert asked == ["tanh_default", "relu_default", "sigmoid_default"]
    with pytest.raises((RuleError, KeyError, ZeroDivisionError)), heard() as lines:
        drive(program, rule)
    assert lines == [] and names(program) == before and program.constants == {}


@pytest.mark.parametrize("error", [InputError("not this"), MemoryError("all gone"), RuntimeError("CUDA out of memory")])
@pytest.mark.parametrize("step", ["asked", "made"])
def test_what_is_no_fault_of_a_rule_is_raised(error: Exception, step: str) -> None:
    program = chain(RELU)
    before = names(program)
    rule = Toy(says=raising(error)) if step == "asked" else Toy(("relu_default",), half_way(error))
    with verifying(False), pytest.raises(type(error)) as caught:
        drive(program, rule)
    assert caught.value is error
    assert names(program) == before and program.constants == {}


def test_a_size_that_nobody_knows_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a rule that may be about any call: such a one would say so everywhere."""
    error = UnknownSizeError("how many is not known")
    told = [Remark("missed", "toy", "m0", "relu_default", "how many is not known")]
    assert drive(chain(RELU), Toy(says=raising(error))) == told
    assert drive(chain(RELU), Toy(targets=(), says=raising(error))) == []
    program = chain(RELU)
    before = names(program)
    assert drive(program, Toy(("relu_default",), half_way(error))) == told
    assert names(program) == before and program.constants == {}
    monkeypatch.setattr("reparam.rewrite.driver.check_region", raising(error))
    assert drive(program, Toy(("relu_default",))) == told
    assert names(program) == before


def test_a_call_that_nobody_needs_is_an_error() -> None:
    def wasteful(program: Program, node: fx.Node) -> Rewrite:
        program.clone(node, {})
        return copied(program, node)

    with verifying(False), pytest.raises(RuleError) as caught:
        drive(chain(RELU), Toy(("relu_default",), wasteful))
    assert str(caught.value) == "the rewrite made 'relu_default_1' and did not use it"


# ---- what is turned down -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bound", "limit"), [(0.001234, "0.00123"), (math.nan, "what can be bounded")])
def test_a_rewrite_that_its_check_rejects_leaves_no_trace(
    bound: float, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, Evidence("sampled", 0.0123456, bound, False))

    def make(program: Program, node: fx.Node) -> Rewrite:
        weight = program.weight(torch.ones(3), "one", like=node)
        new = program.call(MUL, (program.clone(node, {}), weight), like=node)
        return Rewrite({node: new}, "scaled", facts=("a fact",), layers={node: "so"}, notes=(Note("no"),))

    program = chain(RELU, RELU)
    before = names(program)
    driver = Driver(program, allow_cost=False)
    at = tuple(before[1:3])
    remarks = driver.run((Phase("test", (Toy(at, make),)),)).remarks
    told = (
        f"rejected by its own check: float64 difference 0.0123 exceeds {limit}; "
        "the values leave no room for exact folding"
    )
    assert remarks == [Remark("missed", "toy", f"m{i}", name, told) for i, name in enumerate(at)]
    assert driver.outcome.rejected == 2 and driver.outcome.kinds == {"basis": 0, "sampled": 0}
    assert names(program) == before and program.constants == {}
    assert program.notes.find(Note) is None


def test_a_rewrite_to_another_dtype_is_refused() -> None:
    def narrow(program: Program, node: fx.Node) -> Rewrite:
        new = program.call(aten.to.dtype, (program.clone(node, {}), torch.float32), like=node)
        return Rewrite({node: new}, "narrower")

    program = chain(TANH, RELU)
    before = names(program)
    told = "the network has float64 here, and would have float32"
    assert drive(program, Toy(("relu_default",), narrow)) == [Remark("missed", "toy", "m1", "relu_default", told)]
    assert names(program) == before


def test_every_replaced_value_keeps_its_dtype_and_a_size_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three values the last becomes another: a size, which is none, and one of its own dtype stand before it."""
    g = ByHand()
    x = g.input(2, 3, free=(0,))
    size, tanh, relu = g.call(aten.sym_size.int, x, 0), g.call(TANH, x), g.call(RELU, x)
    program = g.returns(g.call(MUL, tanh, size), relu)

    def make(last: torch.dtype) -> Make:
        def made(program: Program, node: fx.Node) -> Rewrite:
            new = {n: program.clone(n, {}, like=size) for n in (size, tanh, relu)}
            if last != torch.float64:
                new[relu] = program.call(aten.to.dtype, (new[relu], last), like=size)
            claim = Claim((size, tanh, relu), tuple(program.calls()), (), Slot(relu, new[relu]))
            return Rewrite(new, "again", claims=(claim,))

        return made

    told = "the network has float64 here, and would have bfloat16"
    rule = Toy(("relu_default",), make(torch.bfloat16))
    assert texts(drive(program, rule)) == [("missed", "toy", "relu_default", told)]
    trust(monkeypatch, GOOD)
    assert [r.kind for r in drive(program, Toy(("relu_default",), make(torch.float64)))] == ["passed"]


# ---- the price -----------------------------------------------------------------------------------------------------


def weights(program: Program, node: fx.Node, *shapes: tuple[int, ...]) -> list[fx.Node]:
    return [program.weight(torch.ones(s, dtype=torch.float64), "w", like=node) for s in shapes]


def layered(*widths: int) -> Program:
    """Linear layers of these widths, each with a bias."""
    g = ByHand()
    x = g.input(2, widths[0], free=(0,))
    for i, (n, m) in enumerate(pairwise(widths)):
        x = g.call(LINEAR, x, g.weight(torch.ones(m, n)), g.weight(torch.ones(m)), module=f"m{i}")
    return g.returns(x)


def joined(program: Program, node: fx.Node) -> Rewrite:
    """Two linear layers as one without a bias; whole numbers beside it, which are no parameters."""
    first = operand(node)
    x, rows, columns = operand(first), node.meta["val"].shape[1], operand(first).meta["val"].shape[1]
    [weight] = weights(program, node, (rows, columns))
    layer = program.call(LINEAR, (x, weight), like=node)
    order = program.weight(torch.arange(rows), "order", like=node)
    return Rewrite({node: program.call(aten.index_select.default, (layer, 1, order), like=node)}, "joined")


def test_the_price_of_a_rewrite_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a single sample."""
    trust(monkeypatch, GOOD)
    program = layered(3, 4, 5)
    [remark] = drive(program, Toy(("linear_default_1",), joined, (LINEAR,)))
    assert (remark.macs, remark.params) == (3 * 5 - (3 * 4 + 4 * 5), 3 * 5 - (3 * 4 + 4 + 4 * 5 + 5))
    assert remark.links == ((("linear_default", "linear_default_1"), ("linear_default_2", "index_select_default")),)
    assert sorted(program.constants) == ["order", "w"]


def test_what_others_read_stays_and_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer is an output as well, and one weight is shared."""
    trust(monkeypatch, GOOD)
    g = ByHand()
    x = g.input(2, 3, free=(0,))
    shared = g.weight(torch.ones(3, 3), "shared")
    first = g.call(LINEAR, x, shared, g.weight(torch.ones(3), "bias"))
    second = g.call(LINEAR, first, shared)
    third = g.call(LINEAR, second, g.weight(torch.ones(5, 3), "own"))
    program = g.returns(third, first)

    def make(program: Program, node: fx.Node) -> Rewrite:
        return Rewrite({node: program.call(LINEAR, (x, *weights(program, node, (5, 3))), like=node)}, "joined")

    [remark] = drive(program, Toy(("linear_default_2",), make, (LINEAR,)))
    assert (remark.macs, remark.params) == (15 - 9 - 15, 15 - 15)
    assert remark.links == ((("linear_default_1", "linear_default_2"), ("linear_default_3",)),)
    assert [n.name for n in program.calls()] == ["linear_default", "linear_default_3"]
    assert sorted(program.constants) == ["bias", "shared", "w"]


def wider(program: Program, node: fx.Node) -> Rewrite:
    """A linear layer by way of a wider one."""
    columns, rows = operand(node).meta["val"].shape[1], node.meta["val"].shape[1]
    wide = 1000
    first, second = weights(program, node, (wide, columns), (rows, wide))
    inner = program.call(LINEAR, (operand(node), first), like=node)
    return Rewrite({node: program.call(LINEAR, (inner, second), like=node)}, "widened")


WIDE = Toy(("linear_default",), wider, (LINEAR,), "wide")
DEARER = 1000 * (3 + 4) - 3 * 4
TOO_DEAR = f"it would add {DEARER:,} multiply-accumulates (widened); a target that accepts the cost does it"


def test_what_adds_work_is_refused_with_the_numbers_before_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trust(monkeypatch, GOOD)
    program = layered(3, 4)
    before = names(program)
    driver = Driver(program, allow_cost=False)
    assert driver.run((Phase("test", (WIDE,)),)).remarks == [Remark("missed", "wide", "m0", "linear_default", TOO_DEAR)]
    assert "6,988" in TOO_DEAR
    assert names(program) == before and len(program.constants) == 2
    assert driver.outcome.rejected == 0 and asked == []


@pytest.mark.parametrize("by", ["driver", "phase"])
def test_what_adds_work_is_done_where_that_is_accepted(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, GOOD)
    driver = Driver(layered(3, 4), allow_cost=by == "driver")
    [remark] = driver.run((Phase("test", (WIDE,), accepts_cost=by == "phase"),)).remarks
    assert (remark.macs, remark.params) == (DEARER, 1000 * 7 - 12 - 4)


def test_a_phase_that_accepts_the_cost_does_so_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, GOOD)
    first = Phase("first", (Toy(("relu_default",)),), accepts_cost=True)
    program = layered(3, 4)
    assert texts(Driver(program, allow_cost=False).run((first, Phase("second", (WIDE,)))).remarks) == [
        ("missed", "wide", "linear_default", TOO_DEAR)
    ]


def test_as_much_work_as_before_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, GOOD)
    [remark] = drive(layered(3, 4), Toy(("linear_default",), targets=(LINEAR,)))
    assert (remark.kind, remark.macs, remark.params) == ("passed", 0, 0)


# ---- the check -----------------------------------------------------------------------------------------------------


def test_each_rewrite_is_checked_with_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trust(monkeypatch, GOOD)
    program = chain(RELU, RELU)
    drive(program, Toy(("relu_default", "relu_default_1")), seed=7)
    assert [seed for *_, seed in asked] == [8, 9]
    for checked, region, ranges, _ in asked:
        assert checked is program and ranges is ranges_of(program)
        [(old, new)] = region.outputs
        assert (old.target, new.target) == (RELU, RELU) and region.new == (new,)
    asked.clear()
    drive(chain(RELU), Toy(("relu_default",)))
    assert [seed for *_, seed in asked] == [1]


def claimed(*, told: int = 2, weighted: bool = True) -> Make:
    """The last two calls anew, with what has to hold of each of the first `told`."""

    def make(program: Program, node: fx.Node) -> Rewrite:
        first, x = operand(node), operand(operand(node))
        new_first = program.clone(first, {})
        new = program.clone(node, {first: new_first})
        extra: tuple[fx.Node, ...] = ()
        if weighted:
            one = program.weight(torch.ones((), dtype=torch.float64), "one", like=node)
            new = program.call(MUL, (new, one), like=node)
            extra = (next(n for n in new.all_input_nodes if n.op == "call_function"), one)
        claims = (
            Claim((first,), (new_first,), (Slot(x, x),), Slot(first, new_first)),
            Claim((node,), (*extra, new), (Slot(first, new_first),), Slot(node, new)),
        )
        return Rewrite({node: new}, "claimed", claims=claims[:told])

    return make


def test_claims_are_checked_one_by_one_and_told_so() -> None:
    program = chain(NEG, TANH, RELU)
    driver = Driver(program, allow_cost=False)
    [remark] = driver.run((Phase("test", (Toy(("relu_default",), claimed()),)),)).remarks
    assert (remark.kind, remark.evidence, remark.max_abs) == ("passed", "sampled", 0.0)
    assert remark.links == (
        (("tanh_default",), ("tanh_default_1",)),
        (("relu_default",), ("relu_default_1", "mul_tensor")),
    )
    assert driver.outcome.kinds == {"basis": 0, "sampled": 1}
    assert [n.name for n in program.calls()] == ["neg_default", "tanh_default_1", "relu_default_1", "mul_tensor"]


def test_claims_are_checked_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = trust(monkeypatch, GOOD)
    program = chain(NEG, TANH, RELU)
    drive(program, Toy(("relu_default",), claimed()), seed=3)
    [(checked, claims, ranges, seed)] = asked
    assert checked is program and ranges is ranges_of(program) and seed == 4
    assert [c.old[0].target for c in claims] == [TANH, RELU]


def test_claims_have_to_speak_of_every_new_call() -> None:
    """A weight beside them needs no word."""
    program = chain(NEG, TANH, RELU)
    before = names(program)
    with pytest.raises(RuleError) as caught:
        drive(program, Toy(("relu_default",), claimed(told=1)))
    assert str(caught.value) == "the rewrite made 'relu_default_1' and says nothing of it"
    assert names(program) == before


def test_claims_may_do_without_an_input() -> None:
    """What is read instead has to be claimed alone; a region of the same calls would not be allowed to."""
    g = ByHand()
    x, y = g.input(2, 3), g.input(2, 3)
    gone = g.call(MUL, y, 0.0)
    program = g.returns(g.call(ADD, g.call(RELU, x), gone), g.call(ABS, y))
    add = node_of(program, "add_tensor")

    def make(program: Program, node: fx.Node) -> Rewrite:
        new = program.clone(operand(node), {})
        claim = Claim((operand(node),), (new,), (Slot(x, x),), Slot(operand(node), new))
        return Rewrite({node: new}, "alone", claims=(claim,))

    [remark] = drive(program, Toy((add.name,), make, (ADD,)))
    assert remark.links == ((("relu_default",), ("relu_default_1",)),)
    assert names(program) == ["x0", "x1", "relu_default_1", "abs_default", "output"]


# ---- what is left behind -------------------------------------------------------------------------------------------


def test_links_name_calls_and_what_a_dropped_call_is_found_in() -> None:
    g = ByHand()
    x = g.input(2, 3)
    program = g.returns(g.call(ADD, g.call(MUL, g.call(TANH, x), g.weight(torch.ones(3), "one")), 0.0))

    def make(program: Program, node: fx.Node) -> Rewrite:
        return Rewrite({node: operand(operand(node))}, "dropped")

    [remark] = drive(program, Toy(("add_tensor",), make, (ADD,)))
    assert remark.links == ((("mul_tensor", "add_tensor"), ("tanh_default",)),)
    assert remark.params == -3
    assert names(program) == ["x0", "tanh_default", "output"] and program.constants == {}


def test_values_that_did_not_matter_go_with_all_that_only_they_read() -> None:
    """A weight of theirs too. What others read stays, and is asked again, as are its readers."""
    g = ByHand()
    x, y = g.input(2, 3), g.input(2, 3)
    root = g.call(aten.exp.default, y)
    dead = g.call(MUL, root, g.weight(torch.ones(3), "scale"))
    alive = g.call(aten.sin.default, y)
    reader = g.call(ABS, alive)
    none = g.call(MUL, g.call(ADD, g.call(ADD, dead, root), alive), 0.0)
    relu = g.call(RELU, g.call(ADD, g.call(TANH, x), none))
    program = g.returns(relu, reader)
    asked: list[str] = []

    def make(program: Program, node: fx.Node) -> Rewrite:
        tanh = node_of(program, "tanh_default")
        new = program.clone(node, {operand(node): tanh})
        return Rewrite({node: new}, "alone", unread=(root, dead, alive))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [remark] = drive(program, listening(asked), Toy(("relu_default",), make))
    assert remark.kind == "passed"
    assert names(program) == ["x0", "x1", "sin_default", "abs_default", "tanh_default", "relu_default_1", "output"]
    assert program.constants == {}
    first = [
        "exp_default", "mul_tensor", "sin_default", "abs_default", "add_tensor", "add_tensor_1", "mul_tensor_1",
        "tanh_default", "add_tensor_2", "relu_default",
    ]  # fmt: skip
    last = ["sin_default", "abs_default", "tanh_default", "relu_default_1"]
    assert asked == [*first, "relu_default_1", "tanh_default", "sin_default", "abs_default", *last]


def test_an_input_that_nobody_reads_any_more_stays() -> None:
    g = ByHand()
    x, y = g.input(2, 3), g.input(2, 3)
    program = g.returns(g.call(ADD, g.call(TANH, x), g.call(MUL, y, 0.0)))

    def make(program: Program, node: fx.Node) -> Rewrite:
        return Rewrite({node: operand(node)}, "alone", unread=(y,))

    [remark] = drive(program, Toy(("add_tensor",), make, (ADD,)))
    assert remark.kind == "passed"
    assert names(program) == ["x0", "x1", "tanh_default", "output"]


def test_the_new_weights_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[list[str]] = []
    monkeypatch.setattr(Program, "settle", lambda self, nodes: settled.append([n.name for n in nodes]))
    trust(monkeypatch, GOOD)
    drive(layered(3, 4, 5), Toy(("linear_default_1",), joined, (LINEAR,)))
    assert settled == [["w", "linear_default_2", "order", "index_select_default"]]


def test_a_program_is_verified_where_it_changed_and_in_the_end_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str] | None] = []

    def verify(self: Program, nodes: Any = None) -> None:
        seen.append(None if nodes is None else [n.name for n in nodes])

    monkeypatch.setattr(Program, "verify", verify)
    drive(chain(TANH, RELU, SIGMOID), Toy(("relu_default",)))
    assert seen == [["relu_default_1", "sigmoid_default", "tanh_default"], None]
    seen.clear()
    with verifying(False):
        drive(chain(TANH, RELU, SIGMOID), Toy(("relu_default",)))
    assert seen == []


def test_what_was_known_of_a_value_is_known_of_what_took_its_place() -> None:
    """relu(x) = x/2 + |x/2|, of which intervals alone cannot tell that it is never negative."""
    program = chain(RELU)

    def spelled(program: Program, node: fx.Node) -> Rewrite:
        half = program.call(MUL, (operand(node), 0.5), like=node)
        size = program.call(ABS, (half,), like=node)
        return Rewrite({node: program.call(ADD, (half, size), like=node)}, "spelled out")

    drive(program, Toy(("relu_default",), spelled))
    assert ranges_of(program).of(node_of(program, "add_tensor"))[0] == 0.0
    assert ranges_of(program.copy()).of(node_of(program, "add_tensor"))[0] < 0.0
