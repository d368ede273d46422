"""The manifest beside an exported file, `FILE.json`: what the file is, what it was made of, and how it was verified.

A file that holds native code is loaded only with a manifest that names its sha256, or with `--trust`. That catches
files that were mixed up, cut short or replaced; it does not tell who made them, since anyone can write a manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from reparam.errors import InputError, UnsafeFileError
from reparam.utils import Stamp, first_line, one_line, opened, parse_json, path_complaint, stamp_of

if TYPE_CHECKING:
    from torch import Tensor

    from .format import Format

SCHEMA = 1
SUFFIX = ".json"
LIMIT = 16 << 20  # bytes; a manifest is small
_CHUNK = 1 << 20


def manifest_path(path: Path) -> Path:
    """`net.onnx` -> `net.onnx.json`."""
    return path.with_name(path.name + SUFFIX)


def sha256_of(path: Path, stamp: Stamp | None = None) -> str:
    """The sha256 of a file's bytes, in hexadecimal. Raises InputError for a file of another stamp."""
    with path.open("rb") as file:
        if stamp is not None and stamp_of(file) != stamp:
            raise InputError(f"{path} has changed since it was loaded; export it again")
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors: names, dtypes, shapes and values, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode(errors="backslashreplace"))
        plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)  # a single number may have any stride
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_manifest(path: Path, side: Iterable[Path], facts: Mapping[str, Any]) -> Path:
    """Writes the manifest of the file `path` and its side files; returns its path. The same input gives the same bytes.

    facts: JSON-ready values that `stamp` may have written into the file too. The JSON is ASCII, with everything else
    escaped.
    """
    row = {
        "schema": SCHEMA,
        "file": path.name,
        "sha256": sha256_of(path),
        "side": {p.name: sha256_of(p) for p in side},
        **facts,
    }
    target = manifest_path(path)
    target.write_text(json.dumps(row, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    return target


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the file `path`; None when it has none. Raises InputError when that is damaged."""
    found = _read(path)
    return None if found is None else found[0]


def _read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """The manifest and its bytes."""
    source = manifest_path(path)
    if not os.path.lexists(source):
        return None
    with opened(source) as file:
        content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise InputError(f"{source} is too large for a manifest; export the file again")
    try:
        row = parse_json(content)
    except ValueError as error:
        raise InputError(f"{source} is not a manifest ({first_line(error)}); export the file again") from error
    if complaint := _complaint(row):
        raise InputError(f"{source} is not a manifest: {complaint}; export the file again")
    return row, content


def _complaint(row: Any) -> str:
    """What is wrong with the parts of a manifest that are used here; "" for nothing."""
    if not isinstance(row, dict) or not _is_digest(row.get("sha256")):
        return "it names no sha256"
    sides = row.get("side", {})
    if not isinstance(sides, dict) or not all(_is_file_name(n) and _is_digest(h) for n, h in sides.items()):
        return "'side' is no list of files with their sha256"
    if not isinstance(row.get("format", ""), str):
        return "'format' is no name"
    return "" if isinstance(row.get("build", {}), dict) else "'build' holds no facts"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def _is_file_name(text: str) -> bool:
    return bool(text) and text not in (".", "..") and not set("/\\") & set(text) and not path_complaint(text)


def check_manifest(path: Path, format: Format, *, trust: bool) -> dict[str, Any] | None:
    """The manifest of a file that is about to be loaded, None when it has none.

    Raises UnsafeFileError, unless `trust`, for a file with native code whose manifest is missing, of another format or
    of another content.
    """
    with checked_file(path, format, trust=trust):
        return read_manifest(path)


@contextlib.contextmanager
def checked_file(path: Path, format: Format, *, trust: bool) -> Iterator[Path]:
    """The file to load in place of `path`: of one with native code, the copy that was compared with its manifest.

    The copy lies with its side files in a folder that only this user can write to, and is gone afterwards. Raises like
    `check_manifest`.
    """
    found = _read(path)
    if not format.native or trust:
        yield path
        return
    if found is None:
        raise UnsafeFileError(
            f"{path} holds native code and has no manifest {manifest_path(path).name} beside it; --trust runs it anyway"
        )
    row, content = found
    sides = row.get("side") or {}
    with tempfile.TemporaryDirectory(prefix="reparam-") as name:
        folder = Path(name)
        for file, digest in (sides | {path.name: row["sha256"]}).items():
            if row.get("format") != format.name or _copied(path, file, folder) != digest:
                raise UnsafeFileError(
                    f"{path.parent / one_line(file)} holds native code and is not the file that "
                    f"{manifest_path(path).name} describes; export it again, or run it anyway with --trust"
                )
        manifest_path(folder / path.name).write_bytes(content)
        yield folder / path.name


def _copied(path: Path, name: str, folder: Path) -> str:
    """Copies the file `name` beside `path`; returns the sha256 of the copy, "" for a file that is not there."""
    if not name or "\0" in name or Path(name).name != name:
        return ""
    try:
        with opened(path.with_name(name)) as file, (folder / name).open("xb") as copy:
            return _pour(file, copy)
    except InputError:
        return ""


def _pour(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
