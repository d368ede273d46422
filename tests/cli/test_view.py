"""`view`: the files of --out, the server and its end, and what is refused before any work."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reparam.cli import view_work
from support.choice import mostly_in_sweeps
from support.cli_helpers import files, prepare_folder, refuse, run, succeed

A = ("tiny.pt", "--arch-a", "cli_nets:tiny")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder with a network and its checkpoint; Model Explorer is missing there."""
    monkeypatch.setattr("importlib.util.find_spec", _without_explorer)
    return prepare_folder(tmp_path, monkeypatch)


_FIND = __import__("importlib.util").util.find_spec


def _without_explorer(name: str, package: str | None = None) -> Any:
    return None if name == "model_explorer" else _FIND(name, package)


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def test_out_writes_what_model_explorer_reads_and_needs_it_not() -> None:
    done = succeed("view", *A, "--to", "fused", "--out", "net.json")
    assert "net.json: the graphs for Model Explorer; overlays beside it: net.parameters.json" in done.stdout
    assert [g["id"] for g in read("net.json")["graphs"]] == ["before", "after"]
    assert read("net.json")["label"] == "tiny.pt"
    overlays = {"net.parameters.json", "net.macs.json", "net.change.json", "net.bound.json", "net.error.json"}
    assert files(Path()) == {"cli_nets.py", "tiny.pt", "net.json", *overlays}
    before = read("net.json")["graphs"][0]
    layers = [a["value"] for n in before["nodes"] for a in n["attrs"] if a["key"] == "layer"]
    assert layers[:3] == ["0", "1", "2"]
    assert all(0 <= r["value"] < 1e-10 for r in read("net.error.json")["before"]["results"].values())


def test_one_model_alone_and_two_models_side_by_side() -> None:
    succeed("view", *A, "--out", "one.json", "--quiet")
    assert [g["id"] for g in read("one.json")["graphs"]] == ["tiny.pt"] and not Path("one.change.json").exists()
    assert run("convert", "tiny.pt", "--arch", "cli_nets:tiny", "--quiet").exit_code == 0
    succeed("view", *A[:1], "tiny-fused.pt2", *A[1:], "--out", "two.json")
    assert [g["id"] for g in read("two.json")["graphs"]] == ["A: tiny.pt", "B: tiny-fused.pt2"]
    assert "only in A" in {r["value"] for r in read("two.change.json")["A: tiny.pt"]["results"].values()}


def test_an_onnx_file_is_shown_as_it_is_and_rewritten_as_it_is_imported() -> None:
    pytest.importorskip("onnxscript")
    assert run("export", "tiny.pt", "--arch", "cli_nets:tiny", "--format", "onnx", "-o", "tiny.onnx").exit_code == 0
    succeed("view", "tiny.onnx", "--out", "net.json")
    labels = [n["label"] for n in read("net.json")["graphs"][0]["nodes"]]
    assert labels.count("conv2d") == 2 and not Path("net.macs.json").exists()
    succeed("view", "tiny.onnx", "--to", "fused", "--out", "both.json")
    assert [g["id"] for g in read("both.json")["graphs"]] == ["before", "after"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--out", "net.txt"], "--out net.txt is a file of JSON; name it net.json"),
        (["--out", "nowhere/net.json"], "nowhere does not exist"),
        (["tiny.pt", "--to", "fused"], "--to shows A before and after a rewrite; leave out B, or --to"),
        (["--arch-b", "cli_nets:tiny"], "--arch-b and its kin are for a second model; name one"),
        (["--port", "70000"], "--port"),
        (["--to", "smaller"], "'smaller' is not"),
    ],
)
def test_what_is_refused_before_any_work(words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_work, "load_side", None)
    assert expected in refuse(2, "view", *A, *words)


def test_random_weights_need_an_architecture() -> None:
    for words in ((), ("--to", "fused")):
        assert "name it with --arch-a" in refuse(2, "view", "-", *words, "--out", "net.json")
    succeed("view", "-", "--arch-a", "cli_nets:tiny", "--to", "fused", "--out", "net.json", "--quiet")
    assert read("net.json")["label"].startswith("cli_nets:tiny")


def test_no_file_is_overwritten_unasked() -> None:
    Path("net.error.json").write_text("mine")
    assert "net.error.json exists already" in refuse(2, "view", *A, "--to", "fused", "--out", "net.json")
    assert Path("net.error.json").read_text() == "mine"
    succeed("view", *A, "--to", "fused", "--out", "net.json", "--force")
    assert Path("net.error.json").read_text() != "mine"
    (Path() / "tiny.json").symlink_to("tiny.pt")
    assert "would overwrite tiny.pt" in refuse(2, "view", *A, "--out", "tiny.json", "--force")


def test_without_model_explorer_one_sentence_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_work, "load_side", None)
    assert refuse(3, "view", *A) == (
        "viewing needs Model Explorer (ai-edge-model-explorer); pip install 'reparam[view]'"
    )


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C reaches what is started, also where the tests themselves run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


ENDED = ((signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM))


@pytest.mark.parametrize(("number", "code"), mostly_in_sweeps(ENDED, ENDED[0]))
def test_the_server_runs_until_ctrl_c(folder: Path, heard: None, number: signal.Signals, code: int) -> None:
    page = folder / "site" / "model_explorer" / "web_app"
    page.mkdir(parents=True)
    (page / "index.html").write_text("<title>page</title>")
    (page.parent / "__init__.py").write_text("raise AssertionError('imported')")
    path = os.pathsep.join(filter(None, [str(page.parent.parent), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "reparam", "view", *A, "--no-browser"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    address = process.stdout.readline()
    port = int(address.removeprefix("http://127.0.0.1:").partition("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/api/v1/load_graphs_json?graph_index=0")
    assert json.loads(connection.getresponse().read())["graphs"][0]["id"] == "tiny.pt"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == "" and "Ctrl-C ends it" in err


def test_the_browser_is_opened_at_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []

    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or False)
    monkeypatch.setattr("reparam.page.ExplorerServer.serve_forever", interrupt)
    monkeypatch.setattr(view_work, "find_app", lambda: tmp_path)
    (tmp_path / "index.html").write_text("page")
    done = succeed("view", *A)
    assert opened == [done.stdout.strip()] and "no browser could be opened" in done.stderr
