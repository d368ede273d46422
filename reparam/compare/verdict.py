"""What a comparison of two models found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from reparam.check import OutputError
from reparam.scoring import Agreement, Difference
from reparam.utils import Facts, Shown, one_line


@dataclass(frozen=True, repr=False)
class Verdict(Shown):
    """What `verify` found.

    first_divergence: the first layer of the first model behind which the second has other values.
    adversarial: `worst` difference found, as a share of what is allowed, and the number of `inputs` tried.
    runtimes: what ran each of them, where one is an engine; the errors of both are then against the float64 truth.
    quantised: whether one of them is; such a file is never called equivalent, and `reason` alone tells whether it lost
    more than float32 does. data: how they agree on the user's samples, where some were given.
    """

    equivalent: bool
    outputs: tuple[OutputError, ...]
    reason: str = ""
    first_divergence: str | None = None
    adversarial: dict[str, float] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = ()
    trials: int = 0
    seed: int = 0
    runtimes: tuple[str, ...] = ()
    quantised: bool = False
    data: Agreement | None = None

    @property
    def verdict(self) -> str:
        """`equivalent`, `different`, or `quantised` for what loses no more than float32 does but is."""
        if self.reason:
            return "different"
        return "quantised" if self.quantised else "equivalent"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        row = asdict(self)
        row["outputs"] = [asdict(o) | {"ok": o.ok} for o in self.outputs]
        row["shapes"] = [list(s) for s in self.shapes]
        row["verdict"] = self.verdict
        row["data"] = None if self.data is None else self.data.as_dict()
        return row

    def summary(self) -> tuple[str, Facts]:
        """The verdict with its reason; the errors of each output against what is allowed."""
        head = f"different, {self.reason}" if self.reason else self.verdict
        facts = [
            (f"output {o.index}", f"errors {o.error_a:.3g} and {o.error_b:.3g} (RMS), at most {o.bar:.3g} is allowed")
            for o in self.outputs
        ]
        if self.adversarial:
            facts.append(("adversarial search", f"at most {self.adversarial['worst']:.3g} of what is allowed"))
        if self.first_divergence:
            facts.append(("they part at", self.first_divergence))
        facts.append(("random inputs", str(self.trials)))
        return head, facts if self.data is None else [*facts, ("on samples", "; ".join(_on_samples(self.data)))]

    def sentences(self) -> list[str]:
        """The result in plain lines."""
        within = "quantised: no difference above what is allowed was found" if self.quantised else "equivalent"
        lines = [f"NOT equivalent: {self.reason}" if self.reason else within]
        for o in self.outputs:
            errors = f"own errors {o.error_a:.3g} and {o.error_b:.3g}"
            exact = "" if self.runtimes else f"float64 difference {o.difference:.3g}, "
            lines.append(f"output {o.index}: {exact}{errors} (RMS; bar {o.bar:.3g}, size {o.size:.3g})")
        if self.adversarial:
            found = self.adversarial
            lines.append(
                f"adversarial search, {int(found['inputs'])} inputs: at most {found['worst']:.3g} of what is allowed"
            )
        if self.first_divergence:
            lines.append(f"they part at: {self.first_divergence}")
        shapes = ", ".join(str(list(s)) for s in self.shapes)
        lines.append(f"{self.trials} random inputs, shapes {shapes}, seed {self.seed}")
        if self.runtimes:
            lines.append(f"run by {' and '.join(self.runtimes)}")
        return lines if self.data is None else [*lines, *_on_samples(self.data)]


def _on_samples(found: Agreement) -> list[str]:
    """How they agree on samples, and those that differ: changed classes first, then the largest errors."""
    equal = "" if found.share is None else f", {100 * found.share:.2f} % of decisions are equal"
    error = f"{found.error:.3g}" if found.whole else f"{found.error:.3g} of the size of the outputs (RMS)"
    lines = [f"{found.samples} samples: error {error}{equal}"]
    if found.changed:
        lines.append(f"{found.changed} of them get another class")
    if found.differing:
        lines.append("those that differ most:")
    return [*lines, *map(_named, found.differing)]


def _named(one: Difference) -> str:
    changed = f"class {one.first} becomes {one.second}, " if one.changed else ""
    return f"{one_line(one.input)}: {changed}error {one.error:.3g}"
