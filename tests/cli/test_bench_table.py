"""The table of `bench` in terminals of any width: nothing is broken in two, and nothing is left out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from reparam.cli.bench_work import render_bench
from support.pages import benchmark

NAMES = ("base.pt", "fused.onnx", "int8.onnx", "pruned.onnx")


def report() -> dict[str, object]:
    """Of four models, with everything that a table can have."""
    made = benchmark(*NAMES)
    made["machine"] |= {"threads": 2, "platform": "Linux", "torch": "2"}
    made["data"] |= {"labels": "its folders", "note": ""}
    made["figure"] = "top-1"
    for row in made["rows"]:
        row |= {"low_ms": 0.5, "high_ms": 10.25, "host_ms": None, "device_ms": None}
    for model in made["models"]:
        model["peak_bytes"] = 344_064
        model["agreement"]["worst"] = {"input": f"digits/7/{model['model']}.png", "error": 0.2}
    return made


def shown(width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    for part in render_bench(report(), width):
        console.print(part)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def heads(lines: list[str]) -> list[list[str]]:
    return [[h for h in line.split("  ") if h] for line in lines if line.startswith("model")]


def test_a_wide_terminal_has_one_row_for_each_model() -> None:
    (head,) = heads(shown(220))
    assert head[0] == "model" and len(head) == 15


@pytest.mark.parametrize("width", [140, 100, 80, 70])
def test_a_narrow_one_has_the_accuracy_first_and_the_times_below(width: int) -> None:
    lines = shown(width)
    found = heads(lines)
    (whole,) = heads(shown(220))
    assert len(found) > 1 and all(head[0] == "model" for head in found)
    assert [h.strip() for head in found for h in head[1:]] == [h.strip() for h in whole[1:]]
    assert any(head[1].strip() == "median ms" for head in found)
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("100 samples"))]
    for name in NAMES:
        assert sum(line.startswith(name) for line in table) == len(found)
    assert max(map(len, table)) <= width and all("…" not in line for line in table)


def test_what_no_terminal_can_hold_is_shown_column_by_column() -> None:
    found = heads(shown(20))
    assert len(found) == 14
