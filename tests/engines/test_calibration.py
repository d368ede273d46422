"""Calibration data: what is read, in which order, scaled how, and what does not fit."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from reparam import convert
from reparam.capture import capture
from reparam.engines import read_calibration
from reparam.engines.calibration import BATCH, hold_out
from reparam.errors import InputError
from reparam.ir import Program
from support.engine_nets import SHAPE, small
from support.sample_files import npy, write_tar


def image_program(**options: Any) -> Program:
    return capture(small(), (torch.randn(SHAPE),), **options).program


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


# ---- arrays ------------------------------------------------------------------------------------------------------


def test_samples_become_batches_of_eight_in_order(tmp_path: Path) -> None:
    samples = torch.randn(19, 3, 16, 16).double().numpy()
    np.save(tmp_path / "c.npy", samples)
    batches = read_calibration(tmp_path / "c.npy", image_program())
    assert [len(b[0]) for b in batches] == [8, 8, 3]
    merged = torch.cat([b[0] for b in batches])
    assert merged.dtype == torch.float32
    assert torch.equal(merged, torch.from_numpy(samples).float())


def test_a_fixed_batch_is_kept_and_the_rest_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", np.zeros((5, 3, 16, 16), np.float32))
    program = image_program(dynamic=())
    assert [len(b[0]) for b in read_calibration(tmp_path / "c.npy", program)] == [2, 2]
    np.save(tmp_path / "one.npy", np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(InputError, match=r"one\.npy holds 1 samples, but one run of the network takes 2"):
        read_calibration(tmp_path / "one.npy", program)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name, value in (("b", 2.0), ("a", 1.0)):
        np.save(tmp_path / f"{name}.npy", np.full((2, 3, 16, 16), value, np.float32))
    ((batch,),) = read_calibration(tmp_path, image_program())
    assert batch[:, 0, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


def test_the_only_array_of_an_archive_is_the_only_input_whatever_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", np.full((2, 3, 16, 16), 2.0, np.float32), labels=np.zeros(2, np.int64))
    ((batch,),) = read_calibration(tmp_path / "c.npz", image_program())
    assert float(batch.min()) == 2.0
    np.savez(tmp_path / "d.npz", *[np.zeros((2, 3, 16, 16), np.float32)] * 2)
    with pytest.raises(InputError, match=r"d\.npz has no array 'input'; it holds arr_0, arr_1"):
        read_calibration(tmp_path / "d.npz", image_program())


def test_several_inputs_come_from_an_archive_by_name(tmp_path: Path) -> None:
    program = capture(Two().eval(), (torch.randn(2, 3), torch.randn(2, 3))).program
    np.savez(tmp_path / "c.npz", b=np.ones((4, 3), np.float32), a=np.zeros((4, 3), np.float32))
    ((a, b),) = read_calibration(tmp_path / "c.npz", program)
    assert (float(a.max()), float(b.min())) == (0.0, 1.0)
    np.savez(tmp_path / "d.npz", a=np.zeros((4, 3), np.float32))
    with pytest.raises(InputError, match=r"d\.npz has no array 'b'; it holds a"):
        read_calibration(tmp_path / "d.npz", program)
    np.savez(tmp_path / "e.npz", a=np.zeros((4, 3), np.float32), b=np.zeros((5, 3), np.float32))
    with pytest.raises(InputError, match="unequal numbers of samples"):
        read_calibration(tmp_path / "e.npz", program)
    np.save(tmp_path / "f.npy", np.zeros((4, 3), np.float32))
    with pytest.raises(InputError, match=r"holds one array, but the network takes 2 inputs"):
        read_calibration(tmp_path / "f.npy", program)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((4, 3, 8, 16), np.float32), r"of shape \[4, 3, 8, 16\], where the input 'input' is float32 of shape"),
        (np.zeros((4, 3, 16), np.float32), r"of shape \[4, 3, 16\]"),
        (np.zeros((4, 3, 16, 16), np.int64), "holds int64 samples"),
        (np.full((4, 3, 16, 16), np.nan, np.float32), "NaN or infinite"),
        (np.zeros((0, 3, 16, 16), np.float32), "holds 0 samples"),
    ],
)
def test_what_does_not_fit_is_said(array: Any, expected: str, tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", array)
    with pytest.raises(InputError, match=expected):
        read_calibration(tmp_path / "c.npy", image_program())


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no samples"):
        read_calibration(tmp_path, image_program())


# ---- images ------------------------------------------------------------------------------------------------------

HOW = {"mean": [0.5, 0.0, 0.0], "std": [0.5, 1.0, 1.0], "size": [16, 16], "resize": 20, "interpolation": "bilinear"}


def test_images_are_scaled_cropped_and_normalised(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "class").mkdir()
    image.new("RGB", (60, 40), (255, 51, 0)).save(tmp_path / "class" / "a.png")
    image.new("L", (10, 30), 0).save(tmp_path / "class" / "b.png")
    ((batch,),) = read_calibration(tmp_path, image_program(), HOW)
    assert tuple(batch.shape) == (2, 3, 16, 16)
    assert torch.allclose(batch[0, :, 8, 8], torch.tensor([1.0, 0.2, 0.0]), atol=1e-6)
    assert torch.allclose(batch[1, :, 0, 0], torch.tensor([-1.0, 0.0, 0.0]), atol=1e-6)


def test_the_centre_is_kept(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    stripes = np.zeros((20, 60, 3), np.uint8)
    stripes[:, 20:40] = 255
    image.fromarray(stripes).save(tmp_path / "a.png")
    ((batch,),) = read_calibration(tmp_path, image_program(), HOW)
    assert float(batch[0, 1].min()) == 1.0


def test_images_without_known_preprocessing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="holds images, but how this network wants them is not known"):
        read_calibration(tmp_path, image_program())
    with pytest.raises(InputError, match="is not an image that can be read"):
        read_calibration(tmp_path, image_program(), HOW)


# ---- what is held out ------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 13), min_size=1, max_size=6))
def test_every_sample_is_calibrated_on_or_measured_on_and_none_is_both(sizes: list[int]) -> None:
    program = convert(nn.Sequential(nn.Linear(1, 2)), torch.randn(2, 1)).program
    numbers = torch.arange(float(sum(sizes)))[:, None]
    kept, held = hold_out(program, [(v,) for v in numbers.split(sizes)])
    seen, measured = ([float(n) for (v,) in part for n in v.flatten()] for part in (kept, held))
    assert sorted([*seen, *measured]) == numbers.flatten().tolist()
    assert len(measured) == (max(1, sum(sizes) // 5) if sum(sizes) > 1 else 0)
    assert all(len(v) <= BATCH for part in (kept, held) for (v,) in part)


def test_where_the_batch_is_fixed_whole_entries_are_held_out() -> None:
    program = convert(nn.Sequential(nn.Linear(1, 2)), torch.randn(3, 1), dynamic=()).program
    data = [(torch.full((3, 1), float(i)),) for i in range(6)]
    kept, held = hold_out(program, data)
    assert [float(v[0, 0]) for (v,) in kept] == [0, 1, 2, 3, 5] and [float(v[0, 0]) for (v,) in held] == [4]
    assert hold_out(program, data[:1]) == (data[:1], [])


@pytest.mark.parametrize("data", [torch.ones(3, 1), [torch.ones(3, 1)], [[1.0]], [[]], 3, "x.npy", [[None]]])
def test_calibration_data_of_another_form_is_refused(data: Any) -> None:
    program = convert(nn.Sequential(nn.Linear(1, 2)), torch.randn(2, 1)).program
    with pytest.raises(InputError, match="calibration data are batches, each a list of 1 tensors"):
        hold_out(program, data)


def test_an_image_is_decoded_as_what_its_name_may_say(tmp_path: Path) -> None:
    """Pillow would have a program of the system run an EPS file, which is a program itself."""
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_text(text)
    with pytest.raises(InputError, match=r"a\.png is not an image that can be read: it is of no known kind"):
        read_calibration(tmp_path, image_program(), HOW)


def test_a_large_image_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    def part(name: bytes, value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + name + value + struct.pack(">I", zlib.crc32(name + value))

    head = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(8000))) + part(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(InputError, match="8000 x 8000 pixels; scale it down"):
        read_calibration(tmp_path, image_program(), HOW)


# ---- every source --------------------------------------------------------------------------------------------------


def test_shards_safetensors_and_batches_from_python_are_taken(tmp_path: Path) -> None:
    samples = torch.randn(3, 3, 16, 16)
    save_file({"input": samples}, tmp_path / "c.safetensors")
    write_tar(tmp_path / "c.tar", {f"{i}.npy": npy(sample.numpy()) for i, sample in enumerate(samples)})
    for source in (tmp_path / "c.safetensors", tmp_path / "c.tar", [samples[:1], samples[1:]]):
        ((batch,),) = read_calibration(source, image_program())
        assert torch.equal(batch, samples)


def test_samples_of_unequal_sizes_lie_in_batches_of_their_own(tmp_path: Path) -> None:
    for name, side in (("a", 16), ("b", 24)):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 3, side, 16), np.float32))
    program = capture(nn.Conv2d(3, 2, 3).eval(), (torch.randn(SHAPE),), dynamic=("batch", "height", "width")).program
    shapes = [tuple(batch.shape) for (batch,) in read_calibration(tmp_path, program)]
    assert shapes == [(2, 3, 16, 16), (2, 3, 24, 16)]
