"""How the driver checks a rewrite, and what one leaves behind that was accepted."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import fx

from reparam.check import Claim
from reparam.check.claim_check import Slot
from reparam.errors import RuleError
from reparam.ir import Program, aten, ranges_of
from reparam.rewrite import Driver, Phase, Rewrite, verifying
from support.by_hand import ByHand
from support.toy_rules import (
    ABS,
    ADD,
    GOOD,
    MUL,
    NEG,
    RELU,
    SIGMOID,
    TANH,
    Make,
    Toy,
    chain,
    drive,
    listening,
    names,
    node_of,
    operand,
    trust,
)

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
