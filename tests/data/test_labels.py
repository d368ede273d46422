"""Labels that are given apart: maps in arrays and folders, which folders are classes, and what samples are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from reparam.data import class_folders, grouped, open_samples
from reparam.errors import InputError
from reparam.ir import InputSpec
from support.sample_files import HOW, numbered, pictures, vectors

MAPS = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4) % 5


def save_images(folder: Path, names: list[str], values: np.ndarray | None = None) -> None:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = np.full((4, 4, 3), 10 * i, np.uint8) if values is None else values[i]
        Image.fromarray(content).save(path)


def maps_of(source: Any, labels: Any, **options: Any) -> list[Tensor]:
    found = [s.label for s in open_samples(source, pictures(), preprocessing=HOW, labels=labels, maps=True, **options)]
    assert all(isinstance(label, Tensor) and label.dtype is torch.int64 for label in found)
    return [label for label in found if isinstance(label, Tensor)]


def test_label_maps_of_a_file_are_read_a_row_at_a_time(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", MAPS)
    found = maps_of([torch.zeros(3, 3, 4, 4)], tmp_path / "y.npy")
    assert np.array_equal(torch.stack(found).numpy(), MAPS)
    assert np.array_equal(torch.stack(maps_of([torch.zeros(3, 3, 4, 4)], MAPS)).numpy(), MAPS)
    batches = [(torch.zeros(3, 3, 4, 4), torch.from_numpy(MAPS))]
    assert np.array_equal(torch.stack(maps_of(batches, None)).numpy(), MAPS)
    np.save(tmp_path / "f.npy", np.asfortranarray(MAPS))
    assert np.array_equal(torch.stack(maps_of([torch.zeros(3, 3, 4, 4)], tmp_path / "f.npy")).numpy(), MAPS)


def test_label_maps_of_a_folder_have_the_names_of_the_images(tmp_path: Path) -> None:
    save_images(tmp_path / "x", ["b/0.png", "a.jpg", "c.png"])
    save_images(tmp_path / "y", ["b/0.png", "a.png", "c.bmp", "unused.png"], np.concatenate([MAPS, MAPS[:1]]))
    found = torch.stack(maps_of(tmp_path / "x", tmp_path / "y")).numpy()
    assert np.array_equal(found, MAPS[[1, 0, 2]]), "in the order of the paths of the images"


def test_a_label_map_is_cropped_like_its_image_and_never_between_classes(tmp_path: Path) -> None:
    wide = np.repeat(np.array([[0, 0, 7, 9, 9, 9]], np.uint8), 4, axis=0)
    save_images(tmp_path / "x", ["a.png"], wide[None])
    save_images(tmp_path / "y", ["a.png"], wide[None])
    how = HOW | {"interpolation": "bilinear"}
    samples = open_samples(tmp_path / "x", pictures(1), preprocessing=how, labels=tmp_path / "y", maps=True)
    (sample,) = samples
    assert isinstance(sample.label, Tensor) and sample.label[0].tolist() == [0, 7, 9, 9]
    assert torch.allclose(sample.inputs[0][0, 0], (sample.label / 255 - 0.5) / 0.5)


def test_a_palette_is_read_as_its_numbers(tmp_path: Path) -> None:
    save_images(tmp_path / "x", ["a.png"])
    image = Image.fromarray(MAPS[0], "L").convert("P")
    image.putpalette([9, 9, 9] * 256)
    image.putdata(MAPS[0].reshape(-1).tolist())
    (tmp_path / "y").mkdir()
    image.save(tmp_path / "y" / "a.png")
    assert np.array_equal(maps_of(tmp_path / "x", tmp_path / "y")[0].numpy(), MAPS[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (MAPS[:2], "there are 2 labels, but"),
        (MAPS.astype(np.float32), "float32 of shape"),
        (MAPS[:, 0], "not one whole number"),
    ],
)
def test_wrong_maps_are_said(labels: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", labels)
    np.save(tmp_path / "x.npy", np.zeros((3, 3, 4, 4), np.float32))
    for given in (labels, tmp_path / "y.npy"):
        with pytest.raises(InputError, match=message):
            list(open_samples(tmp_path / "x.npy", pictures(), labels=given, maps=True))


def test_maps_are_for_those_who_ask_for_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not one whole number for each sample"):
        open_samples([torch.zeros(3, 3, 4, 4)], pictures(), labels=MAPS)
    save_images(tmp_path / "x", ["a.png", "b.png"])
    save_images(tmp_path / "y", ["a.png"], MAPS)
    with pytest.raises(InputError, match=r"y holds no label map for .*b\.png"):
        maps_of(tmp_path / "x", tmp_path / "y")
    with pytest.raises(InputError, match="a folder of label maps is for a folder of images"):
        maps_of([torch.zeros(1, 3, 4, 4)], tmp_path / "y")
    save_images(tmp_path / "y", ["b.png"])
    with pytest.raises(InputError, match="it holds RGB, where a label map has one number for each pixel"):
        maps_of(tmp_path / "x", tmp_path / "y")


def test_folders_are_classes_where_every_image_lies_in_one(tmp_path: Path) -> None:
    save_images(tmp_path / "x", ["cat/0.png", "dog/1.png"])
    assert class_folders(tmp_path / "x") == 2
    (tmp_path / "x" / "emu").mkdir()
    assert class_folders(tmp_path / "x") == 3, "a class without a sample is one nevertheless"
    save_images(tmp_path / "x", ["loose.png"])
    assert class_folders(tmp_path / "x") is None
    np.save(tmp_path / "x.npy", MAPS)
    assert class_folders(tmp_path / "x.npy") is None and class_folders(tmp_path) is None


def test_samples_have_the_names_of_their_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered(4))
    names = [s.name for s in open_samples(tmp_path / "x.npy", vectors())]
    assert names == [f"{tmp_path}/x.npy[{i}]" for i in range(4)]
    assert [s.name for s in open_samples(tmp_path / "x.npy", vectors(2))] == names[::2], "of two rows, the first"
    save_images(tmp_path / "i", ["a.png", "b.png"])
    found = [s.name for s in open_samples(tmp_path / "i", pictures(), preprocessing=HOW)]
    assert found == [f"{tmp_path}/i/a.png", f"{tmp_path}/i/b.png"]


def test_samples_are_grouped_while_their_shapes_are_equal() -> None:
    specs = (InputSpec("x", ("batch", "n"), torch.float32),)
    source = [(torch.zeros(3, 2), torch.arange(3)), (torch.ones(2, 4), torch.arange(2))]
    groups = list(grouped(open_samples(source, specs), 2))
    assert [tuple(g.inputs[0].shape) for g in groups] == [(2, 2), (1, 2), (2, 4)]
    assert [g.labels.tolist() for g in groups if g.labels is not None] == [[0, 1], [2], [0, 1]]
    assert groups[2].names == ("batch 1 of the samples[0]", "batch 1 of the samples[1]")
