"""The tables of `passes` and `doctor`."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reparam.errors import InputError
from reparam.utils import PackageState

from .doctor import Diagnosis
from .render import line, table


@dataclass(frozen=True)
class RuleInfo:
    """What `passes` says about a rule. options: name -> default. doc: the whole docstring of its pass."""

    name: str
    equation: str
    options: dict[str, Any]
    doc: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"name": self.name, "equation": self.equation, "options": self.options, "doc": self.doc}


def list_rules() -> list[RuleInfo]:
    """Every rule, once, in the order in which they run."""
    from reparam.passes import every_rule

    return [_read_rule(name, rule) for name, rule in every_rule().items()]


def _read_rule(name: str, rule: Any) -> RuleInfo:
    doc = inspect.getdoc(inspect.getmodule(type(rule))) or ""
    equation = doc.partition("\n")[0]
    options = {f.name: _plain(getattr(rule, f.name)) for f in dataclasses.fields(rule)}
    return RuleInfo(name, equation, options, doc)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def find_rule(rules: Sequence[RuleInfo], name: str) -> RuleInfo:
    """The rule of that name. Raises InputError with the nearest names."""
    for rule in rules:
        if rule.name == name:
            return rule
    near = difflib.get_close_matches(name, [r.name for r in rules], n=3, cutoff=0.0)
    raise InputError(f"'{name}' is not a rule; the nearest are {', '.join(near)}")


def rules_table(rules: Sequence[RuleInfo]) -> Table:
    """Name, equation and options of each rule."""
    made = table("rule", "equation", "options")
    made.columns[0].no_wrap = True
    for rule in rules:
        options = ", ".join(f"{k}={v}" for k, v in rule.options.items())
        made.add_row(rule.name, Text(rule.equation), options or "-")
    return made


def diagnosis_parts(found: Diagnosis) -> list[RenderableType]:
    """What `doctor` prints."""
    made = table("package", "version", "to install")
    for package in found.packages:
        made.add_row(package.name, _state(package), package.install or "")
    parts: list[RenderableType] = [
        line(f"reparam {found.reparam}, Python {found.python}, {found.platform}", "bold"),
        made,
        line(f"CUDA: {found.cuda}"),
        *(line(name, indent=2) for name in found.cuda_devices),
        line(f"CPU: {found.cpus} cores, torch threads: {found.threads if found.threads is not None else 'unknown'}"),
    ]
    for folder, free in found.free_disk.items():
        parts.append(line(f"free disk in {folder}: {'unknown' if free is None else f'{free / 1e9:.1f} GB'}"))
    return [*parts, *(line(text) for text in found.abilities), *_format_parts(found)]


def _format_parts(found: Diagnosis) -> list[RenderableType]:
    """What can be exported to, and below it what was never tried by those who wrote it."""
    made = table("format", "builds here", "runs here", "what is missing", "to install")
    for probe in found.formats:
        can = ["yes" if able else Text("no", style="yellow") for able in (probe.can_build, probe.can_run)]
        made.add_row(probe.name, *can, probe.why or "-", probe.install or "")
    untried = [line(f"{p.name}: {p.untried}", indent=2) for p in found.formats if p.untried]
    return [made, *([line("written, and never run by the tests:"), *untried] if untried else [])]


def _state(package: PackageState) -> Text:
    parts = [t for t in (package.version, package.problem) if t is not None]
    return Text(", ".join(parts), style="" if package.works else "yellow")
