"""An nn.Module as a `Program`: one functional ATen graph that owns its weights. What cannot be captured, or has state,
is refused with the line of the model.
"""

from .fresh import fresh_copy, outside_kept
from .steps import Captured, from_exported
from .torch_export import batch_of, capture, evaluation_mode, read_axes

__all__ = [
    "Captured",
    "batch_of",
    "capture",
    "evaluation_mode",
    "fresh_copy",
    "from_exported",
    "outside_kept",
    "read_axes",
]
