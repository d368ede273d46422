"""The report of a conversion: what the JSON of the command line holds, and nothing that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from reparam.check import NetworkEvidence
from reparam.ir import Census, Program, text_of
from reparam.utils import Facts, Shown, counts_told

from ._version import __version__

SCHEMA = 1


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """Everything that is known about one conversion.

    equivalent: True when the evidence was complete; None for a dry run, which does not compare whole networks; False
        for what was quantised, which is another function, and was measured.
    seconds: by phase: load, capture, rewrite, verify (all checks), emit.
    engine: further keys for an export: its format and precision, and what was measured on it.
    graphs: the programs `before` and `after`, where they were asked for; in JSON they are text.
    """

    target: str
    before: Census
    after: Census
    plain: bool
    remarks: tuple[Remark, ...]
    kinds: Mapping[str, int]
    evidence: NetworkEvidence | None = None
    equivalent: bool | None = None
    input: str = ""
    outputs: tuple[str, ...] = ()
    arch: str | None = None
    arch_inferred: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    engine: Mapping[str, Any] | None = None
    graphs: Mapping[str, Program] | None = None

    def with_(self, *, seconds: Mapping[str, float] | None = None, **facts: Any) -> Report:
        """The report with further facts, which only the caller knows, in place of those that it has.

        seconds: spent on phases, added to what they took so far. facts: of the fields `input`, `outputs`, `arch`, ....
        """
        spent = dict(self.seconds)
        for name, value in (seconds or {}).items():
            spent[name] = spent.get(name, 0.0) + value
        return replace(self, seconds=spent, **facts)

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """The price of each span that became a chain, in the order in which they did."""
        return [dict(r.block) for r in self.remarks if r.block is not None]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, with the keys that scripts may rely on."""
        phases = ("load", "capture", "rewrite", "verify", "emit")
        return {
            "schema": SCHEMA,
            "reparam": __version__,
            "input": self.input,
            "outputs": list(self.outputs),
            "arch": self.arch,
            "arch_inferred": self.arch_inferred,
            "target": self.target,
            "equivalent": self.equivalent,
            "plain": self.plain,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "blocks": self.blocks,
            "evidence": self._evidence(),
            "remarks": [r.as_dict() for r in self.remarks],
            "seconds": {p: round(self.seconds.get(p, 0.0), 3) for p in phases},
            **(self.engine or {}),
            **({"graph": {k: text_of(p) for k, p in self.graphs.items()}} if self.graphs is not None else {}),
        }

    def summary(self) -> tuple[str, Facts]:
        """The target and the verdict; the counts and the errors."""
        verdicts = {True: "equivalent", False: "quantised", None: "a dry run"}
        facts = counts_told(self.before, self.after)
        if self.evidence is not None:
            facts.append(("float64 difference", f"{self.evidence.float64_max_rel:.2g}"))
            error = f"{self.evidence.error:.3g} (the original's own: {self.evidence.original_error:.3g})"
            facts.append((f"{self.evidence.dtype} error", error))
        kinds = [r.kind for r in self.remarks]
        facts.append(("rewrites", str(kinds.count("passed"))))
        return f"{self.target}, {verdicts[self.equivalent]}", [*facts, ("not done", str(kinds.count("missed")))]

    def _evidence(self) -> dict[str, Any]:
        e = self.evidence
        if e is None:
            return {"kinds": dict(self.kinds)}
        return {
            "float64_max_rel": e.float64_max_rel,
            "dtype": e.dtype,
            "float32_error_vs_truth": e.error,
            "original_float32_error_vs_truth": e.original_error,
            "kinds": dict(self.kinds),
            "trials": e.trials,
            "seed": e.seed,
            "shapes": [list(s) for s in e.shapes],
            **(
                {"own_dtype": {**asdict(e.own_dtype), "shapes": [list(s) for s in e.own_dtype.shapes]}}
                if e.own_dtype is not None
                else {}
            ),
            **({"file": asdict(e.file)} if e.file is not None else {}),
        }


@dataclass(frozen=True)
class Remark:
    """One line of the report.

    Of a passed rewrite: max_abs: its measured float64 error, and bound: the most that was allowed. block: its own
    figures. links: which calls became which, by the names of their nodes before and after.
    """

    kind: Literal["passed", "missed", "analysis"]
    rule: str
    module: str
    node: str
    message: str
    max_abs: float | None = None
    evidence: str | None = None
    macs: int = 0
    params: int = 0
    block: Mapping[str, Any] | None = None
    bound: float | None = None
    links: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The remark as the report's JSON has it; keys without a value are left out."""
        row: dict[str, Any] = {
            "kind": self.kind,
            "rule": self.rule,
            "module": self.module,
            "node": self.node,
            "message": self.message,
        }
        if self.kind == "passed":
            row |= {"max_abs": self.max_abs, "bound": self.bound, "evidence": self.evidence}
            row |= {"macs": self.macs, "params": self.params}
        return row
