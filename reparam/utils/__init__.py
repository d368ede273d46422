"""What every room uses and none owns: files, text, shapes, packages, plugins.
Nothing here imports torch when it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_doors

if TYPE_CHECKING:
    from .cuda_driver import gpus
    from .files import SOURCE_FILES, refuse_existing
    from .names import prefixes, unused_name
    from .packages import PACKAGES, PackageState, check_package
    from .plugins import plugins
    from .shapes import AXES, INTEGERS, Shape, Shapes, axis_name
    from .staging import Together, together, write_atomically, writing
    from .text import dtype_name, first_line, one_line

_DOORS = {
    "cuda_driver": ("gpus",),
    "files": ("SOURCE_FILES", "refuse_existing"),
    "names": ("prefixes", "unused_name"),
    "packages": (
        "PACKAGES",
        "PackageState",
        "axis_name",
        "check_package",
    ),
    "plugins": ("plugins",),
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
    "lazy_doors",
    "one_line",
    "plugins",
    "prefixes",
    "refuse_existing",
    "together",
    "unused_name",
    "write_atomically",
    "writing",
]
