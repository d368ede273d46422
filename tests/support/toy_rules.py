"""Toy rules and short chains of calls for them, to see each step of the driver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from torch import fx

from reparam.check import Evidence
from reparam.ir import Program, aten
from reparam.report import Remark
from reparam.rewrite import Driver, Match, Pattern, Phase, Rewrite
from support.by_hand import ByHand

RELU, TANH, SIGMOID = aten.relu.default, aten.tanh.default, aten.sigmoid.default
ABS, NEG, ADD, MUL, LINEAR = aten.abs.default, aten.neg.default, aten.add.Tensor, aten.mul.Tensor, aten.linear.default
Make = Callable[[Program, fx.Node], Rewrite]


def copied(program: Program, node: fx.Node) -> Rewrite:
    return Rewrite({node: program.clone(node, {})}, "copied")


def dropped(program: Program, node: fx.Node) -> Rewrite:
    return Rewrite({node: operand(node)}, "dropped")


def operand(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]


@dataclass(frozen=True)
class Note:
    text: str


@dataclass(frozen=True)
class Toy:
    """A rule from its parts. at: the nodes that it rewrites. says: of a node, in place of `at`."""

    at: tuple[str, ...] = ()
    make: Make = copied
    targets: tuple[Any, ...] = (RELU,)
    name: str = "toy"
    says: Callable[[fx.Node], Any] | None = None

    @property
    def pattern(self) -> Pattern:
        return Pattern(frozenset(self.targets))

    def check(self, program: Program, match: Match) -> Any:
        if self.says is not None:
            return self.says(match.root)
        return match.root if match.root.name in self.at else None

    def rewrite(self, program: Program, plan: fx.Node) -> Rewrite:
        return self.make(program, plan)


def listening(asked: list[str]) -> Toy:
    """A rule for every call, which writes down what it is asked about and has nothing to say."""
    return Toy(targets=(), name="ear", says=lambda node: asked.append(node.name))


def chain(*targets: Any) -> Program:
    """One call after the other, each in a module of its own: "m0", "m1"."""
    g = ByHand()
    x = g.input(2, 3, free=(0,))
    for i, target in enumerate(targets):
        x = g.call(target, x, module=f"m{i}")
    return g.returns(x)


def node_of(program: Program, name: str) -> fx.Node:
    return next(n for n in program.graph.nodes if n.name == name)


def drive(program: Program, *rules: Any, **options: Any) -> list[Remark]:
    options.setdefault("allow_cost", False)
    return Driver(program, **options).run((Phase("test", rules),)).remarks


def texts(remarks: list[Remark]) -> list[tuple[str, str, str, str]]:
    return [(r.kind, r.rule, r.node, r.message) for r in remarks]


def names(program: Program) -> list[str]:
    return [n.name for n in program.graph.nodes]


def trust(monkeypatch: pytest.MonkeyPatch, *evidence: Evidence) -> list[tuple[Any, ...]]:
    """Both checks say this, the last of it for ever after; what they were asked."""
    asked: list[tuple[Any, ...]] = []

    def check(*args: Any) -> Evidence:
        asked.append(args)
        return evidence[min(len(asked), len(evidence)) - 1]

    for name in ("check_region", "check_claims"):
        monkeypatch.setattr(f"reparam.rewrite.driver.{name}", check)
    return asked


GOOD = Evidence("basis", 0.125, 0.25, True)


@contextmanager
def heard() -> Iterator[list[tuple[str, str]]]:
    """The level and the text of all that the driver logs."""
    lines: list[tuple[str, str]] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((record.levelname, record.getMessage()))

    logger, listener = logging.getLogger("reparam.rewrite.driver"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)
