"""An nn.Module as a `Program`: one functional ATen graph that owns its weights. What cannot be captured, or has state,
is refused with the line of the model.
"""

from .steps import Captured, from_exported
from .torch_export import capture, evaluation_mode

__all__ = [
    "Captured",
    "capture",
    "evaluation_mode",
    "from_exported",
]
