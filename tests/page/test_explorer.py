"""What Model Explorer is given: JSON of its own classes, overlays of what was measured, a server that gives no more."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import struct
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reparam.engines import ListedCall
from reparam.errors import MachineError
from reparam.page import Exploration, ExplorerServer, explore, explore_rewrites, explore_two, find_explorer
from reparam.report import Remark
from support.pages import browser, conversion

# The classes of model_explorer.graph_builder and node_data_builder: the fields that are used, and what each holds.
SCHEMA: dict[str, dict[str, Any]] = {
    "Graph": {"id": str, "nodes": ["GraphNode"], "groupNodeAttributes": dict},
    "GraphNode": {
        "id": str,
        "label": str,
        "namespace": str,
        "attrs": ["KeyValue"],
        "incomingEdges": ["IncomingEdge"],
        "outputsMetadata": ["MetadataItem"],
    },
    "IncomingEdge": {"sourceNodeId": str, "sourceNodeOutputId": str, "targetNodeInputId": str},
    "KeyValue": {"key": str, "value": str},
    "MetadataItem": {"id": str, "attrs": ["KeyValue"]},
    "GraphNodeData": {
        "results": {"NodeDataResult"},
        "name": str,
        "thresholds": ["ThresholdItem"],
        "gradient": ["GradientItem"],
        "hideAggregatedStats": [str],
    },
    "NodeDataResult": {"value": (int, float, str), "bgColor": str},
    "ThresholdItem": {"value": float, "bgColor": str},
    "GradientItem": {"stop": float, "bgColor": str},
}


def check(value: Any, kind: Any) -> None:
    """That JSON is of a class of the schema, or of a type of Python's."""
    if isinstance(kind, list):
        for item in value:
            check(item, kind[0])
    elif isinstance(kind, set):
        assert all(isinstance(k, str) for k in value)
        for item in value.values():
            check(item, next(iter(kind)))
    elif isinstance(kind, str):
        assert value.keys() <= SCHEMA[kind].keys()
        for name, item in value.items():
            check(item, SCHEMA[kind][name])
    else:
        assert isinstance(value, kind)


def check_all(found: Exploration) -> None:
    """Classes, unique identifiers, edges and overlays that lead to nodes."""
    known = {}
    for graph in json.loads(json.dumps(found.collection, allow_nan=False))["graphs"]:
        check(graph, "Graph")
        ids = [n["id"] for n in graph["nodes"]]
        assert len(set(ids)) == len(ids) > 0
        assert all(e["sourceNodeId"] in ids for n in graph["nodes"] for e in n["incomingEdges"])
        assert all(isinstance(v, str) for group in graph["groupNodeAttributes"].values() for v in group.values())
        known[graph["id"]] = ids
    assert len(known) == len(found.graphs)
    for name, overlay in found.overlays.items():
        for title, content in json.loads(json.dumps(overlay, allow_nan=False)).items():
            check(content, "GraphNodeData")
            assert content["name"] == name and content["results"].keys() <= set(known[title])


def rewritten(to: str = "fused") -> Exploration:
    found = conversion(to)
    return explore_rewrites("dir/small.pt", found.original, found.program, found.report.remarks)


def node(graph: dict[str, Any], label: str, layer: str) -> dict[str, Any]:
    (found,) = (n for n in graph["nodes"] if n["label"] == label and {"key": "layer", "value": layer} in n["attrs"])
    return dict(found)


def attributes(of: dict[str, Any]) -> dict[str, str]:
    return {a["key"]: a["value"] for a in of["attrs"]}


# ---- graphs ------------------------------------------------------------------------------------------------------


def test_a_node_has_its_layer_its_shape_and_its_weights_ranges() -> None:
    program = conversion().original
    found = explore("dir/small.pt", program)
    check_all(found)
    (graph,) = found.graphs
    assert (found.label, graph["id"], list(found.overlays)) == ("small.pt", "small.pt", ["parameters", "MACs"])
    conv = node(graph, "conv2d", "stage.0.conv1")
    told, value = attributes(conv), program.constants["stage.0.conv1.weight"].value.detach()
    low, high = float(value.min()), float(value.max())
    assert conv["namespace"] == "stage/0/conv1"
    assert told["weight stage.0.conv1.weight"] == f"4x4x3x3 float32, from {low:.4g} to {high:.4g}"
    assert (told["settings"], told["MACs"], told["parameters"]) == ("padding=1", "9,216", "148")
    assert conv["outputsMetadata"][0]["attrs"] == [{"key": "tensor_shape", "value": "float32[Nx4x8x8]"}]
    assert graph["groupNodeAttributes"][""] == {
        "calls": "17", "merges": "2", "gates": "0", "parameters": "528", "MACs": "27,392"
    }  # fmt: skip
    assert graph["groupNodeAttributes"]["stage/0"]["calls"] == "7"
    results = found.overlays["MACs"]["small.pt"]["results"]
    assert results[conv["id"]] == {"value": 9216} and sum(r["value"] for r in results.values()) == 27392


@pytest.mark.parametrize("to", ["fused", "plain"])
def test_the_error_of_every_rewrite_lies_on_what_it_replaced_and_made(to: str) -> None:
    found = rewritten(to)
    check_all(found)
    before, after = found.graphs
    assert (before["id"], after["id"], list(found.overlays)[-1]) == ("before", "after", "error")
    passed = [r for r in conversion(to).report.remarks if r.kind == "passed"]
    worst = max(r.max_abs or 0.0 for r in passed)
    errors = found.overlays["error"]
    for graph in (before, after):
        values = [r["value"] for r in errors[graph["id"]]["results"].values()]
        assert max(values) == float(f"{worst:.3g}")
        told = {n["id"] for n in graph["nodes"] if "rewrite 1" in attributes(n)}
        assert set(errors[graph["id"]]["results"]) == told
    if to == "fused":
        remark = next(r for r in passed if r.module == "stage.0.norm1")
        assert remark.max_abs is not None and remark.bound is not None
        for graph, label, layer in ((before, "batch_norm", "stage.0.norm1"), (after, "conv2d", "stage.0.conv1")):
            own = node(graph, label, layer)
            assert errors[graph["id"]]["results"][own["id"]]["value"] == float(f"{remark.max_abs:.3g}")
            share = found.overlays["share of bound"][graph["id"]]["results"][own["id"]]["value"]
            assert share == float(f"{remark.max_abs / remark.bound:.3g}")
            assert attributes(own)["rewrite 1"].startswith("fold-batch-norm: folded into")
        tanh = node(after, "tanh", "tanh")
        assert tanh["id"] not in errors["after"]["results"]


def test_what_became_what_has_one_identifier_in_both_graphs() -> None:
    before, after = rewritten().graphs
    for layer in ("stage.0.conv1", "stem"):
        assert node(before, "conv2d", layer)["id"] == node(after, "conv2d", layer)["id"]
    ids = {n["id"] for n in after["nodes"]}
    assert node(before, "batch_norm", "stage.0.norm1")["id"] not in ids
    changes = rewritten().overlays["change"]
    conv = node(before, "conv2d", "stage.0.conv1")["id"]
    assert [changes[g]["results"][conv]["value"] for g in ("before", "after")] == ["replaced", "made"]


def test_a_rewrite_of_several_regions_marks_each_of_them_with_its_error() -> None:
    """Of the calls that it names alone, as the regions may hold what other rewrites did."""
    found = conversion()
    names = [n.name for n in found.original.calls()][:2]
    remark = Remark("passed", "shrink", "", "", "whole", 0.25, links=(((names[0],), ()), ((names[1],), ())))
    made = explore_rewrites("x", found.original, found.program, [remark])
    assert [r["value"] for r in made.overlays["error"]["before"]["results"].values()] == [0.25, 0.25]


def test_two_models_are_aligned_as_diff_aligns_them() -> None:
    found = conversion()
    made = explore_two(("a.pt", "b.pt2"), found.original, found.program)
    check_all(made)
    assert [g["id"] for g in made.graphs] == ["A: a.pt", "B: b.pt2"] and list(made.overlays)[-1] == "change"
    gone = node(made.graphs[0], "batch_norm", "stage.0.norm1")["id"]
    assert made.overlays["change"]["A: a.pt"]["results"][gone]["value"] == "only in A"


def test_the_calls_that_an_engine_lists_need_no_costs() -> None:
    calls = [
        ListedCall("a/b", "conv2d(1x1x1x1, bias)", "Nx1x4x4", "conv2d a.w", (), ("p",), ("<x>",)),
        ListedCall("", "relu", "Nx1x4x4", "", (), ("q",), ("p",)),
    ]
    found = explore("net.onnx", calls)
    check_all(found)
    (graph,) = found.graphs
    assert [n["label"] for n in graph["nodes"]] == ["<x>", "conv2d", "relu"]
    assert graph["nodes"][1]["namespace"] == "a\N{DIVISION SLASH}b" and "MACs" not in graph["groupNodeAttributes"][""]


def test_texts_of_a_file_are_in_no_identifier() -> None:
    text = '</script><img src=x onerror="1">/..;\x1b[31m'
    found = conversion()
    program = found.original.copy()
    for each in program.graph.nodes:
        each.meta["module"] = f"{text}.{'y' * 5000}"
        if each.op == "placeholder":
            each.target = text
    made = explore(f"dir/{text}", program)
    check_all(made)
    (graph,) = made.graphs
    assert all(n["id"].removeprefix("call").isdecimal() for n in graph["nodes"])
    shown = json.dumps(made.collection, ensure_ascii=False)
    assert "\x1b" not in shown and max(len(a["value"]) for n in graph["nodes"] for a in n["attrs"]) <= 300
    assert all(len(n["namespace"].split("/")) <= 24 for n in graph["nodes"])


def test_the_schema_is_that_of_model_explorer() -> None:
    """Where it is installed: every class has the fields, and makes itself of them."""
    package = pytest.importorskip("model_explorer", reason="ai-edge-model-explorer is not installed")
    for name, fields in SCHEMA.items():
        builder = package.graph_builder if hasattr(package.graph_builder, name) else package.node_data_builder
        assert fields.keys() <= {f.name for f in dataclasses.fields(getattr(builder, name))}
    for title, content in rewritten().overlays["error"].items():
        data = package.node_data_builder.GraphNodeData(**content)
        assert data.name == "error" and title in ("before", "after")


# ---- the server --------------------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A page of Model Explorer, made up, and a file beside it that is not of the page."""
    folder = tmp_path / "web_app"
    (folder / "static").mkdir(parents=True)
    (folder / "index.html").write_text("<title>page</title>")
    (folder / "static" / "main.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


@contextmanager
def serving(found: Exploration, app: Path) -> Iterator[ExplorerServer]:
    with ExplorerServer(found, app) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ExplorerServer, path: str, *, method: str = "GET", host: str | None = None) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    answer = connection.getresponse()
    status, text, headers = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return status, text, headers


def test_the_server_gives_the_page_the_graphs_and_the_overlays(app: Path) -> None:
    found = rewritten()
    with serving(found, app) as server:
        assert server.server_address[0] == "127.0.0.1" and server.url.startswith(
            f"http://127.0.0.1:{server.server_port}/?"
        )
        assert ask(server, "/")[:2] == ask(server, "/index.html")[:2] == (200, "<title>page</title>")
        _, _, headers = ask(server, "/static/main.js")
        assert headers["Content-Type"].startswith("text/javascript") and headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        data = json.loads(urllib.parse.parse_qs(urllib.parse.urlsplit(server.url).query)["data"][0])
        assert [m["url"] for m in data["models"]] == ["graphs://before/0", "graphs://after/1"]
        assert len(data["uiState"]["paneStates"]) == 2 and data["sync"] == {"mode": "match_node_id"}
        graphs = [json.loads(ask(server, f"/api/v1/load_graphs_json?graph_index={i}")[1])["graphs"][0] for i in (0, 1)]
        assert graphs == list(found.graphs)
        for source, target in zip(data["nodeData"], data["nodeDataTargets"], strict=True):
            name, _, index = source.removeprefix("node_data://").rpartition("/")
            content = json.loads(ask(server, f"/api/v1/load_node_data?node_data_index={index}")[1])["content"]
            assert json.loads(content) == {target: found.overlays[name][target]}
        assert json.loads(ask(server, "/api/v1/check_new_version")[1])["version"] == ""
        assert [e["id"] for e in json.loads(ask(server, "/api/v1/get_extensions")[1])] == ["builtin_json"]
        assert ask(server, "/apistream/server_director")[0] == 204


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/static/../../secret.txt", "/%2e%2e/secret.txt", "//secret.txt", "/nothing.js", "/static",
        "/api/v1/read_text_file?path=/etc/hostname", "/api/v1/send_command?json={}",
        "/api/v1/load_graphs_json", "/api/v1/load_graphs_json?graph_index=7",
        "/api/v1/load_node_data?node_data_index=-1",
    ],
)  # fmt: skip
def test_the_server_gives_nothing_else(app: Path, path: str) -> None:
    with serving(rewritten(), app) as server:
        status, text, _ = ask(server, path)
        assert status == 404 and "secret" not in text


def test_only_this_machine_by_its_own_name_is_answered(app: Path) -> None:
    with serving(rewritten(), app) as server:
        assert ask(server, "/", host=f"localhost:{server.server_port}")[0] == 200
        for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
            assert ask(server, "/", host=host)[:2] == (403, "")
        assert ask(server, "/apipost/v1/upload", method="POST")[0] == 501
        assert ask(server, "a://[")[0] == 400
        with pytest.raises(MachineError, match=f"cannot listen on port {server.server_port} .*--port"):
            ExplorerServer(rewritten(), app, server.server_port)


def test_a_connection_that_breaks_off_is_no_news(app: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(rewritten(), app) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.server_port)) as broken:
                broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at its end
                broken.sendall(b"GET /api/v1/load_graphs_json?graph_index=0 HTTP/1.1\r\nHost: x")
        assert ask(server, "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_package_without_its_page_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_explorer").mkdir()
    (tmp_path / "model_explorer" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model_explorer", raising=False)
    with pytest.raises(MachineError, match=r"has no page in .*web_app; install it again"):
        find_explorer()


def test_model_explorer_itself_shows_both_graphs_and_asks_for_nothing() -> None:
    """Where it is installed, in a browser: nothing leaves this machine, whatever the page tries."""
    try:
        page = find_explorer()
    except MachineError as error:
        pytest.skip(str(error))
    with browser() as opened, serving(rewritten(), page) as server:
        tab = opened.new_page(viewport={"width": 1500, "height": 950})
        answered: list[str] = []
        failures: list[str] = []
        tab.on("response", lambda r: answered.append(r.url))
        tab.on("pageerror", lambda e: failures.append(str(e)))
        tab.goto(server.url)
        tab.get_by_text("after | after").wait_for(timeout=60_000)
        tab.get_by_text("made", exact=True).first.wait_for(timeout=60_000)
        assert tab.get_by_text("replaced", exact=True).count() == 8
        search = tab.locator("input[placeholder^='Search nodes']").first
        search.fill("stage.0.conv1")
        tab.get_by_text("conv2d", exact=True).first.wait_for(timeout=60_000)
        assert not failures
        assert all(u.startswith((f"http://127.0.0.1:{server.server_port}/", "data:", "blob:")) for u in answered)
