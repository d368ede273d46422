"""What the driver turns down: faults, refusals and rejections, which leave no trace, and what costs more."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import fx

from reparam.check import Claim, Evidence
from reparam.check.claim_check import Slot
from reparam.errors import InputError, RuleError, UnknownSizeError
from reparam.ir import Program, aten
from reparam.report import Remark
from reparam.rewrite import Driver, Phase, Rewrite, verifying
from support.by_hand import ByHand
from support.toy_rules import (
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


def wasteful(program: Program, node: fx.Node) -> Rewrite:
    program.clone(node, {})
    return copied(program, node)


def for_the_dying(program: Program, node: fx.Node) -> Rewrite:
    """Replaces a call and its operand, which only that call reads, so that nobody will read the operand's stand-in."""
    before = operand(node)
    read, unread = program.clone(before, {}), program.clone(before, {})
    return Rewrite({node: program.clone(node, {before: read}), before: unread}, "both")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (wasteful, "the rewrite made 'relu_default_1' and did not use it"),
        (for_the_dying, "the rewrite made 'neg_default_2' and did not use it"),
        (lambda program, node: Rewrite({}, "nothing"), "it replaces nothing"),
        (lambda program, node: None, "it replaces nothing"),
    ],
    ids=["a call of its own", "a call for what goes", "an empty rewrite", "no rewrite"],
)
def test_a_rewrite_that_makes_what_nobody_reads_or_replaces_nothing_is_left_out(
    change: Callable[[Program, fx.Node], Any], told: str
) -> None:
    program, other = chain(NEG, RELU), chain(NEG, RELU)
    before = names(program)
    with verifying(False):
        remarks = drive(program, Toy(("relu_default",), change))
    assert [(r.kind, r.message) for r in remarks] == [("missed", f"left out for a fault in this rewrite ({told})")]
    with verifying(), pytest.raises(RuleError) as caught:
        drive(other, Toy(("relu_default",), change))
    assert str(caught.value) == told
    assert names(program) == names(other) == before


# ---- what is turned down -------------------------------------------------------------------------------------------


LIMITS = [
    (0.001234, "0.00123"),
    (math.nan, "what can be bounded"),
    (0.0123456, "the bound of its own element (that of others goes up to 0.0123)"),
    (0.5, "the bound of its own element (that of others goes up to 0.5)"),
]


@pytest.mark.parametrize(("bound", "limit"), LIMITS)
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


def test_the_new_weights_are_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[list[str]] = []
    monkeypatch.setattr(Program, "settle", lambda self, nodes: settled.append([n.name for n in nodes]))
    trust(monkeypatch, GOOD)
    drive(layered(3, 4, 5), Toy(("linear_default_1",), joined, (LINEAR,)))
    assert settled == [["w", "linear_default_2", "order", "index_select_default"]]
