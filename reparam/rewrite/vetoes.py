"""Reasons not to make a rewrite that its rule can make: a dtype that would change, a check that failed, a rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, fx

from reparam.check import Evidence
from reparam.ir import (
    CATS,
    IDENTITIES,
    MOVEMENTS,
    STACKS,
    Program,
    Refusal,
    is_floating,
    jump_of_whole_numbers,
    op_name,
)
from reparam.utils import dtype_name

_MOVES = MOVEMENTS | IDENTITIES | CATS | STACKS


def other_dtype(replaced: Mapping[fx.Node, fx.Node]) -> str:
    """Where a value would become one of another dtype, which the float64 checks do not see; "" where none does.

    An operand of a wider dtype, a neutral one too, is what makes the result wider.
    """
    for old, new in replaced.items():
        a, b = old.meta.get("val"), new.meta.get("val")
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype != b.dtype:
            return f"the network has {dtype_name(a.dtype)} here, and would have {dtype_name(b.dtype)}"
    return ""


def why_not(evidence: Evidence) -> str:
    """What is said of a rewrite whose check failed; each element has a bound of its own, that of zeros is small."""
    found, most = evidence.max_abs, evidence.bound
    limit = "what can be bounded" if math.isnan(most) else f"{most:.3g}"
    if found <= most:
        limit = f"the bound of its own element (that of others goes up to {limit})"
    return f"rejected by its own check: float64 difference {found:.3g} exceeds {limit}"


def rounds(
    program: Program, replaced: Iterable[fx.Node], dying: Iterable[fx.Node], created: Iterable[fx.Node]
) -> Refusal | None:
    """Where a value of whole numbers and constants, which decides what is picked further on, is rounded otherwise.

    replaced: the values that become others, up to rounding. dying, created: the calls that go and come. One call that
    goes, as it changes nothing, rounds nothing, and neither does one that only comes again.
    """
    made, gone = ([n for n in nodes if _computes(n)] for nodes in (created, dying))
    others = [n for n in made if not any(_is_same(n, old) for old in gone)]
    if not others and sum(not any(_is_same(n, old) for n in made) for old in gone) <= 1:
        return None
    jump = next((j for old in replaced if (j := jump_of_whole_numbers(program, old)) is not None), None)
    if jump is None:
        return None
    reason = f"'{op_name(jump)}' picks by what is made of whole numbers here: other roundings would be other results"
    return Refusal(reason, jump)


def _is_same(a: fx.Node, b: fx.Node) -> bool:
    return a.target is b.target and a.args == b.args and a.kwargs == b.kwargs


def _computes(node: fx.Node) -> bool:
    """Whether a call makes floating numbers that it does not only move."""
    return is_floating(node.meta.get("val")) and node.op == "call_function" and node.target not in _MOVES
