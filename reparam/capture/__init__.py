"""An nn.Module as a `Program`: one functional ATen graph that owns its weights. What cannot be captured, or has state,
is refused with the line of the model.
"""

from .free_axes import first_sizes, frees_batch, read_axes, without_batch
from .fresh import Outside, fresh_copy, own_copy
from .outputs import keep_outputs
from .places import Line, line_of, line_of_caller
from .steps import Captured, from_exported
from .torch_export import batch_of, capture, evaluation_mode, runs_on

__all__ = [
    "Captured",
    "Line",
    "Outside",
    "batch_of",
    "capture",
    "evaluation_mode",
    "first_sizes",
    "frees_batch",
    "fresh_copy",
    "from_exported",
    "keep_outputs",
    "line_of",
    "line_of_caller",
    "own_copy",
    "read_axes",
    "runs_on",
    "without_batch",
]
