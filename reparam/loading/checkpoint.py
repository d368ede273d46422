"""Reads a file into a `Checkpoint`: a state dict, a pickled module, or an exported program.

Files are told apart by content, not by suffix. Nothing in a file is run: pickles are read with `weights_only`, `.pt2`
archives are inspected first (`archive`), and a file that would run code is refused with the list of what it
would run, unless `trust` is given.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.utils import (
    Stamp,
    check_safetensors,
    is_safetensors,
    name_complaint,
    one_line,
    opened,
    path_of,
    stamp_of,
)
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

from .archive import load_program
from .choosing import clean_keys, find_weights, refuse_left_out, under_prefix
from .records import Inspected, inspect_pickle, inspect_zip
from .restricted import read_restricted
from .stand_ins import describe_value, stand_ins
from .told_names import told_names
from .wanted import Want
from .working_directory import working_directory_on_path
from .zip_entries import ZIP_ERRORS

_OTHER_FILES = (  # how files of other kinds begin
    (b"\x89HDF", "an HDF5 file (Keras?)"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with: git lfs pull"),
    (b"<!DOCTYPE", "a web page; the download failed"),
    (b"<html", "a web page; the download failed"),
)
DISTRIBUTED = "distributed checkpoint: python -m torch.distributed.checkpoint.format_utils joins it"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: a state dict, a whole pickled module (trusted files only), or an exported program.

    found_under: the keys that lead to the state dict, such as "model_ema.module". ignored: other top-level entries.
    choices: those of them that are weights too, which a key would take. others: what stands in the state dict beside
    tensors, by its key: "a str". raw: all tensors, by their names in the file. left_out: how many of them a prefix left
    out. source: the file that was read, where that is not `path`. stamp: of the file as it was read. want: which
    weights were asked for. names: what the file calls its architecture.
    """

    path: Path
    state: Mapping[str, Tensor] = field(default_factory=dict)
    module: nn.Module | None = None
    exported: torch.export.ExportedProgram | None = None
    found_under: str = ""
    ignored: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Tensor] = field(default_factory=dict)
    left_out: int = 0
    source: Path | None = None
    stamp: Stamp | None = None
    want: Want = field(default_factory=Want)
    names: tuple[str, ...] = ()


def load_checkpoint(path: str | Path, *, trust: bool = False, want: Want | None = None) -> Checkpoint:
    """Reads a checkpoint: `.pt`, `.pth`, `.bin`, `.safetensors` or `.pt2`, told apart by content.

    The file is opened once: what is inspected is what is loaded.

    Raises InputError for anything else, UnsafeFileError for a file that would run code unless `trust` is given.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the checkpoint file in it")
    with opened(path, "check the name, or give an architecture with --arch") as file:
        want = want or Want()
        return replace(_load(file, path, trust, want), stamp=stamp_of(file), want=want)


def refuse_prefix(want: Want, path: Path, what: str) -> None:
    """Raises InputError for a prefix, where there are no names that it could be of. what: is there."""
    if want.prefix is not None:
        raise InputError(f"{path} holds {what}; leave out --prefix, which is for the tensors of a state dict")


def _load(file: IO[bytes], path: Path, trust: bool, want: Want) -> Checkpoint:
    if path.suffix == ".distcp":
        raise InputError(f"{path} is one file of a {DISTRIBUTED}")
    head = file.read(512)
    file.seek(0)
    if is_safetensors(head):
        return _from_object(_read_safetensors(file, path), path, want)
    if path.suffix == ".safetensors":
        raise InputError(f"{path} is not a safetensors file: its header is damaged; copy it again")
    if head.startswith(b"PK\x03\x04"):
        return _load_zip(file, path, trust, want)
    if head.startswith(b"\x80"):
        return _load_pickle(file, path, trust, want)
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is in the tar format of torch 0.1; load it with an old torch and save it again")
    raise InputError(f"{path} is not a checkpoint{_kind(path, head)}; save one with torch.save(model.state_dict(), …)")


def _kind(path: Path, head: bytes) -> str:
    known = next((what for magic, what in _OTHER_FILES if head.startswith(magic)), None)
    if known is None and head.isascii():
        known = "text"
    return f": it is {known}" if known else ""


def _read_safetensors(file: IO[bytes], path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_safetensors(file, str(path))
    try:
        return load_file(path_of(file))
    except (SafetensorError, KeyError, ValueError, OSError, RuntimeError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error


def _load_zip(file: IO[bytes], path: Path, trust: bool, want: Want) -> Checkpoint:
    try:
        with zipfile.ZipFile(file) as archive:
            _check_kind(archive, path)
            program = any(n.endswith("/archive_format") for n in archive.namelist())
    except ZIP_ERRORS as error:
        raise InputError(f"{path} is damaged or cut short ({one_line(str(error))}); copy or save it again") from error
    if program:
        if want.key is not None:
            raise InputError(f"{path} holds a program; leave out --key, which is for checkpoints")
        refuse_prefix(want, path, "a program")
        return Checkpoint(path, exported=load_program(file, path, trust=trust))
    if trust:
        return _from_trusted(file, path, want)
    inspected = inspect_zip(file, path.name)
    return _from_object(_read_pickle(file, path, inspected), path, want, inspected.names)


def _load_pickle(file: IO[bytes], path: Path, trust: bool, want: Want) -> Checkpoint:
    if trust:
        return _from_trusted(file, path, want)
    inspected = inspect_pickle(file, path.name)
    return _from_object(_read_pickle(file, path, inspected), path, want, inspected.names)


def _from_trusted(file: IO[bytes], path: Path, want: Want) -> Checkpoint:
    value = _read_pickle(file, path, None)
    return _from_object(value, path, want, told_names(value))


def _check_kind(archive: zipfile.ZipFile, path: Path) -> None:
    """Raises InputError unless the archive is one of torch.save or torch.export.save."""
    names = archive.namelist()
    if any("/data/aotinductor/" in n for n in names):
        raise InputError(f"{path} is a compiled library, not a program; give the checkpoint or program it was made of")
    if any(n.endswith("/constants.pkl") for n in names):
        raise InputError(f"{path} is a TorchScript archive, which is not supported; save the model's state_dict")
    if "serialized_exported_program.json" in names:
        raise InputError(f"{path} was exported by an older torch; export it again with torch {torch.__version__}")
    if not any(n.endswith(("/data.pkl", "/archive_format")) for n in names):
        raise InputError(f"{path} is a zip archive but not a checkpoint; save one with torch.save(…)")


def _read_pickle(file: IO[bytes], path: Path, inspected: Inspected | None) -> Any:
    """The object that torch.save wrote; tensors that can be mapped stay on disk until they are used.

    inspected: None for a file that is trusted.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is an error below
            file.seek(0)
            if inspected is None:
                register_missing_torchvision_ops()
                with working_directory_on_path():  # its classes may be the user's own
                    return torch.load(file, map_location="cpu", weights_only=False)
            with stand_ins():
                return read_restricted(file, inspected)
    except Exception as error:
        reason = one_line(_reason(error))
        if inspected is None and isinstance(error, AttributeError | ImportError):
            raise InputError(f"{path} needs Python code that is not here ({reason}); run in its folder") from error
        raise InputError(
            f"{path} is not a checkpoint, or is damaged ({reason[:200]}); copy or save it again"
        ) from error


def _reason(error: Exception) -> str:
    """What torch says, without its advice to read the file by means that run code."""
    text = str(error).strip()
    _, _, inner = text.rpartition("WeightsUnpickler error: ")
    return (inner.strip().splitlines() or [type(error).__name__])[0]


def _from_object(value: Any, path: Path, want: Want, names: tuple[str, ...] = ()) -> Checkpoint:
    """Finds the state dict (or a pickled module) in what was loaded, and cleans its keys."""
    found = find_weights(value, path, want)
    under = ".".join(found.under)
    if isinstance(found.value, nn.Module):
        refuse_prefix(want, path, "a whole module")
        return Checkpoint(path, module=found.value, found_under=under, ignored=found.ignored, choices=found.choices)
    tensors = {str(k): v for k, v in found.value.items() if isinstance(v, Tensor)}
    refuse_left_out(found.value, found.under, path, want.prefix)
    others = {str(k): describe_value(v) for k, v in found.value.items() if not isinstance(v, Tensor)}
    checkpoint = from_tensors(tensors, path, want)
    checkpoint = replace(checkpoint, found_under=under, ignored=found.ignored, choices=found.choices)
    return replace(checkpoint, others=others, names=names)


def from_tensors(tensors: Mapping[str, Tensor], path: Path, want: Want) -> Checkpoint:
    """A checkpoint of these tensors, with cleaned keys; of those with the wanted prefix alone.

    Raises InputError for names that no tensor can have, and where no name has the prefix.
    """
    for key in tensors:
        if complaint := name_complaint(key):
            raise InputError(f"{path} has a tensor whose name {complaint}: {key[:60]!r}; save it under another name")
    state, left = (tensors, 0) if want.prefix is None else under_prefix(tensors, want.prefix, path)
    return Checkpoint(path, clean_keys(state, path), raw=tensors, left_out=left)
