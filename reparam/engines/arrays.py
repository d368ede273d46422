"""Arrays written as `.npz`, whatever they are called."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from reparam.utils import unused_name


def save_arrays(file: IO[bytes], arrays: Mapping[str, Any]) -> None:
    """Writes a .npz, as numpy.savez does, whatever the arrays are called: no name leaves the folder it unpacks in."""
    taken: list[str] = []
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in arrays.items():
            taken.append(unused_name(_inside(name), taken))
            with archive.open(zipfile.ZipInfo(f"{taken[-1]}.npy"), "w", force_zip64=True) as content:
                np.lib.format.write_array(content, np.asanyarray(value), allow_pickle=False)


def _inside(name: str) -> str:
    """A name whose parts are those of a path downwards."""
    plain = "".join(c if c.isprintable() and c not in "\\:" else "_" for c in name)
    parts = ["_" if part.strip(". ") == "" else part for part in plain.split("/")]
    return "/".join(parts)[:200]
