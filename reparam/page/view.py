"""Two graphs as the script of the page reads them: places, texts and links as numbers in arrays.

The order of a call's fields, of the kinds and of the statuses is that of `assets/names.js`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from .graph import Call, Graph, Weight
from .layout import lay_out
from .links import Links
from .stages import Module, figures, tree_of

KINDS = ("input", "output", "layer", "norm", "activation", "pool", "merge", "gate", "other")
STATUSES = ("same", "weights", "changed", "gone", "new")
REWRITTEN = (("gone", "replaced"), ("new", "made"))
DIFFERENT = (("weights", "other weights"), ("changed", "changed"), ("gone", "only in A"), ("new", "only in B"))
_COLOURS = (
    ("layer", "layer"),
    ("norm", "norm"),
    ("activation", "activation"),
    ("pool", "pool"),
    ("merge", "merge, gate"),
)
LONGEST = 300  # characters of a text in the graphs; of a longer one the rest is left out


@dataclass(frozen=True)
class Side:
    """One graph. tag: Before, After, A or B. name: the file. told: its size in words."""

    tag: str
    name: str
    graph: Graph
    told: str = ""


@dataclass(frozen=True)
class View:
    """The graphs of a page. told: how to read them. tree: of their modules. data: JSON for the script.

    legend: classes of the style sheet and what they stand for.
    """

    told: str
    sides: tuple[Side, Side]
    tree: Module
    data: Markup
    legend: tuple[tuple[str, str], ...]


def view_of(sides: tuple[Side, Side], links: Links, told: str, words: Sequence[tuple[str, str]]) -> View:
    """Lays the graphs out. words: what the statuses are called, those that are in the legend."""
    tree = tree_of(sides[0].graph, sides[1].graph)
    named = {"same": "unchanged", **dict(words)}
    rows = (
        _side(sides[0], links.before, links.status_before, named),
        _side(sides[1], links.after, links.status_after, named),
    )
    data = to_script({"sides": rows, "regions": links.regions, "tree": _branch(tree)})
    first, second = (replace(side, told=row["told"]) for side, row in zip(sides, rows, strict=True))
    return View(told, (first, second), tree, data, (*words, *_COLOURS))


def _side(
    side: Side, links: Mapping[str, int], statuses: Mapping[str, str], words: Mapping[str, str]
) -> dict[str, Any]:
    edges = side.graph.edges
    inputs = {i for i, c in enumerate(side.graph.calls) if c.kind == "input"}
    placed = lay_out(len(side.graph.calls), edges, inputs)
    calls = [
        _call(c, links.get(c.name, -1), statuses.get(c.name, "same"), x, y)
        for c, x, y in zip(side.graph.calls, placed.x, placed.y, strict=True)
    ]
    return {
        "tag": side.tag,
        "told": f"{figures(list(side.graph.calls)).calls:,} calls in {placed.layers:,} layers",
        "words": [words.get(s, "") for s in STATUSES],
        "width": placed.width,
        "height": placed.height,
        "calls": calls,
        "edges": [list(e) for e in edges],
        "segments": [n for segment in placed.segments for n in segment],
    }


def _call(c: Call, link: int, status: str, x: int, y: int) -> list[Any]:
    texts = [shortened(t) for t in (c.name, c.op, c.settings, c.module, c.shape, c.dtype)]
    numbers = [KINDS.index(c.kind), STATUSES.index(status), link, x, y, c.macs, c.params]
    return [*texts, *numbers, [_weight(w) for w in c.weights]]


def _weight(w: Weight) -> list[str | None]:
    low, high = (None if v is None else f"{v:.4g}" for v in (w.low, w.high))
    return [shortened(w.name), w.shape, w.dtype, low, high]


def shortened(text: str) -> str:
    """The text, of a very long one its beginning."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _branch(module: Module) -> list[Any]:
    """Nested arrays, made without recursion: a path may have any number of parts."""
    made: dict[str, list[Any]] = {}
    stack = [module]
    order: list[Module] = []
    while stack:
        top = stack.pop()
        order.append(top)
        stack.extend(top.children)
    for m in reversed(order):
        made[m.path] = [shortened(m.path), m.before.calls, m.after.calls, [made[c.path] for c in m.children]]
    return made[""]


def to_script(value: Any) -> Markup:
    """JSON that can stand in a script element whatever texts are in it: no markup, and nothing but ASCII."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # safe: see the line above
