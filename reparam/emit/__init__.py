"""A program as it leaves the compiler: weights cast once, as a torch module, a `.pt2` or a checkpoint.
Readable source has a room of its own, `emit.source`.
"""

from .checkpoint import save_checkpoint
from .exported import export_program, save_pt2
from .finalize import finalize, overflow_told, retyped
from .torch_module import to_module
from .whole_sizes import with_whole_sizes

__all__ = [
    "export_program",
    "finalize",
    "overflow_told",
    "retyped",
    "save_checkpoint",
    "save_pt2",
    "to_module",
    "with_whole_sizes",
]
