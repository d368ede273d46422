"""Patterns: which trees of calls they match, and what is found in them. Passes: whether they keep to the contract."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from reparam.ir import ADDS, CONVS, Program, Refusal, aten, is_call
from reparam.passes import all_passes
from reparam.rewrite import ANY, Pattern, Rewrite, op
from support.helpers import Lambda, program_of

RELUS = frozenset({aten.relu.default})


def program() -> Program:
    """relu(first(x)) + second(x)."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        total: Tensor = torch.relu(m.first(x)) + m.second(x)
        return total

    return program_of(
        Lambda(forward, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(3, 4, 1)).eval(), torch.randn(2, 3, 4, 4)
    )


def test_what_is_named_is_found_at_any_depth_and_nothing_else() -> None:
    found = program()
    (root,) = (n for n in found.calls() if is_call(n, ADDS))
    left, second = root.all_input_nodes
    (first,) = (n for n in left.all_input_nodes if is_call(n, CONVS))
    tree = op(ADDS, op(RELUS, op(CONVS, name="first")), op(CONVS, name="second"), name="sum")
    assert tree.match(root) == {"first": first, "second": second, "sum": root}
    assert op(ADDS, op(RELUS), op(CONVS)).match(root) == {}
    assert ANY.match(root) == {}


def test_a_tree_matches_where_all_its_operands_do() -> None:
    (root,) = (n for n in program().calls() if is_call(n, ADDS))
    assert op(ADDS, op(RELUS)).match(root) == {}  # the others may be anything
    assert op(ADDS, ANY, op(CONVS)).match(root) == {}
    assert op(ADDS, op(CONVS)).match(root) is None
    assert op(ADDS, op(RELUS), op(RELUS)).match(root) is None
    assert op(ADDS, ANY, ANY, ANY).match(root) is None  # it has two
    assert op(CONVS).match(root) is None


def test_what_is_no_call_has_no_target() -> None:
    image = program().placeholders[0]
    assert op(CONVS).match(image) is None
    assert Pattern(name="image").match(image) == {"image": image}


def test_matches_of_one_tree_are_put_into_what_was_found_before() -> None:
    found = program()
    (root,) = (n for n in found.calls() if is_call(n, ADDS))
    before = {"image": found.placeholders[0]}
    assert op(ADDS, name="sum").match(root, before) is before
    assert before == {"image": found.placeholders[0], "sum": root}


@pytest.mark.parametrize("rule", [m.PASS for modules in all_passes().values() for m in modules], ids=lambda r: r.name)
def test_what_a_check_of_a_pass_gives_is_what_its_rewrite_takes_or_a_refusal_or_nothing(rule: Any) -> None:
    """`Rule` says so of its plans; as passes are found and not named, no type checker compares them with it."""
    given = get_type_hints(rule.check)["return"]
    plans = set(get_args(given) or (given,)) - {Refusal, type(None)}
    taken = get_type_hints(rule.rewrite)
    assert taken.pop("return") is Rewrite and taken.pop("program") is Program
    (plan,) = taken.values()
    assert plans in ({plan}, set(get_args(plan)))
    assert set(get_type_hints(rule.check)) == {"program", "match", "return"}
