"""ONNX: graphs made, cleaned up, stored, quantised, run and listed.
Engines that are built from ONNX start here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.utils import lazy_doors

if TYPE_CHECKING:
    from .graph import build_model, model_of
    from .layer_errors import Layer, copied, own_errors
    from .quantise import quantised
    from .runtime import OnnxRunnable
    from .source import check_source, write_source
    from .storage import stamp_model, write_model

_DOORS = {
    "graph": (
        "build_model",
        "model_of",
    ),
    "layer_errors": (
        "Layer",
        "copied",
        "own_errors",
    ),
    "quantise": ("quantised",),
    "runtime": ("OnnxRunnable",),
    "source": (
        "check_source",
        "write_source",
    ),
    "storage": (
        "stamp_model",
        "write_model",
    ),
}
__getattr__ = lazy_doors(__name__, _DOORS)

__all__ = [
    "Layer",
    "OnnxRunnable",
    "build_model",
    "check_source",
    "copied",
    "model_of",
    "own_errors",
    "quantised",
    "stamp_model",
    "write_model",
    "write_source",
]
