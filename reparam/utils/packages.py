"""Packages: whether they import, and what installs them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .text import first_line

# Module -> the name under which pip installs it.
PACKAGES: Mapping[str, str] = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "onnxruntime": "onnxruntime",
    "tensorrt": "tensorrt-cu13",
    "tensorrt_rtx": "tensorrt-rtx",
    "openvino": "openvino",
}


@dataclass(frozen=True)
class PackageState:
    """One package: its version when it imports, otherwise the problem and what installs it."""

    name: str
    version: str | None
    problem: str | None = None
    install: str | None = None

    @property
    def complaint(self) -> str:
        """`is missing`, or how the import fails."""
        return "is missing" if self.problem == "missing" else str(self.problem)

    @property
    def works(self) -> bool:
        return self.version is not None and self.problem is None


def check_package(name: str) -> PackageState:
    """Imports the module `name` and says what came of it."""
    install = install_command(PACKAGES.get(name, name))
    if importlib.util.find_spec(name) is None:
        return PackageState(name, None, "missing", install)
    try:
        if name in ("torchvision", "timm"):
            _prepare_torchvision()
        module = importlib.import_module(name)
    except Exception as error:
        reason = first_line(error)
        return PackageState(name, _installed_version(name), f"does not import: {reason}", install)
    version = str(getattr(module, "__version__", None) or _installed_version(name) or "unknown")
    return PackageState(name, version.partition("-")[0])  # some go on with the name of their build


def _prepare_torchvision() -> None:
    """Beside a CPU torch, torchvision imports only after this; without torch it fails with a reason of its own."""
    try:
        from .torchvision_ops import register_missing_torchvision_ops
    except ImportError:
        return
    register_missing_torchvision_ops()


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(PACKAGES.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return None


def install_command(package: str) -> str:
    """`pip install 'reparam[zoo]'` where an extra of the installed reparam brings the package, else its own name."""
    extra = extras().get(package)
    return f"pip install 'reparam[{extra}]'" if extra is not None else f"pip install {package}"


def extras() -> dict[str, str]:
    """Package -> the extra that brings it, as the installed metadata says; the developers' own extra left out."""
    try:
        requirements = importlib.metadata.requires("reparam") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, str] = {}
    for text in requirements:
        match = re.match(r"([\w.-]+).*;\s*extra\s*==\s*[\"'](\w+)[\"']", text)
        if match and match[2] != "dev" and match[1] != "reparam":
            found.setdefault(match[1], match[2])
    return found
