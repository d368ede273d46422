"""What every room uses and none owns: files, text, shapes, packages, plugins.
Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_doors

if TYPE_CHECKING:
    from .arguments import as_path, check_callable, check_kind, check_seed, checked_call, path_complaint
    from .cuda_driver import gpus
    from .default_device import as_the_user_set, models_too
    from .files import SOURCE_FILES, refuse_existing
    from .foreign import Interrupted, foreign_code, ignore_exits, place_of_error, refused_exits
    from .garbage import seldom_looks
    from .logs import FAKE_TENSORS, SYMBOLIC_SHAPES, quiet
    from .memory import is_out_of_memory, memory_available, memory_size, memory_told
    from .names import is_plain_path, name_complaint, plain_path, prefixes, unused_name
    from .packages import PACKAGES, PackageState, check_package
    from .plugins import plugins
    from .reading import Stamp, opened, parse_json, path_of, size_of, stamp_of
    from .safetensors_header import TensorPlace, check_safetensors, is_safetensors
    from .search_path import leave_current_folder
    from .shapes import (
        AXES,
        DEFAULT_AXES,
        INTEGERS,
        NamedAxis,
        Shape,
        Shapes,
        Unasked,
        axis_name,
        axis_words,
        batch_is_unasked,
        is_batch,
        read_named_axis,
    )
    from .shown import Facts, Reported, Shown, counts_told
    from .spoken import on_the_command_line
    from .staging import Together, together, write_atomically, writing
    from .streams import drop_broken_streams, own_stream, silence
    from .text import (
        counted,
        describe_error,
        describe_type,
        describe_value,
        dtype_name,
        first_line,
        one_line,
        three_digits,
        visible_lines,
    )

_DOORS = {
    "arguments": ("as_path", "check_callable", "check_kind", "check_seed", "checked_call", "path_complaint"),
    "cuda_driver": ("gpus",),
    "default_device": ("as_the_user_set", "models_too"),
    "files": ("SOURCE_FILES", "refuse_existing"),
    "foreign": ("Interrupted", "foreign_code", "ignore_exits", "place_of_error", "refused_exits"),
    "garbage": ("seldom_looks",),
    "logs": ("FAKE_TENSORS", "SYMBOLIC_SHAPES", "quiet"),
    "memory": ("is_out_of_memory", "memory_available", "memory_size", "memory_told"),
    "names": (
        "is_plain_path",
        "name_complaint",
        "plain_path",
        "prefixes",
        "unused_name",
    ),
    "packages": (
        "PACKAGES",
        "PackageState",
        "check_package",
    ),
    "plugins": ("plugins",),
    "reading": (
        "Stamp",
        "opened",
        "parse_json",
        "path_of",
        "size_of",
        "stamp_of",
    ),
    "safetensors_header": (
        "TensorPlace",
        "check_safetensors",
        "is_safetensors",
    ),
    "search_path": ("leave_current_folder",),
    "shapes": (
        "AXES",
        "DEFAULT_AXES",
        "INTEGERS",
        "NamedAxis",
        "Shape",
        "Shapes",
        "Unasked",
        "axis_name",
        "axis_words",
        "is_batch",
        "batch_is_unasked",
        "read_named_axis",
    ),
    "spoken": ("on_the_command_line",),
    "shown": (
        "Facts",
        "Reported",
        "Shown",
        "counts_told",
    ),
    "streams": ("drop_broken_streams", "own_stream", "silence"),
    "text": (
        "counted",
        "describe_error",
        "describe_type",
        "describe_value",
        "dtype_name",
        "first_line",
        "one_line",
        "three_digits",
        "visible_lines",
    ),
    "staging": (
        "Together",
        "together",
        "write_atomically",
        "writing",
    ),
}
__getattr__ = lazy_doors(__name__, _DOORS)

__all__ = [
    "AXES",
    "DEFAULT_AXES",
    "FAKE_TENSORS",
    "INTEGERS",
    "PACKAGES",
    "SOURCE_FILES",
    "SYMBOLIC_SHAPES",
    "Facts",
    "Interrupted",
    "NamedAxis",
    "PackageState",
    "Reported",
    "Shape",
    "Shapes",
    "Shown",
    "Stamp",
    "TensorPlace",
    "Together",
    "Unasked",
    "as_path",
    "as_the_user_set",
    "axis_name",
    "axis_words",
    "batch_is_unasked",
    "check_callable",
    "check_kind",
    "check_package",
    "check_safetensors",
    "check_seed",
    "checked_call",
    "counted",
    "counts_told",
    "describe_error",
    "describe_type",
    "describe_value",
    "drop_broken_streams",
    "dtype_name",
    "first_line",
    "foreign_code",
    "gpus",
    "ignore_exits",
    "is_batch",
    "is_out_of_memory",
    "is_plain_path",
    "is_safetensors",
    "lazy_doors",
    "leave_current_folder",
    "memory_available",
    "memory_size",
    "memory_told",
    "models_too",
    "name_complaint",
    "on_the_command_line",
    "one_line",
    "opened",
    "own_stream",
    "parse_json",
    "path_complaint",
    "path_of",
    "place_of_error",
    "plain_path",
    "plugins",
    "prefixes",
    "quiet",
    "read_named_axis",
    "refuse_existing",
    "refused_exits",
    "seldom_looks",
    "silence",
    "size_of",
    "stamp_of",
    "three_digits",
    "together",
    "unused_name",
    "visible_lines",
    "write_atomically",
    "writing",
]
