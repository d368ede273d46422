"""Patterns: which trees of calls they match, and what is found in them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.ir import ADDS, CONVS, Program, aten, is_call
from reparam.rewrite import ANY, Pattern, op
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
