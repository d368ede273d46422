"""No file of the current folder runs in place of a package; only a factory that the user names is looked for there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reparam.loading.zoo import build_architecture
from reparam.utils import leave_current_folder

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ("h2", "timm", "torchvision", "torch", "numpy", "safetensors", "onnx", "typer", "rich", "sympy", "PIL", "yaml")
BUILT_IN = ("typing", "json", "importlib", "functools", "dataclasses", "pathlib", "__future__")


def planted(folder: Path, names: tuple[str, ...]) -> Path:
    """A folder with modules of these names, each of which leaves a file RAN behind when it is imported."""
    for name in names:
        (folder / f"{name}.py").write_text(
            f"import os\nopen(os.path.join({str(folder)!r}, 'RAN'), 'a').write({name!r})\n"
        )
    return folder


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "words, environment",
    [
        (("-m", "reparam"), {}),
        pytest.param(("-m", "reparam"), {"PYTHONSAFEPATH": "1"}, marks=pytest.mark.sweep),
        pytest.param(("SCRIPT",), {}, marks=pytest.mark.sweep),
        pytest.param(("SCRIPT",), {"PYTHONPATH": f":{ROOT}"}, marks=pytest.mark.sweep),
    ],
    ids=["module", "safe", "script", "empty-part"],
)
def test_nothing_in_the_current_folder_runs(
    words: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    built_in = BUILT_IN if "-m" in words else ()
    folder = planted(tmp_path, NAMES + built_in)
    script = tmp_path / "bin" / "reparam"  # as pip writes it, in a folder of its own
    script.parent.mkdir()
    script.write_text("import sys\nfrom reparam.cli import main\nsys.exit(main())\n")
    words = tuple(str(script) if w == "SCRIPT" else w for w in words)
    done = run(folder, *words, "explain", "--arch", "timm/test_resnet", "--input-shape", "3,32,32", "-q", **environment)
    assert (done.returncode, (folder / "RAN").exists()) == (0, False), done.stderr


def test_a_folder_that_somebody_named_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    monkeypatch.setenv("PYTHONPATH", here)
    monkeypatch.setattr(sys, "path", [here, "/elsewhere"])
    leave_current_folder()
    assert sys.path == [here, "/elsewhere"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/elsewhere", ""]))
    monkeypatch.setattr(sys, "path", ["", here, here, "/elsewhere", here])
    leave_current_folder()
    assert sys.path == ["/elsewhere"]


def test_a_factory_is_looked_for_behind_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_network.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\n")
    (tmp_path / "timm.py").write_text("raise SystemExit\n")
    before = list(sys.path)
    assert type(build_architecture("my_own_network:make").module).__name__ == "Linear"
    assert type(build_architecture("timm.layers:Mlp", {"in_features": 4}).module).__name__ == "Mlp"
    assert sys.path == before
