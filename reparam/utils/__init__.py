"""What every room uses and none owns: files, text, shapes, packages, plugins.
Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_doors

if TYPE_CHECKING:
    from .cuda_driver import gpus
    from .files import SOURCE_FILES, refuse_existing
    from .names import is_plain_path, name_complaint, plain_path, prefixes, unused_name
    from .packages import PACKAGES, PackageState, check_package
    from .plugins import plugins
    from .reading import opened, parse_json, path_of, size_of
    from .search_path import leave_current_folder
    from .shapes import AXES, INTEGERS, Shape, Shapes, axis_name
    from .staging import Together, together, write_atomically, writing
    from .text import dtype_name, first_line, one_line, visible_lines

_DOORS = {
    "cuda_driver": ("gpus",),
    "files": ("SOURCE_FILES", "refuse_existing"),
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
        "axis_name",
        "check_package",
    ),
    "plugins": ("plugins",),
    "reading": (
        "opened",
        "parse_json",
        "path_of",
        "size_of",
    ),
    "search_path": ("leave_current_folder",),
    "shapes": (
        "AXES",
        "INTEGERS",
        "Shape",
        "Shapes",
        "axis_name",
    ),
    "text": (
        "dtype_name",
        "first_line",
        "one_line",
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
    "INTEGERS",
    "PACKAGES",
    "SOURCE_FILES",
    "PackageState",
    "Shape",
    "Shapes",
    "Together",
    "axis_name",
    "check_package",
    "dtype_name",
    "first_line",
    "gpus",
    "is_plain_path",
    "lazy_doors",
    "leave_current_folder",
    "name_complaint",
    "one_line",
    "opened",
    "parse_json",
    "path_of",
    "plain_path",
    "plugins",
    "prefixes",
    "refuse_existing",
    "size_of",
    "together",
    "unused_name",
    "visible_lines",
    "write_atomically",
    "writing",
]
