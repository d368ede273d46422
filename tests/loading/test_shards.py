"""Checkpoints in several files, whole and damaged: an index with its shards, and folders of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reparam.errors import InputError, ReparamError, UnsafeFileError
from reparam.loading import load
from support.checkpoint_nets import SPEC, small_state
from support.choice import mostly_in_sweeps
from support.mutating import by_bytes, by_json
from support.payloads import PAYLOADS

STATE = small_state()
FIRST = {k: v for k, v in STATE.items() if k.startswith("conv")}
REST = {k: v for k, v in STATE.items() if not k.startswith("conv")}
NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def shards(folder: Path, first: dict[str, Tensor] = FIRST, rest: dict[str, Tensor] = REST) -> Path:
    """A folder of two shards without an index."""
    folder.mkdir(exist_ok=True)
    save_file(first, folder / NAMES[0])
    save_file(rest, folder / NAMES[1])
    return folder


def write_index(folder: Path, **places: Any) -> Path:
    """The index of the folder; places: of tensors, in place of their own."""
    own = {**dict.fromkeys(FIRST, NAMES[0]), **dict.fromkeys(REST, NAMES[1])}
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": {**own, **places}})
    (folder / INDEX).write_text(text)
    return folder / INDEX


def check(path: Path, **how: Any) -> None:
    loaded = load(path, arch=SPEC, **how)
    assert all(torch.equal(v, STATE[k]) for k, v in loaded.module.state_dict().items())


def refused(path: Path, told: str, **how: Any) -> None:
    with pytest.raises(InputError, match=told) as error:
        load(path, arch=SPEC, **how)
    assert str(error.value).isprintable() and error.value.exit_code == 2


def test_an_index_and_its_folder(tmp_path: Path) -> None:
    index = write_index(shards(tmp_path / "net"))
    check(index)
    check(tmp_path / "net")
    assert load(tmp_path / "net", arch=SPEC).source == index
    refused(index, "leave out key, or choose by their names with prefix", key="model")


def test_shards_without_an_index(tmp_path: Path) -> None:
    check(shards(tmp_path / "net"))


def test_wrappers_and_prefixes_over_all_shards(tmp_path: Path) -> None:
    parts = ({f"module.net.{k}": v for k, v in part.items()} for part in (FIRST, REST))
    folder = shards(tmp_path / "net", *parts)
    check(folder)
    check(folder, prefix="net.")


def test_shards_of_pickles(tmp_path: Path) -> None:
    for name, part in (("a.bin", FIRST), ("b.bin", REST)):
        torch.save(part, tmp_path / name)
    places = {**dict.fromkeys(FIRST, "a.bin"), **dict.fromkeys(REST, "b.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    check(tmp_path)
    torch.save({**REST, "x": torch.nn.ReLU()}, tmp_path / "b.bin")
    with pytest.raises(UnsafeFileError, match=r"b\.bin holds more than tensors"):
        load(tmp_path, arch=SPEC)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "b.bin")
    refused(tmp_path, r"b\.bin is no shard of tensors", trust=True)


@pytest.mark.parametrize("name", ["model.safetensors", "net.safetensors", "pytorch_model.bin", "best.pt", "last.ckpt"])
def test_a_folder_with_one_checkpoint(name: str, tmp_path: Path) -> None:
    (save_file if name.endswith(".safetensors") else torch.save)(STATE, tmp_path / name)  # type: ignore[operator]
    (tmp_path / "README.md").write_text("words")
    check(tmp_path)


def test_several_checkpoints_of_which_one_is_usual(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file(STATE if name == "model.safetensors" else FIRST, tmp_path / name)
    check(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    refused(tmp_path, r"holds several checkpoints: model\.fp16\.safetensors, other\.safetensors; give the one")


def test_the_cache_of_a_hub_is_made_of_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    save_file(STATE, tmp_path / "models--a--b" / "blobs" / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    check(snapshot)
    save_file(STATE, tmp_path / "elsewhere")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../elsewhere")
    refused(snapshot, "is a link that leaves its folder")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _twice(path: Path) -> None:
    path.write_text(path.read_text().replace('"conv.weight"', f'"conv.weight": "{NAMES[0]}", "conv.weight"'))


def _without(folder: Path, key: str) -> None:
    value = json.loads((folder / INDEX).read_text())
    del value["weight_map"][key]
    (folder / INDEX).write_text(json.dumps(value))


def _doubled(folder: Path) -> None:
    save_file({**REST, **FIRST}, folder / NAMES[1])


def _elsewhere(folder: Path, path: str) -> None:
    (folder / NAMES[1]).rename(folder.parent / NAMES[1])
    write_index(folder, **dict.fromkeys(REST, path.format(NAMES[1])))


def _linked(folder: Path, target: str = "") -> None:
    (folder / NAMES[1]).rename(folder.parent / NAMES[1])
    (folder / NAMES[1]).symlink_to(target or folder.parent / NAMES[1])


def _foldered(folder: Path) -> None:
    (folder / NAMES[1]).unlink()
    (folder / NAMES[1]).mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lambda f: (f / NAMES[1]).unlink(), f"lacks its shard {NAMES[1]}; download"),
    "a shard is empty": (lambda f: (f / NAMES[1]).write_bytes(b""), "is empty"),
    "a shard is cut short": (lambda f: _cut(f / NAMES[1]), "is not a whole safetensors file"),
    "a shard is a pipe of words": (lambda f: (f / NAMES[1]).write_text("hello"), "its header is damaged"),
    "the index is cut short": (lambda f: _cut(f / INDEX), "is not an index of shards"),
    "the index is a list": (lambda f: (f / INDEX).write_text("[1]"), "it has no weight_map"),
    "the index has no map": (lambda f: (f / INDEX).write_text("{}"), "it has no weight_map"),
    "the index has an empty map": (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "it has no weight_map"),
    "the index nests": (lambda f: (f / INDEX).write_text("[" * 40_000), "is not an index of shards"),
    "a number without end": (lambda f: (f / INDEX).write_text("1" * 6000), "is not an index of shards"),
    "a key is there twice": (lambda f: _twice(f / INDEX), r"'conv\.weight' is there twice"),
    "a tensor too many": (lambda f: write_index(f, more=NAMES[0]), "does not have 'more', unlike"),
    "a tensor too few": (lambda f: _without(f, "fc.bias"), r"has 'fc\.bias', unlike"),
    "a tensor in the wrong shard": (lambda f: write_index(f, **{"fc.bias": NAMES[0]}), r"'fc\.bias', unlike"),
    "a tensor in two shards": (_doubled, r"has 'conv\.weight', unlike"),
    "a path that climbs": (lambda f: _elsewhere(f, "../{}"), "no name of a file beside it"),
    "an absolute path": (lambda f: write_index(f, **{"fc.bias": "/etc/passwd"}), "no name of a file beside it"),
    "a path of Windows": (lambda f: write_index(f, **{"fc.bias": "..\\x.safetensors"}), "no name of a file"),
    "a folder in the path": (lambda f: write_index(f, **{"fc.bias": "a/b.safetensors"}), "no name of a file"),
    "a number for a shard": (lambda f: write_index(f, **{"fc.bias": 10**400}), "which is no name of a file"),
    "a list for a shard": (lambda f: write_index(f, **{"fc.bias": ["x"]}), "no name of a file beside it"),
    "a link that leaves": (_linked, "is a link that leaves its folder"),
    "a link to nothing": (lambda f: _linked(f, "nowhere"), "is a link to nothing"),
    "a shard is a folder": (_foldered, "is a folder"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_told_in_a_sentence(case: str, tmp_path: Path) -> None:
    damage, told = DAMAGES[case]
    index = write_index(shards(tmp_path / "net"))
    damage(tmp_path / "net")
    refused(index, told)
    refused(tmp_path / "net", told)


def test_folders_that_hold_a_part(tmp_path: Path) -> None:
    (shards(tmp_path / "a") / NAMES[0]).unlink()
    refused(tmp_path / "a", f"lacks its shard {NAMES[0]}")
    refused(shards(tmp_path / "b", STATE, REST), "in two shards")
    (tmp_path / "c").mkdir()
    refused(tmp_path / "c", "is a folder; give the checkpoint file in it$")
    (tmp_path / "c" / "zero_to_fp32.py").write_text("")
    refused(tmp_path / "c", "of DeepSpeed: the zero_to_fp32.py in it joins it")
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / "c" / name).write_text("")
    refused(tmp_path / "c", "a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils joins it")
    torch.save(STATE, tmp_path / "c" / "__0_0.distcp")
    told = "is one file of a distributed checkpoint: python -m torch.distributed.checkpoint.format_utils joins it"
    refused(tmp_path / "c" / "__0_0.distcp", told)


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.sweep)])
def test_damage_at_random(count: int, tmp_path: Path) -> None:
    """Values, keys and bytes of the index: taken whole, or refused in a sentence."""
    index = write_index(shards(tmp_path / "net"))
    genuine, outcomes = index.read_bytes(), {"taken": 0, "refused": 0}
    for seed in range(count):
        rng = random.Random(seed)
        index.write_bytes((by_json if seed % 3 else by_bytes)(genuine, rng))
        try:
            check(index if seed % 2 else index.parent)
            outcomes["taken"] += 1
        except ReparamError as error:
            assert isinstance(error, InputError) and str(error).isprintable() and "\n" not in str(error)
            outcomes["refused"] += 1
    print(outcomes)
    assert outcomes["refused"] > 0.4 * count and outcomes["taken"] > 0.03 * count


@pytest.mark.parametrize("payload", mostly_in_sweeps(PAYLOADS, *PAYLOADS[::5]))
def test_a_payload_in_every_text_of_an_index(payload: str, tmp_path: Path) -> None:
    index = write_index(shards(tmp_path / "net"))
    genuine = index.read_text()
    for old in ("conv.weight", NAMES[1], "weight_map", "total_size"):
        index.write_text(genuine.replace(json.dumps(old), json.dumps(payload)))
        try:
            check(index)
        except InputError as error:
            assert str(error).isprintable()
