"""An nn.Module as a `Program`: one functional ATen graph that owns its weights. What cannot be captured, or has state,
is refused with the line of the model.
"""

from .torch_export import Captured, capture, evaluation_mode, from_exported

__all__ = [
    "Captured",
    "capture",
    "evaluation_mode",
    "from_exported",
]
