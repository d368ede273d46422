"""The rewrites, one a file. Each docstring states the equation; a file is found by being here.

A module of this package, or one that an installed package names under the entry point group `reparam.passes`, defines
PASS, the class of its rule; PHASE, when it runs; and, where the order within the phase matters, AFTER, the module of
the pass that it follows. The fields of the class are its options.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError, RuleError
from reparam.options import DEFAULTS, PlainOptions
from reparam.rewrite import Phase, Rule
from reparam.utils import plugins

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """A phase. also: phases whose rules run in it too, before its own. pays: its rules may add multiply-accumulates."""

    also: tuple[str, ...] = ()
    pays: bool = False


FUSED = {
    "clean": Moment(),
    "fold": Moment(also=("clean",)),
    "rest": Moment(),
    "shrink": Moment(),
    "late": Moment(),
    "sums": Moment(),
}
PLAIN = {"plain": Moment(pays=True)}
EXPORT = {"equalize": Moment()}
PHASES: Mapping[str, Moment] = FUSED | PLAIN | EXPORT


@functools.cache
def all_passes() -> Mapping[str, tuple[ModuleType, ...]]:
    """The modules of each phase, in the order in which their rules are tried.

    Raises RuleError for a module that lacks PASS or PHASE, names an unknown phase, follows itself, or is called like
    another one, as its rule may not be either.
    """
    here = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    found: dict[str, list[ModuleType]] = {name: [] for name in PHASES}
    known: dict[str, ModuleType] = {}
    for module in (*here, *plugins("reparam.passes")):
        phase = str(getattr(module, "PHASE", ""))
        if phase not in PHASES or not hasattr(module, "PASS"):
            names = ", ".join(PHASES)
            raise RuleError(f"{module.__name__} is no pass: it has to define PASS, and PHASE as one of {names}")
        stem = _stem(module)
        for name in {stem, getattr(module.PASS, "name", stem)}:
            if (other := known.setdefault(name, module)) is not module:
                raise RuleError(f"two passes are called '{name}': {other.__name__} and {module.__name__}")
        found[phase].append(module)
    return {phase: tuple(_ordered(modules)) for phase, modules in found.items()}


def _stem(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _ordered(modules: Iterable[ModuleType]) -> list[ModuleType]:
    """By their names, each behind the one that it names in AFTER, where that is in the same phase."""
    waiting = {_stem(m): m for m in modules}
    behind: dict[str, list[str]] = {}
    ready: list[str] = []
    for name, module in waiting.items():
        first = getattr(module, "AFTER", None)
        if first in waiting:
            behind.setdefault(first, []).append(name)
        else:
            heapq.heappush(ready, name)
    done: list[ModuleType] = []
    while ready:
        name = heapq.heappop(ready)
        done.append(waiting[name])
        for following in behind.get(name, ()):
            heapq.heappush(ready, following)
    if len(done) < len(waiting):
        rest = sorted(set(waiting) - {_stem(m) for m in done})
        raise RuleError(f"the passes {', '.join(rest)} follow each other in a circle")
    return done


def _phases(moments: Mapping[str, Moment], options: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases with a rule of each pass, made with those of `options` that it has fields for."""
    made = {}
    for name, moment in moments.items():
        modules = [m for phase in (*moment.also, name) for m in all_passes()[phase]]
        made[name] = Phase(name, tuple(_rule(m, options) for m in modules), moment.pays)
    return tuple(made.values())


def _rule(module: ModuleType, options: Mapping[str, Any]) -> Rule[Any]:
    names = {f.name for f in dataclasses.fields(module.PASS)}
    rule: Rule[Any] = module.PASS(**{k: v for k, v in options.items() if k in names})
    return rule


def phases_of(target: str, options: PlainOptions = DEFAULTS) -> tuple[Phase, ...]:
    """The phases of a target: `fused`, `plain`, or `as-is`, which has none. Raises InputError for another."""
    targets = {"fused": FUSED, "plain": FUSED | PLAIN, "as-is": {}}
    if not isinstance(target, str) or target not in targets:
        raise InputError(f"unknown target '{str(target)[:60]}'; choose from {', '.join(targets)}")
    return _phases(targets[target], asdict(options))


def fused_phases() -> tuple[Phase, ...]:
    """The rules of the target `fused`: clean up, fold and merge, then what may only happen when nothing else does."""
    return phases_of("fused")


def plain_phases(**options: Any) -> tuple[Phase, ...]:
    """The rules of the target `plain`: those of `fused`, then the register, which pays for what it carries.

    options: those of `PlainOptions`.
    """
    return phases_of("plain", PlainOptions(**options))


def equalize_phases(measured: Mapping[str, Tensor] | None = None) -> tuple[Phase, ...]:
    """What an export to int8 may do before it quantises; see `Equalize`."""
    return _phases(EXPORT, {"measured": measured})


def every_rule() -> dict[str, Rule[Any]]:
    """The rules of all targets and of exports by their names, in the order in which they run."""
    return {rule.name: rule for phase in (*plain_phases(), *equalize_phases()) for rule in phase.rules}


__all__ = [
    "PHASES",
    "all_passes",
    "equalize_phases",
    "every_rule",
    "fused_phases",
    "phases_of",
    "plain_phases",
]
