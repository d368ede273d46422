"""Texts of a file stay texts: whatever stands in place of any of them, nothing runs and nothing else changes.

A payload is planted in one place of a file; the file is refused in one printable sentence, or what is made of it
computes what the genuine one computes, and its source, imported by another process, runs nothing of the payload.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reparam.errors import InputError
from reparam.loading import load
from support.cli_helpers import run
from support.payloads import PAYLOADS
from support.planting import Kind, Place, Program, genuine, kinds

CANARY = "REPARAM_CANARY"
NETWORKS = ("program", "zip", "legacy", "safetensors", "header", "config")
ENGINES = ("onnx", "manifest")

IMPORTS = """
import importlib.util, os, sys, torch
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("written", os.path.join(folder, "model.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        result = module.load()(torch.randn(2, 3, 8, 8, generator=generator))
    torch.save([v.clone() for v in result.values()], os.path.join(folder, "results.pt"))
    assert "REPARAM_CANARY" not in os.environ, folder
"""


@functools.cache
def all_kinds() -> Mapping[str, Kind]:
    return kinds()


@functools.cache
def wanted() -> list[torch.Tensor]:
    with torch.no_grad():
        result = genuine()(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return list(result.values())


def check_printed(text: str) -> None:
    assert all(line.isprintable() for line in text.splitlines()), text


def converted(kind: Kind, folder: Path, place: Place | None, payload: str) -> Path | None:
    """The folder of source that is made of a planted file, None where the file is refused."""
    path = kind.write(folder, place, payload)
    arch = [] if kind.name == "program" else ["--arch", "support.planting:make"]
    out, source, report = (str(folder / n) for n in ("out.pt2", "source", "report.json"))
    done = run("convert", str(path), *arch, "-o", out, "--source", source, "--json", report, "--remarks", "passed")
    check_printed(done.stdout)
    check_printed(done.stderr)
    assert CANARY not in os.environ, place
    if done.exit_code:
        assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        return None
    text = (folder / "report.json").read_text(encoding="ascii")
    check_printed(text)
    assert json.loads(text)["equivalent"]
    with torch.no_grad():
        again = torch.export.load(out).module(check_guards=False)
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert agree(list(again(x).values())), (place, payload)
    return folder / "source"


def agree(found: list[torch.Tensor]) -> bool:
    same = [torch.allclose(f, w, rtol=1e-4, atol=1e-5) for f, w in zip(found, wanted(), strict=True)]
    return all(same)


def check_sources(folders: list[Path]) -> None:
    """Another process imports them all, loads and runs them; nothing else than the network came to be."""
    code = [sys.executable, "-c", IMPORTS, *map(str, folders)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == [
            "model.py",
            "model.safetensors",
            "results.pt",
        ]
        assert agree(torch.load(folder / "results.pt", weights_only=True)), folder


def opened(kind: Kind, folder: Path, place: Place | None, payload: str) -> bool:
    """Runs and lists a planted engine; whether it was taken."""
    path = kind.write(folder, place, payload)
    np.save(folder / "x.npy", np.ones((2, 3), np.float32))
    results = [
        run(
            "run", str(path), "-i", str(folder / "x.npy"), "-o", str(folder / "y.npz"), "--json", str(folder / "r.json")
        ),
        run("diff", str(path), str(path), "--full", "--json", str(folder / "d.json")),
    ]
    for done in results:
        check_printed(done.stdout)
        check_printed(done.stderr)
        assert done.exit_code in (0, 2, 3), done.stderr
        assert not done.exit_code or len(done.stderr.splitlines()) == 1
    assert CANARY not in os.environ, place
    for file in folder.glob("?.json"):
        check_printed(file.read_text(encoding="ascii"))
    return not results[0].exit_code


def test_the_genuine_files_are_taken(tmp_path: Path) -> None:
    folders = []
    for name in NETWORKS:
        (tmp_path / name).mkdir()
        source = converted(all_kinds()[name], tmp_path / name, None, "")
        assert source is not None, name
        folders.append(source)
    check_sources(folders)
    for name in ENGINES:
        (tmp_path / name).mkdir()
        assert opened(all_kinds()[name], tmp_path / name, None, "")


PLACES = st.sampled_from(NETWORKS + ENGINES).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(all_kinds()[name].places()))
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(where=PLACES, payload=st.one_of(st.sampled_from(PAYLOADS), st.text(max_size=60)))
def test_a_payload_anywhere(where: tuple[str, Place], payload: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    name, place = where
    folder = tmp_path_factory.mktemp("planted")
    if name in ENGINES:
        opened(all_kinds()[name], folder, place, payload)
        return
    source = converted(all_kinds()[name], folder, place, payload)
    if source is not None:
        check_sources([source])


@pytest.mark.parametrize("names", [["self"], ["class"], ["None"], ["x", "y"], ["x", "x"]])
def test_parameters_of_a_program(names: list[str], tmp_path: Path) -> None:
    """torch writes them as Python, which then does not compile, or takes no such call."""
    program, model = Program(), "archive/models/model.json"
    row = json.loads(program.entries[model])
    row["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = names
    program.entries[model] = json.dumps(row).encode()
    with pytest.raises(InputError, match=r"forward_arg_names|are not the parameters"):
        load(program.write(tmp_path, None, ""))


@pytest.mark.sweep
@pytest.mark.parametrize("name", NETWORKS + ENGINES)
def test_payloads_everywhere(name: str, tmp_path: Path) -> None:
    """Every place of every kind of file, each with so many of the payloads (PAYLOADS_PER_PLACE, 3 by default)."""
    each = int(os.environ.get("PAYLOADS_PER_PLACE", "3"))
    kind, sources, taken, tried = all_kinds()[name], [], 0, 0
    for number, place in enumerate(kind.places()):
        for i in range(each):
            folder = tmp_path / f"{number}-{i}"
            folder.mkdir()
            payload = PAYLOADS[(number * 7 + i * 13) % len(PAYLOADS)]
            tried += 1
            if name in ENGINES:
                taken += opened(kind, folder, place, payload)
                continue
            source = converted(kind, folder, place, payload)
            if source is not None:
                taken += 1
                sources.append(source)
            if len(sources) == 50:
                check_sources(sources)
                sources = []
    if sources:
        check_sources(sources)
    print(f"{name}: {tried} files, {taken} taken, {tried - taken} refused")
