"""Arrays that are written: no name of an output leaves its folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from reparam.engines import save_arrays
from support.payloads import PAYLOADS


def test_names_of_outputs_stay_in_the_folder(tmp_path: Path) -> None:
    names = [*PAYLOADS, "file", "allow_pickle", "a/b", "Identity:0"]
    buffer = io.BytesIO()
    save_arrays(buffer, {name: np.full(2, i, np.float32) for i, name in enumerate(names)})
    with zipfile.ZipFile(buffer) as archive:
        entries = archive.namelist()
        assert len(set(entries)) == len(names)
        assert all(e.isprintable() and not e.startswith("/") and ".." not in e.split("/") for e in entries)
        archive.extractall(tmp_path / "folder" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"folder"} and {p.name for p in (tmp_path / "folder").iterdir()} == {
        "out"
    }
    buffer.seek(0)
    with np.load(buffer) as found:
        assert float(found["file"][0]) == names.index("file") and float(found["a/b"][0]) == names.index("a/b")
