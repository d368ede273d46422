"""Values beside the weights that are only data: they are read as empty stand-ins of ours, so that nothing of them runs.

Training scripts save their arguments, scores and dates with the weights. The names of such classes are listed here,
one by one. Where a pickle calls one of them, the call makes an object of ours that takes anything and keeps nothing:
neither argparse nor NumPy nor pathlib is asked, and what the pickle puts into the value is dropped.

What torch would make without running code, but no network takes, such as a sparse tensor, is not made either.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reparam.utils import describe_type

_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_LIGHTNING = ("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing")
_FABRIC = ("lightning_fabric.utilities.data", "lightning.fabric.utilities.data")

VALUES = frozenset(
    [
        "argparse.Namespace",
        "types.SimpleNamespace",
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *(f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")),
        "numpy.dtype",
        "numpy.ndarray",
        *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple", "range", "slice")),
    ]
)
MAPPINGS = frozenset(["collections.defaultdict", *(f"{module}.AttributeDict" for module in (*_LIGHTNING, *_FABRIC))])
INERT = VALUES | MAPPINGS


class _Inert:
    """Takes whatever a pickle gives and keeps nothing of it."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertMapping:
    """A plain mapping in place of one of a class of its own, since tensors may lie in it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return {}


class LeftOut(_Inert):
    """Stands where a file has what no network takes. what: it is: "a sparse tensor"."""

    __slots__ = ("what",)

    def __init__(self, what: str = "") -> None:
        self.what = what


def describe_value(value: Any) -> str:
    """What a value is, for a refusal of it; of a stand-in, what it stands for."""
    return value.what if isinstance(value, LeftOut) else describe_type(value)


def _stand_in(full_name: str) -> type:
    module, _, name = full_name.rpartition(".")
    base = _InertMapping if full_name in MAPPINGS else _Inert
    return type(name, (base,), {"__module__": module, "__slots__": ()})


_STAND_INS = [(LeftOut, f"{__name__}.LeftOut"), *((_stand_in(name), name) for name in sorted(INERT))]


@contextmanager
def stand_ins() -> Iterator[None]:
    """Within the block, torch's restricted reader makes stand-ins of what `INERT` lists, and refuses all else."""
    with torch.serialization.safe_globals(_STAND_INS):  # type: ignore[arg-type]
        yield
