"""reparam rewrites a trained network into the plainest network that is provably the same function.

import reparam
result = reparam.convert(model, torch.randn(1, 3, 224, 224), to="fused")
result.module(x)          # the same function, as plain layers
result.report.as_dict()   # what was rewritten, what was not and why, and the measured errors
result.save("model-fused.pt2")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import CaptureError, InputError, MachineError, NotEquivalentError, ReparamError, UnsafeFileError

if TYPE_CHECKING:
    from reparam.compare.verdict import Verdict
    from reparam.compare.verification import verify

    from .conversion import Conversion, convert, explain
    from .engines.exporting import Exported, ExportOptions, export

_LAZY = {
    "Conversion": "conversion",
    "convert": "conversion",
    "explain": "conversion",
    "Verdict": "compare",
    "verify": "compare",
    "Exported": "engines",
    "ExportOptions": "engines",
    "export": "engines",
}


def __getattr__(name: str) -> Any:
    """Loads the heavy parts (torch) on first use, so that `import reparam` stays quick."""
    if name not in _LAZY:
        raise AttributeError(f"module 'reparam' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(f"reparam.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "CaptureError",
    "Conversion",
    "ExportOptions",
    "Exported",
    "InputError",
    "MachineError",
    "NotEquivalentError",
    "ReparamError",
    "UnsafeFileError",
    "Verdict",
    "__version__",
    "convert",
    "explain",
    "export",
    "verify",
]
