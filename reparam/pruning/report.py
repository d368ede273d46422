"""What is known about one pruning, as it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from reparam._version import __version__
from reparam.algebra import read_layer
from reparam.channels import ChannelPlan
from reparam.ir import WEIGHTED, Census, is_call, place_of
from reparam.report import SCHEMA, Report
from reparam.utils import Facts, Shown, counts_told

from .joint import Joint
from .options import PruneOptions
from .quality import Quality
from .timing import Time


@dataclass(frozen=True)
class Width:
    """One layer: its channels in and out, before and after."""

    name: str
    before: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One round. cost: what was left of the original's. cut, refitted: the network after the one and the other."""

    cost: float
    cut: Quality
    refitted: Quality


@dataclass(frozen=True)
class Form:
    """One form of the result. census: None where it cannot be had, for the reason `refused`. time: if measured."""

    census: Census | None
    time: Time | None
    refused: str = ""


@dataclass(frozen=True, repr=False)
class PruneReport(Shown):
    """Everything that was measured while a network was pruned. Qualities are of held-out samples.

    budget: its name and share. form: of the result, out of `forms`. before: the original, fused; after: the result.
    original, final: both against the original. steps: the rounds. widths: of all layers. near_floor: layers that were
    not allowed to lose more. joint: the refit of all layers at once, None without one. scarce: layers refitted on fewer
    rows than they have unknowns. idle: how many channels of each gate never fire or are one number on the samples; they
    go first. base: the conversion of the original to its fused form; conversion: that of the masked network to the
    result.
    """

    budget: Mapping[str, float]
    form: str
    forms: Mapping[str, Form]
    before: Census
    after: Census
    original: Quality
    final: Quality
    steps: tuple[Step, ...]
    joint: Joint | None
    widths: tuple[Width, ...]
    near_floor: tuple[str, ...]
    scarce: tuple[str, ...]
    idle: Mapping[str, int]
    samples: Mapping[str, int]
    base: Report
    conversion: Report
    options: PruneOptions
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values. A pruned network is never called equivalent to the original."""
        own = self.conversion.as_dict()
        return {
            "schema": SCHEMA,
            "reparam": __version__,
            "input": "",
            "outputs": [],
            "target": self.form,
            "equivalent": False,
            "plain": self.conversion.plain,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "budget": dict(self.budget),
            "options": asdict(self.options),
            "forms": {name: _form(form) for name, form in self.forms.items()},
            "quality": {"original": self.original.as_dict(), "pruned": self.final.as_dict()},
            "curve": [{"cost": s.cost, "cut": s.cut.as_dict(), "refitted": s.refitted.as_dict()} for s in self.steps],
            "joint": None if self.joint is None else asdict(self.joint),
            "widths": [asdict(w) for w in self.widths],
            "near_floor": list(self.near_floor),
            "scarce": list(self.scarce),
            "idle": dict(self.idle),
            "samples": dict(self.samples),
            "evidence": own["evidence"],
            "remarks": own["remarks"],
            "seconds": {"total": round(self.seconds, 3)},
        }

    def summary(self) -> tuple[str, Facts]:
        """The budget; the counts, and how close the result is to the original."""
        name, share = next(iter(self.budget.items()))
        facts = counts_told(self.before, self.after)
        facts.append(("difference of the outputs", f"{100 * self.final.error:.2f} % (RMS)"))
        if self.final.agreement is not None:
            facts.append(("agreement", f"{100 * self.final.agreement:.2f} %"))
        if self.final.accuracy is not None and self.original.accuracy is not None:
            before, after = 100 * self.original.accuracy, 100 * self.final.accuracy
            facts.append(("accuracy", f"{before:.2f} % -> {after:.2f} %"))
        return f"{self.form}, {100 * share:g} % of the {name}", [*facts, ("held-out samples", str(self.final.samples))]


def _form(form: Form) -> dict[str, Any]:
    if form.census is None:
        return {"refused": form.refused}
    time = None if form.time is None else {"ms": form.time.ms, "share": form.time.share}
    return {"macs": form.census.macs, "params": form.census.params, "time": time}


def widths_of(plan: ChannelPlan) -> tuple[Width, ...]:
    """The channels of each layer in the whole network, and in the one that the plan makes."""
    program, found = plan.known.program, []
    for node in program.calls():
        layer = read_layer(program, node) if is_call(node, WEIGHTED) else None
        if layer is None:
            continue
        after = []
        for value, count in ((layer.x, layer.in_channels), (layer.node, layer.out_channels)):
            if value not in plan.known.facts:
                after.append(count)
            else:
                after.append(plan.kept[value].numel() if value in plan.kept else 0)
        found.append(Width(place_of(node), (layer.in_channels, layer.out_channels), (after[0], after[1])))
    return tuple(found)
