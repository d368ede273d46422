"""Results show themselves: in one line, as a table in which every text is escaped, and as a dictionary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

import reparam
from reparam.utils import Shown
from support.pages import Structure, conversion
from support.prunable import images, make


def check(found: Shown, *words: str) -> None:
    line = repr(found)
    assert "\n" not in line and line.startswith(f"<{type(found).__name__}: ") and len(line) < 1000
    for word in words:
        assert word in line
    table = Structure(found._repr_html_())
    assert {e[0] for e in table.elements} == {"table", "caption", "tbody", "tr", "th", "td"}
    assert json.dumps(found.to_dict()) and found.to_dict() == found.as_dict()


def test_conversions_and_reports() -> None:
    found = conversion()
    words = ("fused, equivalent", "norms 5 -> 1", "merges 2,", "float64 difference", "rewrites 4", "not done 2")
    check(found, *words)
    check(found.report, *words)
    assert "a dry run" in repr(replace(found.report, equivalent=None, evidence=None))
    assert found.to_dict() == found.report.as_dict()


def test_verdicts() -> None:
    x = torch.randn(2, 3)
    layer = torch.nn.Linear(3, 2)
    check(reparam.verify(layer, layer, x), "<Verdict: equivalent;", "output 0 errors")
    other = torch.nn.Linear(3, 2)
    check(reparam.verify(layer, other, x), "<Verdict: different, output 0 differs by", "they part at")


def test_texts_of_a_notebook_are_escaped() -> None:
    verdict = reparam.Verdict(False, (), reason="<script>alert(1)</script>\x1b[31m", first_divergence="<b>")
    shown = verdict._repr_html_()
    assert "<script" not in shown and "&lt;script&gt;" in shown and "&lt;b&gt;" in shown and "\x1b" not in repr(verdict)


def test_what_prune_gives() -> None:
    found = reparam.prune(make("residual"), images(2), images(40), macs=0.6, form="residual", joint=2)
    check(found, "residual, 60 % of the macs", "difference of the outputs", "held-out samples")
    check(found.report)


def test_what_the_other_functions_give(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    x = torch.rand(2, 3, 6, 6)
    check(reparam.analyze(net, x, what="moments,rank,dead"), "<Analysis: moments", "drawn")
    check(reparam.init(net, x, method="he"), "<Initialised: he; weights set")
    measured = "<Recalibrated: measured again; batch norms 1, batches 1, samples 2"
    check(reparam.recalibrate(net, x, data=x), measured, "means moved by")
    exported = reparam.export(net, x, path=tmp_path / "net.onnx")
    check(exported, "<Exported: net.onnx, fused, equivalent; ", "norms 1 -> 0")
    assert exported.to_dict() == exported.report.as_dict()
