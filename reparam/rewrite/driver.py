"""The driver: applies rules to a fixed point, and accepts a rewrite only when its check holds and it costs no more.

A worklist holds the nodes to look at. After a rewrite only the new nodes and their neighbours are looked at again, so
the work grows with the number of rewrites and not with its square. The order is that of the graph: the same program
gives the same result.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from reparam.check import Claim, Evidence, Region, check_claims, check_region, find_region, whole_region
from reparam.errors import ReparamError, RuleError, UnknownSizeError
from reparam.ir import Program, Refusal, batch_one, has_jumps, module_of, node_macs, ranges_of
from reparam.report import Remark
from reparam.utils import first_line, is_out_of_memory

from .rule import Match, Rewrite, Rule
from .vetoes import other_dtype, rounds, why_not
from .worklist import Worklist

_log = logging.getLogger(__name__)
MAX_ROUNDS = 50
_VERIFIES = ContextVar("_VERIFIES", default=False)
Progress = Callable[[str, int, int], None]
Links = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]  # names of calls before and after, see `Remark`


@contextmanager
def verifying(on: bool = True) -> Iterator[None]:
    """Inside, drivers check the structure of the program after every rewrite, see `Program.verify`."""
    token = _VERIFIES.set(on)
    try:
        yield
    finally:
        _VERIFIES.reset(token)


@dataclass(frozen=True)
class Phase:
    """Rules that run together to their fixed point. accepts_cost: they may add multiply-accumulates."""

    name: str
    rules: tuple[Rule[Any], ...]
    accepts_cost: bool = False


@dataclass
class Outcome:
    """What a pipeline run did: the remarks in order and the count of checks by kind."""

    remarks: list[Remark] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=lambda: {"basis": 0, "sampled": 0})
    rejected: int = 0
    seconds_checking: float = 0.0


class _Index:
    """Rules by the overload their pattern's root calls, in the order they were given."""

    def __init__(self, rules: Sequence[Rule[Any]]) -> None:
        self._by_target: dict[object, list[Rule[Any]]] = {}
        self._any: list[Rule[Any]] = []
        self._order = {id(r): i for i, r in enumerate(rules)}
        for rule in rules:
            if not rule.pattern.targets:
                self._any.append(rule)
            for target in rule.pattern.targets:
                self._by_target.setdefault(target, []).append(rule)

    def rules(self, node: fx.Node) -> list[Rule[Any]]:
        found = self._by_target.get(node.target, []) + self._any
        return sorted(found, key=lambda r: self._order[id(r)])


class Driver:
    """Runs phases of rules over one program, in place."""

    _queue: Worklist  # of the phase that runs

    def __init__(
        self,
        program: Program,
        *,
        allow_cost: bool,
        seed: int = 0,
        progress: Progress | None = None,
        limit: int | None = None,
        left: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        """allow_cost: every phase may add multiply-accumulates. limit: stop after this many rewrites.

        left: rewrites not to make, by their rule and the name of their node, each with the reason.
        """
        self.program = program
        self.outcome = Outcome()
        self._allow_cost = self._pays = allow_cost
        self._seed = seed
        self._progress = progress
        self._left = math.inf if limit is None else limit
        self._left_out = left or {}
        self._missed: dict[tuple[str, fx.Node], Remark] = {}
        self._jumps = has_jumps(program)

    def run(self, phases: Sequence[Phase]) -> Outcome:
        """Applies `phases` in turn, and again from the first until a whole round changes nothing."""
        for _ in range(MAX_ROUNDS):
            if not sum(self._phase(phase) for phase in phases):
                break
        else:
            raise RuleError(f"the rules still rewrite each other's results after {MAX_ROUNDS} rounds")
        if _VERIFIES.get():
            self.program.verify()
        alive = [r for (_, node), r in self._missed.items() if not self.program.erased(node)]
        self.outcome.remarks.extend(alive)
        return self.outcome

    def _phase(self, phase: Phase) -> int:
        index = _Index(phase.rules)
        self._pays = self._allow_cost or phase.accepts_cost
        queue = self._queue = Worklist(self.program.calls())
        total, done, rewrites = len(queue), 0, 0
        while queue and self._left:
            node = queue.pop()
            done += 1
            if self.program.erased(node):
                continue
            if self._progress is not None:
                self._progress(phase.name, done, max(total, done + len(queue)))
            for rule in index.rules(node):
                touched = self._attempt(rule, node)
                if touched is None:
                    continue
                rewrites += 1
                self._left -= 1
                if rewrites > MAX_ROUNDS * (total + 1):
                    raise RuleError(f"'{rule.name}' rewrites its own result without end, last at '{node.name}'")
                queue.add(touched)
                break
        _log.log(logging.INFO if rewrites else logging.DEBUG, "stage %s: %d rewrites", phase.name, rewrites)
        return rewrites

    def _attempt(self, rule: Rule[Any], node: fx.Node) -> list[fx.Node] | None:
        """The nodes to look at next when the rule rewrote something at `node`, else None."""
        found = rule.pattern.match(node)
        if found is None:
            return None
        self._missed.pop((rule.name, node), None)
        try:
            plan = rule.check(self.program, Match(node, found))
        except UnknownSizeError as error:
            plan = Refusal(str(error)) if rule.pattern.targets else None
        except Exception as error:
            self._failed(rule, node, error)
            return None
        if plan is None:
            return None
        if (rule.name, node.name) in self._left_out:
            plan = Refusal(self._left_out[rule.name, node.name])
        if isinstance(plan, Refusal):
            self._miss(rule, node, plan)
            return None
        with self.program.recording() as created:
            try:
                rewrite = rule.rewrite(self.program, plan)
                if not isinstance(rewrite, Rewrite) or not rewrite.replace:
                    raise RuleError("it replaces nothing")
            except Exception as error:
                self._rollback(created)
                self._failed(rule, node, error)
                return None
        return self._judge(rule, node, rewrite, created)

    def _failed(self, rule: Rule[Any], node: fx.Node, error: Exception) -> None:
        """Leaves out a rewrite that its rule could not make: a fault of the rule, which costs the user no more than it.

        In tests and under `--debug` it is raised, as is what is no fault of the rule. A size that nobody can know is a
        reason.
        """
        if isinstance(error, UnknownSizeError):
            self._miss(rule, node, Refusal(str(error)))
            return
        ours = isinstance(error, RuleError) or not isinstance(error, ReparamError)
        if _VERIFIES.get() or not ours or is_out_of_memory(error):
            raise error
        _log.warning("%s failed at %s: %s", rule.name, node.name, error)
        self._miss(rule, node, Refusal(f"left out for a fault in this rewrite ({first_line(error)})"))

    def _judge(self, rule: Rule[Any], node: fx.Node, rewrite: Rewrite, created: list[fx.Node]) -> list[fx.Node] | None:
        if other := other_dtype(rewrite.replace):
            self._rollback(created)
            self._miss(rule, node, Refusal(other))
            return None
        try:
            if rewrite.claims:
                region = whole_region(rewrite.replace, created)
            else:
                region = find_region(rewrite.replace, created, rewrite.unread)
            dying = _dying(region)
            if unread := _unread(rewrite, dying, created):
                raise RuleError(f"the rewrite made '{unread.name}' and did not use it")
        except RuleError as error:
            self._rollback(created)
            self._failed(rule, node, error)
            return None
        macs, params = self._price(dying, created)
        if macs > 0 and not self._pays:
            self._rollback(created)
            reason = f"it would add {macs:,} multiply-accumulates ({rewrite.message})"
            self._miss(rule, node, Refusal(reason, hint="a target that accepts the cost does it"))
            return None
        try:
            evidence = self._check(region, rewrite.claims, created)
        except (RuleError, UnknownSizeError) as error:
            self._rollback(created)
            self._failed(rule, node, error)
            return None
        if not evidence.ok:
            self._rollback(created)
            self.outcome.rejected += 1
            self._miss(rule, node, Refusal(why_not(evidence), hint="the values leave no room for exact folding"))
            return None
        decides = self._jumps and not rewrite.claims
        if decides and (told := rounds(self.program, rewrite.replace, dying, created)):
            self._rollback(created)
            self._miss(rule, node, told)
            return None
        self._accept(rule, node, rewrite, evidence, (macs, params), _links(rewrite, dying, created))
        return self._commit(rewrite, region, created)

    def _check(self, region: Region, claims: Sequence[Claim], created: Sequence[fx.Node]) -> Evidence:
        start = time.perf_counter()
        self._seed += 1
        ranges = ranges_of(self.program)
        if claims:
            told = {n for c in claims for n in c.new}
            lone = next((n for n in created if n.op == "call_function" and n not in told), None)
            if lone is not None:
                raise RuleError(f"the rewrite made '{lone.name}' and says nothing of it")
            evidence = check_claims(self.program, claims, ranges, self._seed)
        else:
            evidence = check_region(self.program, region, ranges, self._seed)
        self.outcome.seconds_checking += time.perf_counter() - start
        return evidence

    def _price(self, dying: Iterable[fx.Node], created: Iterable[fx.Node]) -> tuple[int, int]:
        env = batch_one(self.program)
        macs = params = 0
        for nodes, sign in ((dying, -1), (created, 1)):
            for n in nodes:
                macs += sign * node_macs(n, env)
                constant = self.program.constant(n)
                if constant is not None and constant.value.is_floating_point():
                    params += sign * constant.value.numel()
        return macs, params

    def _accept(
        self,
        rule: Rule[Any],
        node: fx.Node,
        rewrite: Rewrite,
        evidence: Evidence,
        price: tuple[int, int],
        links: Links,
    ) -> None:
        self.outcome.kinds[evidence.kind] += 1
        module = module_of(node)
        where = module or node.name
        _log.debug("%s at %s: %s (float64 difference %.3g)", rule.name, where, rewrite.message, evidence.max_abs)
        self.outcome.remarks += [Remark("analysis", rule.name, module, node.name, fact) for fact in rewrite.facts]
        self.outcome.remarks += [
            Remark("analysis", rule.name, module_of(n), n.name, told) for n, told in rewrite.layers.items()
        ]
        self.outcome.remarks.append(
            Remark(
                kind="passed",
                rule=rule.name,
                module=module,
                node=node.name,
                message=rewrite.message,
                max_abs=evidence.max_abs,
                evidence=evidence.kind,
                macs=price[0],
                params=price[1],
                block=rewrite.block,
                bound=evidence.bound,
                links=links,
            )
        )

    def _miss(self, rule: Rule[Any], node: fx.Node, missed: Refusal) -> None:
        module = (module_of(missed.node) if missed.node is not None else "") or module_of(node)
        _log.debug("not %s at %s: %s", rule.name, module or node.name, missed.sentence)
        self._missed[(rule.name, node)] = Remark("missed", rule.name, module, node.name, missed.sentence)

    def _rollback(self, created: list[fx.Node]) -> None:
        self.program.erase(reversed(created))

    def _commit(self, rewrite: Rewrite, region: Region, created: list[fx.Node]) -> list[fx.Node]:
        for note in rewrite.notes:
            self.program.notes.put(note)
        for old, new in rewrite.replace.items():
            ranges_of(self.program).inherit(old, new)
            old.replace_all_uses_with(new)
        for n in reversed(region.old):
            if not n.users:
                self.program.erase([n])
        self._erase_unused(region.inputs)
        self.program.settle(created)
        near: list[fx.Node] = []
        for n in (*created, *rewrite.replace.values()):
            near += [n, *n.users]
            for operand in n.all_input_nodes:
                near += [operand, *self._queue.readers(operand)]
        for n in region.inputs:
            near += [n, *self._queue.readers(n)]
        alive = [n for n in dict.fromkeys(near) if not self.program.erased(n)]
        if _VERIFIES.get():
            self.program.verify(alive)
        return [n for n in alive if n.op == "call_function"]

    def _erase_unused(self, nodes: Iterable[fx.Node]) -> None:
        """Erases the values that nobody reads any more, and what only they read: a size can be computed from others."""
        stack = list(nodes)
        while stack:
            n = stack.pop()
            if n.op != "placeholder" and not n.users and not self.program.erased(n):
                stack.extend(n.all_input_nodes)
                self.program.erase([n])


def _dying(region: Region) -> list[fx.Node]:
    """Old nodes that nobody needs once the outputs are replaced."""
    gone: set[fx.Node] = {old for old, _ in region.outputs}
    for node in reversed(region.old):
        if all(u in gone for u in node.users):
            gone.add(node)
    return [n for n in region.old if n in gone]


def _unread(rewrite: Rewrite, dying: Iterable[fx.Node], created: Iterable[fx.Node]) -> fx.Node | None:
    """The first new node that nobody will read: no other new one, and none that stays and reads what it replaces."""
    gone = set(dying)
    read = {new for old, new in rewrite.replace.items() if any(u not in gone for u in old.users)}
    return next((n for n in created if not n.users and n not in read), None)


def _links(rewrite: Rewrite, dying: Sequence[fx.Node], created: Sequence[fx.Node]) -> Links:
    """Which calls a rewrite made of which; of a rewrite of the whole network, call by call."""
    if rewrite.claims:
        return tuple((_names(c.old), _names(c.new)) for c in rewrite.claims)
    made = created or list(rewrite.replace.values())  # a call that is dropped is found in what it was given
    return ((_names(dying), _names(made)),)


def _names(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    return tuple(n.name for n in nodes if n.op == "call_function")
