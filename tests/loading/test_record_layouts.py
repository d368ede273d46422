"""Any layout of a tensor over a record is read as torch reads it, or refused before a value is read."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reparam.errors import InputError
from reparam.loading.checkpoint import load_checkpoint
from support.rebuilt import rebuilt

KINDS = {
    torch.FloatStorage: torch.float32,
    torch.DoubleStorage: torch.float64,
    torch.HalfStorage: torch.float16,
    torch.IntStorage: torch.int32,
    torch.ByteStorage: torch.uint8,
}
SMALL = st.integers(-1, 5)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Any, int, int, int, tuple[int, ...], tuple[int, ...]]:
    """The kind of storage, how many values it is said to have, by how many bytes its record is off, offset, sizes and
    strides; most are as torch writes them, so that some are taken.
    """
    sizes = draw(st.lists(SMALL, max_size=3))
    steps = [math.prod(max(n, 1) for n in sizes[i + 1 :]) for i in range(len(sizes))]
    strides = draw(st.one_of(st.just(steps), st.lists(SMALL, min_size=len(sizes), max_size=len(sizes) + 1)))
    count = draw(st.one_of(st.just(math.prod(max(n, 0) for n in sizes)), st.integers(-1, 40)))
    off = draw(st.sampled_from([0, 0, 0, 0, -1, 1, 4]))
    return (
        draw(st.sampled_from(list(KINDS))),
        count,
        off,
        draw(st.sampled_from([0, 0, 1, 3, -1])),
        tuple(sizes),
        tuple(strides),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts(), mapped=st.booleans())
def test_a_layout_is_read_as_it_is_or_refused(layout: Any, mapped: bool, tmp_path: Path) -> None:
    kind, count, off, offset, sizes, strides = layout
    dtype = KINDS[kind]
    content = bytes(i % 60 for i in range(max(0, count * dtype.itemsize + off)))
    off = len(content) - count * dtype.itemsize
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1)}, buffer)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(buffer) as genuine, zipfile.ZipFile(path, "w", 0 if mapped else zipfile.ZIP_DEFLATED) as made:
        for name in genuine.namelist():
            own = {"data.pkl": rebuilt(("storage", kind, "0", "cpu", count), offset, sizes, strides), "data/0": content}
            made.writestr(name, own.get(name.partition("/")[2], genuine.read(name)))
    shaped = len(sizes) == len(strides) and min((*sizes, *strides, offset), default=offset) >= 0 and count >= 0
    end = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=False)) + 1 if 0 not in sizes else 0
    try:
        found = load_checkpoint(path).state["w"]
    except InputError as error:
        assert off or not shaped or end > count, "torch writes such"
        assert "\n" not in str(error)
        return
    assert shaped and end <= count and 0 <= off < dtype.itemsize  # a rest that is no whole value is not read
    whole = content[: count * dtype.itemsize]
    values = torch.frombuffer(bytearray(whole), dtype=dtype) if whole else torch.zeros(0, dtype=dtype)
    wanted = values.as_strided(sizes, strides, offset if values.numel() else 0)
    assert found.dtype == dtype and found.shape == wanted.shape
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
