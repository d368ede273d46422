"""The page as a file: whole in itself, every text escaped, wherever it comes from."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from typing import Any

import pytest

from reparam.compare import diff_calls, read_calls
from reparam.page import Page, Section, analysis_page, bench_page, diff_page, prune_page, render, verify_page
from reparam.page.view import to_script
from reparam.signal import Analysis, Table
from support.pages import Structure, benchmark, big_page, conversion, page_of, with_texts
from support.payloads import PAYLOADS

MARKUP = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "' onmouseover='window.pwned=1",
    "</title></style><b>bold</b>",
    "<!--",
    "]]><!-- -->",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&amp;",
    "javascript:window.pwned=1",
    "</td></tr></table><h1>x",
    "\ud800<b>",
)
HOSTILE = (*MARKUP, *(p for p in PAYLOADS if p.strip()))


def data_of(text: str) -> Any:
    """What the script of the page reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


@functools.cache
def harmless(text: str) -> list[tuple[str, ...]]:
    """The elements of the page with another text that has as many parts, each as empty."""
    return Structure(render(with_texts(text))).elements


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_of_a_file_becomes_markup(text: str) -> None:
    page = render(with_texts(text))
    assert Structure(page).elements == harmless(re.sub("[^.]+", "a", text))
    page.encode("utf-8", errors="strict")
    assert data_of(page)["sides"][0]["calls"]


def test_texts_arrive_as_they_are() -> None:
    text = "<b>&amp;\"'</b>"
    found = Structure(render(with_texts(text)))
    assert any(text in t for t in found.texts["h1"]) and any(text in t for t in found.texts["title"])
    assert text in {value for _, name, value in found.attributes if name == "data-module"}
    assert data_of(render(with_texts(text)))["sides"][0]["calls"][1][3] == text


def test_the_pages_of_other_verbs_escape_too() -> None:
    text = MARKUP[1]
    found = conversion()
    report = {"reparam": "0", "a": text, "b": text, "seconds": {}}
    rows = diff_calls(read_calls(found.original), read_calls(found.program))
    pages = {
        "diff": lambda t: diff_page({**report, **rows.as_dict(), "a": t, "b": t}, rows, found.original, found.program),
        "verify": lambda t: verify_page(verdict(t), None, None),
        "bench": lambda t: bench_page(benchmark(t, f"{t}2")),
        "analyze": lambda t: analysis_page({"reparam": "0"}, {t: analysed(t), f"{t}2": analysed(t)}),
        "prune": lambda t: prune_page(pruning(t), found, arch=t),
        "section": lambda t: Page(t, t, t, sections=[Section("s", t, [t])], footer=t, facts=[(t, t)]),
    }  # fmt: skip
    for make in pages.values():
        assert Structure(render(make(text))).elements == Structure(render(make("harmless"))).elements


def analysed(text: str) -> Analysis:
    row = (text, "call", 1.0, None)
    series = {text: (1.0, float("nan"), 30.0), "empty": ()}
    table = Table("moments", text, ("place", text, "a", "b"), (row,), series, True, facts={text: text}, notes=(text,))
    return Analysis((table,), {text: text}, (text,))


def verdict(text: str) -> dict[str, Any]:
    output = dict.fromkeys(("difference", "error_a", "error_b", "bar", "peak", "peak_bar", "size"), 1e-7)
    return {
        "reparam": "0", "a": text, "b": text, "verdict": "different", "reason": text, "first_divergence": text,
        "adversarial": {"worst": 2.0, "inputs": 3.0}, "shapes": [[1, 3, 8, 8]], "trials": 8, "seed": 0,
        "runtimes": [text, text], "outputs": [{"index": 0, "ok": False, **output}],
        "data": {"samples": 9, "share": 0.9, "error": 0.1, "changed": 1,
                 "differing": [{"input": text, "error": 0.2, "first": 1, "second": 2}]},
    }  # fmt: skip


def pruning(text: str) -> dict[str, Any]:
    quality = {"samples": 9, "error": 0.1, "agreement": 0.9, "kl": 0.01, "accuracy": None}
    own = conversion().report.as_dict()
    return own | {
        "input": text, "outputs": [text], "budget": {"macs": 0.5}, "target": "residual",
        "quality": {"original": quality, "pruned": quality}, "samples": {"chosen": 30, "held_out": 9},
        "curve": [{"cost": 0.5, "cut": quality, "refitted": quality}],
        "joint": {"steps": 0, "taken": 0, "before": quality, "after": quality, "refused": text},
        "forms": {"residual": {"macs": 1, "params": 2, "time": None}, "plain": {"refused": text}},
        "widths": [{"name": text, "before": [3, 8], "after": [3, 4]}], "near_floor": [text], "scarce": [],
        "idle": {text: 1},
    }  # fmt: skip


def test_json_in_a_script_holds_no_markup_and_nothing_but_ascii() -> None:
    text = to_script([*HOSTILE, "\u2028\ud800é"])
    assert text.isascii() and not re.search("[<>&]", text)
    assert json.loads(text) == [*HOSTILE, "\u2028\ud800é"]


# ---- whole in itself ---------------------------------------------------------------------------------------------


def test_the_page_names_no_address_and_only_its_own_script_may_run() -> None:
    text = render(page_of(conversion()))
    found = Structure(text)
    for tag, name, value in found.attributes:
        assert name not in ("src", "srcset", "action", "style", "formaction") and not name.startswith("on")
        assert name != "href" or value.startswith("#") or (tag, value) == ("link", "data:,")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text.replace("http-equiv", ""))
    policy = next(v for t, n, v in found.attributes if (t, n) == ("meta", "content") and "default-src" in v)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    script = re.findall(r"<script>(.*?)</script>", text, re.S)
    style = re.findall(r"<style>(.*?)</style>", text, re.S)
    for (content,), directive in ((script, "script-src"), (style, "style-src")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_the_script_never_makes_markup_of_text() -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", render(page_of(conversion())), re.S)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|fetch\(|XMLHttp|import\(", script
    )


def test_the_same_page_twice_is_the_same_file() -> None:
    assert render(page_of(conversion())) == render(page_of(conversion()))


def test_a_page_of_two_thousand_calls_is_small() -> None:
    assert len(render(big_page(2000)).encode()) < 1_500_000


# ---- for all readers ---------------------------------------------------------------------------------------------


def test_what_is_seen_can_be_read() -> None:
    found = Structure(render(page_of(conversion())))
    named = {(t, v) for t, n, v in found.attributes if n == "role"}
    assert ("canvas", "img") in named and ("div", "tree") in named
    tags = [e[0] for e in found.elements]
    assert tags.count("table") == tags.count("caption") and tags.count("h1") == 1 and "main" in tags and "nav" in tags
    for element in found.elements:
        assert element[0] != "canvas" or {"role", "aria-label", "tabindex"} <= set(element)
        assert element[:2] != ("svg", "class") or "aria-labelledby" in element
    ids = [v for _, n, v in found.attributes if n == "id"]
    assert len(ids) == len(set(ids))
    references = {v for _, n, v in found.attributes if n in ("aria-labelledby", "aria-controls")}
    assert references <= set(ids) and {v[1:] for _, n, v in found.attributes if n == "href" and v[0] == "#"} <= set(ids)
