"""The pages of `convert`, `explain` and `export`, and what they share with that of `prune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reparam.ir import Program
from reparam.report import Remark
from reparam.utils import one_line

from .charts import ErrorPoint, errors_chart
from .graph import read_program
from .links import Links, links_of_remarks
from .parts import Page, RemarkRow, StageRow, Table
from .stages import Module, stages_of
from .view import REWRITTEN, Side, View, view_of
from .words import change, count, figure, footer_of, shapes_told, share, stats_of

VIEW = (
    "The network before and after. Point at a call to see what became of it, or what it was made of; click it for its "
    "shape, its weights' ranges and the remarks about it."
)
BAR = 72  # pixels of the widest bar in the table of stages

Report = Mapping[str, Any]


def conversion_page(
    report: Report, remarks: Sequence[Remark], before: Program, after: Program, *, arch: str = "", verb: str = "convert"
) -> Page:
    """The page of a conversion, a dry run or an export.

    report: as its JSON has it. remarks: those of the report, which know what they replaced. before, after: programs
    whose nodes are called as the remarks call them. arch: what the command line says of the architecture.
    """
    names = ("as it was captured", "as it would be" if verb == "explain" else "as it is emitted")
    links, view = linked_view(before, after, remarks, names)
    quantised = report.get("verdict") == "quantised"
    verdict, tone, lead = _verdict(report, quantised=quantised)
    kind = f"{report['format']}, {report['precision']} · " if "format" in report else ""
    page = Page(
        title=one_line(report["input"] or "A network"),
        into=one_line(next(iter(report["outputs"]), "")),
        verb=verb,
        verdict=verdict,
        tone=tone,
        lead=lead,
        kicker=one_line(" · ".join(t for t in (f"{kind}target: {report['target']}", arch) if t)),
        stats=stats_of(report["before"], report["after"]),
        facts=_facts(report),
        footer=footer_of(report),
    )
    add_rewrites(page, report, remarks, links, view)
    return page


def linked_view(
    before: Program, after: Program, remarks: Sequence[Remark], names: tuple[str, str]
) -> tuple[Links, View]:
    """Both graphs under their names, linked by what the remarks say."""
    left, right = read_program(before), read_program(after)
    links = links_of_remarks(left, right, remarks)
    sides = (Side("Before", names[0], left), Side("After", names[1], right))
    return links, view_of(sides, links, VIEW, REWRITTEN)


def add_rewrites(page: Page, report: Report, remarks: Sequence[Remark], links: Links, view: View) -> None:
    """The graphs, stages, errors and remarks of a conversion."""
    page.view = view
    page.stages = stage_rows(view.tree)
    page.chains = _chains(report.get("blocks") or [])
    passed = [r for r in remarks if r.kind == "passed"]
    page.errors = errors_chart(
        [
            ErrorPoint(f"{r.rule} at {_place(r)}", r.max_abs or 0.0, r.bound, r.evidence != "basis")
            for r in passed
        ]
    )  # fmt: skip
    page.rules = _rules(passed) if page.errors is not None else None
    page.remarks = [_remark(r, region) for r, region in zip(remarks, links.remarks, strict=True)]


# ---- the head ----------------------------------------------------------------------------------------------------


def _verdict(report: Report, *, quantised: bool) -> tuple[str, str, str]:
    evidence, engine = report["evidence"], report.get("engine")
    if "float64_max_rel" not in evidence:
        return "Dry run.", "plain", "Each rewrite was checked alone in float64; convert also checks the whole network."
    whole = f"{'Before that, the' if quantised else 'The'} whole network was compared {_compared(evidence)}."
    if engine is not None and not engine["ran"]:
        return "Built, not run.", "warn", f"The file could not be run here: {one_line(str(engine['why']))}. {whole}"
    if quantised:
        ratio = figure(report.get("sqnr"))
        return "Quantised.", "warn", f"Another function, and measured: {ratio} dB of signal to noise. {whole}"
    return "Equivalent.", "good", whole


def _compared(evidence: Report) -> str:
    """In which dtypes, on how many inputs, and how far apart."""
    trials, difference, own = evidence["trials"], figure(evidence["float64_max_rel"]), evidence.get("own_dtype")
    if own is None:
        return f"in float64 on {trials} random inputs: the largest relative difference is {difference}"
    return (
        f"on {trials} random inputs: the largest relative difference is {difference} in float64, and "
        f"{figure(own['difference'])} in {evidence['dtype']} on those of {shapes_told(own['shapes'])}, where rounding "
        f"allows {figure(own['allowed'])}"
    )


def _facts(report: Report) -> list[tuple[str, str]]:
    evidence, engine = report["evidence"], report.get("engine")
    kinds = ", ".join(f"{n} on {_WAYS.get(kind, kind)}" for kind, n in evidence["kinds"].items() if n) or "none"
    found = [("Rewrites checked", kinds), ("A plain chain", "yes" if report["plain"] else "no")]
    if "float64_max_rel" in evidence:
        own = figure(evidence["original_float32_error_vs_truth"])
        error = figure(evidence["float32_error_vs_truth"])
        found.insert(
            0, (f"Error in {evidence['dtype']} against the float64 truth", f"{error} (the original's own: {own})")
        )
        found.append(("Inputs", f"{shapes_told(evidence['shapes'])}; seed {evidence['seed']}"))
    if engine is not None and engine["ran"]:
        own = "" if engine["own_error"] is None else f" (the network's own in torch: {figure(engine['own_error'])})"
        if engine["error"] is not None:
            runtime = one_line(engine["runtime"])
            found.insert(0, ("Signal to noise", "infinite" if engine["sqnr"] is None else f"{engine['sqnr']:.1f} dB"))
            found.insert(0, (f"Error of the file, run by {runtime}", f"{figure(engine['error'])}{own}"))
        if engine["top1"] is not None:
            found.insert(
                2 if engine["error"] is not None else 0,
                ("Top-1 agreement", f"{100 * engine['top1']:.4g} % of {engine['samples']} inputs"),
            )
    if len(report["outputs"]) > 1:
        found.append(("Also written", one_line(", ".join(report["outputs"][1:]))))
    return [*_on_samples(report["data"]), *found] if report.get("data") else found


def _on_samples(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a file lost on samples of the user's that were held out."""
    agreement, name = data["agreement"], f"On {data['samples']:,} samples of {one_line(str(data['source']))}"
    parts = [] if agreement["whole"] else [f"error {share(agreement['error'])} (RMS)"]
    if agreement["share"] is not None:
        parts.insert(0, f"{share(agreement['share'])} of decisions equal")
    if data["before"] is not None:
        told = figure if data["before"]["own"] else share
        before, after = (told(data[k]["value"]) for k in ("before", "after"))
        parts.insert(0, f"{data['figure']} {before} before, {after} after")
    return [(name, one_line("; ".join(parts)))]


_WAYS = {"basis": "unit impulses", "sampled": "random inputs"}


# ---- stages, chains, rules, remarks ------------------------------------------------------------------------------


def stage_rows(tree: Module, known: tuple[bool, bool] = (True, True)) -> list[StageRow]:
    """The table of stages and blocks. known: whether multiply-accumulates are, of the one graph and the other.

    A row is named and indented below the nearest module around it that has a row.
    """
    most = max((f.macs for m in tree.children for f in (m.before, m.after)), default=0) or 1
    rows, above = [], list[str]()
    for m in stages_of(tree):
        a, b = m.before, m.after
        while above and not m.path.startswith(f"{above[-1]}."):
            above.pop()
        name = m.path.removeprefix(above[-1]) if above else m.path
        above.append(m.path)
        pairs = ((a.calls, b.calls), (a.merges, b.merges), (a.gates, b.gates))
        rows.append(
            StageRow(
                path=name,
                depth=len(above),
                counts=tuple((count(p), count(q)) if p or q else ("", "") for p, q in pairs),
                macs=(count(a.macs) if known[0] else "", count(b.macs) if known[1] else ""),
                shares=(round(BAR * a.macs / most, 1), round(BAR * b.macs / most, 1)),
                params=(count(a.params), count(b.params)),
            )
        )
    return rows


def _chains(blocks: Sequence[Mapping[str, Any]]) -> Table | None:
    if not blocks:
        return None
    head = ("chain", "layers", "MACs before", "after", "change", "parameters", "groups", "carried")
    rows = [
        (
            one_line(b["module"] or "the network"),
            str(b["layers"]),
            count(b["macs_before"]),
            count(b["macs_after"]),
            change(b["macs_before"], b["macs_after"]),
            change(b["params_before"], b["params_after"]),
            ", ".join(map(str, b["groups"])),
            ", ".join(b["carried"]) or "nothing",
        )
        for b in blocks
    ]
    return Table("Spans that became chains, and what that costs", head, rows, frozenset(range(1, 6)), True)


def _rules(passed: Sequence[Remark]) -> Table:
    """The worst error of each rule, and how near it came to its bound."""
    groups: dict[str, list[Remark]] = {}
    for r in passed:
        groups.setdefault(r.rule, []).append(r)
    rows = []
    for rule, found in groups.items():
        worst = max(found, key=lambda r: r.max_abs or 0.0)
        near = max(((r.max_abs or 0.0) / r.bound for r in found if r.bound), default=None)
        kinds = [r.evidence for r in found]
        rows.append(
            (
                rule,
                str(len(found)),
                figure(worst.max_abs),
                figure(worst.bound),
                "" if near is None else f"{near:.2g}",
                str(kinds.count("basis")),
                str(kinds.count("sampled")),
                _signed(sum(r.macs for r in found)),
                _signed(sum(r.params for r in found)),
            )
        )
    head = ("rule", "times", "largest error", "its bound", "most of a bound", "basis", "sampled", "MACs", "parameters")
    return Table("Rewrites by rule", head, rows, frozenset(range(1, 9)))


def _remark(r: Remark, region: int | None) -> RemarkRow:
    row = RemarkRow(r.kind, one_line(r.rule), one_line(r.module), r.node, _place(r), one_line(r.message), region)
    if r.kind != "passed":
        return row
    error, bound = figure(r.max_abs), figure(r.bound)
    return replace(row, error=error, bound=bound, macs=_signed(r.macs), params=_signed(r.params))


def _place(r: Remark) -> str:
    return one_line(r.module or r.node)


def _signed(value: int) -> str:
    text = count(value)
    return f"+{text}" if value > 0 else text.replace("-", "\N{MINUS SIGN}") if value else ""
