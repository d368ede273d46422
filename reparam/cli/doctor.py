"""`doctor`: what is installed, which devices there are, and what this version can therefore do here.

Every package is really imported: installed and importable are different things. Nothing here needs torch, so that a
broken torch can be reported too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reparam._version import __version__
from reparam.engines import Probe
from reparam.engines.formats import all_formats
from reparam.utils import PACKAGES, PackageState, check_package, first_line


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found. Sizes in bytes."""

    reparam: str
    python: str
    platform: str
    packages: tuple[PackageState, ...]
    cuda: str
    cuda_devices: tuple[str, ...]
    cpus: int
    threads: int | None
    free_disk: Mapping[str, int | None]
    abilities: tuple[str, ...]
    formats: tuple[Probe, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"schema": 1, **asdict(self)}


def diagnose() -> Diagnosis:
    """Looks at this machine and this environment."""
    packages = tuple(check_package(name) for name in PACKAGES)
    torch = importlib.import_module("torch") if packages[0].works else None
    cuda, devices = _cuda(torch)
    return Diagnosis(
        reparam=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        cuda=cuda,
        cuda_devices=devices,
        cpus=_cpus(),
        threads=int(torch.get_num_threads()) if torch is not None else None,
        free_disk={name: _free(name) for name in dict.fromkeys((_here(), tempfile.gettempdir()))},
        abilities=tuple(_abilities({p.name for p in packages if p.works})),
        formats=tuple(f.probe() for f in all_formats().values()),
    )


def _cuda(torch: Any) -> tuple[str, tuple[str, ...]]:
    if torch is None:
        return "unknown, since torch does not import", ()
    if torch.version.cuda is None:
        return "none: this torch is built without CUDA", ()
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        devices = tuple(str(torch.cuda.get_device_name(i)) for i in range(count))
    except Exception as error:  # a driver that does not fit fails in many ways; none of them is reparam's
        return f"none: {first_line(error)}", ()
    built = f"torch is built for CUDA {torch.version.cuda}"
    return (f"{len(devices)} devices, {built}" if devices else f"no device, though {built}"), devices


def _cpus() -> int:
    """The cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:  # a working folder that was deleted
        return "."


def _free(folder: str) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _abilities(working: set[str]) -> list[str]:
    """What this version can do here, and what it cannot."""
    if "torch" not in working:
        return ["nothing can be converted: torch does not import"]
    zoo = [n for n in ("torchvision", "timm") if n in working]
    named = " and ".join(zoo) if zoo else "neither torchvision nor timm: only package.module:factory and .pt2"
    return [
        "models are converted to .pt2 and verified on the CPU",
        f"architectures by name: {named}",
        *_mixed_builds("torchvision" in working),
    ]


def _mixed_builds(torchvision: bool) -> list[str]:
    """What there is to know of a torchvision that was built for another torch. torchvision: whether it works."""
    from reparam.utils.torchvision_ops import declared_for_torchvision

    if not (torchvision and declared_for_torchvision()):
        return []
    return [
        "this torchvision was built for another torch, and its library does not load: its operators nms and qnms are "
        "declared in its place, for every architecture and file that imports it; networks that call them, such as "
        "detectors, do not run"
    ]
