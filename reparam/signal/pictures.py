"""Analyses as SVG pictures: lines by depth, maps. One file for each series and map; two models share one picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

from .table import Table

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 45
COLOURS = ("#1f5fa8", "#c2571a", "#2f8f4e", "#8a4fa3")


def draw_pictures(tables: Mapping[str, Sequence[Table]]) -> Iterator[tuple[str, str]]:
    """The name of a file and its text, for each series and each map.

    tables: of each model by its name, in one order of analyses; the first two are drawn.
    """
    names = list(tables)[:2]
    kinds = dict.fromkeys(t.what for name in names for t in tables[name])
    for what in kinds:
        own = {n: t for n in names for t in tables[n] if t.what == what}
        first = next(iter(own.values()))
        for series in dict.fromkeys(s for t in own.values() for s in t.series):
            lines = {n: t.series[series] for n, t in own.items() if series in t.series}
            yield f"{what}-{_plain(series)}.svg", line_picture(f"{what}: {series}", lines, log=first.log)
        for n, t in own.items():
            for kind, rows in t.maps.items():
                suffix = "" if len(own) == 1 else f"-{'ab'[names.index(n)]}"
                yield f"{what}-{_plain(kind)}{suffix}.svg", map_picture(f"{what}: {kind}, {n}", rows)


def _plain(text: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in text).split()) or "picture"


def _open(title: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]


def line_picture(title: str, lines: Mapping[str, Sequence[float]], *, log: bool = False) -> str:
    """Numbers by depth, as lines, at most four. log: on an axis of powers of ten, where all are positive."""
    every = [v for values in lines.values() for v in values if math.isfinite(v)]
    log = log and bool(every) and min(every) > 0
    shown = {n: [_at(v, log) for v in values] for n, values in lines.items()}
    known = [v for values in shown.values() for v in values if v is not None] or [0.0]
    low, high = min(known), max(known)
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):
        margin = max(0.5, 1e-3 * abs(low))
        low, high = low - margin, high + margin
    parts = _open(title)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for i in range(5):
        value = low + (high - low) * i / 4
        y = bottom - (bottom - TOP) * i / 4
        label = f"{10**value:.2g}" if log else f"{value:.3g}"
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for (name, values), colour in zip(shown.items(), COLOURS, strict=False):
        step = (right - LEFT) / max(1, len(values) - 1)
        points = [
            f"{LEFT + i * step:.1f},{bottom - (v - low) / (high - low) * (bottom - TOP):.1f}"
            for i, v in enumerate(values)
            if v is not None
        ]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{" ".join(points)}"/>')
        row = 18 + 16 * list(shown).index(name)
        if len(shown) > 1:
            parts.append(f'<text x="{right}" y="{row}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">depth</text>')
    return "\n".join([*parts, "</svg>", ""])


def _at(value: float, log: bool) -> float | None:
    if not math.isfinite(value):
        return None
    return math.log10(value) if log else value


def map_picture(title: str, rows: Sequence[Sequence[float]]) -> str:
    """A map as squares, dark where its numbers are large; the square root is shown, so that tails can be seen."""
    height, width = len(rows), max(len(row) for row in rows)
    side = min((WIDTH - LEFT - RIGHT) / width, (HEIGHT - TOP - BOTTOM) / height)
    most = max((v for row in rows for v in row), default=0.0) or 1.0
    parts = _open(title)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            shade = 255 - round(255 * math.sqrt(max(0.0, value) / most))
            if shade < 255:
                parts.append(
                    f'<rect x="{LEFT + j * side:.2f}" y="{TOP + i * side:.2f}" width="{side + 0.05:.2f}" '
                    f'height="{side + 0.05:.2f}" fill="rgb({shade},{shade},{min(255, shade + 30)})"/>'
                )
    frame = f'width="{width * side:.2f}" height="{height * side:.2f}"'
    parts.append(f'<rect x="{LEFT}" y="{TOP}" {frame} fill="none" stroke="#888"/>')
    return "\n".join([*parts, "</svg>", ""])
