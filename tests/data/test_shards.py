"""Webdataset shards: samples by their stems, and archives that are refused before anything in them is used."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reparam.data import open_samples
from reparam.errors import InputError
from support.mutating import by_bytes
from support.sample_files import HOW, labels_of, npy, pairs, pictures, png, rows_of, vectors, write_tar

pytest.importorskip("PIL")
VECTOR = npy(np.ones(3, np.float32))


def test_members_of_one_stem_are_one_sample(tmp_path: Path) -> None:
    members = {"a/1.png": png(255), "a/1.cls": b"7", "a/1.json": b"{}", "b/1.cls": b"0\n", "b/1.png": png(0)}
    samples = list(open_samples(write_tar(tmp_path / "x.tar", members), pictures(), preprocessing=HOW))
    assert rows_of(samples) == [1, -1] and labels_of(samples) == [7, 0]


def test_members_of_a_sample_that_do_not_follow_each_other_are_told(tmp_path: Path) -> None:
    members = {"1.png": png(255), "2.png": png(0), "1.cls": b"7", "2.cls": b"0"}
    told = (
        "x.tar: 1 has no member for the input 'input' beside it; .* write the members of a sample one after the other"
    )
    with pytest.raises(InputError, match=told):
        list(open_samples(write_tar(tmp_path / "x.tar", members), pictures(), preprocessing=HOW))


def test_arrays_are_samples_without_a_batch_axis(tmp_path: Path) -> None:
    members = {"0.npy": npy(np.full((1, 3), 5.0)), "1.npy": npy(np.full(3, 6.0))}
    assert rows_of(open_samples(write_tar(tmp_path / "x.tar", members), vectors())) == [5, 6]
    both = {"0.a.npy": npy(np.full(3, 1.0)), "0.b.npy": npy(np.full(3, 2.0))}
    (sample,) = open_samples(write_tar(tmp_path / "y.tar", both), pairs())
    assert [float(v[0, 0]) for v in sample.inputs] == [1, 2]


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", {"0.npy": npy(np.full(3, 1.0))})
    write_tar(tmp_path / "0.tar", {"0.npy": npy(np.full(3, 0.0))})
    (tmp_path / "._0.tar").write_bytes(b"of a file system")
    (tmp_path / "notes.txt").write_text("numbers")
    assert rows_of(open_samples(tmp_path, vectors())) == [0, 1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.cls": b"1"}, "x.tar: 0 has no member for the input 'input' beside it; add a .npy"),
        (
            {"0.txt": b"a", "1.input.png": b""},
            r"holds no sample: members such as '0.txt' .* name them \.bmp, .*png",
        ),
        ({"0.npy": VECTOR, "0.cls": b"one"}, r"x.tar: 0.cls holds no class"),
        ({"0.npy": VECTOR, "0.cls": b"-1"}, r"x.tar: 0.cls holds no class"),
        (
            {"0.npy": VECTOR, "0.cls": b"1", "1.npy": VECTOR},
            "x.tar: 1 has no label, where the samples before it have one",
        ),
        ({"0.npy": VECTOR, "0.png": b""}, "holds several samples"),
        ({"0.npy": npy(np.array([{}], object))}, "x.tar: 0.npy is not an array that numpy.save wrote"),
        ({"0.npy": npy(np.zeros(4))}, r"x.tar: 0 holds float64 samples of shape \[1, 4\]"),
        ({"0.png": b"x"}, "holds images, but how this network wants them is not known; say it with --mean, --std"),
        ({"../0.npy": VECTOR}, "its member '../0.npy' is named as lying elsewhere"),
        ({"/etc/0.npy": VECTOR}, "is named as lying elsewhere"),
        ({"0\n.npy": VECTOR}, "is named as lying elsewhere"),
        ({"readme.txt": b"x"}, "holds no sample: members such as .readme.txt. are passed over"),
    ],
)
def test_what_does_not_fit_is_said(members: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        list(open_samples(write_tar(tmp_path / "x.tar", members), vectors()))
    assert "x.tar" in str(error.value)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]
)
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("0.npy")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InputError, match=r"its member '0\.npy' is no ordinary file"):
        list(open_samples(tmp_path / "x.tar", vectors()))


def headed(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header alone, which states `size` bytes."""
    info = tarfile.TarInfo("0.npy")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("content", [headed(1 << 40), headed(-512), headed(1 << 20, tarfile.XHDTYPE) + bytes(1 << 20)])
def test_sizes_that_nothing_has_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    with pytest.raises(InputError, match=r"states -?[0-9]+ bytes"):
        list(open_samples(tmp_path / "x.tar", vectors()))


def test_a_shard_that_was_cut_short_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{i}.npy": VECTOR for i in range(3)})
    whole = path.read_bytes()
    end = 3 * 1024  # each member is a header and one block
    assert len(list(open_samples(path, vectors()))) == 3
    for length in (*range(1, end, 177), 512, 1024, 2048, end):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"x\.tar is not a whole tar archive"):
            list(open_samples(path, vectors()))
    broken = bytearray(whole)
    broken[1024:1100] = b"x" * 76
    path.write_bytes(broken)
    with pytest.raises(InputError, match=r"x\.tar is not a whole tar archive"):
        list(open_samples(path, vectors()))


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO(write_tar(tmp_path / "y.tar", {"0.npy": VECTOR}).read_bytes())
    for name in ("x.tar", "x.tar.gz", "x.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(buffer.getvalue()))
        with pytest.raises(InputError, match=rf"{name} is not a whole tar archive without compression"):
            list(open_samples(tmp_path / name, vectors()))


def test_a_member_twice_in_one_sample_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("0.npy", "0.NPY"):
            info = tarfile.TarInfo(name)
            info.size = len(VECTOR)
            archive.addfile(info, io.BytesIO(VECTOR))
    with pytest.raises(InputError, match=r"holds '0\.NPY' twice in one sample"):
        list(open_samples(tmp_path / "x.tar", vectors()))


def test_damaged_shards_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", {"0.npy": VECTOR, "0.cls": b"1", f"{'long' * 40}.npy": VECTOR, f"{'long' * 40}.cls": b"2"}
    )
    whole, refused = path.read_bytes(), 0
    assert labels_of(open_samples(path, vectors())) == [1, 2]
    for seed in range(300):
        rng = random.Random(seed)
        content = bytearray(by_bytes(whole, rng))
        for at in range(0, len(content) - 511, 512) if seed % 2 else ():  # sums of headers are made to fit
            if content[at + 257 : at + 262] == b"ustar":
                content[at + 148 : at + 156] = b" " * 8
                content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        path.write_bytes(content)
        try:
            list(open_samples(path, vectors()))
        except InputError as error:
            refused += 1
            assert "x.tar" in str(error) and str(error).isprintable()
    assert 50 < refused < 300
