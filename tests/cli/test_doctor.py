"""`doctor`: what it says is installed does import, what it advises exists, and it works where torch does not."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from reparam.cli import doctor
from reparam.cli.app import app
from reparam.cli.doctor import diagnose
from reparam.engines.formats import all_formats
from reparam.utils import PackageState, check_package, packages, torchvision_ops
from reparam.utils.packages import extras, install_command

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_working_package_has_its_version() -> None:
    state = check_package("torch")
    assert state == PackageState("torch", torch.__version__)
    assert state.works


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PACKAGES", {"no_such_package_here": "no-such-package"})
    state = check_package("no_such_package_here")
    assert (state.version, state.problem, state.install) == (None, "missing", "pip install no-such-package")
    assert not state.works


def test_a_package_that_does_not_import_is_not_called_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package_here.py").write_text("raise OSError('libcuda.so.1: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    state = check_package("broken_package_here")
    assert state.problem == "does not import: libcuda.so.1: cannot open"
    assert not state.works
    assert state.install is not None


def test_the_advised_extras_are_those_of_the_project() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in extras().items():
        assert any(text.startswith(package) for text in declared[extra])
    assert install_command("timm") == "pip install 'reparam[zoo]'"
    assert install_command("onnxruntime") == "pip install 'reparam[onnx]'"
    assert install_command("torch") == "pip install torch"
    assert install_command("openvino") == "pip install openvino" or "openvino" in extras()


def test_without_metadata_plain_names_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> Any:
        raise packages.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, "requires", unknown)
    assert install_command("timm") == "pip install timm"


def test_a_machine_where_torch_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = PackageState("torch", "2.13.0", "does not import: no libc10", "pip install torch")
    monkeypatch.setattr(doctor, "check_package", lambda name: broken if name == "torch" else PackageState(name, None))
    found = diagnose()
    assert (found.threads, found.cuda_devices) == (None, ())
    assert found.cuda == "unknown, since torch does not import"
    assert found.abilities == ("nothing can be converted: torch does not import",)
    assert json.loads(json.dumps(found.as_dict()))["packages"][0]["problem"] == "does not import: no libc10"


def test_a_torchvision_of_another_build_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for declared, told in ((["a library"], 1), ([], 0)):
        monkeypatch.setattr(torchvision_ops, "_LIBRARIES", declared)
        lines = [a for a in doctor._abilities({"torch", "torchvision"}) if "was built for another torch" in a]
        assert len(lines) == told
        assert not any("another torch" in a for a in doctor._abilities({"torch"}))


class FakeCuda:
    """A torch whose driver answers in one of the ways that drivers do."""

    class version:
        cuda = "13.0"

    def __init__(self, available: bool, count: int, name: str | Exception) -> None:
        self.cuda = self
        self._available, self._count, self._name = available, count, name

    def is_available(self) -> bool:
        return self._available

    def device_count(self) -> int:
        return self._count

    def get_device_name(self, index: int) -> str:
        if isinstance(self._name, Exception):
            raise self._name
        return self._name


def test_cuda_devices_are_named_and_a_broken_driver_is_none() -> None:
    assert doctor._cuda(FakeCuda(True, 2, "H100")) == ("2 devices, torch is built for CUDA 13.0", ("H100", "H100"))
    assert doctor._cuda(FakeCuda(False, 1, "H100")) == ("no device, though torch is built for CUDA 13.0", ())
    assert doctor._cuda(FakeCuda(True, 1, RuntimeError("driver too old\nmore"))) == ("none: driver too old", ())
    assert doctor._cuda(FakeCuda(True, 1, RuntimeError())) == ("none: RuntimeError", ())


def test_the_command_prints_every_package_and_the_same_as_json() -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["doctor"])
    assert (text.exit_code, text.stderr) == (0, "")
    found = json.loads(runner.invoke(app, ["doctor", "--json", "-"]).stdout)
    assert found["schema"] == 1
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == torch.get_num_threads()
    assert [p["name"] for p in found["packages"]] == list(doctor.PACKAGES)
    for package in found["packages"]:
        packages = text.stdout.partition("runs here")[0].splitlines()
        (row,) = [line for line in packages if line.split()[:1] == [package["name"]]]
        assert (package["version"] or package["problem"]) in row
        assert package["version"] is not None or package["install"] in row
    assert all(free is None or free > 0 for free in found["free_disk"].values())
    for ability in found["abilities"]:
        assert ability in text.stdout
    assert [f["name"] for f in found["formats"]] == list(all_formats())
    lines = " ".join(text.stdout.split())
    for format in found["formats"]:
        row = " ".join("yes" if format[k] else "no" for k in ("can_build", "can_run"))
        assert f"{format['name']} {row} " in lines
        assert format["untried"] in lines
        assert format["can_run"] or format["why"]
