"""What installs: everything under `reparam`, nothing beside it, with or without the symlinks of the checkout."""

from __future__ import annotations

import configparser
import email
import email.message
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SYMLINKS = ("reparam/passes", "reparam/models")
INSTALLED = {"reparam": "reparam", "passes": "reparam/passes", "models": "reparam/models"}  # checkout -> wheel


def copy_of_checkout(target: Path) -> Path:
    """What the build reads, without caches and without what an earlier build left behind."""
    ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    for name in (*INSTALLED, "tests"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def build(source: Path, out: Path, *options: str) -> Path:
    """Run the build front end offline, with the setuptools of this environment; return the wheel."""
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(source)]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read_dist_info(wheel: Path, name: str) -> str:
    (member,) = (n for n in names_in_wheel(wheel) if n.endswith(f".dist-info/{name}"))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member).decode()


def read_metadata(wheel: Path) -> email.message.Message:
    return email.message_from_string(read_dist_info(wheel, "METADATA"))


def version() -> str:
    return str(runpy.run_path(str(ROOT / "reparam" / "_version.py"))["__version__"])


def files_of(tree: str) -> set[str]:
    """Every file of one tree of the checkout, relative to it; caches, hidden files and the symlinks left out."""
    top = ROOT / tree
    linked = {ROOT / link for link in SYMLINKS}
    return {
        path.relative_to(top).as_posix()
        for path in top.rglob("*")
        if path.is_file()
        and not linked.intersection((path, *path.parents))
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(top).parts)
    }


def expected_in_package() -> set[str]:
    return {f"{installed}/{name}" for tree, installed in INSTALLED.items() for name in files_of(tree)}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of this checkout, and the wheel built from that sdist."""
    base = tmp_path_factory.mktemp("packaging")
    source = copy_of_checkout(base / "checkout")
    build(source, base / "dist")
    return base / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (found,) = dist.glob("*.whl")
    return found


def test_sdist_holds_the_sources_and_no_links(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    top = f"reparam-{version()}"
    assert sdist.name == f"{top}.tar.gz"
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = {member.name for member in members}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert not [name for name in names if name.startswith(tuple(f"{top}/{link}/" for link in SYMLINKS))]
    sources = {f"{top}/{tree}/{name}" for tree in INSTALLED for name in files_of(tree)}
    assert sources | {f"{top}/{name}" for name in ("pyproject.toml", "README.md", "LICENSE")} <= names


def test_wheel_holds_every_file_under_reparam_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"reparam-{version()}-py3-none-any.whl"
    packaged = {name for name in names_in_wheel(wheel) if ".dist-info/" not in name}
    # A file missing here needs a row in pyproject.toml: `packages` for a new folder, `package-data` for data.
    assert packaged == expected_in_package()
    assert {"reparam/py.typed", "reparam/passes/__init__.py", "reparam/models/__init__.py"} <= packaged


def test_reparam_is_the_only_top_level_name(wheel: Path) -> None:
    assert read_dist_info(wheel, "top_level.txt").split() == ["reparam"]


def test_the_command_is_installed(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(read_dist_info(wheel, "entry_points.txt"))
    assert {section: dict(entry_points[section]) for section in entry_points.sections()} == {
        "console_scripts": {"reparam": "reparam.cli:main"}
    }


def test_metadata_states_the_version_the_licence_and_ranges(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    assert metadata["Version"] == version()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "zoo",
        "onnx",
        "rtx",
        "tensorrt",
        "openvino",
        "recipe",
        "view",
        "docs",
        "sweep",
        "transformers",
        "dev",
    }
    requirements = metadata.get_all("Requires-Dist", [])
    runtime = {requirement for requirement in requirements if ";" not in requirement}
    assert "torch>=2.11" in runtime
    pinned = [requirement for requirement in requirements if "==" in requirement.split(";")[0]]
    assert not pinned, "exact versions belong in constraints.txt"


def test_a_checkout_without_symlinks_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = copy_of_checkout(tmp_path / "checkout")
    for link in SYMLINKS:
        (source / link).unlink()
    assert names_in_wheel(build(source, tmp_path / "dist", "--wheel")) == names_in_wheel(wheel)


def test_the_symlinks_of_the_checkout_point_at_the_two_folders() -> None:
    assert {link: (ROOT / link).readlink().as_posix() for link in SYMLINKS} == {
        "reparam/passes": "../passes",
        "reparam/models": "../models",
    }


def test_the_installed_wheel_imports_and_claims_no_other_name(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    script = (
        "import importlib.util, reparam.models, reparam.passes\n"
        "assert not [name for name in ('models', 'passes') if importlib.util.find_spec(name)]\n"
        "print(reparam.__file__, reparam.passes.__file__, reparam.models.__file__, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(site / f"{tree}/__init__.py") for tree in INSTALLED.values()]
