"""What every room uses and none owns: files, text, shapes, packages, plugins.
Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_doors

if TYPE_CHECKING:
    from .cuda_driver import gpus
    from .files import SOURCE_FILES, refuse_existing
    from .foreign import Interrupted, foreign_code, ignore_exits, place_of_error, refused_exits
    from .names import prefixes, unused_name
    from .packages import PACKAGES, PackageState, check_package
    from .plugins import plugins
    from .shapes import AXES, INTEGERS, Shape, Shapes
    from .staging import Together, together, write_atomically, writing
    from .text import describe_error, dtype_name, first_line, one_line

_DOORS = {
    "cuda_driver": ("gpus",),
    "files": ("SOURCE_FILES", "refuse_existing"),
    "foreign": ("Interrupted", "foreign_code", "ignore_exits", "place_of_error", "refused_exits"),
    "names": ("prefixes", "unused_name"),
    "packages": (
        "PACKAGES",
        "PackageState",
        "check_package",
    ),
    "plugins": ("plugins",),
    "shapes": (
        "AXES",
        "INTEGERS",
        "Shape",
        "Shapes",
    ),
    "text": (
        "describe_error",
        "dtype_name",
        "first_line",
        "one_line",
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
    "Interrupted",
    "PackageState",
    "Shape",
    "Shapes",
    "Together",
    "check_package",
    "describe_error",
    "dtype_name",
    "first_line",
    "foreign_code",
    "gpus",
    "ignore_exits",
    "lazy_doors",
    "one_line",
    "place_of_error",
    "plugins",
    "prefixes",
    "refuse_existing",
    "refused_exits",
    "together",
    "unused_name",
    "write_atomically",
    "writing",
]
