"""Inspects a `.pt2` archive before `torch.export.load` may touch it.

`torch.export.load` runs code that an archive contains, in several ways: pickled weights and constants, sample inputs
that are reloaded with full pickle when the safe load fails, compiled libraries, symbolic sizes evaluated by sympy,
guards and names of values that become Python source, and containers that import modules by name. `inspect_archive`
therefore reads the archive by itself, with `zipfile` and `json`, and refuses what `torch.export.save` does not write
for an ordinary network. Archives written by reparam pass.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch._export.serde import schema, serialize

from reparam.errors import InputError
from reparam.utils import first_line, one_line, opened, parse_json, quiet

from .archive_schema import check_json
from .program_check import check_program
from .records import MAX_DIMENSIONS, inspect_zip, last_element
from .zip_entries import ZIP_ERRORS, check_content, check_zip, content_start, damaged, read_content, refusal

MAX_JSON_BYTES = 128 << 20
MAX_SAMPLE_BYTES = 512 << 20
MAX_EXPANDED = 1 << 26  # elements of a tensor beyond those of its record: what is stored once and read many times

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
    with opened(path) as file:
        return load_program(file, path, trust=trust)


def load_program(file: IO[bytes], path: Path, *, trust: bool = False) -> torch.export.ExportedProgram:
    """`load_exported` for a file that is open. path: what messages call it. Raises like `load_exported`."""
    try:
        if not trust:
            inspect_archive(file, path.name)
        file.seek(0)
        with quiet("torch.export"):
            program = torch.export.load(file)
        check_program(program, path.name)
        return program
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{path} is not a program that torch {torch.__version__} can load ({one_line(reason[-1])[:300]}); "
            "export it again"
        ) from error


def inspect_archive(file: IO[bytes], name: str) -> ArchiveSummary:
    """Checks every part of a `.pt2` archive that `torch.export.load` interprets, and runs none of it.

    file: a seekable binary file; name: what error messages call it.

    Raises UnsafeFileError naming the part that could run code, InputError when the archive is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = check_zip(archive, name)
            for info in entries.values():
                check_content(archive, info, name)
            starts = {e: content_start(archive, i, name) for e, i in entries.items()}
            texts = {e: _read_text(archive, i, name) for e, i in entries.items() if _is_interpreted(e)}
    except ZIP_ERRORS as error:
        raise InputError(f"{name} is damaged or cut short ({one_line(str(error))}); copy or export it again") from error
    _check_same_to_torch(file, starts, texts, name)
    targets: set[str] = set()
    models = [m[1] for m in map(_MODEL.fullmatch, entries) if m is not None]
    if not models:
        raise InputError(f"{name} is an archive that holds no exported program; write it with torch.export.save")
    for model in models:
        targets |= _check_model(model, entries, texts, name)
    return ArchiveSummary(tuple(models), frozenset(targets), sum(i.file_size for i in entries.values()))


def _is_interpreted(entry: str) -> bool:
    return entry.endswith((".json", ".pt")) or entry in ("archive_format", "archive_version")


def _read_text(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> bytes:
    limit = MAX_JSON_BYTES if info.filename.endswith(".json") else MAX_SAMPLE_BYTES
    if info.file_size > limit:
        raise refusal(name, f"{info.filename} has {info.file_size} bytes, over {limit}")
    return read_content(archive, info)


def _check_same_to_torch(file: IO[bytes], starts: Mapping[str, int], texts: Mapping[str, bytes], name: str) -> None:
    """torch reads archives with a zip reader of its own; it must see what was inspected."""
    file.seek(0)
    try:
        reader: Any = torch._C.PyTorchFileReader(file)
        same = set(reader.get_all_records()) == set(starts)
        same = same and all(reader.get_record_offset(entry) == at for entry, at in starts.items())
        same = same and all(reader.get_record(entry) == content for entry, content in texts.items())
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is damaged: {first_line(error)}") from error
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
        return parse_json(content)
    except ValueError as error:
        raise InputError(
            f"{name}: {entry} is not JSON ({one_line(str(error))[:100]}); export the program again"
        ) from error


def _check_payload(key: str, meta: Mapping[str, Any], folder: str, entries: Mapping[str, Any], name: str) -> None:
    if meta["use_pickle"]:
        raise refusal(name, f"'{key}' in {folder} is a pickle (use_pickle)")
    info = entries.get(folder + meta["path_name"])
    if info is None or meta["tensor_meta"] is None:
        raise InputError(f"{name}: the tensor '{key}' is missing from {folder}; export the program again")
    _check_record(key, meta["tensor_meta"], info.file_size, name)


def _check_record(key: str, meta: Mapping[str, Any], size: int, name: str) -> None:
    """Every element of a tensor lies in its record, and the record holds whole elements."""
    item = _ITEMS.get(meta["dtype"])
    sizes, strides = ([s.get("as_int") for s in meta[part]] for part in ("sizes", "strides"))
    offset = meta["storage_offset"].get("as_int")
    plain = all(isinstance(n, int) and 0 <= n < 2**62 for n in (*sizes, *strides, offset))
    if item is None or not plain or len(sizes) != len(strides) or len(sizes) > MAX_DIMENSIONS:
        raise InputError(f"{name}: the tensor '{key}' has the impossible shape {sizes}; export the program again")
    needed = last_element(sizes, strides, offset)
    if size % item or needed * item > size:
        raise damaged(name, f"the record of '{key}' holds {size} bytes, where {needed * item} are declared")
    if math.prod(sizes) > size // item + MAX_EXPANDED:
        raise refusal(name, f"'{key}' repeats {size // item} values to {math.prod(sizes)}")


def _check_sample(content: bytes, name: str) -> None:
    """The sample inputs must load as plain tensors, since torch falls back to full pickle when they do not."""
    if not content:
        return
    where = "its sample inputs"
    try:
        file = io.BytesIO(content)
        if inspect_zip(file, f"{name}: {where}").strange:
            raise ValueError("they hold what is no plain tensor")
        value = torch.load(io.BytesIO(content), weights_only=True)  # as torch does it first, to the letter
    except Exception as error:
        raise refusal(name, f"{where} hold more than tensors and numbers") from error
    if not isinstance(value, tuple | dict):
        raise refusal(name, f"{where} are a {type(value).__name__}")


_ITEMS: Mapping[int, int] = {int(kind): dtype.itemsize for kind, dtype in serialize._SERIALIZE_TO_TORCH_DTYPE.items()}
