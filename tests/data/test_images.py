"""Images as inputs: channels, modes, sizes, and files that only look small."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reparam.data import Preprocessing, open_samples
from reparam.errors import InputError
from support.sample_files import HOW, pictures, png, rows_of, write_tar

Image = pytest.importorskip("PIL.Image")


def read(folder: Path, how: Any = HOW, **options: Any) -> Tensor:
    return torch.cat([s.inputs[0] for s in open_samples(folder, pictures(**options), preprocessing=how)])


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_every_kind_is_decoded(kind: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 7), (255, 255, 255)).save(tmp_path / f"x.{kind}")
    assert torch.allclose(read(tmp_path), torch.ones(1, 3, 4, 4), atol=0.02)


def test_modes_become_those_of_the_network(tmp_path: Path) -> None:
    for i, mode in enumerate(("RGB", "RGBA", "L")):
        (tmp_path / f"{i}.png").write_bytes(png(255, mode))
    Image.new("P", (4, 4), 0).save(tmp_path / "3.png")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "4.png")
    Image.fromarray(np.full((4, 4), 0x3380, np.uint16)).save(tmp_path / "5.png")
    for channels in (3, 1):
        found = read(tmp_path, channels=channels)
        assert found.shape == (6, channels, 4, 4)
        assert found[:, 0, 0, 0].tolist() == pytest.approx([1, 1, 1, -1, 1, -0.6])


def test_grey_values_take_the_mean_of_the_channels(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(255))
    how = Preprocessing((0.2, 0.4, 0.6), (0.1, 0.2, 0.3), (4, 4))
    assert read(tmp_path, how, channels=1)[0, 0, 0, 0] == pytest.approx((1 - 0.4) / 0.2)
    assert read(tmp_path, how)[0, :, 0, 0].tolist() == pytest.approx([8, 3, 4 / 3])


def test_the_size_is_that_of_the_network_where_it_takes_one(tmp_path: Path) -> None:
    pixels = np.zeros((12, 16, 3), np.uint8)
    pixels[:, 4:12] = 255  # the centre in width
    Image.fromarray(pixels).save(tmp_path / "x.png")
    how = Preprocessing((0.0,), (1.0,), (12, 8), 12, "nearest")
    assert read(tmp_path, how, free=True).shape == (1, 3, 12, 8) and float(read(tmp_path, how, free=True).min()) == 1
    assert read(tmp_path, how).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("interpolation", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_every_interpolation_is_pillows(interpolation: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = Image.fromarray(pixels).resize((4, 4), getattr(Image.Resampling, interpolation.upper()))
    found = read(tmp_path, Preprocessing((0.0,), (1.0,), (4, 4), None, interpolation))
    assert np.allclose(found[0].permute(1, 2, 0).numpy(), np.asarray(expected) / np.float32(255))


@pytest.mark.parametrize("sides", [(64, 43), (50, 34), (37, 61), (40, 40), (33, 32), (24, 24)])
def test_sides_and_corners_are_those_of_torchvision(sides: tuple[int, int], tmp_path: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = np.random.default_rng(0).integers(0, 255, (*sides, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    theirs = transforms.Compose([transforms.Resize(27), transforms.CenterCrop((24, 20)), transforms.ToTensor()])
    found = read(tmp_path, Preprocessing((0.0,), (1.0,), (24, 20), 27), free=True)
    assert torch.allclose(found[0], theirs(Image.fromarray(pixels)), atol=1e-6)


def bomb(side: int) -> bytes:
    """A png of few bytes that states side x side pixels."""

    def part(name: bytes, value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(side))) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [8000, 12_000, 100_000])
def test_a_large_image_is_refused_before_it_is_unpacked(side: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(side))
    with pytest.raises(InputError, match=r"a\.png is not an image that can be read: .*pixels"):
        read(tmp_path)
    shard = write_tar(tmp_path / "x.tar", {"0.png": bomb(side)})
    with pytest.raises(InputError, match=r"x\.tar: 0\.png is not an image that can be read: .*pixels"):
        rows_of(open_samples(shard, pictures(), preprocessing=HOW))


def test_a_long_image_is_refused(tmp_path: Path) -> None:
    Image.new("L", (100_000, 1)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="too long for its width; crop it"):
        read(tmp_path, Preprocessing((0.5,), (0.5,), (64, 64)), side=64)


def test_a_file_is_decoded_as_one_of_four_kinds(tmp_path: Path) -> None:
    """Pillow would have a program of the system run an EPS file, which is a program itself."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "gif")
    for content in (buffer.getvalue(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.png is not an image that can be read: it is of no known kind"):
            read(tmp_path)


def test_images_need_a_network_that_takes_them(tmp_path: Path) -> None:
    from support.sample_files import pairs, vectors

    (tmp_path / "a.png").write_bytes(png(0))
    for program, how in ((vectors(), HOW), (pairs(), HOW), (pictures(), None)):
        with pytest.raises(InputError, match="holds images, but how this network wants them is not known"):
            open_samples(tmp_path, program, preprocessing=how)
