"""AOTInductor: packages are compiled, told from exported programs, guarded, run and compared."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config  # it reads CXX when it is imported, which must not be while a test sets it

from reparam.compare import open_engine
from reparam.engines import BuildOptions, Exported, ExportOptions, aot_inductor, export, manifest_path
from reparam.engines.aot_inductor import AotiRunnable, compiler, is_package, metadata_of, misfit
from reparam.engines.formats import find_format, recognise
from reparam.engines.manifest import read_manifest, sha256_of
from reparam.errors import InputError, MachineError, UnsafeFileError
from reparam.loading.checkpoint import load_checkpoint
from support.engine_nets import SHAPE, every, small

OPTIONS = ExportOptions("aoti", settings={"device": "cpu"})
FORMAT = find_format("aoti")
needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One package: compiling takes a while."""
    if compiler() is None:
        pytest.skip("needs a C++ compiler")
    path = tmp_path_factory.mktemp("packages") / "net.aoti.pt2"
    with torch._inductor.config.patch({"aot_inductor.precompile_headers": False}):
        return export(every(), torch.rand(SHAPE), path=path, options=OPTIONS)


@pytest.fixture
def copied(exported: Exported, tmp_path: Path) -> Path:
    for file in exported.outputs:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "net.aoti.pt2"


def opened(path: Path) -> AotiRunnable:
    engine = open_engine(path)
    assert isinstance(engine, AotiRunnable)
    return engine


def test_a_package_is_run_and_is_the_network(exported: Exported) -> None:
    check = exported.check
    assert check.ran
    assert check.error is not None
    assert check.error < 1e-6
    assert check.shapes == ((1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 16))
    engine = opened(exported.path)
    assert [(p.name, p.shape) for p in engine.inputs] == [("x", ("batch", 3, 16, 16))]
    assert [(p.name, p.shape) for p in engine.outputs] == [("logits", ("batch", 5)), ("map", ("batch", 8, 16, 16))]
    assert engine.precision == "float32"
    for batch in (3, 15, 16, 40):  # torch chooses kernels of convolutions by whether there are sixteen
        x = torch.rand(batch, 3, 16, 16)
        with torch.no_grad():
            truth = every()(x)
        for value, wanted in zip(engine.run([x]), (truth["logits"], truth["map"]), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


def test_the_manifest_says_what_it_is_compiled_for(exported: Exported) -> None:
    row = read_manifest(exported.path)
    assert row is not None
    assert (row["format"], row["sha256"]) == ("aoti", sha256_of(exported.path))
    assert row["build"]["compiled_for"]["device_key"] == "cpu"
    assert row["verification"]["ran"] is True


def test_a_package_is_told_from_a_program_by_its_content(exported: Exported, tmp_path: Path) -> None:
    other = tmp_path / "package.pt2"
    other.write_bytes(exported.path.read_bytes())
    found = recognise(other)
    assert found is not None
    assert found.name == "aoti"
    program = tmp_path / "program.aoti.pt2"
    torch.export.save(torch.export.export(small(), (torch.rand(SHAPE),)), program)
    assert recognise(program) is None
    with pytest.raises(InputError, match="is a compiled library, not a program"):
        load_checkpoint(other, trust=False)


def test_inputs_that_do_not_fit(exported: Exported) -> None:
    engine = opened(exported.path)
    with pytest.raises(InputError, match=r"does not take \(1, 3, 9, 9\) as 'x': it takes \(batch, 3, 16, 16\)"):
        engine.run([torch.rand(1, 3, 9, 9)])


def test_a_package_that_its_manifest_does_not_describe_is_not_loaded(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot_inductor, "AotiRunnable", lambda path: pytest.fail("it was loaded"))
    content = bytearray(copied.read_bytes())
    content[len(content) // 2] ^= 1
    copied.write_bytes(content)
    with pytest.raises(UnsafeFileError, match="holds native code and is not the file that"):
        open_engine(copied)
    manifest_path(copied).unlink()
    with pytest.raises(UnsafeFileError, match="holds native code and has no manifest"):
        open_engine(copied)


def test_a_package_of_another_maker_does_not_say_what_it_takes(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {k: v for k, v in metadata_of(exported.path).items() if k != aot_inductor.KEY}
    monkeypatch.setattr(aot_inductor, "metadata_of", lambda path: foreign)
    with pytest.raises(InputError, match="was not written by reparam: it does not say what it takes"):
        AotiRunnable(exported.path)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"AOTI_MACHINE": "aarch64"}, "it is compiled for linux on aarch64"),
        ({"AOTI_PLATFORM": "win32"}, "it is compiled for win32 on"),
        ({"AOTI_CPU_ISA": "AVX2 AVX512"}, "it is compiled for a CPU with AVX512, which this one lacks"),
        ({"AOTI_DEVICE_KEY": "cuda"}, "it is compiled for a GPU, and torch has none here"),
    ],
)
def test_a_package_for_another_machine(
    monkeypatch: pytest.MonkeyPatch, exported: Exported, changes: dict[str, str], why: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    metadata = metadata_of(exported.path) | {"AOTI_CPU_ISA": "", "AOTI_PLATFORM": "linux"}
    assert misfit(metadata | changes).startswith(why)
    monkeypatch.setattr(aot_inductor, "metadata_of", lambda path: metadata | changes)
    with pytest.raises(MachineError, match=f"does not run here: {why}"):
        FORMAT.load(exported.path)


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "net.aoti.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data/aotinductor/model/x.wrapper.so", b"\x7fELF")
    assert is_package(path, path.read_bytes()[:512])
    with pytest.raises(InputError, match="is damaged"):
        FORMAT.load(path)
    path.write_bytes(path.read_bytes()[:40])
    assert not is_package(path, path.read_bytes()[:512])


def test_settings_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="'tpu' is not a device of AOTInductor; choose from cpu, cuda"):
        FORMAT.check("fp32", {"device": "tpu"})
    with pytest.raises(MachineError, match=r"there is no GPU that torch .* can use; leave out --device cuda"):
        FORMAT.check("fp32", {"device": "cuda"})
    with pytest.raises(InputError, match="aoti is not written in int8"):
        FORMAT.check("int8", {})
    assert aot_inductor.choose_device(None) == "cpu"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler() is None
    with pytest.raises(MachineError, match=r"AOTInductor needs a C\+\+ compiler; install g\+\+"):
        export(small(), torch.rand(SHAPE), path=tmp_path / "net.aoti.pt2", options=OPTIONS)
    probe = FORMAT.probe()
    assert (probe.can_build, probe.can_run, probe.why) == (False, True, "no C++ compiler")


def _compiler_that(tmp_path: Path, does: str) -> str:
    path = tmp_path / "g++"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(0o755)
    return str(path)


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's linkers")
@pytest.mark.parametrize(
    ("does", "why"),
    [
        ('exec g++ -static-libstdc++ "$@"', r"g\+\+ links the C\+\+ library statically, and torch crashes"),
        ('echo "cc1plus: no space left" >&2; exit 1', r"does not build a library: cc1plus: no space left"),
    ],
)
def test_a_compiler_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, does: str, why: str) -> None:
    monkeypatch.setenv("CXX", _compiler_that(tmp_path, does))
    with pytest.raises(MachineError, match=why):
        export(small(), torch.rand(SHAPE), path=tmp_path / "net.aoti.pt2", options=OPTIONS)


def test_a_name_that_torch_does_not_write(tmp_path: Path) -> None:
    program: Any = None  # the name is looked at first
    with pytest.raises(InputError, match=r"torch writes its packages into \.pt2 files; name the file net\.aoti\.pt2"):
        FORMAT.build(program, tmp_path / "net.so", BuildOptions(settings={"device": "cpu"}), lambda *_: None)


@pytest.mark.sweep
@needs_compiler
@pytest.mark.parametrize(("precision", "least"), [("fp16", 55.0), ("bf16", 38.0)])
def test_low_precision(tmp_path: Path, precision: str, least: float) -> None:
    options = replace(OPTIONS, precision=precision)
    made = export(every(), torch.rand(SHAPE), path=tmp_path / "net.aoti.pt2", options=options)
    assert made.check.sqnr is not None
    assert made.check.sqnr > least
    assert opened(made.path).precision == {"fp16": "float16", "bf16": "bfloat16"}[precision]


@pytest.mark.gpu
@needs_compiler
def test_a_package_for_the_gpu(tmp_path: Path) -> None:
    options = replace(OPTIONS, settings={"device": "cuda"})
    made = export(every(), torch.rand(SHAPE), path=tmp_path / "net.aoti.pt2", options=options)
    assert made.check.ran
    assert "CPU" not in made.check.runtime
