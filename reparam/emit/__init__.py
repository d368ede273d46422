"""A program as it leaves the compiler: weights cast once, as a torch module or a `.pt2`.
Readable source has a room of its own, `emit.source`.
"""

from .finalize import finalize, overflow_told
from .torch_module import export_program, save_pt2, to_module

__all__ = [
    "export_program",
    "finalize",
    "overflow_told",
    "save_pt2",
    "to_module",
]
