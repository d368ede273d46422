"""Samples in files: both sides, as many as are wanted, from all over the source, and nothing left behind."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reparam.data import Deck, held_out, open_samples, spool
from reparam.errors import InputError, MachineError
from support.sample_files import indices, numbered, pairs, pictures, vectors


def values(deck: Deck, size: int = 7) -> list[float]:
    return [float(v) for (x, *_), _ in deck.batches(size) for v in x[:, 0]]


def source(count: int, width: int = 3) -> list[Tensor]:
    return [torch.from_numpy(numbered(count, width))]


def test_every_sample_is_on_its_side_with_its_label(tmp_path: Path) -> None:
    rows = torch.from_numpy(numbered(200))
    with spool(open_samples([(rows, torch.arange(200))], vectors()), folder=tmp_path) as spooled:
        fit, held = values(spooled.fit), values(spooled.held)
        assert len(spooled.fit) == len(fit) and len(spooled.held) == len(held) and 20 < len(held) < 60
        assert sorted(fit + held) == list(range(200)) and fit == sorted(fit) and held == sorted(held)
        for deck, side in ((spooled.fit, False), (spooled.held, True)):
            assert deck.labelled
            for (x,), labels in deck.batches(16):
                assert labels is not None and labels.dtype is torch.int64 and torch.equal(labels, x[:, 0].long())
                assert x.dtype is torch.float32 and all(held_out([row[None]]) is side for row in x)


def test_batches_are_of_the_size_that_is_asked_for() -> None:
    with spool(open_samples(source(100), vectors())) as spooled:
        count = len(spooled.fit)
        assert [len(x) for (x,), _ in spooled.fit.batches(32)] == [32] * (count // 32) + [count % 32]
        assert not spooled.fit.labelled and next(spooled.fit.batches(1))[1] is None
        for size in (0, -1, 1.5, True, None):
            with pytest.raises(InputError, match="the size of a batch has to be a positive whole number"):
                spooled.fit.batches(size)  # type: ignore[arg-type]


def test_a_part_is_one_in_so_many_and_the_others_are_the_rest() -> None:
    rows = torch.from_numpy(numbered(60))
    with spool(open_samples([(rows, torch.arange(60))], vectors())) as spooled:
        whole = values(spooled.fit)
        for every, size in itertools.product((2, 5, len(whole), 100), (1, 4, 100)):
            one, rest = spooled.fit.part(every), spooled.fit.part(every, others=True)
            assert values(one, size) == whole[::every] and len(one) == one.rows == len(whole[::every])
            assert values(rest, size) == [v for i, v in enumerate(whole) if i % every] and len(rest) == rest.rows
            assert len(one) + len(rest) == len(whole) == len(one.part(1))
            for (x,), labels in rest.batches(size):
                assert labels is not None and torch.equal(labels, x[:, 0].long())
    with spool(open_samples(source(60), vectors(4))) as spooled:
        whole = values(spooled.fit)
        assert values(spooled.fit.part(3)) == [v for i, v in enumerate(whole) if i // 4 % 3 == 0]
        assert len(spooled.fit.part(3, others=True)) * 4 == spooled.fit.part(3, others=True).rows


def test_samples_that_are_the_same_are_in_one_part() -> None:
    rows = torch.from_numpy(numbered(40))
    with spool(open_samples([(torch.cat([rows, rows, rows[:7]]), torch.arange(87))], vectors())) as spooled:
        deck = spooled.fit
        one, rest = deck.part(3), deck.part(3, others=True)
        first = list(dict.fromkeys(values(deck)))[::3]
        assert len(deck) > len(set(values(deck))) and values(one) == [v for v in values(deck) if v in first]
        assert not set(values(one)) & set(values(rest)) and len(one) + len(rest) == len(deck)


def test_several_inputs_and_whole_numbers() -> None:
    rows = torch.from_numpy(numbered(40))
    with spool(open_samples([(rows, -rows)], pairs())) as spooled:
        assert all(torch.equal(a, -b) for (a, b), _ in spooled.fit.batches(8))
    with spool(open_samples([rows.long()], indices())) as spooled:
        assert all(x.dtype is torch.int32 for (x,), _ in spooled.fit.batches(8))


def test_a_fixed_batch_stays_whole() -> None:
    rows = torch.from_numpy(numbered(100))
    with spool(open_samples([(rows, torch.arange(100))], vectors(4))) as spooled:
        assert len(spooled.fit) + len(spooled.held) == 25
        for (x,), labels in itertools.chain(spooled.fit.batches(100), spooled.held.batches(1)):
            assert labels is not None and x[:, 0].diff().tolist() == [1, 1, 1] and torch.equal(labels, x[:, 0].long())


def test_a_deck_is_read_by_several_at_once_and_again() -> None:
    with spool(open_samples(source(100), vectors())) as spooled:
        whole = values(spooled.fit)
        pairs_of = zip(spooled.fit.batches(3), spooled.fit.batches(3), strict=True)
        assert all(torch.equal(a[0], b[0]) for (a, _), (b, _) in pairs_of)
        found: list[list[float]] = []
        threads = [threading.Thread(target=lambda: found.append(values(spooled.fit, 2))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [whole] * 4


# ---- sides that would be empty ---------------------------------------------------------------------------------------


def of_one_side(count: int, *, held: bool) -> Tensor:
    rows = torch.from_numpy(numbered(1000))
    return torch.stack([row for row in rows if held_out([row[None]]) is held][:count])


@pytest.mark.parametrize("held", [False, True])
def test_an_empty_side_gets_one_sample_the_same_in_any_order(held: bool) -> None:
    rows = of_one_side(6, held=held)
    moved = set()
    for order in (rows, rows.flip(0), rows[[3, 1, 5, 0, 2, 4]]):
        labels = order[:, 0].long()
        with spool(open_samples([(order, labels)], vectors())) as spooled:
            few, many = (spooled.fit, spooled.held) if held else (spooled.held, spooled.fit)
            assert (len(few), len(many)) == (1, 5)
            assert sorted(values(few) + values(many)) == sorted(rows[:, 0].tolist())
            for (x,), found in itertools.chain(few.batches(2), many.batches(2)):
                assert found is not None and torch.equal(found, x[:, 0].long())
            moved.add(tuple(values(few)))
    assert len(moved) == 1


@pytest.mark.parametrize("held", [False, True])
def test_no_sample_is_on_both_sides_also_where_a_side_would_be_empty(held: bool) -> None:
    rows = of_one_side(3, held=held)
    with spool(open_samples([rows[[0, 1, 2, 1, 0, 2, 0]]], vectors())) as spooled:
        fit, out = values(spooled.fit), values(spooled.held)
    assert fit and out and set(fit).isdisjoint(out) and len(fit) + len(out) == 7


def test_samples_that_are_all_the_same_stay_on_one_side() -> None:
    rows = of_one_side(1, held=False).expand(5, -1)
    with spool(open_samples([rows], vectors())) as spooled:
        assert (len(spooled.fit), len(spooled.held)) == (5, 0)


def test_one_sample_stays_where_it_is() -> None:
    rows = of_one_side(1, held=True)
    with spool(open_samples([(rows, torch.tensor([1]))], vectors())) as spooled:
        assert (len(spooled.fit), len(spooled.held)) == (0, 1) and spooled.fit.labelled
        assert list(spooled.fit.batches(4)) == []


# ---- limits ----------------------------------------------------------------------------------------------------------


def test_of_a_file_as_many_as_are_wanted_are_read_from_all_over_it(tmp_path: Path) -> None:
    classes = np.repeat(np.arange(10), 500)
    np.savez(tmp_path / "x.npz", input=numbered(5000), labels=classes)
    with spool(open_samples(tmp_path / "x.npz", vectors()), limit=100) as spooled:
        assert len(spooled.fit) == 100 and 15 <= len(spooled.held) <= 25
        found = Counter(int(n) for _, labels in spooled.fit.batches(9) for n in labels)  # type: ignore[union-attr]
        assert len(found) == 10 and max(found.values()) <= 20
        again = values(spooled.fit)
    with spool(open_samples(tmp_path / "x.npz", vectors()), limit=100) as spooled:
        assert values(spooled.fit) == again


def test_only_drawn_images_are_decoded(tmp_path: Path) -> None:
    from reparam.data import images
    from support.sample_files import HOW, png

    pytest.importorskip("PIL")
    for i in range(100):
        (tmp_path / f"{i:03}.png").write_bytes(png(i))
    decoded: list[str] = []
    plain = images._decoded
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_decoded", lambda file, name, c: decoded.append(name) or plain(file, name, c))
        with spool(open_samples(tmp_path, pictures(), preprocessing=HOW), limit=4) as spooled:
            assert len(spooled.fit) == 4 and len(spooled.held) == 1
    assert len(decoded) < 40


def test_of_a_generator_every_sample_has_the_same_chance() -> None:
    def batches() -> Iterator[Tensor]:
        yield from torch.from_numpy(numbered(3000)).split(64)

    with spool(open_samples(batches(), vectors()), limit=200) as spooled:
        fit = values(spooled.fit)
        assert len(fit) == len(set(fit)) == 200 and len(spooled.held) == 50
        thirds = Counter(int(v // 1000) for v in fit)
        assert all(40 < thirds[i] < 95 for i in range(3))


def test_rows_count_where_a_sample_is_a_batch() -> None:
    for limit in (39, 40):
        with spool(open_samples(source(400), vectors(fixed=4)), limit=limit) as spooled:
            assert (spooled.fit.rows, spooled.held.rows) == (40, 8)


def test_the_smallest_limit_leaves_one_on_each_side() -> None:
    for rows in (of_one_side(9, held=False), of_one_side(9, held=True), torch.from_numpy(numbered(50))):
        with spool(open_samples([rows], vectors()), limit=1) as spooled:
            assert (len(spooled.fit), len(spooled.held)) == (1, 1)
    for limit in (0, -1, 2.0, True):
        with (
            pytest.raises(InputError, match="the limit of samples has to be a positive whole number"),
            spool(open_samples(source(4), vectors()), limit=limit),  # type: ignore[arg-type]
        ):
            pass


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_samples_of_several_shapes_are_refused(tmp_path: Path) -> None:
    for name, side in (("a", 4), ("b", 5)):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 3, side, 4), np.float32))
    with (
        pytest.raises(
            InputError, match=r"holds samples of shapes \[1, 3, 4, 4\] and \[1, 3, 5, 4\]; make them one size"
        ),
        spool(open_samples(tmp_path, pictures(free=True)), folder=tmp_path),
    ):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_left_behind(error: type[BaseException], inside: bool, tmp_path: Path) -> None:
    def batches() -> Iterator[Tensor]:
        yield from source(20)
        if not inside:
            raise error

    with pytest.raises(error), spool(open_samples(batches(), vectors()), folder=tmp_path) as spooled:
        assert len(spooled.fit) > 0 and list(tmp_path.iterdir())
        raise error
    assert not list(tmp_path.iterdir())


def test_a_deck_ends_with_its_block() -> None:
    with spool(open_samples(source(20), vectors())) as spooled:
        pass
    with pytest.raises(InputError, match="samples are read within the block that spooled them"):
        list(spooled.fit.batches(2))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return plain(Path("/dev/full"), "wb", buffering=0) if "w" in mode else plain(self, mode, *args, **kwargs)

    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    monkeypatch.setattr(Path, "open", full)
    with (
        pytest.raises(MachineError, match=r"cannot write .*No space left on device"),
        spool(open_samples(source(20), vectors()), folder=tmp_path),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_nothing_can_be_written_to_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(MachineError, match=r"cannot write .*No such file"),
        spool(open_samples(source(20), vectors()), folder=tmp_path / "no"),
    ):
        pass
