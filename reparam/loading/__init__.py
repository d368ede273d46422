"""A file or a name as an nn.Module. Nothing in a file runs unless it is trusted."""

from .given import FileOrModel, Given, drawn_inputs, take_given
from .hub import check_arguments
from .model import LoadedModel, load
from .random_statistics import randomize_statistics
from .zoo import Architecture, build_architecture, find_function

__all__ = [
    "Architecture",
    "FileOrModel",
    "Given",
    "LoadedModel",
    "build_architecture",
    "check_arguments",
    "drawn_inputs",
    "find_function",
    "load",
    "randomize_statistics",
    "take_given",
]
