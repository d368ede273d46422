"""Checkpoints in several files: an index that names the shard of every tensor, or a folder that holds all the shards.

The index and the names of the shards come from strangers. A shard is a plain name in the folder of the index, each
tensor lies in exactly one shard, and index and shards have to agree on every tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from reparam.errors import InputError
from reparam.utils import one_line, opened, parse_json, size_of

from .checkpoint import DISTRIBUTED, Checkpoint, from_tensors, load_checkpoint
from .wanted import Want

INDEX = ".index.json"
MOST_INDEX_BYTES = 64 << 20
MOST_SHARDS = 4096
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_USUAL = ("model.safetensors", "pytorch_model.bin")  # of hubs; with INDEX behind it, of the same in shards
_OF = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})(\.safetensors|\.bin)$")
_SHOWN = 5


def is_index(path: Path) -> bool:
    """Whether a path is named like the index of shards."""
    return path.name.endswith(INDEX) and not path.is_dir()


def load_index(path: Path, *, trust: bool, want: Want) -> Checkpoint:
    """The tensors of all shards that an index names. Raises InputError wherever index and shards do not agree."""
    with opened(path) as file:
        if size_of(file) > MOST_INDEX_BYTES:
            raise InputError(f"{path} has {size_of(file)} bytes, too many for an index")
        try:
            places = _weight_map(parse_json(file.read()))
        except ValueError as error:
            raise InputError(f"{path} is not an index of shards: {one_line(str(error))[:120]}") from error
    shards: dict[str, set[str]] = {}
    for key, shard in places.items():
        shards.setdefault(shard, set()).add(key)
    return replace(_joined(path, shards, path, trust=trust, want=want), source=path)


def _weight_map(value: Any) -> Mapping[str, str]:
    """Tensor -> shard. Raises ValueError for anything else."""
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError("it has no weight_map")
    for key, shard in places.items():
        if not isinstance(shard, str) or not is_plain(shard):
            raise ValueError(f"the shard of '{key[:60]}' is {str(shard)[:60]!r}, which is no name of a file beside it")
    if len(set(places.values())) > MOST_SHARDS:
        raise ValueError(f"it names more than {MOST_SHARDS} shards")
    return places


def is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on every system."""
    return bool(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+=-]{0,200}", name)) and not name.endswith(".")


def find_file(folder: Path, name: str) -> Path:
    """The file of a plain name in a folder. Raises InputError for a link that leaves the folder.

    In the cache of a hub, whose folders are made of links, the folder of the contents is allowed too.
    """
    path = folder / name
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            raise InputError(f"{path} is a link to nothing; copy the files themselves") from None
        here = folder.resolve()
        allowed = [here, *([here.parent.parent / "blobs"] if here.parent.name == "snapshots" else [])]
        if not any(target.is_relative_to(a) for a in allowed):
            raise InputError(f"{path} is a link that leaves its folder; copy the file itself")
    return path


def _joined(path: Path, shards: Mapping[str, set[str] | None], named: Path, *, trust: bool, want: Want) -> Checkpoint:
    """All shards as one checkpoint. shards: the tensors that each should have, None where no index says."""
    if want.key is not None:
        raise InputError(f"{named} holds tensors alone; leave out --key, or choose by their names with --prefix")
    folder = path if path.is_dir() else path.parent
    tensors: dict[str, Tensor] = {}
    for name, keys in shards.items():
        file = find_file(folder, name)
        if not file.exists():
            raise InputError(f"{named} lacks its shard {name}; download the whole of it")
        part = load_checkpoint(file, trust=trust)
        if part.module is not None or part.exported is not None:
            raise InputError(f"{file} is no shard of tensors")
        state = part.raw
        if keys is not None and state.keys() != keys:
            key = sorted(keys ^ state.keys())[0]
            where = "has" if key in state else "does not have"
            raise InputError(f"{file} {where} '{one_line(key)[:60]}', unlike {path.name}; download both again")
        if twice := next((k for k in state if k in tensors), None):
            raise InputError(f"{named} has the tensor '{one_line(twice)[:60]}' in two shards; download it again")
        tensors.update(state)
    return replace(from_tensors(tensors, named, want), want=want)


# ---- folders -----------------------------------------------------------------------------------------------------


def load_folder(folder: Path, *, trust: bool, want: Want) -> Checkpoint:
    """The weights in a folder: the index or the file that hubs write, all shards, or its only checkpoint.

    Raises InputError where there is none, or several of which none is the usual one.
    """
    names = _names(folder)
    for usual in _USUAL:
        if usual + INDEX in names:
            return replace(load_index(find_file(folder, usual + INDEX), trust=trust, want=want), path=folder)
        if usual in names:
            return _single(folder, usual, trust=trust, want=want)
    indices = [n for n in names if n.endswith(INDEX)]
    if len(indices) == 1:
        return replace(load_index(find_file(folder, indices[0]), trust=trust, want=want), path=folder)
    weights = [n for n in names if n.endswith(WEIGHTS)]
    if shards := _shards(folder, weights):
        return _joined(folder, dict.fromkeys(shards), folder, trust=trust, want=want)
    if len(weights) == 1:
        return _single(folder, weights[0], trust=trust, want=want)
    if weights:
        listed = ", ".join(weights[:_SHOWN]) + (f" and {len(weights) - _SHOWN} more" if len(weights) > _SHOWN else "")
        raise InputError(f"{folder} holds several checkpoints: {listed}; give the one that is meant")
    raise InputError(f"{folder} is a folder; give the checkpoint file in it{_kind_of_folder(folder)}")


def _single(folder: Path, name: str, *, trust: bool, want: Want) -> Checkpoint:
    file = find_file(folder, name)
    return replace(load_checkpoint(file, trust=trust, want=want), path=folder, source=file)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if is_plain(p.name) and not p.is_dir())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error


def _shards(folder: Path, names: Sequence[str]) -> list[str]:
    """The names of a whole set of shards; none where the folder has other weights. Raises InputError for a part."""
    found = [m for n in names if (m := _OF.match(n))]
    if not found:
        return []
    sets = {(m[1], m[3], m[4]) for m in found}
    if len(sets) > 1 or len(found) < len(names):
        return []
    ((stem, count, suffix),) = sets
    have = {int(m[2]) for m in found}
    total = int(count)
    missing = next((i for i in range(1, total + 1) if i not in have), None)
    if missing is not None or len(have) != total:
        name = f"{stem}-{missing or 0:0{len(count)}d}-of-{count}{suffix}"
        raise InputError(f"{folder} lacks its shard {name}; download the whole of it")
    return sorted(m[0] for m in found)


def _kind_of_folder(folder: Path) -> str:
    """What is known of a folder that training frameworks write, and how it becomes one file."""
    if (folder / ".metadata").exists() and any(folder.glob("*.distcp")):
        return f"; it is a {DISTRIBUTED}"
    if (folder / "zero_to_fp32.py").exists():
        return "; it is a checkpoint of DeepSpeed: the zero_to_fp32.py in it joins it"
    return ""
