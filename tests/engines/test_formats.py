"""The interface of formats: they are found by being there and say what they can do; manifests guard native code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reparam.engines import BuildOptions, Built, Format, Port, Runnable, check_manifest, formats, manifest_path
from reparam.engines.formats import all_formats, find_format, recognise
from reparam.engines.manifest import read_manifest, sha256_of, sha256_of_state, write_manifest
from reparam.errors import InputError, MachineError, UnsafeFileError
from reparam.utils import PackageState
from support.pretended_packages import pretend


class Sealed(Format):
    """A format with native code, as engines are."""

    name = "sealed"
    suffix = ".sealed"
    native = True
    precisions = ("fp32",)
    needs = ("no_such_engine",)

    def recognises(self, path: Path, head: bytes) -> bool:
        return head.startswith(b"SEALED")

    def build(self, program: Any, path: Path, options: BuildOptions, tell: Any) -> Built:
        raise AssertionError

    def load(self, path: Path) -> Runnable:
        raise AssertionError


SEALED = Sealed()


# ---- the registry ------------------------------------------------------------------------------------------------


def test_every_module_of_the_package_is_a_format() -> None:
    names = {p.stem for p in Path(formats.__file__).parent.glob("*.py")} - {"__init__"}
    assert len(all_formats()) == len(names)
    for name, format in all_formats().items():
        assert find_format(name) is format
        assert format.name == name
        assert format.suffix.startswith(".")
        assert set(format.precisions) <= {"fp32", "fp16", "bf16", "int8"}


def test_an_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'onyx' is not a format; choose from .*onnx"):
        find_format("onyx")


def test_listing_formats_imports_neither_torch_nor_engines() -> None:
    code = (
        "import sys, reparam.engines.formats as f; f.all_formats(); "
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'openvino') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_are_recognised_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "all_formats", lambda: {"sealed": SEALED})
    (tmp_path / "a").write_bytes(b"SEALED and more")
    (tmp_path / "b").write_bytes(b"other")
    assert recognise(tmp_path / "a") is SEALED
    assert recognise(tmp_path / "b") is None
    assert recognise(tmp_path / "missing") is None


# ---- what a format says of itself --------------------------------------------------------------------------------


def test_a_format_without_its_package_says_so_and_names_the_command() -> None:
    probe = SEALED.probe()
    assert (probe.can_build, probe.can_run, probe.versions) == (False, False, {})
    assert (probe.why, probe.install) == ("no_such_engine missing", "pip install no_such_engine")
    with pytest.raises(MachineError, match="sealed needs no_such_engine, which is missing; pip install no_such_engine"):
        SEALED.require()


def test_onnx_can_do_everything_here() -> None:
    probe = find_format("onnx").probe()
    assert (probe.can_build, probe.can_run, probe.why, probe.install) == (True, True, "", None)
    assert set(probe.versions) == {"onnx", "onnxscript", "onnxsim", "onnxruntime"}


def test_a_package_that_does_not_import_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = PackageState("no_such_engine", "1.0", "does not import: no libcuda", "pip install it")
    pretend(monkeypatch, lambda name: broken)
    with pytest.raises(MachineError, match="which does not import: no libcuda; pip install it"):
        SEALED.require()


def test_precisions_and_settings_of_another_format_are_refused() -> None:
    with pytest.raises(InputError, match="sealed is not written in int8; choose from fp32"):
        SEALED.check("int8", {})
    with pytest.raises(InputError, match="--gpu is not an option of sealed"):
        SEALED.check("fp32", {"gpu": "sm89"})


def test_sizes_of_a_port() -> None:
    port = Port("x", ("batch", 3, "height", 16), "float32")
    assert port.sizes(2) is None
    assert port.sizes(2, {"height": 8}) == (2, 3, 8, 16)
    assert Port("y", (4,), "int64").sizes(2) == (4,)


# ---- manifests ---------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine with a side file and its manifest."""
    path, side = tmp_path / "net.sealed", tmp_path / "net.sealed.data"
    path.write_bytes(b"SEALED")
    side.write_bytes(b"weights")
    write_manifest(path, [side], {"format": "sealed", "verification": {"ran": False}})
    return path


def test_a_manifest_names_the_bytes_and_is_the_same_every_time(engine: Path) -> None:
    row = read_manifest(engine)
    assert row is not None
    assert row["file"] == "net.sealed"
    assert row["sha256"] == sha256_of(engine)
    assert row["side"] == {"net.sealed.data": sha256_of(engine.with_name("net.sealed.data"))}
    before = manifest_path(engine).read_bytes()
    write_manifest(engine, [engine.with_name("net.sealed.data")], {k: row[k] for k in ("format", "verification")})
    assert manifest_path(engine).read_bytes() == before
    assert check_manifest(engine, SEALED, trust=False) == row


@pytest.mark.parametrize("name", ["net.sealed", "net.sealed.data"])
def test_one_other_byte_of_an_engine_is_refused(engine: Path, name: str) -> None:
    file = engine.with_name(name)
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UnsafeFileError, match=f"{name} holds native code and is not the file that net.sealed.json"):
        check_manifest(engine, SEALED, trust=False)
    assert check_manifest(engine, SEALED, trust=True) is not None


def test_a_missing_side_file_or_another_format_is_refused(engine: Path) -> None:
    row = json.loads(manifest_path(engine).read_text())
    manifest_path(engine).write_text(json.dumps(row | {"format": "tensorrt"}))
    with pytest.raises(UnsafeFileError, match="is not the file that"):
        check_manifest(engine, SEALED, trust=False)
    manifest_path(engine).write_text(json.dumps(row))
    engine.with_name("net.sealed.data").unlink()
    with pytest.raises(UnsafeFileError, match="is not the file that"):
        check_manifest(engine, SEALED, trust=False)


def test_native_code_without_a_manifest_needs_trust(engine: Path) -> None:
    manifest_path(engine).unlink()
    with pytest.raises(UnsafeFileError, match=r"has no manifest net\.sealed\.json beside it; --trust runs it anyway"):
        check_manifest(engine, SEALED, trust=False)
    assert check_manifest(engine, SEALED, trust=True) is None


def test_a_side_file_cannot_be_named_in_another_folder(engine: Path, tmp_path: Path) -> None:
    row = json.loads(manifest_path(engine).read_text())
    outside = tmp_path.parent / "outside.data"
    outside.write_bytes(b"x")
    manifest_path(engine).write_text(json.dumps(row | {"side": {"../outside.data": sha256_of(outside)}}))
    with pytest.raises(InputError, match="'side' is no list of files"):
        check_manifest(engine, SEALED, trust=False)


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": 5}', "\x00", "[" * 100000])
def test_a_damaged_manifest_is_one_sentence(engine: Path, text: str) -> None:
    manifest_path(engine).write_text(text)
    with pytest.raises(InputError, match="is not a manifest"):
        check_manifest(engine, SEALED, trust=False)


def test_the_hash_of_weights_sees_names_shapes_dtypes_and_values() -> None:
    state = {"a": torch.arange(6.0), "b": torch.tensor(True), "c": torch.zeros(0)}
    base = sha256_of_state(state)
    assert base == sha256_of_state(dict(reversed(state.items())))
    changed = (
        {"a": torch.arange(6.0).view(2, 3)},
        {"a": torch.arange(6.0).double()},
        {"a": torch.arange(1.0, 7.0)},
        {"d": torch.zeros(0)},
    )
    assert base not in {sha256_of_state(state | c) for c in changed}


def test_single_numbers_and_no_numbers_may_have_any_stride() -> None:
    odd = {"one": torch.tensor(2.0).expand(1), "none": torch.zeros(()).expand(0, 3)}
    assert sha256_of_state(odd) == sha256_of_state({"one": torch.tensor([2.0]), "none": torch.zeros(0, 3)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("sha256", "side", "format", "build", "schema", "file", "verification")


@given(key=st.sampled_from(KEYS), value=JSON, trust=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_manifest_of_any_content_is_taken_or_refused_in_one_sentence(key: str, value: Any, trust: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.sealed"
        path.write_bytes(b"SEALED")
        write_manifest(path, [], {"format": "sealed"})
        row = json.loads(manifest_path(path).read_text())
        manifest_path(path).write_text(json.dumps(row | {key: value}))
        try:
            check_manifest(path, SEALED, trust=trust)
        except InputError as error:
            assert "\n" not in str(error)


@given(content=st.binary(max_size=40) | st.sampled_from([b"\xff\xfe{}", b"1e999", b"[" * 10**6, b"9" * 10**5]))
@settings(max_examples=50, deadline=None)
def test_a_manifest_of_any_bytes_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.sealed"
        path.write_bytes(b"SEALED")
        manifest_path(path).write_bytes(content)
        with pytest.raises(InputError, match=r"is not a manifest|is empty"):
            check_manifest(path, SEALED, trust=True)


def test_a_manifest_that_is_no_ordinary_file_is_not_read(engine: Path) -> None:
    manifest_path(engine).unlink()
    os.mkfifo(manifest_path(engine))
    with pytest.raises(InputError, match="is not an ordinary file"):
        check_manifest(engine, SEALED, trust=False)


@pytest.mark.parametrize("name", ["pipe", "nul\0", "folder", "missing", "empty", "x" * 5000])
def test_what_is_no_file_is_of_no_format(name: str, tmp_path: Path) -> None:
    """Nothing is waited for, and whoever reads the file next says what is wrong with it."""
    if name == "pipe":
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    assert recognise(tmp_path / name) is None
