"""What the driver asks its rules, in which order and how often, and what it tells of them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import fx

from reparam.check import Evidence
from reparam.errors import RuleError
from reparam.ir import Program, Refusal, aten
from reparam.report import Remark
from reparam.rewrite import Driver, Match, Pattern, Phase, Rewrite, op
from support.by_hand import ByHand
from support.toy_rules import (
    ABS,
    ADD,
    GOOD,
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
    dropped,
    heard,
    listening,
    names,
    node_of,
    operand,
    texts,
    trust,
)

# ---- what is asked, and in which order ----------------------------------------------------------------------------


def test_rules_are_asked_in_their_order_at_each_call_in_turn() -> None:
    asked: list[str] = []

    def rule(name: str, *targets: Any) -> Toy:
        return Toy(targets=targets, name=name, says=lambda node: asked.append(f"{name} {node.name}"))

    rules = rule("a"), rule("b", RELU), rule("c"), rule("d", TANH, RELU), rule("e", RELU)
    assert drive(chain(RELU, TANH, NEG), *rules) == []
    assert asked == [
        "a relu_default", "b relu_default", "c relu_default", "d relu_default", "e relu_default",
        "a tanh_default", "c tanh_default", "d tanh_default",
        "a neg_default", "c neg_default",
    ]  # fmt: skip


def test_a_rule_is_asked_with_what_its_pattern_has_found() -> None:
    class Pair(Toy):
        @property
        def pattern(self) -> Pattern:
            return op(frozenset({RELU}), op(frozenset({TANH}), name="inner"), name="outer")

        def check(self, program: Program, match: Match) -> None:
            found.append({key: node.name for key, node in match.nodes.items()} | {"root": match.root.name})

    found: list[dict[str, str]] = []
    assert drive(chain(RELU, TANH, RELU), Pair()) == []
    assert found == [{"inner": "tanh_default", "outer": "relu_default_1", "root": "relu_default_1"}]


def test_where_a_rule_rewrote_something_no_other_is_asked() -> None:
    asked: list[str] = []
    drive(chain(RELU, TANH), Toy(("relu_default",)), listening(asked))
    assert asked == ["tanh_default", "relu_default_1", "relu_default_1", "tanh_default"]


def test_where_a_rule_refused_or_was_rejected_the_next_is_asked() -> None:
    asked: list[str] = []
    drive(chain(RELU, TANH), Toy(says=lambda n: Refusal("no")), Toy(("relu_default",), dropped), listening(asked))
    assert asked == ["relu_default", "tanh_default"]


def test_phases_run_in_their_order_until_a_round_changes_nothing() -> None:
    asked: list[str] = []
    phases = (
        Phase("one", (listening(asked),)),
        Phase("two", (Toy(("relu_default",)),)),
        Phase("three", (Toy(("relu_default_1",)),)),
    )
    outcome = Driver(chain(RELU), allow_cost=False).run(phases)
    assert asked == ["relu_default", "relu_default_2"]
    assert [r.node for r in outcome.remarks] == ["relu_default", "relu_default_1"]


def test_after_a_rewrite_the_new_calls_and_their_neighbours_are_asked_again() -> None:
    """Its readers, its operand and the other readers of that; neither what they read or are read by, nor inputs."""
    g = ByHand()
    x = g.input(2, 3, free=(0,))
    tanh = g.call(TANH, x)
    outer, beside = g.call(ABS, g.call(NEG, tanh)), g.call(SIGMOID, x)
    relu = g.call(RELU, tanh)
    one, two = g.call(aten.exp.default, relu), g.call(aten.sin.default, relu)
    program = g.returns(beside, outer, g.call(aten.cos.default, one), two)
    asked: list[str] = []
    drive(program, Toy(("relu_default",)), listening(asked))
    first = ["tanh_default", "neg_default", "abs_default", "sigmoid_default"]
    waiting = ["exp_default", "sin_default", "cos_default"]
    again = ["relu_default_1", "tanh_default", "neg_default"]
    assert asked == [*first, *waiting, *again, *first, "relu_default_1", *waiting]


def test_what_a_call_was_replaced_by_is_asked_again_with_its_neighbours() -> None:
    """A call that is dropped leaves nothing new: what stands in its place, its readers, its operand and those of it."""
    g = ByHand()
    x = g.input(2, 3)
    tanh = g.call(TANH, x)
    exp = g.call(aten.exp.default, tanh)
    beside, reader, inner = g.call(NEG, tanh), g.call(SIGMOID, exp), g.call(ADD, exp, 0.0)
    program = g.returns(g.call(aten.sin.default, g.call(RELU, inner)), g.call(aten.cos.default, beside), reader)
    asked: list[str] = []
    drive(program, Toy(("add_tensor",), dropped, (ADD,)), listening(asked))
    first = ["tanh_default", "exp_default", "neg_default", "sigmoid_default"]
    waiting = ["relu_default", "sin_default", "cos_default"]
    again = ["exp_default", "sigmoid_default", "tanh_default", "neg_default"]
    assert asked == [*first, *waiting, *again, *first, *waiting]


def test_a_call_that_waits_already_is_asked_once() -> None:
    """Each rewrite touches the other's new call; one that was asked is asked again, one that still waits is not."""
    asked: list[str] = []
    drive(chain(TANH, RELU, RELU), Toy(("relu_default", "relu_default_1")), listening(asked))
    again = ["relu_default_2", "tanh_default", "relu_default_3"]
    assert asked == ["tanh_default", *again, "tanh_default", "relu_default_2", "relu_default_3"]


def test_a_call_that_went_while_it_waited_is_passed_over() -> None:
    asked: list[str] = []
    calls: list[tuple[str, int, int]] = []

    def both(program: Program, node: fx.Node) -> Rewrite:
        after = next(iter(node.users))
        return Rewrite({after: program.clone(after, {node: program.clone(node, {}, like=after)})}, "both")

    drive(
        chain(NEG, RELU, TANH, SIGMOID),
        Toy(("relu_default",), both),
        listening(asked),
        progress=lambda *call: calls.append(call),
    )
    new = ["relu_default_1", "tanh_default_1"]
    assert asked == ["neg_default", "sigmoid_default", *new, "neg_default", "neg_default", *new, "sigmoid_default"]
    assert calls == [
        ("test", 1, 4), ("test", 2, 4), ("test", 4, 7), ("test", 5, 7), ("test", 6, 7), ("test", 7, 7),
        ("test", 1, 4), ("test", 2, 4), ("test", 3, 4), ("test", 4, 4),
    ]  # fmt: skip


# ---- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "done"), [(None, 5), (0, 0), (1, 1), (3, 3), (4, 4), (9, 5)])
def test_no_more_rewrites_are_made_than_the_limit(limit: int | None, done: int) -> None:
    program = chain(*[RELU] * 5)
    at = tuple(names(program)[1:-1])
    asked: list[str] = []
    remarks = drive(program, Toy(at), listening(asked), limit=limit)
    assert [r.node for r in remarks] == list(at[:done])
    assert bool(asked) == (limit is None or limit > done)


def test_a_rule_that_goes_on_with_its_own_result_is_stopped_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.rewrite.driver.MAX_ROUNDS", 3)
    made: list[str] = []

    def again(program: Program, node: fx.Node) -> Rewrite:
        made.append(node.name)
        return copied(program, node)

    with pytest.raises(RuleError) as caught:
        drive(chain(RELU), Toy(make=again, says=lambda node: node))
    assert str(caught.value) == "'toy' rewrites its own result without end, last at 'relu_default_6'"
    assert len(made) == 7  # more than three for each call and one more


def test_rules_that_undo_each_other_are_stopped_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.rewrite.driver.MAX_ROUNDS", 3)

    def becomes(target: Any) -> Make:
        return lambda program, node: Rewrite({node: program.call(target, (operand(node),), like=node)}, "so")

    g = ByHand()
    program = g.returns(g.call(RELU, g.call(aten.exp.default, g.input(2, 3))))
    driver = Driver(program, allow_cost=False)
    to, fro = (
        Phase(n, (Toy(make=becomes(b), targets=(a,), says=lambda node: node),))
        for n, a, b in (("to", RELU, ABS), ("fro", ABS, RELU))
    )
    with pytest.raises(RuleError) as caught:
        driver.run((to, fro))
    assert str(caught.value) == "the rules still rewrite each other's results after 3 rounds"
    assert len(driver.outcome.remarks) == 6


# ---- what is told --------------------------------------------------------------------------------------------------


def test_all_that_a_rewrite_says_of_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trust(monkeypatch, GOOD, Evidence("sampled", 0.5, 1.0, True))

    def make(program: Program, node: fx.Node) -> Rewrite:
        notes = (Note(node.name), len(node.name))
        layers = {operand(node): "a layer", node: "itself"}
        new = program.clone(node, {})
        return Rewrite({node: new}, "done", {"of": node.name}, ("a fact", "another"), layers, notes)

    program = chain(TANH, RELU, SIGMOID)
    node_of(program, "sigmoid_default").meta["module"] = ""
    driver = Driver(program, allow_cost=False)
    rule = Toy(("relu_default", "sigmoid_default"), make, (RELU, SIGMOID))
    outcome = driver.run((Phase("test", (rule,)),))
    assert outcome is driver.outcome

    def told(module: str, node: str, before: tuple[str, str], figures: dict[str, Any], new: str) -> list[Remark]:
        links = (((node,), (new,)),)
        return [
            Remark("analysis", "toy", module, node, "a fact"),
            Remark("analysis", "toy", module, node, "another"),
            Remark("analysis", "toy", *before, "a layer"),
            Remark("analysis", "toy", module, node, "itself"),
            Remark("passed", "toy", module, node, "done", block={"of": node}, links=links, **figures),
        ]

    basis = {"max_abs": 0.125, "evidence": "basis", "bound": 0.25}
    sampled = {"max_abs": 0.5, "evidence": "sampled", "bound": 1.0}
    assert outcome.remarks == [
        *told("m1", "relu_default", ("m0", "tanh_default"), basis, "relu_default_1"),
        *told("", "sigmoid_default", ("m1", "relu_default_1"), sampled, "sigmoid_default_1"),
    ]
    assert outcome.kinds == {"basis": 1, "sampled": 1}
    assert outcome.rejected == 0
    assert program.notes.find(Note) == Note("sigmoid_default")
    assert program.notes.find(int) == len("sigmoid_default")


def test_what_is_missed_is_told_once_behind_what_was_done_and_as_it_was_last_said() -> None:
    counts: dict[str, int] = {}

    def refuse(node: fx.Node) -> Refusal:
        counts[node.name] = counts.get(node.name, 0) + 1
        return Refusal(f"no, for the {counts[node.name]}. time", hint="ask again")

    rules = Toy(name="one", says=refuse), Toy(("tanh_default",), targets=(TANH,)), Toy(name="two", says=refuse)
    remarks = drive(chain(RELU, TANH, RELU), *rules)
    assert remarks[0].kind == "passed"
    assert remarks[1:] == [
        Remark("missed", "one", "m0", "relu_default", "no, for the 5. time; ask again"),
        Remark("missed", "two", "m0", "relu_default", "no, for the 6. time; ask again"),
        Remark("missed", "one", "m2", "relu_default_1", "no, for the 3. time; ask again"),
        Remark("missed", "two", "m2", "relu_default_1", "no, for the 4. time; ask again"),
    ]


def test_what_a_rule_takes_back_is_not_told() -> None:
    """The rule refuses while its call reads a tanh."""

    def says(node: fx.Node) -> Any:
        return Refusal("behind a tanh") if operand(node).target is TANH else None

    rule = Toy(says=says)
    program = chain(TANH, RELU)
    assert texts(drive(program, rule)) == [("missed", "toy", "relu_default", "behind a tanh")]

    def negated(program: Program, node: fx.Node) -> Rewrite:
        negative = program.clone(node, {operand(node): program.call(NEG, (operand(node),), like=node)})
        return Rewrite({node: program.call(NEG, (negative,), like=node)}, "odd")

    odd = Toy(("tanh_default",), negated, (TANH,), "odd")
    assert texts(drive(program, rule, odd)) == [("passed", "odd", "tanh_default", "odd")]


def test_a_refusal_at_a_call_that_went_is_not_told() -> None:
    refusing = Toy(name="no", says=lambda node: Refusal("no"))
    remarks = drive(chain(RELU, RELU), refusing, Toy(("relu_default",)))
    assert texts(remarks) == [
        ("passed", "toy", "relu_default", "copied"),
        ("missed", "no", "relu_default_2", "no"),
        ("missed", "no", "relu_default_1", "no"),
    ]


def test_a_refusal_is_placed_in_the_module_that_it_names() -> None:
    """In the rule's own where it names none, or a node of none."""
    program = chain(RELU, TANH, SIGMOID, ABS)
    there = {n.name: n for n in program.graph.nodes}
    named = {"relu_default": "tanh_default", "tanh_default": "x0", "sigmoid_default": "sigmoid_default"}

    def says(node: fx.Node) -> Refusal:
        return Refusal("no", there[named[node.name]] if node.name in named else None)

    assert drive(program, Toy(targets=(), says=says)) == [
        Remark("missed", "toy", "m1", "relu_default", "no"),
        Remark("missed", "toy", "m1", "tanh_default", "no"),
        Remark("missed", "toy", "m2", "sigmoid_default", "no"),
        Remark("missed", "toy", "m3", "abs_default", "no"),
    ]


def test_a_rewrite_to_be_left_out_is_told_with_its_reason() -> None:
    """Whatever its rule would do there; where the rule has nothing to say, nothing is told."""
    left = {("toy", n): f"left for {n}" for n in ("relu_default", "tanh_default", "abs_default")}
    says = {"relu_default": "yes", "relu_default_1": "yes", "tanh_default": Refusal("no", hint="of the rule")}

    def verdict(node: fx.Node) -> Any:
        found = says.get(node.name)
        return node if found == "yes" else found

    program = chain(RELU, TANH, ABS, RELU)
    rules = Toy(targets=(), says=verdict), Toy(("relu_default",), name="other")
    assert texts(drive(program, *rules, left=left)) == [
        ("passed", "other", "relu_default", "copied"),
        ("passed", "toy", "relu_default_1", "copied"),
        ("missed", "toy", "tanh_default", "left for tanh_default"),
    ]
    program = chain(RELU)
    assert drive(program, Toy(("relu_default",)), left=left) == [
        Remark("missed", "toy", "m0", "relu_default", "left for relu_default")
    ]


def test_the_log_says_what_was_done_what_was_not_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    program = chain(RELU, TANH, ABS)
    node_of(program, "abs_default").meta["module"] = ""
    trust(monkeypatch, Evidence("basis", 0.0123456, 1.0, True))
    refusing = Toy(name="no", targets=(TANH, ABS), says=lambda n: Refusal("not here", hint="elsewhere"))
    phases = Phase("first", (refusing,)), Phase("second", (Toy(("relu_default", "abs_default"), targets=(RELU, ABS)),))
    with heard() as lines:
        Driver(program, allow_cost=False).run(phases)
    refused = [("DEBUG", "not no at m1: not here; elsewhere")]
    assert lines == [
        *refused,
        ("DEBUG", "not no at abs_default: not here; elsewhere"),
        ("DEBUG", "stage first: 0 rewrites"),
        ("DEBUG", "toy at m0: copied (float64 difference 0.0123)"),
        ("DEBUG", "toy at abs_default: copied (float64 difference 0.0123)"),
        ("INFO", "stage second: 2 rewrites"),
        *refused,
        ("DEBUG", "not no at abs_default_1: not here; elsewhere"),
        ("DEBUG", "stage first: 0 rewrites"),
        ("DEBUG", "stage second: 0 rewrites"),
    ]
