"""A program as readable source: `model.py` of ordinary layers, with its weights in `model.safetensors`.
What is written runs with torch alone.
"""

from .writer import write_source

__all__ = [
    "write_source",
]
