"""Inspects a `.pt2` archive before `torch.export.load` may touch it.

`torch.export.load` runs code that an archive contains, in several ways: pickled weights and constants, sample inputs
that are reloaded with full pickle when the safe load fails, compiled libraries, symbolic sizes evaluated by sympy,
guards and names of values that become Python source, and containers that import modules by name. `inspect_archive`
therefore reads the archive by itself, with `zipfile` and `json`, and refuses what `torch.export.save` does not write
for an ordinary network. Archives written by reparam pass.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch._export.serde import schema

from reparam.errors import InputError, UnsafeFileError

from .archive_schema import check_json, refusal

MAX_TOTAL_BYTES = 64 << 30
MAX_JSON_BYTES = 256 << 20
MAX_SAMPLE_BYTES = 2 << 30
MAX_RATIO = 200  # uncompressed : compressed, of one entry; torch stores its entries uncompressed
MAX_ENTRIES = 200_000

_MODEL = re.compile(r"models/(\w{1,100})\.json", re.ASCII)
_ENTRIES = re.compile(
    r"archive_format|archive_version|version|byteorder|\.format_version|\.storage_alignment|\.data/[a-z_]+"
    r"|models/\w{1,100}\.json|data/sample_inputs/\w{1,100}\.pt|data/weights/(?:weight_[0-9]{1,9}|\w{1,100}_config\.json)"
    r"|data/constants/(?:tensor_[0-9]{1,9}|\w{1,100}_config\.json)|extra/[\w./\-]{1,400}",
    re.ASCII,
)
_RUNS_CODE = {
    "data/aotinductor/": "a compiled library",
    "data/constants/custom_obj": "a custom object",
    "data/constants/opaque_obj": "a pickled object",
    "data/weights/": "pickled weights",
    "data/constants/": "pickled constants",
}


@dataclass(frozen=True)
class ArchiveSummary:
    """What an inspected archive holds: its models' names, its nodes' targets, and its bytes when unpacked."""

    models: tuple[str, ...]
    targets: frozenset[str]
    unpacked_bytes: int


def load_exported(path: str | Path, *, trust: bool = False) -> torch.export.ExportedProgram:
    """Loads the exported program of a `.pt2` archive, after inspecting it unless `trust` is given.

    Raises UnsafeFileError when loading it could run code, InputError when it is missing, damaged, or of another kind.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if not trust:
                inspect_archive(file, path.name)
            file.seek(0)
            with _quiet():
                return torch.export.load(file)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} is not a program that torch {torch.__version__} can load ({reason[-1][:300]}); export it again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a traceback before it raises, which our one sentence replaces."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def inspect_archive(file: IO[bytes], name: str) -> ArchiveSummary:
    """Checks every part of a `.pt2` archive that `torch.export.load` interprets, and runs none of it.

    file: a seekable binary file; name: what error messages call it.

    Raises UnsafeFileError naming the part that could run code, InputError when the archive is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = check_zip(archive, name)
            texts = {e: _read_text(archive, i, name) for e, i in entries.items() if _is_interpreted(e)}
    except zipfile.BadZipFile as error:
        raise InputError(f"{name} is damaged or cut short ({error}); copy or export it again") from error
    _check_same_to_torch(file, entries, texts, name)
    targets: set[str] = set()
    models = [m[1] for m in map(_MODEL.fullmatch, entries) if m is not None]
    if not models:
        raise InputError(f"{name} is an archive that holds no exported program; write it with torch.export.save")
    for model in models:
        targets |= _check_model(model, entries, texts, name)
    return ArchiveSummary(tuple(models), frozenset(targets), sum(i.file_size for i in entries.values()))


def check_zip(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """The entries below the archive's one root folder, by name.

    Raises UnsafeFileError for absolute or climbing names, duplicates (also by letter case), encrypted or overlapping
    entries and decompression bombs; any of these can show one content to us and another to the program that loads it.
    """
    infos = archive.infolist()
    if not infos or len(infos) > MAX_ENTRIES:
        raise refusal(name, f"it has {len(infos)} entries")
    root = infos[0].filename.split("/")[0]
    entries: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    for info in infos:
        parts = info.filename.split("/")
        inside = "/".join(parts[1:])  # the root is named after the file that was saved, in any script
        if not inside.isascii() or "\\" in inside or {"", ".", ".."} & set(parts) or parts[0] != root:
            raise refusal(name, f"the entry name {info.filename!r} leaves its folder")
        if info.filename.lower() in seen:
            raise refusal(name, f"the entry {info.filename!r} is there twice")
        if info.flag_bits & 0x1:
            raise refusal(name, f"the entry {info.filename!r} is encrypted")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise refusal(name, f"the entry {info.filename!r} unpacks to {info.file_size} bytes")
        seen.add(info.filename.lower())
        entries[inside] = info
    _check_sizes(archive, infos, name)
    return entries


def _check_sizes(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], name: str) -> None:
    file = archive.fp
    size = file.seek(0, io.SEEK_END) if file is not None else 0
    if sum(i.compress_size for i in infos) > size:
        raise refusal(name, "its entries overlap")
    if sum(i.file_size for i in infos) > MAX_TOTAL_BYTES:
        raise refusal(name, f"it unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB")


def _is_interpreted(entry: str) -> bool:
    return entry.endswith((".json", ".pt")) or entry in ("archive_format", "archive_version")


def _read_text(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    limit = MAX_JSON_BYTES if info.filename.endswith(".json") else MAX_SAMPLE_BYTES
    if info.file_size > limit:
        raise refusal(name, f"{info.filename} has {info.file_size} bytes, over {limit}")
    return archive.read(info)


def _check_same_to_torch(file: IO[bytes], entries: Mapping[str, Any], texts: Mapping[str, bytes], name: str) -> None:
    """torch reads archives with a zip reader of its own; it must see what was inspected."""
    file.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(file)
        same = set(reader.get_all_records()) == set(entries)
        same = same and all(reader.get_record(entry) == content for entry, content in texts.items())
    except RuntimeError as error:
        raise InputError(f"{name} is damaged: {str(error).splitlines()[0]}") from error
    if not same:
        raise refusal(name, "two readers of the archive see different contents")


def _check_model(model: str, entries: Mapping[str, Any], texts: Mapping[str, bytes], name: str) -> frozenset[str]:
    for entry in entries:
        if _ENTRIES.fullmatch(entry):
            continue
        held = next((what for prefix, what in _RUNS_CODE.items() if entry.startswith(prefix)), "an unknown entry")
        raise refusal(name, f"{entry} is {held}")
    weights, constants = f"data/weights/{model}_weights_config.json", f"data/constants/{model}_constants_config.json"
    sample = f"data/sample_inputs/{model}.pt"
    if missing := [e for e in (weights, constants, sample) if e not in texts]:
        raise InputError(f"{name} lacks {missing[0]}; write it with torch.export.save of torch 2.11 or later")
    for entry, folder in ((weights, "data/weights/"), (constants, "data/constants/")):
        config = _parse_json(texts[entry], entry, name)
        check_json(schema.PayloadConfig, config, entry, name)
        for key, meta in config["config"].items():
            _check_payload(key, meta, folder, entries, name)
    _check_sample(texts[sample], name)
    entry = f"models/{model}.json"
    return check_json(schema.ExportedProgram, _parse_json(texts[entry], entry, name), entry, name)


def _parse_json(content: bytes, entry: str, name: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: {entry} is not JSON ({str(error)[:100]}); export the program again") from error


def _check_payload(key: str, meta: Mapping[str, Any], folder: str, entries: Mapping[str, Any], name: str) -> None:
    if meta["use_pickle"]:
        raise refusal(name, f"'{key}' in {folder} is a pickle (use_pickle)")
    info = entries.get(folder + meta["path_name"])
    if info is None or meta["tensor_meta"] is None:
        raise InputError(f"{name}: the tensor '{key}' is missing from {folder}; export the program again")
    sizes = [s.get("as_int") for s in meta["tensor_meta"]["sizes"]]
    if any(not isinstance(s, int) or s < 0 for s in sizes) or (info.file_size == 0 and sizes and 0 not in sizes):
        raise InputError(f"{name}: the tensor '{key}' has the impossible shape {sizes}; export the program again")


def _check_sample(content: bytes, name: str) -> None:
    """The sample inputs must load as plain tensors, since torch falls back to full pickle when they do not."""
    if not content:
        return
    where = "its sample inputs"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            check_zip(inner, f"{name}: {where}")
        if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)):
            raise refusal(name, f"{where} would run {', '.join(sorted(unsafe)[:5])}")
        value = torch.load(io.BytesIO(content), weights_only=True)  # as torch does it first, to the letter
    except UnsafeFileError:
        raise
    except Exception as error:
        raise refusal(name, f"{where} hold more than tensors and numbers") from error
    if not isinstance(value, tuple | dict):
        raise refusal(name, f"{where} are a {type(value).__name__}")
