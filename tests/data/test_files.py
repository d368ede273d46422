"""Every kind of file and folder gives its samples in order, with the labels that belong to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reparam.data import open_samples
from reparam.errors import InputError
from support.sample_files import HOW, indices, labels_of, numbered, pairs, pictures, png, rows_of, vectors

pytest.importorskip("PIL")


def test_an_array_is_read_row_by_row(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered(5).astype(np.float64))
    samples = list(open_samples(tmp_path / "x.npy", vectors()))
    assert rows_of(samples) == [0, 1, 2, 3, 4] and labels_of(samples) == [None] * 5
    assert all(s.inputs[0].shape == (1, 3) and s.inputs[0].dtype is torch.float32 for s in samples)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2"])
def test_rows_are_those_of_the_array_whatever_its_layout(order: Any, kind: str, tmp_path: Path) -> None:
    values = np.arange(12, dtype=kind).reshape(4, 3)
    np.save(tmp_path / "x.npy", np.asarray(values, order=order))
    found = torch.cat([s.inputs[0] for s in open_samples(str(tmp_path / "x.npy"), vectors())])
    assert np.array_equal(found.numpy(), values.astype(np.float32))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["labels", "y"])
def test_an_archive_has_an_array_for_each_input_and_labels(compressed: bool, name: str, tmp_path: Path) -> None:
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "x.npz", **{"b": numbered(4) + 10, name: np.array([3, 1, 0, 2], np.uint8), "a": numbered(4)})
    samples = list(open_samples(tmp_path / "x.npz", pairs()))
    assert [(float(s.inputs[0][0, 0]), float(s.inputs[1][0, 0])) for s in samples] == [
        (0, 10),
        (1, 11),
        (2, 12),
        (3, 13),
    ]
    assert labels_of(samples) == [3, 1, 0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_safetensors_have_the_same_names(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.from_numpy(numbered(4))
    save_file(
        {"input": values.to(dtype), "labels": torch.tensor([1, 0, 1, 0], dtype=torch.int32)},
        tmp_path / "x.safetensors",
    )
    samples = list(open_samples(tmp_path / "x.safetensors", vectors()))
    assert rows_of(samples) == [0, 1, 2, 3] and labels_of(samples) == [1, 0, 1, 0]
    content = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"x\.safetensors is not a whole safetensors file: its tensors take"):
        list(open_samples(tmp_path / "x.safetensors", vectors()))
    save_file({"input": values.to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"holds 'input' in F8_E4M3, which no samples are"):
        list(open_samples(tmp_path / "x.safetensors", vectors()))


def test_a_folder_of_arrays_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", numbered(2) + 10)
    save_file({"input": torch.full((1, 3), 5.0)}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "c.npz", input=numbered(1) + 20)
    (tmp_path / "notes.txt").write_text("not a sample")
    (tmp_path / "._b.npy").write_bytes(b"of a file system")
    assert rows_of(open_samples(tmp_path, vectors())) == [5, 10, 11, 20]


def test_labels_of_a_folder_may_lie_in_it(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered(3))
    np.save(tmp_path / "classes.npy", np.array([[2], [1], [0]]))
    assert labels_of(open_samples(tmp_path, vectors(), labels=tmp_path / "classes.npy")) == [2, 1, 0]


def test_images_lie_anywhere_below_a_folder(tmp_path: Path) -> None:
    for place, value in (("b/x.png", 255), ("a/deep/y.PNG", 0), ("z.png", 51)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png(value))
    samples = list(open_samples(tmp_path, pictures(), preprocessing=HOW))
    assert rows_of(samples) == pytest.approx([-1, 1, -0.6]) and labels_of(samples) == [None] * 3
    assert samples[0].inputs[0].shape == (1, 3, 4, 4)


def test_folders_are_labels_only_when_they_are_asked_for(tmp_path: Path) -> None:
    for place in ("dog/1.png", "cat/deep/2.png", "cat/3.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png(0))
    (tmp_path / "bird").mkdir()
    samples = list(open_samples(tmp_path, pictures(), preprocessing=HOW, labels="folders"))
    assert labels_of(samples) == [1, 1, 2], "folders are counted as ImageFolder counts them"
    (tmp_path / "alone.png").write_bytes(png(0))
    with pytest.raises(InputError, match=r"alone\.png lies in no folder of its class"):
        list(open_samples(tmp_path, pictures(), preprocessing=HOW, labels="folders"))
    np.save(tmp_path / "x.npy", numbered(2))
    with pytest.raises(InputError, match="is no folder of images, whose folders would be labels"):
        open_samples(tmp_path / "x.npy", vectors(), labels="folders")
    with pytest.raises(InputError, match='labels="folders" is for a folder of images'):
        open_samples([torch.zeros(2, 3)], vectors(), labels="folders")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "b.png").write_bytes(png(0)[:40])
    with pytest.raises(InputError, match=r"b\.png is not an image that can be read"):
        list(open_samples(tmp_path, pictures(), preprocessing=HOW))


def test_nothing_there_is_said(tmp_path: Path) -> None:
    for source, message in (
        (tmp_path / "no.npy", r"there is no file .*no\.npy"),
        (tmp_path, "holds no samples"),
        ("", "the source of samples has no name"),
    ):
        with pytest.raises(InputError, match=message):
            list(open_samples(source, vectors()))
    np.save(tmp_path / "x.npy", numbered(0))
    with pytest.raises(InputError, match=r"x\.npy holds 0 samples; give one at least"):
        list(open_samples(tmp_path / "x.npy", vectors()))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2), np.float32), r"float32 samples of shape \[4, 2\], where the input 'input' is float32 of sh"),
        (np.zeros((4, 3, 1), np.float32), r"of shape \(N, 3\)"),
        (np.float32(1), "holds a single number"),
        (np.zeros((4, 3), np.int32), "holds int32 samples"),
        (np.zeros((4, 3), np.complex64), "holds complex64 samples"),
        (np.array([[0, 1, np.nan]]), "holds NaN or infinite values"),
        (np.array([[0, 1, 1e300]]), "holds NaN or infinite values"),
        (np.array([{}], object), "is not an array that numpy.save wrote"),
    ],
)
def test_what_does_not_fit_is_said(array: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(InputError, match=message) as error:
        list(open_samples(tmp_path / "x.npy", vectors()))
    assert "x.npy" in str(error.value)


def test_whole_numbers_have_to_fit_the_dtype_of_the_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[0, 1, 2]]))
    (sample,) = open_samples(tmp_path / "x.npy", indices())
    assert sample.inputs[0].dtype is torch.int32 and sample.inputs[0].tolist() == [[0, 1, 2]]
    np.save(tmp_path / "x.npy", np.array([[0, 1, 1 << 40]]))
    with pytest.raises(InputError, match="holds values that int32, as 'index' is, does not hold"):
        list(open_samples(tmp_path / "x.npy", indices()))


def test_archives_that_unpack_to_far_more_are_refused(tmp_path: Path) -> None:
    arrays = {f"a{i}": np.zeros(1 << 23, np.float32) for i in range(9)}
    np.savez_compressed(tmp_path / "x.npz", input=numbered(1), **arrays)
    with pytest.raises(InputError, match="it unpacks to"):
        list(open_samples(tmp_path / "x.npz", vectors()))


def test_an_archive_that_is_damaged_inside_is_said_when_it_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", input=np.random.default_rng(0).standard_normal((500, 3)))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz is not an array that numpy\.save wrote"):
        list(open_samples(tmp_path / "x.npz", vectors()))
