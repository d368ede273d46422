"""The page of `prune`: what was cut, what that costs and how close the result is to the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reparam.conversion import Conversion
from reparam.utils import counted, one_line

from .charts import curve_chart, width_bars
from .conversions import add_rewrites, linked_view
from .parts import Page, Section, Table
from .words import count, figure, footer_of, share, stats_of

Report = Mapping[str, Any]
COSTS = {"macs": "MACs", "params": "parameters", "latency": "latency"}


def prune_page(report: Report, conversion: Conversion, *, arch: str = "") -> Page:
    """The page of a pruning. report: as its JSON has it. conversion: from the masked network to the result."""
    quality, samples = report["quality"]["pruned"], report["samples"]
    name, budget = next(iter(report["budget"].items()))
    exact = figure(report["evidence"]["float64_max_rel"])
    page = Page(
        title=one_line(report["input"] or "A network"),
        into=one_line(next(iter(report["outputs"]), "")),
        verb="prune",
        verdict="Another function.",
        tone="warn",
        lead=f"On {counted(samples['held_out'], 'held-out sample')} its outputs differ from the original's by "
        f"{share(quality['error'])} (RMS). It is the same function as the network with these channels switched off "
        f"(float64 difference {exact}).",
        kicker=one_line(
            " · ".join(t for t in (f"{100 * budget:g} % of the {COSTS[name]}, form {report['target']}", arch) if t)
        ),
        stats=stats_of(report["before"], report["after"]),
        facts=_facts(report),
        footer=footer_of(report),
    )
    remarks = conversion.report.remarks
    names = ("with channels switched off", "the smaller network")
    links, view = linked_view(conversion.original, conversion.program, remarks, names)
    add_rewrites(page, report, remarks, links, view)
    page.sections = [_curve(report), _widths(report)]
    return page


def _facts(report: Report) -> list[tuple[str, str]]:
    own, pruned, samples = report["quality"]["original"], report["quality"]["pruned"], report["samples"]
    found = [("Samples held out, of all", f"{samples['held_out']} of {sum(samples.values())}")]
    if pruned["agreement"] is not None:
        found.append(
            ("Agreement with the original's class", f"{share(pruned['agreement'])} (KL {figure(pruned['kl'])})")
        )
    if pruned["accuracy"] is not None:
        found.append(("Accuracy", f"{share(own['accuracy'])} before, {share(pruned['accuracy'])} after"))
    for key, what in (("near_floor", "Layers at their floor"), ("scarce", "Refitted on fewer rows than unknowns")):
        if report[key]:
            found.append((what, one_line(", ".join(report[key]))))
    if report["idle"]:
        where = ", ".join(f"{name} {count}" for name, count in report["idle"].items())
        found.append(("Never fire or are constant on the samples", one_line(where)))
    return found


def _curve(report: Report) -> Section:
    steps: Sequence[Mapping[str, Any]] = report["curve"]
    agreements = [s[k]["agreement"] for s in steps for k in ("cut", "refitted")]
    what = "error" if None in agreements or min(agreements, default=1.0) == 1.0 else "agreement"
    costs = [s["cost"] for s in steps]
    cut, refitted = ([s[k][what] for s in steps] for k in ("cut", "refitted"))
    head = ("round", "cost left", f"{what} after the cut", "after the refit", "KL after the refit")
    rows = [
        (str(i + 1), share(s["cost"]), share(s["cut"][what]), share(s["refitted"][what]), figure(s["refitted"]["kl"]))
        for i, s in enumerate(steps)
    ]
    joint = report["joint"]
    if joint is not None:
        after, kl = joint["refused"] or share(joint["after"][what]), figure(joint["after"]["kl"])
        rows.append(("all at once", share(costs[-1]), share(joint["before"][what]), one_line(after), kl))
    numbers = frozenset(range(1, 5))
    tables = [Table("Round by round", head, rows, numbers), _forms(report)]
    texts = [
        "Measured on samples that no choice has seen. Each round switches channels off, then refits the weights of the "
        "others."
    ]
    return Section("curve", "Curve", texts, chart=curve_chart(costs, cut, refitted, what), tables=tables)


def _forms(report: Report) -> Table:
    """What the original and both forms of the result cost."""
    rows: list[tuple[str, ...]] = [
        ("original, fused", count(report["before"]["macs"]), count(report["before"]["params"]), "")
    ]
    for name, form in report["forms"].items():
        chosen = f"{name}, written" if name == report["target"] else name
        if "refused" in form:
            rows.append((chosen, "refused", "", one_line(form["refused"])))
            continue
        time = form["time"]
        told = "" if time is None else f"{figure(time['ms'])} ms ({time['share']:.2f} of the original's)"
        rows.append((chosen, count(form["macs"]), count(form["params"]), told))
    head: tuple[str, ...] = ("form", "multiply-accumulates", "parameters", "time")
    if not any(row[3] for row in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    return Table("Forms of the result", head, rows, frozenset({1, 2}), True)


def _widths(report: Report) -> Section:
    bars = width_bars([(one_line(w["name"]), w["before"][1], w["after"][1]) for w in report["widths"]])
    return Section("widths", "Widths", ["Channels that each layer gives, before and after."], bars=bars)
