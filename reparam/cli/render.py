"""Renders a report for people: the census before and after, the rewrites, what was not done and why, the evidence.

Reads the report's JSON form alone, so that a stored report renders the same. Everything is plain `Text`: names that
come from a file are never read as markup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reparam.utils import counted, one_line

MODULES_SHOWN = 6
FEW = 8  # held-out samples, below which figures of them say little
MERGES = "carry-residual"  # the rule whose refusals are the merges and gates that are left
ROWS = (
    ("nodes", "nodes"),
    ("merges", "merges"),
    ("gates", "gates"),
    ("convs", "convolutions"),
    ("norms", "norms"),
    ("params", "parameters"),
    ("macs", "multiply-accumulates"),
)
Row = Mapping[str, Any]


def line(text: str, style: str = "", *, indent: int = 0) -> Text:
    """One line of plain text, whatever it contains."""
    return Text(f"{'':{indent}}{one_line(text)}", style=style)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with a rule under its head and nothing else; `right` names the columns of numbers."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def render_conversion(report: Row, arch: str, *, listed: Sequence[Row]) -> list[RenderableType]:
    """What `convert` prints: short. listed: the remarks asked for with --remarks."""
    outputs = ", ".join(report["outputs"])
    parts: list[RenderableType] = [line(f"{_title(report, arch)} -> {outputs}", "bold")]
    parts += [line(text) for text in (*evidence_lines(report), *engine_lines(report))]
    parts += [census_table(report)]
    parts += _blocks_section(report, alike=True)
    passed = _by_rule(_of_kind(report, "passed"))
    done = ", ".join(f"{len(remarks)} {rule}" for rule, remarks in passed.items())
    parts.append(line(f"rewrites: {done or 'none'}"))
    missed = _of_kind(report, "missed")
    merges = [r for r in missed if r["rule"] == MERGES]
    parts += _reasons(merges, f"merges and gates that stay: {len(merges)}")
    if len(missed) > len(merges):
        parts.append(line(f"not done: {len(missed) - len(merges)}; --remarks missed says why"))
    parts += _notes(report)
    parts += _listing(listed)
    parts.append(line(seconds_line(report)))
    return parts


def render_explanation(report: Row, arch: str, *, listed: Sequence[Row], missed: Sequence[Row]) -> list[RenderableType]:
    """What `explain` prints: every rewrite by rule with its price, every refusal with its reason."""
    parts: list[RenderableType] = [line(f"{_title(report, arch)}, target {report['target']}, dry run", "bold")]
    parts += [census_table(report)]
    parts += _blocks_section(report, alike=False)
    parts += _passed_section(_of_kind(report, "passed"))
    parts += _missed_section(missed)
    parts += _notes(report)
    parts += _listing(listed)
    parts += [line(text) for text in evidence_lines(report)]
    parts += _graphs_section(report)
    parts.append(line(seconds_line(report)))
    return parts


def _graphs_section(report: Row) -> list[RenderableType]:
    """The graph as text, where it was asked for."""
    parts: list[RenderableType] = []
    for when, text in report.get("graph", {}).items():
        parts.append(line(f"the graph {when}:", "bold"))
        parts += [line(row, indent=2) for row in text.splitlines()]
    return parts


def _title(report: Row, arch: str) -> str:
    return f"{report['input']} ({arch})" if arch else str(report["input"])


def census_table(report: Row) -> Table:
    """Before, after and the change of every count."""
    made = table("", "before", "after", "change", right=("before", "after", "change"))
    for key, label in ROWS:
        before, after = report["before"][key], report["after"][key]
        made.add_row(label, f"{before:,}", f"{after:,}", _signed(after - before))
    made.add_row("a plain chain", "", "yes" if report["plain"] else "no", "")
    return made


def _signed(value: int) -> str:
    return f"{value:+,}" if value else "="


def _file_lines(found: Row | None) -> list[str]:
    """What the file itself gives, of a network that was read from one."""
    if found is None:
        return []
    return [
        f"the file itself, run by {found['runtime']} on {found['trials']} inputs: error against the float64 truth "
        f"{found['error']:.3g}, that of what was read from it: {found['own_error']:.3g} (RMS)"
    ]


def _own_dtype_lines(found: Row | None, dtype: str) -> list[str]:
    """What was compared without float64, of large images."""
    if found is None:
        return []
    return [
        f"of these {_shapes(found['shapes'])} were compared in {dtype} alone: largest relative difference "
        f"{found['difference']:.2g}, where rounding allows {found['allowed']:.2g}"
    ]


def _shapes(shapes: Sequence[Sequence[int]]) -> str:
    found = Counter("x".join(map(str, s)) for s in shapes)
    return ", ".join(shape if times == 1 else f"{shape} ({times} times)" for shape, times in found.items())


def evidence_lines(report: Row) -> list[str]:
    """The verdict and what was measured."""
    evidence = report["evidence"]
    kinds = ", ".join(f"{n} {kind}" for kind, n in evidence["kinds"].items())
    if "float64_max_rel" not in evidence:
        return [f"evidence: each rewrite was checked alone in float64 ({kinds}); convert also checks the whole network"]
    dtype = evidence.get("dtype", "float32")
    shapes = _shapes(evidence["shapes"])
    head = "before it was quantised" if report.get("verdict") == "quantised" else "equivalent"
    return [
        f"{head}: float64 largest relative difference {evidence['float64_max_rel']:.2g}",
        f"{dtype} error against the float64 truth: {evidence['float32_error_vs_truth']:.3g}, "
        f"the original's own: {evidence['original_float32_error_vs_truth']:.3g} (RMS)",
        *_file_lines(evidence.get("file")),
        f"{evidence['trials']} random inputs, shapes {shapes}, seed {evidence['seed']}; rewrites checked: {kinds}",
        *_own_dtype_lines(evidence.get("own_dtype"), dtype),
    ]


def engine_lines(report: Row) -> list[str]:
    """What was measured on an exported file; nothing for a conversion."""
    engine = report.get("engine")
    if engine is None:
        return []
    quantised = "quantised to " if engine["verdict"] == "quantised" else ""
    head = f"{report['format']}, {quantised}{report['precision']}"
    if not engine["ran"]:
        return [f"{head}: built, not run: {engine['why']}"]
    own = engine["own_error"]
    beside = "" if own is None else f", the network's own in torch: {own:.3g}"
    ratio = "infinite" if engine["sqnr"] is None else f"{engine['sqnr']:.1f} dB"
    share = "" if engine["top1"] is None else f"top-1 agreement {100 * engine['top1']:.4g} %, "
    shapes = ", ".join("x".join(map(str, s)) for s in dict.fromkeys(map(tuple, engine["shapes"])))
    error = "" if engine["error"] is None else f": error against the float64 truth {engine['error']:.3g}{beside} (RMS)"
    noise = "" if engine["error"] is None else f"signal to noise {ratio}, "
    return [
        f"{head}, run by {engine['runtime']}{error}",
        f"{noise}{share}{engine['samples']} {engine['data']} inputs, shapes {shapes}",
        *_few_lines(engine),
        *data_lines(report.get("data")),
    ]


def _few_lines(engine: Row) -> list[str]:
    """That an int8 file was measured on so few samples that the figures say little."""
    if engine["verdict"] != "quantised":
        return []
    if engine["data"] != "held-out":
        return ["note: of one sample none can be held out, so that random inputs were measured; calibrate on more"]
    few = engine["samples"] < FEW
    told = counted(engine["samples"], "held-out sample")
    return [f"note: figures of {told} say little; calibrate on more"] if few else []


def data_lines(data: Row | None) -> list[str]:
    """What an exported file lost on samples; nothing without any."""
    if data is None:
        return []
    agreement, parts = data["agreement"], []
    if data["before"] is not None:
        scores = [data[k] for k in ("before", "after")]
        before, after = (f"{s['value']:.4g}" if s["own"] else f"{100 * s['value']:.2f} %" for s in scores)
        parts.append(f"{data['figure']} {before} before, {after} after")
    if agreement["share"] is not None:
        parts.append(f"{100 * agreement['share']:.2f} % of decisions are equal")
    if not agreement["whole"]:
        parts.append(f"error {agreement['error']:.3g} (RMS, relative)")
    worst = agreement["worst"]
    lines = [f"on {data['samples']} samples of {data['source']}: {', '.join(parts)}"]
    if worst is not None:
        lines.append(f"worst: {worst['input']}, error {worst['error']:.3g}")
    return [*lines, *([f"note: {data['note']}"] if data["note"] else [])]


def seconds_line(report: Row) -> str:
    """`seconds: load 0.1, capture 3.2, …`"""
    return "seconds: " + ", ".join(f"{phase} {value:.2f}" for phase, value in report["seconds"].items())


def _of_kind(report: Row, kind: str) -> list[Row]:
    return [r for r in report["remarks"] if r["kind"] == kind]


def _by_rule(remarks: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for remark in remarks:
        groups.setdefault(remark["rule"], []).append(remark)
    return groups


def _passed_section(remarks: Sequence[Row]) -> list[RenderableType]:
    if not remarks:
        return [line("rewrites: none")]
    made = table("rule", "times", "MACs", "params", "max |Δ| float64", "basis", "sampled")
    for column in made.columns[1:]:
        column.justify = "right"
    for rule, group in _by_rule(remarks).items():
        kinds = [r.get("evidence") for r in group]
        made.add_row(
            one_line(rule),
            str(len(group)),
            _signed(sum(r["macs"] for r in group)),
            _signed(sum(r["params"] for r in group)),
            f"{max(r['max_abs'] or 0.0 for r in group):.2g}",
            str(kinds.count("basis")),
            str(kinds.count("sampled")),
        )
    return [line(f"rewrites: {len(remarks)}", "bold"), made]


def _missed_section(remarks: Sequence[Row]) -> list[RenderableType]:
    """Grouped by rule, and under it by reason, with the modules that share the reason."""
    if not remarks:
        return []
    parts: list[RenderableType] = [line(f"not done: {len(remarks)}", "bold")]
    for rule, group in _by_rule(remarks).items():
        parts += _reasons(group, f"{rule}: {len(group)}", indent=2)
    return parts


def _reasons(remarks: Sequence[Row], title: str, indent: int = 0) -> list[RenderableType]:
    """Each reason with the modules that share it; reasons that differ in the layers they name are one, with '…'."""
    alike: dict[str, list[Row]] = {}
    for remark in remarks:
        alike.setdefault(re.sub(r"'[^']*'", "'…'", remark["message"]), []).append(remark)
    parts: list[RenderableType] = [line(title, indent=indent)] if remarks else []
    for reason, group in alike.items():
        same = len({r["message"] for r in group}) == 1
        places = _few([_place(r) for r in group])
        parts.append(line(f"{places}: {group[0]['message'] if same else reason}", indent=indent + 2))
    return parts


def _blocks_section(report: Row, *, alike: bool) -> list[RenderableType]:
    """What each chain costs, in the order of the network. alike: blocks of one price share a line."""
    rows: dict[object, list[Row]] = {}
    for i, block in enumerate(report.get("blocks", [])):
        numbers = {k: v for k, v in block.items() if k != "module"}
        rows.setdefault(str(numbers) if alike else i, []).append(block)
    if not rows:
        return []
    numeric = ("layers", "MACs before", "after", "x", "parameters x")
    made = table("block", *numeric, "groups", "carried", right=numeric)
    for group in rows.values():
        b = group[0]
        made.add_row(
            one_line(_few([g["module"] or "the network" for g in group])),
            str(b["layers"]),
            f"{b['macs_before']:,}",
            f"{b['macs_after']:,}",
            _ratio(b["macs_after"], b["macs_before"]),
            _ratio(b["params_after"], b["params_before"]),
            "-".join(map(str, b["groups"])),
            ", ".join(b["carried"]) or "-",
        )
    total = sum(len(g) for g in rows.values())
    return [line(f"chains: {total}", "bold"), made]


def _ratio(after: int, before: int) -> str:
    return f"{after / before:.2f}" if before else "-"


def _place(remark: Row) -> str:
    return str(remark["module"] or remark["node"] or "the network")


def _few(places: Sequence[str]) -> str:
    unique = list(dict.fromkeys(places))
    more = len(unique) - MODULES_SHOWN
    return ", ".join(unique[:MODULES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _notes(report: Row) -> list[RenderableType]:
    return [line(f"note: {r['message']}") for r in _of_kind(report, "analysis") if not r["module"] and not r["node"]]


def _listing(remarks: Sequence[Row]) -> list[RenderableType]:
    """One remark a line, as compilers print theirs."""
    return [line(_remark(r), indent=2) for r in remarks]


def _remark(remark: Row) -> str:
    text = f"{remark['kind']} [{remark['rule']}] {_place(remark)}: {remark['message']}"
    if remark["kind"] != "passed":
        return text
    price = "".join(
        f", {label} {remark[key]:+,}" for key, label in (("macs", "MACs"), ("params", "params")) if remark[key]
    )
    return f"{text} ({remark['evidence']}, max |Δ| {remark['max_abs'] or 0.0:.2g}{price})"
