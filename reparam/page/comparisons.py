"""The pages of `diff` and `verify`: two models of any kind side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reparam.compare import ProgramDiff, diff_calls, read_calls
from reparam.engines import ListedCall
from reparam.ir import Program
from reparam.utils import one_line

from .conversions import stage_rows
from .graph import Graph, read_listed, read_program
from .links import links_of_diff, listed_names
from .parts import Page, Section, Table
from .view import DIFFERENT, Side, View, view_of
from .words import figure, footer_of, shapes_told, share

Shown = Program | Sequence[ListedCall]  # a graph: a program, or the calls that an engine lists
VIEW = (
    "Both graphs, aligned by the names of their weights, then by operator and shape. Point at a call to see what "
    "stands in its place in the other; click it for its shape, its weights' ranges and its neighbours."
)


def diff_page(report: Mapping[str, Any], diff: ProgramDiff, a: Shown, b: Shown) -> Page:
    """The page of `diff`. report: its JSON, with the names of both models as `a` and `b`."""
    counts = report["counts"]
    differ = sum(n for status, n in counts.items() if status != "same")
    view = _view(report, diff, a, b)
    told = dict(DIFFERENT)
    named = {"same": "unchanged", **told, "removed": told["gone"], "added": told["new"]}
    page = Page(
        title=one_line(report["a"]),
        into=one_line(report["b"]),
        between="\N{MIDDLE DOT}",
        relation="and",
        verb="diff",
        verdict=f"{differ:,} of {sum(counts.values()):,} rows differ." if differ else "The graphs are the same.",
        tone="plain" if differ else "good",
        lead="Structure and weights were compared; verify compares functions.",
        facts=[(named[status].capitalize(), f"{n:,} calls") for status, n in counts.items()],
        footer=footer_of(report),
    )
    _show(page, view)
    return page


def verify_page(report: Mapping[str, Any], a: Shown | None, b: Shown | None) -> Page:
    """The page of `verify`. report: its JSON, as for `diff_page`. a, b: None for an engine that shows no graph."""
    tones = {"equivalent": "good", "quantised": "warn", "different": "bad"}
    heads = {"equivalent": "Equivalent.", "quantised": "Quantised.", "different": "Not the same function."}
    leads = {
        "equivalent": "No difference above what is allowed was found.",
        "quantised": "One of them is quantised: no difference above what is allowed was found.",
        "different": one_line(report["reason"]),
    }
    found = report["adversarial"]
    facts = [("Random inputs", f"{report['trials']}, {shapes_told(report['shapes'])}; seed {report['seed']}")]
    if found:
        worst = f"at most {figure(found['worst'])} of what is allowed, on {int(found['inputs']):,} inputs"
        facts.append(("Adversarial search", worst))
    if report["first_divergence"]:
        facts.append(("They part at", one_line(report["first_divergence"])))
    if report["runtimes"]:
        facts.append(("Run by", one_line(" and ".join(report["runtimes"]))))
    page = Page(
        title=one_line(report["a"]),
        into=one_line(report["b"]),
        between="\N{MIDDLE DOT}",
        relation="and",
        verb="verify",
        verdict=heads[report["verdict"]],
        tone=tones[report["verdict"]],
        lead=leads[report["verdict"]],
        facts=facts,
        footer=footer_of(report),
    )
    if report["outputs"]:
        page.sections.append(_outputs(report["outputs"]))
    if report.get("data"):
        page.sections.append(_on_samples(report["data"]))
    if a is not None and b is not None:
        diff = diff_calls(calls_of(a), calls_of(b))
        _show(page, _view(report, diff, a, b))
    return page


def _show(page: Page, view: View) -> None:
    page.view, page.named = view, ("A", "B")
    page.stages = stage_rows(view.tree, (view.sides[0].graph.costs, view.sides[1].graph.costs))


def _view(report: Mapping[str, Any], diff: ProgramDiff, a: Shown, b: Shown) -> View:
    sides = (Side("A", one_line(report["a"]), graph_of(a)), Side("B", one_line(report["b"]), graph_of(b)))
    return view_of(sides, links_of_diff(diff, names_of_calls(a), names_of_calls(b)), VIEW, DIFFERENT)


def graph_of(shown: Shown) -> Graph:
    """The graph as the page shows it."""
    return read_program(shown) if isinstance(shown, Program) else read_listed(shown)


def calls_of(shown: Shown) -> Sequence[ListedCall]:
    """The calls as `diff` compares them."""
    return read_calls(shown) if isinstance(shown, Program) else shown


def names_of_calls(shown: Shown) -> list[str]:
    """What the calls of a diff are called in the graph of the page."""
    if isinstance(shown, Program):
        return [c.results[0] for c in read_calls(shown)]
    return listed_names(len(shown))


def _on_samples(found: Mapping[str, Any]) -> Section:
    """The samples of the user on which they differ. found: `samples`, `error`, `share`, `changed`, `differing`."""
    equal = "" if found["share"] is None else f" {share(found['share'])} of the decisions are equal."
    text = f"{found['samples']:,} samples: the outputs differ by {share(found['error'])} (RMS).{equal}"
    classes = any(d["first"] is not None for d in found["differing"])
    head = ("sample", "error", *(("class by A", "class by B") if classes else ()))
    rows = [
        (one_line(d["input"]), share(d["error"]), *((str(d["first"]), str(d["second"])) if classes else ()))
        for d in found["differing"]
    ]
    tables = [Table("Samples that differ most", head, rows, frozenset(range(1, len(head))), True)] if rows else []
    return Section("samples", "Samples", [text], tables=tables)


def _outputs(outputs: Sequence[Mapping[str, Any]]) -> Section:
    head = ("output", "float64 difference", "own error of A", "own error of B", "most allowed", "largest element",
            "most allowed", "size", "within")  # fmt: skip
    rows = [
        (
            str(o["index"]),
            *(figure(o[k]) for k in ("difference", "error_a", "error_b", "bar", "peak", "peak_bar", "size")),
            "yes" if o["ok"] else "no",
        )
        for o in outputs
    ]
    text = (
        "Root mean squares over all inputs and elements. Equal functions in finite numbers differ by about what each "
        "of them loses itself; a few times that is allowed."
    )
    table = Table("Errors of each output", head, rows, frozenset(range(1, 8)))
    return Section("outputs", "Outputs", [text], tables=[table])
