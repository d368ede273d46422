"""docs/coverage.md, from what `coverage.py` found: how many networks became what, and the reasons why not."""

from __future__ import annotations

import argparse
import collections
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import table

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "coverage.md"
FOUND = HERE / "coverage.jsonl"
LARGE_LIBRARIES = ("timm", "torchvision")

TEXT = """\
# Coverage

Written by `make coverage` from what was measured network by network: {tried}. All have random weights and random
statistics of their norms.

* Of torchvision and timm the widths that their names stand for, one network of each family before the second of any.
  Images are {image} pixels wide where a network takes that, else of its own size. Networks of more than {huge} million
  parameters are built with fewer blocks where their library has an argument for it. Of those of more than {large}
  million, {kept} of every run of equal blocks stay, so that every kind of block and every change of width is still
  there. What was changed is listed at the end.
* Of ultralytics what its files describe, in the smallest scale.
* Of transformers, monai and diffusers the classes as they are, in configurations of a few narrow layers.

Each network has {minutes} minutes of processor time and {gib} GiB. They were tried {days}, each with the code of its
day, which `benchmarks/coverage.jsonl` tells.

*fused* and *plain* are verified: every rewrite, the whole network in float64 against the network itself, and once more
in float32; what was accepted was then run once more beside the original. *wrong* counts where the two differed there.
"""


def rows_of(file: Path) -> list[dict[str, Any]]:
    """What was found so far; the last line may be cut."""
    rows = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plainly(message: str) -> str:
    """A reason without its names and numbers, so that equal ones can be counted."""
    return re.sub(r"\d[\d,.e+-]*", "N", re.sub(r"'[^']*'", "'…'", message))[:160]


def page(rows: Sequence[Mapping[str, Any]], known: Mapping[str, int], limits: Mapping[str, object]) -> str:
    """docs/coverage.md, of what was found.

    known: how many networks of each library are listed, 0 where it is not installed. limits: the numbers in TEXT.
    """
    tried = [r for r in rows if "fused" in r]
    parts = [TEXT.format(tried=_told(rows, known), days=_days(tried), **limits)]
    parts.append(table(HEADER, [_summary(library, group) for library, group in _by(rows, _library).items()]))
    parts.append("## Families")
    parts.append(table(HEADER, [_summary(family, group) for family, group in _by(tried, _of_family).items()]))
    for title, reasons in (
        ("What was refused", _counted(tried, lambda o: [o["why"]] if "why" in o else [])),
        ("What stays, and why", _counted(tried, lambda o: [m for m, n in o.get("left", {}).items() for _ in range(n)])),
        ("What did not end", collections.Counter(r["failed"] for r in rows if "failed" in r)),
    ):
        if reasons:
            parts.append(f"## {title}")
            parts.append(table(("times", "reason"), [(n, _cell(reason)) for reason, n in reasons.most_common(30)]))
    if refused := sorted(_refused(tried)):
        parts.append("## Refused, network by network\n\nWithout those of timm and torchvision.")
        parts.append(table(("network", "form", "outcome", "reason"), refused))
    changed = sorted(f"`{r['name']}` ({r['changed']})" for r in tried if r.get("changed"))
    if changed:
        parts.append("## With fewer blocks\n\n" + ", ".join(changed) + ".")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _told(rows: Sequence[Mapping[str, Any]], known: Mapping[str, int]) -> str:
    """`60 of the 80 networks of torchvision, none of monai, which is not installed`"""
    counts = collections.Counter(map(_library, rows))
    told = [
        f"{counts[library]:,} of the {n:,} networks of {library}" if n else f"none of {library}, which is not installed"
        for library, n in known.items()
    ]
    return ", ".join(told)


def _days(rows: Iterable[Mapping[str, Any]]) -> str:
    days = sorted({r["on"] for r in rows})
    return f"from {days[0]} to {days[-1]}" if len(days) > 1 else f"on {''.join(days)}" if days else "on no day yet"


def _refused(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str, str, str]]:
    for row in rows:
        for form in ("fused", "plain", "onnx"):
            outcome = row.get(form, {})
            if _library(row) not in LARGE_LIBRARIES and outcome.get("outcome", "verified") != "verified":
                yield f"`{row['name']}`", form, outcome["outcome"], _cell(outcome.get("why", ""))


HEADER = (
    "",
    "networks",
    "fused",
    "plain",
    "ONNX",
    "refused",
    "rejected",
    "crashed",
    "wrong",
    "norms left",
    "merges left",
)


def _summary(label: str, rows: Sequence[Mapping[str, Any]]) -> list[object]:
    outcomes = [(form, r[form]) for r in rows for form in ("fused", "plain", "onnx") if form in r]
    kinds = collections.Counter(o["outcome"] for _, o in outcomes)
    done = [
        f"{sum(o['outcome'] == 'verified' for f, o in outcomes if f == form)}" for form in ("fused", "plain", "onnx")
    ]
    failed = sum("failed" in r for r in rows)
    return [
        label,
        len(rows),
        *done,
        kinds["refused"],
        kinds["rejected"],
        kinds["crashed"] + failed,
        kinds["wrong"],
        _left(rows, "fused", "norms"),
        _left(rows, "plain", "merges"),
    ]


def _left(rows: Iterable[Mapping[str, Any]], form: str, count: str) -> str:
    pairs = [r[form][count] for r in rows if form in r and count in r[form]]
    return f"{sum(a for _, a in pairs):,} of {sum(b for b, _ in pairs):,}"


def _counted(
    rows: Iterable[Mapping[str, Any]], reasons: Callable[[Mapping[str, Any]], Sequence[str]]
) -> collections.Counter[str]:
    outcomes = (r[form] for r in rows for form in ("fused", "plain", "onnx") if form in r)
    return collections.Counter(plainly(reason) for o in outcomes for reason in reasons(o))


def _by(
    rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], str]
) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(sorted(groups.items()))


def _library(row: Mapping[str, Any]) -> str:
    return str(row["name"]).partition("/")[0]


def _of_family(row: Mapping[str, Any]) -> str:
    return f"{_library(row)} {row['family']}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, epilog="The page is written by coverage.py.").parse_args()
