"""The contract between a rewrite and the driver: patterns, plans, refusals, remarks.

A rule is a small frozen dataclass. Its fields are its options. The driver owns everything else:
traversal, erasing, verification, rollback, the cost gate and the remarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from torch import fx

from reparam.check import Claim
from reparam.ir import Program, Refusal

P = TypeVar("P")


@dataclass(frozen=True)
class Pattern:
    """A tree of calls, matched from its root towards its operands.

    targets: the ATen overloads the root may be; empty matches any node.
    operands: patterns for the leading positional operands that are graph nodes.
    name: under which the node is found in the match.
    """

    targets: frozenset[Any] = frozenset()
    operands: tuple[Pattern, ...] = ()
    name: str = ""

    def match(self, node: fx.Node, found: dict[str, fx.Node] | None = None) -> dict[str, fx.Node] | None:
        """The named nodes when the tree at `node` has this shape, else None."""
        found = {} if found is None else found
        if self.targets and (node.op != "call_function" or node.target not in self.targets):
            return None
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if len(operands) < len(self.operands):
            return None
        for pattern, operand in zip(self.operands, operands, strict=False):
            if pattern.match(operand, found) is None:
                return None
        if self.name:
            found[self.name] = node
        return found


def op(targets: frozenset[Any], *operands: Pattern, name: str = "") -> Pattern:
    """Pattern for a call of one of `targets`; written like the expression: op(BATCH_NORMS, op(CONVS))."""
    return Pattern(targets, operands, name)


ANY = Pattern()  # any node at all


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: its root and the nodes it named."""

    root: fx.Node
    nodes: Mapping[str, fx.Node]


@dataclass(frozen=True)
class Rewrite:
    """What a rule made: for each old value its replacement, and one sentence for the remark.

    block: figures for the report's `blocks`. facts: sentences on what was assumed, for remarks of their own.
    layers: sentences on single layers, for remarks at their places.
    notes: what the rule has to remember if the rewrite is accepted; the driver then puts them among the program's
    notes. claims: for a rewrite of the whole network, what has to hold of each call; empty to check the region at once.
    unread: values that the replaced nodes read and that do not matter to them, which the check puts to the test.
    """

    replace: Mapping[fx.Node, fx.Node]
    message: str
    block: Mapping[str, Any] | None = None
    facts: tuple[str, ...] = ()
    layers: Mapping[fx.Node, str] = field(default_factory=dict)
    notes: tuple[object, ...] = ()
    claims: tuple[Claim, ...] = ()
    unread: tuple[fx.Node, ...] = ()


class Rule(Protocol[P]):
    """One rewrite, with plans of type P. See any file of passes/ for an example."""

    name: ClassVar[str]
    pattern: ClassVar[Pattern]

    def check(self, program: Program, match: Match) -> P | Refusal | None:
        """The plan for `rewrite`; a Refusal with the reason; or None when the rule has nothing to say here."""

    def rewrite(self, program: Program, plan: P) -> Rewrite:
        """Builds the new nodes from the plan. Adds only: the driver replaces, verifies and erases."""
