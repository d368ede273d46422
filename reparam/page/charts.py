"""Pictures of figures: where the marks of each lie, in the units of its view box. The template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from reparam.utils import three_digits

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 1120, 64, 20, 16, 44
LABELS = 44  # characters of a label
LETTER = 7.2  # pixels that one takes, about
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Mark:
    """One point. form: a class of the style sheet. title: what is said when it is pointed at. label: beside it."""

    x: float
    y: float
    form: str
    title: str
    label: Label | None = None


@dataclass(frozen=True)
class Label:
    """A text beside a point. anchor: which end of it is at x, as SVG calls it."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """A place of an axis with its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """Points that are joined."""

    points: str
    form: str


@dataclass
class Chart:
    """A picture with two axes. title: what it shows, for those who do not see it."""

    title: str
    x_name: str
    y_name: str
    height: int
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP

    @property
    def bottom(self) -> int:
        return self.height - BOTTOM


@dataclass(frozen=True)
class ErrorPoint:
    """One measured error and the most that was allowed. name: what it is of. sampled: how it was measured."""

    name: str
    error: float
    bound: float | None
    sampled: bool


def errors_chart(points: Sequence[ErrorPoint]) -> Chart | None:
    """Each rewrite's error under its bound, in order, on a log axis. Nothing where there is nothing to draw.

    An error of zero lies on a line of its own below all others.
    """
    positive = [v for p in points for v in (p.error, p.bound) if v is not None and 0 < v < math.inf]
    if not positive:
        return None
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    low, high = (low, high) if high > low else (low, low + 1)
    zero = any(p.error == 0 for p in points)
    chart = Chart(
        "The float64 error of each rewrite against its bound, on a logarithmic axis", "rewrites, in their order",
        "largest difference", 330,
    )  # fmt: skip
    floor = chart.bottom - (26 if zero else 6)
    step = max(1, math.ceil((high - low) / 7))

    def y(value: float) -> float:
        inside = min(max(math.log10(value), low), high)
        return round(floor - (inside - low) / (high - low) * (floor - chart.top), 1)

    def x(index: float) -> float:
        return round(chart.left + (index + 0.5) / len(points) * (chart.right - chart.left), 1)

    chart.y_ticks = [Tick(y(10.0**e), _power(e)) for e in range(low, high + 1, step)]
    chart.y_ticks += [Tick(chart.bottom - 8, "0")] if zero else []
    chart.x_ticks = [Tick(x(i), str(i + 1)) for i in _whole_ticks(len(points))]
    for i, p in enumerate(points):
        told = f"{p.name}: {p.error:.2g}" + ("" if p.bound is None else f", at most {p.bound:.2g} is allowed")
        if p.bound is not None and 0 < p.bound < math.inf:
            chart.marks.append(Mark(x(i), y(p.bound), "bound", told))
        at = y(p.error) if 0 < p.error < math.inf else chart.bottom - 8 if p.error == 0 else y(10.0**high)
        chart.marks.append(Mark(x(i), at, "sampled" if p.sampled else "basis", told))
    chart.legend = [
        ("basis", "on unit impulses (basis)"),
        ("sampled", "on random inputs (sampled)"),
        ("bound", "bound"),
    ]
    return chart


def curve_chart(
    costs: Sequence[float], cut: Sequence[float | None], refitted: Sequence[float | None], what: str
) -> Chart | None:
    """A pruning round by round: what is left of the cost against a figure in percent, after cut and after refit."""
    values = [v for v in (*cut, *refitted) if v is not None and math.isfinite(v)]
    if not values:
        return None
    chart = Chart(f"The {what} against the cost that is left, round by round", "cost left, %", f"{what}, %", 320)
    xs, ys = _span([100.0, *(100 * c for c in costs)]), _span([100 * v for v in values])
    x, y = _scale(xs, chart.right, chart.left), _scale(ys, chart.bottom, chart.top)
    chart.x_ticks = [Tick(x(t), f"{t:g}") for t in _ticks(*xs)]
    chart.y_ticks = [Tick(y(t), f"{t:g}") for t in _ticks(*ys) if 0 <= t <= 100]
    for form, name, found in (("before", "after the cut", cut), ("after", "after the refit", refitted)):
        pairs = [(c, v) for c, v in zip(costs, found, strict=True) if v is not None and math.isfinite(v)]
        chart.lines.append(Line(" ".join(f"{x(100 * c)},{y(100 * v)}" for c, v in pairs), form))
        chart.marks += [
            Mark(x(100 * c), y(100 * v), form, f"{100 * c:.1f} % of the cost, {name}: {100 * v:.2f} %")
            for c, v in pairs
        ]
        chart.legend.append((form, name))
    return chart


def depth_chart(
    title: str, what: str, lines: Sequence[tuple[str, Sequence[float], str]], *, log: bool = False
) -> Chart | None:
    """Figures by depth. lines: name, values and form of each. log: whether a wide span gets a logarithmic axis."""
    known = [v for _, values, _ in lines for v in values if v is not None and math.isfinite(v)]
    if not known:
        return None
    scaled = log and min(known) > 0 and max(known) / min(known) > 10
    chart = Chart(f"{title}, by depth", "places, in their order", what, 260)
    most = max(len(values) for _, values, _ in lines)
    place = _scale((0.0, float(max(most - 1, 1))), chart.left + 8, chart.right - 8)
    heights = [math.log10(v) for v in known] if scaled else known
    span = _span(heights, 1e-9 + 0.1 * max(abs(h) for h in heights) if not scaled else 0.2)
    y = _scale(span, chart.bottom, chart.top)
    chart.y_ticks = [Tick(y(t), f"{10**t:.2g}" if scaled else f"{t:.4g}") for t in _ticks(*span)]
    chart.x_ticks = [Tick(place(i), str(i + 1)) for i in _whole_ticks(most) if i < most]
    for name, values, form in lines:
        points = [(i, v) for i, v in enumerate(values) if v is not None and math.isfinite(v) and (v > 0 or not scaled)]
        at = [(place(i), y(math.log10(v) if scaled else v), i, v) for i, v in points]
        chart.lines.append(Line(" ".join(f"{a},{b}" for a, b, _, _ in at), form))
        chart.marks += [Mark(a, b, form, f"{name}, place {i + 1}: {v:.3g}") for a, b, i, v in at]
        chart.legend.append((form, name))
    return chart


@dataclass(frozen=True)
class Scattered:
    """One model of a benchmark. latency: in milliseconds. value: how good. chosen: whether it is the one picked."""

    name: str
    latency: float
    value: float
    chosen: bool = False


def scatter_chart(points: Sequence[Scattered], what: str, *, percent: bool = True) -> Chart | None:
    """How good models are against their latency, which has a log axis where it is wide. percent: of shares."""
    points = [p for p in points if math.isfinite(p.value) and 0 < p.latency < math.inf]
    if not points:
        return None
    factor, unit = (100.0, ", %") if percent else (1.0, "")
    chart = Chart(f"The {what} of each model against its latency", "latency, ms", f"{what}{unit}", 380)
    wide = max(p.latency for p in points) > 8 * min(p.latency for p in points)
    ys = _span([factor * p.value for p in points], least=1.0 if percent else 1e-3)
    xs = _span([math.log10(p.latency) if wide else p.latency for p in points], least=0.1)
    to_x, y = _scale(xs, chart.left, chart.right), _scale(ys, chart.bottom, chart.top)
    decades = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5)]
    ticks = [t for t in decades if xs[0] <= math.log10(t) <= xs[1]] if wide else _ticks(*xs)
    chart.x_ticks = [Tick(to_x(math.log10(t) if wide else t), f"{t:g}") for t in ticks]
    chart.y_ticks = [Tick(y(t), f"{t:g}") for t in _ticks(*ys) if not percent or t <= 100]
    for p in points:
        at = to_x(math.log10(p.latency) if wide else p.latency)
        told = f"{p.name}: {factor * p.value:.4g}{' %' if percent else ''}, {three_digits(p.latency)} ms"
        chart.marks.append(Mark(at, y(factor * p.value), "chosen" if p.chosen else "after", told))
    _label(chart, [p.name for p in points])
    return chart


def _label(chart: Chart, names: Sequence[str]) -> None:
    """Names the points; each label goes to the first place about its point where it covers nothing."""
    taken = [(m.x - 6, m.y - 6, m.x + 6, m.y + 6) for m in chart.marks]
    for i, (mark, name) in enumerate(zip(chart.marks, names, strict=True)):
        text = name if len(name) <= LABELS else f"…{name[1 - LABELS :]}"
        length = LETTER * len(text)
        others = taken[:i] + taken[i + 1 :]
        for down in (0, -16, 16, -32, 32, -48, 48):
            sides = [("start", mark.x + 10, mark.x + 10 + length), ("end", mark.x - 10 - length, mark.x - 10)]
            boxes = [(a, left, right) for a, left, right in sides if left >= 0 and right <= chart.width]
            free = [
                (anchor, (left, mark.y + down - 7, right, mark.y + down + 7))
                for anchor, left, right in boxes
                if not any(_overlap((left, mark.y + down - 7, right, mark.y + down + 7), o) for o in others)
            ]
            if free:
                anchor, box = free[0]
                taken.append(box)
                at = box[0] if anchor == "start" else box[2]
                chart.marks[i] = replace(mark, label=Label(text, round(at, 1), round(mark.y + down + 4, 1), anchor))
                break


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@dataclass(frozen=True)
class Bar:
    """One layer's width. full, left: lengths of the bars, as shares of the widest."""

    name: str
    before: int
    after: int
    full: float
    left: float


def width_bars(widths: Sequence[tuple[str, int, int]]) -> list[Bar]:
    """The channels of each layer before and after, as shares of the widest."""
    widest = max((max(b, a) for _, b, a in widths), default=0) or 1
    return [Bar(n, b, a, round(100 * b / widest, 2), round(100 * a / widest, 2)) for n, b, a in widths]


# ---- axes --------------------------------------------------------------------------------------------------------


class _scale:
    """A linear map from values to places."""

    def __init__(self, span: tuple[float, float], start: float, end: float) -> None:
        self.low, self.start = span[0], start
        self.factor = (end - start) / (span[1] - span[0])

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) * self.factor, 1)


def _span(values: Sequence[float], least: float = 1.0) -> tuple[float, float]:
    """A little more than the values take."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), least * 0.5)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers inside."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def _whole_ticks(count: int) -> list[int]:
    step = max(1, 10 ** math.floor(math.log10(max(count, 1) / 2 or 1)))
    step = next(m * step for m in (1, 2, 5, 10) if count / (m * step) <= 12)
    return [0, *(i - 1 for i in range(step, count + 1, step) if i > 1)]


def _power(exponent: int) -> str:
    return f"1e{exponent}" if exponent else "1"
