"""Samples one at a time: which are held out, whose labels they have, and how many are in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam.capture import capture
from reparam.data import EVERY, held_out, open_samples
from reparam.errors import InputError
from support.sample_files import labels_of, numbered, pictures, rows_of, vectors

MANY = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))


def sides(values: Tensor) -> dict[float, bool]:
    return {float(s.inputs[0][0, 0]): s.held_out for s in open_samples([values], vectors())}


def test_one_in_five_is_held_out_whatever_the_order_and_the_company() -> None:
    whole = sides(MANY)
    assert EVERY == 5 and abs(sum(whole.values()) / len(whole) - 0.2) < 0.04
    assert sides(MANY.flip(0)) == whole
    alone = sides(MANY[:40:3])
    assert alone == {key: whole[key] for key in alone}


def test_the_side_is_that_of_the_values_not_of_their_dtype(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", MANY[:100].numpy().astype(np.float64))
    found = {float(s.inputs[0][0, 0]): s.held_out for s in open_samples(tmp_path / "x.npy", vectors())}
    assert found == sides(MANY[:100])


def test_the_side_is_told_by_the_inputs_alone() -> None:
    for sample in open_samples([MANY[:50]], vectors()):
        assert held_out(sample.inputs) is sample.held_out
        assert held_out([v.clone() for v in sample.inputs]) is sample.held_out
    (a, b) = torch.zeros(1, 4), torch.zeros(1, 4)
    assert len({held_out([a, b + i]) for i in range(50)}) == 2, "every input counts"
    assert len({held_out([a + i, b]) for i in range(50)}) == 2


def test_samples_are_not_kept() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def source() -> Iterator[Tensor]:
        for i in range(10_000):
            batch = torch.full((1, 3), float(i))
            alive.add(batch)
            yield batch

    most = given = 0
    for _ in open_samples(source(), vectors()):
        given += 1
        most = max(most, len(alive))
    del _
    gc.collect()
    assert given == 10_000 and most <= 3 and not alive


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a row is asked of the file at a time."""
    from reparam.data import arrays

    np.save(tmp_path / "x.npy", numbered(300))
    asked: list[int] = []
    plain = arrays.StoredArray._bytes
    monkeypatch.setattr(arrays.StoredArray, "_bytes", lambda self, n: asked.append(n) or plain(self, n))
    assert len(list(open_samples(tmp_path / "x.npy", vectors()))) == 300
    assert set(asked) == {12} and len(asked) == 300


def test_a_fixed_batch_is_one_sample() -> None:
    source = [
        (torch.from_numpy(numbered(7)[:4]), torch.arange(4)),
        (torch.from_numpy(numbered(7)[4:]), torch.arange(3)),
    ]
    samples = list(open_samples(source, vectors(3)))
    assert [s.inputs[0][:, 0].tolist() for s in samples] == [[0, 1, 2], [3, 4, 5]]
    assert [s.label.tolist() for s in samples] == [[0, 1, 2], [3, 0, 1]]
    with pytest.raises(InputError, match="holds 2 samples, but one run of the network takes 3"):
        list(open_samples([torch.zeros(2, 3)], vectors(3)))


@pytest.mark.parametrize("labels", [[3, 0, 1], (3, 0, 1), np.array([3, 0, 1]), torch.tensor([[3], [0], [1]]), "y.npy"])
def test_labels_given_apart_take_the_place_of_those_in_the_source(
    labels: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.array([3, 0, 1]))
    np.savez("x.npz", input=numbered(3), labels=np.array([9, 9, 9]))
    assert labels_of(open_samples("x.npz", vectors(), labels=labels)) == [3, 0, 1]
    batches = [(torch.from_numpy(numbered(3)), torch.full((3,), 9))]
    assert labels_of(open_samples(batches, vectors(), labels=labels)) == [3, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2], "there are 2 labels, but .* holds 3 samples; give one label for each sample"),
        ([1, 2, 3, 4], "there are 4 labels, but"),
        ([0.5, 1, 2], "are float32 of shape"),
        ([0, -1, 2], "hold -1"),
        ([True, False, True], "are bool"),
        (["a", "b", "c"], "are a list, not whole numbers"),
        ([[1, 2], [3, 4], [5, 6]], r"of shape \[3, 2\], not one whole number for each sample"),
        ([1 << 70, 1, 2], "not whole numbers"),
        ("no.npy", "there is no file no.npy"),
        ("", "the file of labels has no name"),
    ],
)
def test_wrong_labels_are_said(labels: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", numbered(3))
    with pytest.raises(InputError, match=message):
        open_samples(tmp_path / "x.npy", vectors(), labels=labels)


@pytest.mark.parametrize(("count", "held"), [(2, "more samples"), (4, "3 samples")])
def test_labels_of_a_source_of_unknown_length_are_counted_at_its_end(count: int, held: str) -> None:
    samples = open_samples([torch.zeros(3, 3)], vectors(), labels=list(range(count)))
    with pytest.raises(InputError, match=f"there are {count} labels, but a list holds {held}"):
        list(samples)


def test_a_draw_is_spread_over_the_source(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input=numbered(1000), labels=np.arange(1000))
    samples = open_samples(tmp_path / "x.npz", vectors())
    drawn = list(samples.drawn(10))
    assert [int(v // 100) for v in rows_of(drawn)] == list(range(10)), "one of each stretch"
    assert [float(n) for n in labels_of(drawn)] == rows_of(drawn), "labels stay with their samples"
    assert len({int(v) % 100 for v in rows_of(drawn)}) > 5, "not every hundredth: classes may take turns"
    assert rows_of(samples.drawn(10)) == rows_of(drawn)
    assert samples.drawn(1000) is samples and open_samples([MANY], vectors()).drawn(1).count() is None
    groups = open_samples(tmp_path / "x.npz", vectors(3)).drawn(5)
    assert [s.inputs[0][:, 0].diff().tolist() for s in groups] == [[1, 1]] * 5


def test_networks_without_samples_are_refused() -> None:
    class Scalar(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    class Products(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b

    program = capture(Scalar().eval(), (torch.tensor(1.0),), dynamic=()).program
    with pytest.raises(InputError, match="is a single number, without an axis that counts samples"):
        open_samples([torch.zeros(1)], program)
    program = capture(Products().eval(), (torch.zeros(2, 3), torch.zeros(3, 2)), dynamic=()).program
    with pytest.raises(InputError, match=r"have first axes of \[2, 3\]"):
        open_samples([torch.zeros(1)], program)


def test_free_sizes_are_those_of_each_sample() -> None:
    source = [torch.zeros(1, 3, 4, 5), torch.zeros(2, 3, 6, 7)]
    shapes = [tuple(s.inputs[0].shape) for s in open_samples(source, pictures(free=True))]
    assert shapes == [(1, 3, 4, 5), (1, 3, 6, 7), (1, 3, 6, 7)]
    with pytest.raises(InputError, match=r"of shape \(N, 3, any, any\)"):
        list(open_samples([torch.zeros(1, 2, 4, 5)], pictures(free=True)))
    with pytest.raises(InputError, match=r"of shape \[1, 3, 0, 5\]"):
        list(open_samples([torch.zeros(1, 3, 0, 5)], pictures(free=True)))


def test_preprocessing_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="the preprocessing has to be a Preprocessing or a mapping"):
        open_samples([MANY], vectors(), preprocessing=3)  # type: ignore[arg-type]
