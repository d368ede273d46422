"""Pictures: marks lie where their figures say, and nothing that cannot be drawn stops a page."""

from __future__ import annotations

import math

import pytest

from reparam.page.charts import ErrorPoint, Scattered, curve_chart, depth_chart, errors_chart, scatter_chart, width_bars
from reparam.page.words import bytes_told, change, count, figure, shapes_told, share


def test_errors_lie_below_their_bounds_on_a_log_axis() -> None:
    chart = errors_chart([ErrorPoint("a", 1e-15, 1e-12, True), ErrorPoint("b", 1e-13, 1e-12, False)])
    assert chart is not None
    bounds = [m.y for m in chart.marks if m.form == "bound"]
    (first,), (second,) = ([m for m in chart.marks if m.form == form] for form in ("sampled", "basis"))
    assert bounds[0] == bounds[1] < second.y < first.y
    ticks = {t.text: t.at for t in chart.y_ticks}
    assert first.y == pytest.approx(ticks["1e-15"]) and second.y == pytest.approx(ticks["1e-13"])
    assert first.title == "a: 1e-15, at most 1e-12 is allowed"


def test_an_error_of_zero_lies_on_its_own_line() -> None:
    chart = errors_chart([ErrorPoint("a", 0.0, 1e-12, True)])
    assert chart is not None
    dot = next(m for m in chart.marks if m.form == "sampled")
    assert [t.at for t in chart.y_ticks if t.text == "0"] == [dot.y] and dot.y < chart.bottom


@pytest.mark.parametrize("error", [0.0, math.nan, math.inf, 1e300])
def test_no_figure_stops_the_picture(error: float) -> None:
    points = [ErrorPoint("a", error, None, True), ErrorPoint("b", 1e-9, math.inf, True)]
    chart = errors_chart(points)
    assert chart is not None and all(math.isfinite(m.x) and math.isfinite(m.y) for m in chart.marks)
    assert errors_chart([ErrorPoint("a", 0.0, None, True)]) is None and errors_chart([]) is None


def test_figures_by_depth_lie_in_their_order_and_on_a_log_axis_where_they_are_wide() -> None:
    chart = depth_chart("moments", "variance", [("a", (1.0, 10.0, 1000.0), "before"), ("b", (5.0,), "after")], log=True)
    assert chart is not None
    first, second, third = (m for m in chart.marks if m.form == "before")
    assert first.x < second.x < third.x and first.y > second.y > third.y
    assert third.y - second.y == pytest.approx(2 * (second.y - first.y), abs=0.3)
    ticks = {t.text: t.at for t in chart.y_ticks}
    assert second.y == pytest.approx(ticks["10"]) and chart.legend == [("before", "a"), ("after", "b")]
    linear = depth_chart("m", "v", [("a", (1.0, 2.0, 4.0), "after")], log=True)
    assert linear is not None and [m.title for m in linear.marks][-1] == "a, place 3: 4"
    gaps = [b.y - a.y for a, b in zip(linear.marks, linear.marks[1:], strict=False)]
    assert gaps[1] == pytest.approx(2 * gaps[0], abs=0.3)


@pytest.mark.parametrize("value", [0.0, -3.0, math.nan, math.inf, 1e300])
def test_no_figure_stops_a_picture_by_depth(value: float) -> None:
    chart = depth_chart("m", "v", [("a", (value, 2.0), "after"), ("b", (), "before")], log=True)
    assert chart is not None and all(math.isfinite(m.x) and math.isfinite(m.y) for m in chart.marks)
    assert depth_chart("m", "v", [("a", (math.nan,), "after")]) is None


def test_the_curve_goes_with_the_cost() -> None:
    chart = curve_chart([0.8, 0.5], [0.9, 0.7], [0.95, 0.9], "agreement")
    assert chart is not None
    cut, refitted = ([m for m in chart.marks if m.form == form] for form in ("before", "after"))
    assert cut[0].x == refitted[0].x < cut[1].x and cut[1].y > refitted[1].y
    assert len(chart.lines) == 2 and cut[0].title == "80.0 % of the cost, after the cut: 90.00 %"
    assert curve_chart([0.5], [None], [None], "agreement") is None


def test_a_scatter_has_each_model_where_it_belongs() -> None:
    points = [Scattered("slow", 100.0, 0.8), Scattered("fast", 2.0, 0.7, True), Scattered("bad", 50.0, 0.1)]
    chart = scatter_chart(points, "accuracy")
    assert chart is not None
    slow, fast, bad = chart.marks
    assert fast.x < bad.x < slow.x and slow.y < fast.y < bad.y
    assert (fast.form, slow.form) == ("chosen", "after")
    assert all(m.label is not None and m.label.text in m.title for m in chart.marks)
    assert fast.title == "fast: 70 %, 2 ms"
    alone = scatter_chart([Scattered("a", 3.0, 0.123), Scattered("b", math.inf, 1.0)], "loss", percent=False)
    assert alone is not None and [m.title for m in alone.marks] == ["a: 0.123, 3 ms"]
    assert math.isfinite(alone.marks[0].x) and scatter_chart([], "accuracy") is None


def test_names_of_models_do_not_cover_each_other() -> None:
    near = [Scattered(f"a model with a name {i}", 10.0 + i / 9, 0.5) for i in range(4)]
    chart = scatter_chart([*near, Scattered("far", 60.0, 0.5)], "accuracy")
    assert chart is not None
    places = [(m.label.anchor, m.label.y) for m in chart.marks[:4] if m.label is not None]
    assert len(places) == len(set(places)) == 4


def test_bars_are_shares_of_the_widest() -> None:
    assert [(b.full, b.left) for b in width_bars([("a", 10, 5), ("b", 40, 0)])] == [(25.0, 12.5), (100.0, 0.0)]
    assert width_bars([]) == [] and width_bars([("a", 0, 0)])[0].full == 0


def test_figures_as_texts() -> None:
    assert [count(n) for n in (0, 53, 99_999, 25_530_472, 4_089_184_256)] == ["0", "53", "99,999", "25.53 M", "4.089 G"]
    assert [change(5, 5), change(175, 122), change(10**6, 2 * 10**6), change(10**6, 900_000)] == [
        "=", "\N{MINUS SIGN}53", "2 times", "\N{MINUS SIGN}10 %",
    ]  # fmt: skip
    assert [figure(None), figure(0.0), figure(math.inf), figure(1.23456e-15)] == ["", "0", "infinite", "1.23e-15"]
    assert [figure(v) for v in (3442.1, 999.4, 999.6, 0.0356)] == ["3,442", "999", "1,000", "0.0356"]
    assert [share(v) for v in (None, 0.0, 1e-9, 1.0)] == ["", "0 %", "1e-07 %", "100.00 %"]
    assert bytes_told(1023 * 1024) == "1,023 KiB"
    assert share(0.12345) == "12.35 %" or share(0.12345) == "12.34 %"
    assert [bytes_told(n) for n in (None, 0, 100, 46_742_631)] == ["", "", "100 B", "44.6 MiB"]
    assert shapes_told([[1, 3, 8, 8], [2, 3, 5, 5], [2, 3, 5, 5]]) == "1×3×8×8, 2 of 2×3×5×5"
