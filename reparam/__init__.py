"""reparam rewrites a trained network into the plainest network that is the same function, and checks that it is.

import reparam
result = reparam.convert(model, torch.randn(1, 3, 224, 224), to="fused")
result.module(x)          # the same function, as plain layers
result.report.as_dict()   # what was rewritten, what was not and why, and the measured errors
result.save("model-fused.pt2")
"""

import logging
import sys

if sys.argv[:1] == ["-m"] and "reparam" in sys.orig_argv and not sys.flags.safe_path:
    del sys.path[0]  # `python -m` looks into the current folder first, also for what is imported next

from typing import TYPE_CHECKING

from reparam.utils import lazy_doors

from ._version import __version__
from .errors import CaptureError, InputError, MachineError, NotEquivalentError, ReparamError, UnsafeFileError

if TYPE_CHECKING:
    from reparam.cli import apply
    from reparam.compare import ProgramDiff, Verdict, diff, verify
    from reparam.engines import Exported, ExportOptions, export
    from reparam.initial import Initialised, InitOptions, init
    from reparam.loading import LoadedModel, load
    from reparam.measure import BenchOptions, BenchTable, bench
    from reparam.pruning import Pruned, PruneOptions, prune, refit
    from reparam.signal import Analysis, analyze
    from reparam.training import Recalibrated, recalibrate

    from .conversion import Conversion, convert, explain

logging.getLogger(__name__).addHandler(logging.NullHandler())  # stages at INFO, details at DEBUG, for those who ask

_DOORS = {
    "cli": ("apply",),
    "compare": ("ProgramDiff", "Verdict", "diff", "verify"),
    "conversion": ("Conversion", "convert", "explain"),
    "engines": ("ExportOptions", "Exported", "export"),
    "initial": ("InitOptions", "Initialised", "init"),
    "loading": ("LoadedModel", "load"),
    "measure": ("BenchOptions", "BenchTable", "bench"),
    "pruning": ("PruneOptions", "Pruned", "prune", "refit"),
    "signal": ("Analysis", "analyze"),
    "training": ("Recalibrated", "recalibrate"),
}
__getattr__ = lazy_doors(__name__, _DOORS)  # torch is imported on first use, so that `import reparam` stays quick

__all__ = [
    "Analysis",
    "BenchOptions",
    "BenchTable",
    "CaptureError",
    "Conversion",
    "ExportOptions",
    "Exported",
    "InitOptions",
    "Initialised",
    "InputError",
    "LoadedModel",
    "MachineError",
    "NotEquivalentError",
    "ProgramDiff",
    "PruneOptions",
    "Pruned",
    "Recalibrated",
    "ReparamError",
    "UnsafeFileError",
    "Verdict",
    "__version__",
    "analyze",
    "apply",
    "bench",
    "convert",
    "diff",
    "explain",
    "export",
    "init",
    "load",
    "prune",
    "recalibrate",
    "refit",
    "verify",
]


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
