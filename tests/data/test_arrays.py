"""Arrays from strangers: headers are checked before values are read."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from reparam.data import load_array
from reparam.errors import InputError


def header(text: str, values: bytes = b"", version: int = 1) -> bytes:
    content = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(content)) + content + values


def described(shape: str, kind: str = "'<f4'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 3), np.float32),
        np.array(3, np.int64),
        np.array([True, False]),
        np.arange(3, dtype=">f4"),
        np.arange(4, dtype=np.float16),
    ],
)
def test_what_numpy_saves_is_read(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    np.savez_compressed(tmp_path / "x.npz", a=array, b=array)
    found = load_array(tmp_path / "x.npy")
    assert isinstance(found, np.ndarray) and found.dtype.isnative
    assert np.array_equal(found, array) and found.shape == array.shape
    both = load_array(tmp_path / "x.npz")
    assert list(both) == ["a", "b"] and all(np.array_equal(both[k], array) for k in both)


@pytest.mark.parametrize(
    "content",
    [
        header(described("(4,)"), bytes(12)),
        header(described(f"({1 << 60},)"), bytes(12)),
        header(described(f"({1 << 62}, {1 << 62})"), bytes(12)),
        header(described("(-4,)"), bytes(12)),
        header(described("('a',)"), bytes(12)),
        header(described("(4,)", "'|O'"), bytes(64)),
        header(described("(4,)", "[('a', '<f4')]"), bytes(64)),
        header(described("(4,)", "'<U9'"), bytes(640)),
        header(described("(1,)", "'<f16'"), bytes(16)),
        header(described("__import__('os')"), bytes(12)),
        header("[" * 110, bytes(12)),
        header("(" * 50 + ")" * 50, bytes(12)),
        header(described("(1,)"), bytes(12), version=9),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"PK\x03\x04",
        b"x",
    ],
)
def test_damaged_arrays_are_one_sentence(content: bytes, tmp_path: Path) -> None:
    for path in (tmp_path / "x.npy", tmp_path / "x.npz"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is not an array that numpy\.save wrote") as error:
            load_array(path)
        assert str(error.value).isprintable()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_of_arrays(tmp_path: Path) -> None:
    path, good = tmp_path / "x.npz", header(described("(2,)"), bytes(8))
    for names, method, value in (
        (["a.npy", "a.npy"], zipfile.ZIP_STORED, good),
        (["a\x1b.npy"], zipfile.ZIP_STORED, good),
        (["a.npy"], zipfile.ZIP_STORED, header(described("(3,)"), bytes(8))),
        ([f"{n}.npy" for n in range(9)], zipfile.ZIP_DEFLATED, bytes(64 << 20)),
    ):
        with zipfile.ZipFile(path, "w", method) as archive:
            for name in names:
                archive.writestr(name, value)
        with pytest.raises(InputError, match="is not an array"):
            load_array(path)


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"is not an array that numpy.save wrote"):
        load_array(tmp_path / "p.npy")
    with pytest.raises(InputError, match="there is no file"):
        load_array(tmp_path / "missing.npy")
