"""ONNX files as they come in: read without trusting them, run as they are, and imported as modules of torch.
A file that is imported stays the judge of what was read from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reparam.utils import lazy_doors

if TYPE_CHECKING:
    from .imported import ImportedModel, import_onnx
    from .layers import Layer
    from .limits import has_loops, tensors_in
    from .reading import LARGE_FILE, external_files, external_size, is_onnx, read_file, read_model, side_files
    from .run_sizes import RunSizes
    from .session import has_bfloat16, open_session, reason_of, run_session, runtime_version, widen
    from .wire import add_metadata, write_from_where_it_lies

_DOORS = {
    "imported": ("ImportedModel", "import_onnx"),
    "layers": ("Layer",),
    "limits": ("has_loops", "tensors_in"),
    "reading": ("LARGE_FILE", "external_files", "external_size", "is_onnx", "read_file", "read_model", "side_files"),
    "run_sizes": ("RunSizes",),
    "session": ("has_bfloat16", "open_session", "reason_of", "run_session", "runtime_version", "widen"),
    "wire": ("add_metadata", "write_from_where_it_lies"),
}
__getattr__ = lazy_doors(__name__, _DOORS)

__all__ = [
    "LARGE_FILE",
    "ImportedModel",
    "Layer",
    "RunSizes",
    "add_metadata",
    "external_files",
    "external_size",
    "has_bfloat16",
    "has_loops",
    "import_onnx",
    "is_onnx",
    "open_session",
    "read_file",
    "read_model",
    "reason_of",
    "run_session",
    "runtime_version",
    "side_files",
    "tensors_in",
    "widen",
    "write_from_where_it_lies",
]
