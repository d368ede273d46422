"""The manifest beside an exported file, `FILE.json`: what the file is, what it was made of, and how it was verified.

A file that holds native code is loaded only with a manifest that names its sha256, or with `--trust`. That catches
files that were mixed up, cut short or replaced; it does not tell who made them, since anyone can write a manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.errors import InputError, UnsafeFileError
from reparam.utils import first_line, opened, parse_json, path_complaint, size_of

if TYPE_CHECKING:
    from torch import Tensor

    from .format import Format

SCHEMA = 1
SUFFIX = ".json"
LIMIT = 16 << 20  # bytes; a manifest is small


def manifest_path(path: Path) -> Path:
    """`net.onnx` -> `net.onnx.json`."""
    return path.with_name(path.name + SUFFIX)


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """The sha256 of named tensors: names, dtypes, shapes and values, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_manifest(path: Path, side: Iterable[Path], facts: Mapping[str, Any]) -> Path:
    """Writes the manifest of the file `path` and its side files; returns its path. The same input gives the same bytes.

    facts: JSON-ready values that `stamp` may have written into the file too.
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
    source = manifest_path(path)
    if not os.path.lexists(source):
        return None
    with opened(source) as file:
        if size_of(file) > LIMIT:
            raise InputError(f"{source} is too large for a manifest; export the file again")
        try:
            row = parse_json(file.read(LIMIT))
        except ValueError as error:
            raise InputError(f"{source} is not a manifest ({first_line(error)}); export the file again") from error
    if complaint := _complaint(row):
        raise InputError(f"{source} is not a manifest: {complaint}; export the file again")
    found: dict[str, Any] = row
    return found


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
    row = read_manifest(path)
    if not format.native or trust:
        return row
    if row is None:
        raise UnsafeFileError(
            f"{path} holds native code and has no manifest {manifest_path(path).name} beside it; --trust runs it anyway"
        )
    named = {path: row["sha256"]} | {path.with_name(n): h for n, h in row.get("side", {}).items()}
    for file, digest in named.items():
        if row.get("format") != format.name or not file.is_file() or sha256_of(file) != digest:
            raise UnsafeFileError(
                f"{file} holds native code and is not the file that {manifest_path(path).name} describes; "
                "export it again, or run it anyway with --trust"
            )
    return row
