"""TensorRT and TensorRT for RTX: one backend for two modules with the same names.
Engines are built on any machine and run where there is a GPU for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.utils import lazy_doors

if TYPE_CHECKING:
    from .bindings import MODULES, check_targets, choose_module, read_targets
    from .build import build_engine, read_profile
    from .runtime import no_gpu, open_engine

_DOORS = {
    "bindings": (
        "MODULES",
        "check_targets",
        "choose_module",
        "read_targets",
    ),
    "build": (
        "build_engine",
        "read_profile",
    ),
    "runtime": (
        "no_gpu",
        "open_engine",
    ),
}
__getattr__ = lazy_doors(__name__, _DOORS)

__all__ = [
    "MODULES",
    "build_engine",
    "check_targets",
    "choose_module",
    "no_gpu",
    "open_engine",
    "read_profile",
    "read_targets",
]
