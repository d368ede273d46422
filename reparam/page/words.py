"""Figures as texts, the same on every page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from reparam.utils import three_digits

from .parts import Stat

COUNTS = (
    ("nodes", "calls"),
    ("merges", "merges"),
    ("gates", "gates"),
    ("convs", "convolutions"),
    ("norms", "norms"),
    ("params", "parameters"),
    ("macs", "MACs"),
)
SMALL = 100_000  # whole numbers below are written out


def count(value: int) -> str:
    """`53`, `25.53 M`, `4.089 G`: four digits of what is large."""
    if abs(value) < SMALL:
        return f"{value:,}"
    power = min(int(math.log10(abs(value))) // 3, 5)
    return f"{value / 1000**power:.4g} {' kMGTP'[power]}"


def change(before: int, after: int) -> str:
    """`=`, `-53`, `+1.2 %`: small numbers by their difference, large ones by their share."""
    if before == after:
        return "="
    if max(abs(before), abs(after)) < SMALL or not before:
        return f"{after - before:+,}".replace("-", "\N{MINUS SIGN}")
    ratio = after / before
    text = f"{ratio:.3g} times" if ratio >= 2 else f"{100 * (ratio - 1):+.2g} %"
    return text.replace("-", "\N{MINUS SIGN}")


def stats_of(before: Mapping[str, int], after: Mapping[str, int]) -> list[Stat]:
    """The counts of the report, before and after."""
    found = []
    for key, name in COUNTS:
        a, b = before[key], after[key]
        tone = "same" if a == b else "less" if b < a else "more"
        found.append(Stat(name, count(a), count(b), change(a, b), tone))
    return found


def share(value: float | None) -> str:
    """A share as percents, with two places, or two digits where that shows nothing; nothing for None."""
    if value is None:
        return ""
    percents = 100 * value
    return f"{percents:.2g} %" if abs(percents) < 0.005 else f"{percents:.2f} %"


def figure(value: float | None) -> str:
    """Three digits of a measured number; nothing for None, `infinite` for what has no end."""
    if value is None:
        return ""
    return three_digits(value) if math.isfinite(value) else "infinite"


def bytes_told(value: int | None) -> str:
    """`44.7 MiB`; nothing for None and for nothing."""
    if not value:
        return ""
    power = min(int(math.log2(value)) // 10, 4)
    return f"{three_digits(value / 1024**power)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def shapes_told(shapes: Sequence[Sequence[int]]) -> str:
    """`1x3x224x224, 7 of 1x3x65x65`."""
    counted: dict[str, int] = {}
    for shape in shapes:
        text = "\N{MULTIPLICATION SIGN}".join(map(str, shape))
        counted[text] = counted.get(text, 0) + 1
    return ", ".join(text if times == 1 else f"{times} of {text}" for text, times in counted.items())


def footer_of(report: Mapping[str, Any]) -> str:
    """Which version made the page, and what the work took."""
    seconds = report.get("seconds") or {}
    spent = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())
    return f"reparam {report['reparam']}" + (f". Seconds: {spent}." if spent else ".")
