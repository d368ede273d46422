"""Pages for the tests of `page`: of a small network that is converted, and of graphs of any size without one."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.page import Page, conversion_page
from reparam.page.graph import Call, Graph, Weight
from reparam.page.links import Links
from reparam.page.view import REWRITTEN, Side, view_of

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Block(nn.Module):
    """A residual block whose last norm stands behind a sum with a tanh, where nothing can take it."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(x + y)


class Small(nn.Module):
    """A stem, two blocks in a stage, and a norm behind a tanh, which stays."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(Block(), Block())
        self.tanh, self.last = nn.Tanh(), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.tanh(self.stage(self.stem(x))))
        return out


@functools.cache
def conversion(to: str = "fused") -> reparam.Conversion:
    """The small network, converted."""
    torch.manual_seed(0)
    net = Small().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean = torch.randn(4) * 0.1
    return reparam.convert(net, torch.randn(2, 3, 8, 8), to=to)


def page_of(found: reparam.Conversion) -> Page:
    """Its page."""
    report = found.report.with_(input="small.pt", outputs=("small-fused.pt2",))
    return conversion_page(report.as_dict(), found.report.remarks, found.original, found.program, arch="a test")


def with_texts(text: str) -> Page:
    """The page of a conversion in which every text that can come from a file is that one."""
    found = conversion()
    before, after = found.original.copy(), found.program.copy()
    for program in (before, after):
        for node in program.graph.nodes:
            node.meta["module"] = text
            if node.op == "placeholder":
                node.target = text
        constants = {name: dataclasses.replace(c, origin=text) for name, c in program.constants.items()}
        program.constants.clear()
        program.constants.update(constants)
    remarks = [dataclasses.replace(r, module=text, message=text) for r in found.report.remarks]
    report = found.report.with_(input=text, outputs=(text,), remarks=tuple(remarks))
    return conversion_page(report.as_dict(), remarks, before, after, arch=text)


def chain(count: int, prefix: str = "net") -> Graph:
    """A graph of that many calls: blocks of five with a skip, four blocks to a stage."""
    calls = [Call("x", "x", "", "", "Nx4x8x8", "float32", "input")]
    ops = (("conv2d", "layer"), ("batch_norm", "norm"), ("relu", "activation"), ("conv2d", "layer"), ("add", "merge"))
    for i in range(count):
        op, kind = ops[i % 5]
        reads = [calls[-1].name, *([calls[-5].name] if op == "add" else [])]
        weights = (Weight(f"w{i}", "4x4x3x3", "float32", -1.0, 1.0),) if kind == "layer" else ()
        module = f"{prefix}.{i // 20}.{i // 5 % 4}.{op}"
        calls.append(
            Call(f"c{i}", op, "", module, "Nx4x8x8", "float32", kind, 2304 * bool(weights), 144, weights, tuple(reads))
        )
    return Graph(tuple(calls))


def big_page(count: int) -> Page:
    """A page of two graphs of that many calls, of which every fifth was rewritten."""
    before, after = chain(count), chain(count)
    links = {c.name: i for i, c in enumerate(before.calls)}
    status = {c.name: "same" if i % 5 else "gone" for i, c in enumerate(before.calls)}
    made = {name: "new" if s == "gone" else s for name, s in status.items()}
    found = Links(links, links, len(before.calls), (), status, made)
    view = view_of((Side("Before", "a", before), Side("After", "b", after)), found, "Two graphs.", REWRITTEN)
    return Page("big", "convert", "Made up.", view=view, footer="a test")


def benchmark(*names: str) -> dict[str, Any]:
    """The report of a benchmark of models of those names, of which the second is picked."""
    first = {"runtime": f"runs {names[0]}", "by": "torch", "batch": 1, "throughput": 9.0, "speed": 1.0}
    return {
        "reparam": "0",
        "machine": {"cpu": names[0], "cores": 2},
        "shapes": [[3, 8, 8]],
        "rounds": 5,
        "rows": [{"model": n, "median_ms": 2.0**i, **first} for i, n in enumerate(names)],
        "models": [
            {
                "model": name,
                "precision": "fp32",
                "bytes": 46_742_631,
                "peak_bytes": None,
                "score": {"name": "top-1", "value": 0.5 + i / 20, "more": {"top-5": 0.9}, "own": False},
                "agreement": {"share": 0.9, "error": 0.01, "worst": {"input": name, "error": 0.2}},
                "drop": 0.4,
            }
            for i, name in enumerate(names)
        ],
        "data": {"source": names[0], "samples": 100, "labels": names[0], "images": names[0], "note": names[0]},
        "choice": {"model": names[1], "why": f"{names[1]} is the fastest"},
    }


class Structure(HTMLParser):
    """The elements of a page in order, each with the names of its attributes; and the texts of some."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, ...]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, *(name for name, _ in attrs)))
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def browser_path() -> str | None:
    """The browser of this system that the tests drive, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window; skips the test where there is none, with the reason."""
    path = browser_path()
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is there")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
