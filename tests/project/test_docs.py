"""Every command and every block of the site's pages, and the Python of the README, run as they stand there."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import reparam
from support.site import DOCS, FIRST, PAGES, ROOT, anchors, blocks, commands, prepare, run_page
from support.warm_process import WarmProcess

KINDS = {"python", "console", "text", "toml", "yaml", "sh", "{toctree}"}
OWN_TEST = {
    "index",
    "first-conversion",
    "writing-a-pass",
    "pruning",
    "training",
    "faq",
    "bench",
}  # they are tested below
RUN = [p for p in PAGES if p.stem not in OWN_TEST and any(b.kind in ("console", "python") for b in blocks(p))]
HOSTS = {"github.com", "keepachangelog.com", "pre-commit.com", "semver.org"}  # of addresses outside
LINKED = [*PAGES, *(ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, warm: WarmProcess) -> Path:
    """A folder that holds what the pages start from."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(warm)
    return folder


@pytest.fixture
def folder(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(start, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_is_of_a_kind_that_is_run_or_read() -> None:
    assert sum(len(list(commands(b))) for p in PAGES for b in blocks(p) if b.kind == "console") >= 60
    for page in PAGES:
        assert {b.kind for b in blocks(page)} <= KINDS, page.name
        assert page.read_text().count("```") == 2 * len(blocks(page)), page.name


HEAVY = {
    *("checkpoints", "comparing", "converting", "engines", "initial-weights", "int8", "onnx-files", "plain", "report"),
    *("plain-forms", "scripts", "signals"),
}


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=p.stem, marks=pytest.mark.sweep if p.stem in HEAVY else ()) for p in RUN]
)
def test_blocks_of_a_page(page: Path, folder: Path, warm: WarmProcess) -> None:
    run_page(page, warm)


@pytest.mark.sweep
def test_the_first_conversion_needs_nothing_but_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: WarmProcess
) -> None:
    monkeypatch.chdir(tmp_path)
    accuracy, python = run_page(FIRST, warm)
    assert float(accuracy) > 0.85
    assert python.startswith("True ") and float(python.split()[1]) < 1e-12


@pytest.mark.sweep
def test_blocks_of_the_pruning_page(folder: Path, warm: WarmProcess) -> None:
    pruned, masked = run_page(DOCS / "pruning.md", warm)
    assert float(pruned.split()[0]) <= 0.5
    before, after = map(int, masked.split())
    assert after < 0.6 * before
    assert (folder / "small.pt2").exists() and (folder / "half.pt2").exists()


@pytest.mark.sweep
def test_blocks_of_the_bench_page(folder: Path, warm: WarmProcess) -> None:
    """Accuracies of the table are those that the ten lines of the page compute with onnxruntime alone."""
    _, computed = run_page(DOCS / "bench.md", warm)
    found = json.loads((folder / "digits.json").read_text())
    told = {m["model"]: m["score"]["value"] for m in found["models"]}
    assert {n: float(v) for n, v in (line.split() for line in computed.splitlines())} == {
        name: told[name] for name in ("fused.onnx", "int8.onnx", "pruned.onnx")
    }
    assert found["data"]["samples"] == 397 and found["choice"]["model"] in told and told["base.pt"] > 0.85


@pytest.mark.sweep
def test_blocks_of_the_training_page(folder: Path, warm: WarmProcess) -> None:
    (training,) = run_page(DOCS / "training.md", warm)
    norms, largest = training.split()
    assert int(norms) >= 15 and float(largest) < 1e-12
    assert (folder / "resnet18_training" / "model.py").exists()


@pytest.mark.sweep
def test_blocks_of_the_questions(folder: Path, warm: WarmProcess) -> None:
    assert run_page(DOCS / "faq.md", warm) == ["True\n", "2 0\n"]


def test_ten_questions_name_the_threads_that_ask_them() -> None:
    parts = re.split(r"^## ", (DOCS / "faq.md").read_text(), flags=re.M)[1:]
    asked = [re.findall(r"\]\(https://github\.com/([\w.-]+/[\w.-]+)/issues/\d+\)", part) for part in parts]
    assert len([a for a in asked if a]) >= 10
    trackers = {"DingXiaoH/RepVGG", "fxmeng/RMNet", "VainF/Torch-Pruning", "onnxsim/onnxsim"}
    assert {t for a in asked for t in a} == trackers | {"huggingface/pytorch-image-models"}


def test_the_pass_of_the_page_and_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {b.file: b.text for b in blocks(DOCS / "writing-a-pass.md") if b.kind == "python"}
    source, test = files["passes/narrow_layer.py"], files["tests/passes/test_narrow_layer.py"]
    (tmp_path / "narrow_layer.py").write_text(source)
    name = "reparam.passes.narrow_layer"
    spec = importlib.util.spec_from_file_location(name, tmp_path / "narrow_layer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    names: dict[str, object] = {"__name__": "test_narrow_layer"}
    exec(compile(test, "test_narrow_layer.py", "exec"), names)
    tests = [v for n, v in names.items() if n.startswith("test_") and isinstance(v, Callable)]
    assert len(tests) == 5 and (module.PASS.name, module.PHASE) == ("narrow-layer", "fold")
    for each in tests:
        each()


def test_installing_names_extras_and_targets_that_are_there() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (DOCS / "install.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == set(extras)
    named = re.findall(r"(?:\.|reparam)\[([\w,]+)\]", text)
    assert named and {e for names in named for e in names.split(",")} <= set(extras)
    targets = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"^make (\w+)$", text, re.M)) <= set(targets)


def test_configuration_that_pages_show_is_toml() -> None:
    shown = [tomllib.loads(b.text) for p in PAGES for b in blocks(p) if b.kind == "toml"]
    groups = {g for s in shown for g in s["project"]["entry-points"]}
    assert groups == {"reparam.passes", "reparam.formats", "reparam.models"}


def test_the_reference_lists_every_public_name() -> None:
    listed = re.findall(r"^\.\. auto\w+:: (\w+)", (DOCS / "api.rst").read_text(), re.M)
    assert sorted(listed) == sorted(set(reparam.__all__) - {"__version__"})


@pytest.mark.parametrize("side", [64, pytest.param(224, marks=pytest.mark.sweep)])
def test_python_of_the_readme(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: WarmProcess) -> None:
    """By default on smaller images than those of the page, which take a minute."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code.count("3, 224, 224)") == 2
    run = warm.run(code.replace("3, 224, 224)", f"3, {side}, {side})"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("20 0\n")
    assert (tmp_path / "resnet18-fused.pt2").exists()
    assert (tmp_path / "resnet18_fused" / "model.py").exists()


def test_links_between_pages_lead_somewhere() -> None:
    for page in LINKED:
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(other), f"{page.name} links to {target}#{anchor}"


def test_links_of_the_reference_lead_somewhere_and_so_do_links_into_it() -> None:
    text = (DOCS / "api.rst").read_text()
    pages = re.findall(r":doc:`(?:[^`<]*<)?([^`>]+)>?`", text)
    assert pages and all((DOCS / f"{p}.md").exists() for p in pages)
    assert not re.search(r"`[^`]+ <[^`]+>`_|:ref:`", text), "links of these kinds are not checked"
    ids = {f"reparam.{name}" for name in re.findall(r"^\.\. auto\w+:: (\w+)", text, re.M)}
    ids |= {t.lower() for t in re.findall(r"^(\w+)\n[-=]+$", text, re.M)}
    into = [t for p in LINKED for t in re.findall(r"\]\([^)#:]*api\.rst(?:#([^)]+))?\)", p.read_text())]
    assert into and all(not anchor or anchor in ids for anchor in into)


def test_addresses_outside_are_well_formed_and_each_is_spelled_in_one_way() -> None:
    """Whether they answer is not asked: tests run without a network."""
    text = "\n".join(p.read_text() for p in (*LINKED, DOCS / "api.rst", ROOT / "benchmarks" / "README.md"))
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    found = {a.rstrip(".,;:") for a in re.findall(r"\b(?:https?|ftp)://[^\s)>\"'`\]]+", text)}
    spelled: dict[str, str] = {}
    for address in sorted(found):
        parts = urlsplit(address)
        assert parts.scheme == "https" and not parts.port and not parts.username, address
        assert parts.hostname in HOSTS and parts.netloc == parts.hostname, f"{address}: is {parts.hostname} a new host?"
        if parts.hostname == "github.com":
            assert re.fullmatch(r"/[\w-]+/[\w.-]+(/issues/[1-9]\d*)?", parts.path) and not parts.query, address
        plain = address.partition("#")[0].lower().rstrip("/").removesuffix(".git")
        assert spelled.setdefault(plain, address) == address, f"{address} and {spelled[plain]} are one address"
    assert len(found) >= 15


def test_every_page_is_in_a_list_of_pages_once() -> None:
    listed = []
    for page in PAGES:
        for block in (b for b in blocks(page) if b.kind == "{toctree}"):
            lines = [re.sub(r"^.* <(.+)>$", r"\1", x) for x in block.text.splitlines() if x and x[0] != ":"]
            listed += [(page.parent / line).resolve() for line in lines]
    assert len(listed) == len(set(listed))
    there = [p.with_suffix("") for p in (*PAGES, DOCS / "api.rst") if p.stem != "index"]
    assert set(there) <= set(listed)


@pytest.mark.sweep
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    words = ["-nWq", "--keep-going", "-c", "docs", "-d", str(tmp_path / "doctrees"), ".", str(tmp_path / "site")]
    command = [sys.executable, "-m", "sphinx", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "index.html").exists() and (tmp_path / "site" / "docs" / "api.html").exists()


def test_the_table_of_rewrites_says_what_the_passes_say() -> None:
    """A row that is there is what the docstring gives; `make docs` brings in those of new passes."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import rewrites
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text()
    shown = text.partition(rewrites.START)[2].partition(rewrites.END)[0].strip().splitlines()[2:]
    made = rewrites.rows()
    assert len(made) >= 17 and len(shown) >= 17
    assert not [row for row in shown if row not in made.values()]
