"""Webdataset shards: a `.tar` read as a stream. Nothing is extracted, and what is no ordinary member is refused."""

from __future__ import annotations

import contextlib
import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch

from reparam.errors import InputError, ReparamError
from reparam.utils import name_complaint, one_line, opened, size_of

from .arrays import parse_npy
from .block import Block, Column, HeldColumn
from .images import IMAGES, StoredImage, images_unknown
from .inputs import Inputs
from .preprocessing import Preprocessing

SHARD = ".tar"
_PACKED = {".tgz", ".tbz", ".tbz2", ".txz", ".tzst"}  # shards that are compressed, which `read_shard` tells
MOST_BYTES = 1 << 28  # of one member
_MOST_HEADER = 1 << 16  # bytes of a header beyond the ordinary one, which tarfile parses as a whole
_LABEL = "cls"
_CLASS = re.compile(rb"\s*([0-9]{1,18})\s*")
_LONGER = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def is_shard(path: Path) -> bool:
    """Whether a file is a shard by its name, compressed or not."""
    return path.suffix == SHARD or path.suffix in _PACKED or path.suffixes[-2:-1] == [SHARD]


def read_shard(path: Path, inputs: Inputs, how: Preprocessing | None) -> Iterator[Block]:
    """The samples of a shard, each a block of its own: members that follow each other and share all before the dot.

    An image or `.npy` is the sample, without a batch axis; of a network with several inputs, `NAME.npy` is that of the
    input NAME. `.cls` is the label; other members are passed over. Raises InputError for a shard that is cut short or
    compressed, for members that are links, devices, huge or badly named, for samples that lack a part, and for a shard
    of other members alone.
    """
    wanted, stem, parts = _wanted(inputs), "", dict[str, bytes]()
    with opened(path) as file:
        passed: list[str] = []
        for name, content in _members(file, path, wanted, passed):
            own, _, kind = name.rpartition("/")[2].partition(".")
            own = f"{name.rpartition('/')[0]}/{own}"
            if own != stem and parts:
                yield _block(path, stem, parts, inputs, how)
                parts = {}
            stem = own
            if kind.lower() in parts:
                raise InputError(f"{path} holds '{name}' twice in one sample; write it again")
            parts[kind.lower()] = content
        if parts:
            yield _block(path, stem, parts, inputs, how)
        elif passed:
            kinds = ", ".join(f".{kind}" for kind in sorted(wanted - {_LABEL}))
            raise InputError(
                f"{path} holds no sample: members such as '{passed[0]}' are passed over; name them {kinds}"
            )


class _Header(tarfile.TarInfo):
    """A header that asks for no more than a header may: tarfile would parse all of it, with regular expressions."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _LONGER and found.size > _MOST_HEADER):
            raise InputError(f"a header of the archive states {found.size} bytes")
        return found


def _members(file: IO[bytes], path: Path, wanted: frozenset[str], passed: list[str]) -> Iterator[tuple[str, bytes]]:
    """The names and contents of members that have one of the wanted endings. passed: gets the name of another one."""
    with _naming_the_archive(path), tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
        size = size_of(file)
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # the list would grow
            _check(member, path, size)
            ending = member.name.rpartition("/")[2].partition(".")[2].lower()
            if member.isdir() or ending not in wanted:
                passed += [] if member.isdir() or passed else [one_line(member.name)[:80]]
                continue
            content = archive.extractfile(member)
            assert content is not None
            yield member.name, content.read()
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("it has no end")


def _check(member: tarfile.TarInfo, path: Path, size: int) -> None:
    name = one_line(member.name)[:80]
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise InputError(f"{path} is refused because its member '{name}' is no ordinary file; write it without links")
    parts = PurePosixPath(member.name)
    if parts.is_absolute() or ".." in parts.parts or name_complaint(member.name):
        raise InputError(f"{path} is refused because its member '{name}' is named as lying elsewhere; write it again")
    if member.size > min(size, MOST_BYTES):
        raise InputError(f"{path} is refused because its member '{name}' states {member.size} bytes")


@contextlib.contextmanager
def _naming_the_archive(path: Path) -> Iterator[None]:
    try:
        yield
    except ReparamError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{path} is not a whole tar archive: {error}") from error
    except (tarfile.TarError, ValueError, OSError, EOFError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is not a whole tar archive without compression ({one_line(str(error))[:100]}); write it again"
        ) from error


def _wanted(inputs: Inputs) -> frozenset[str]:
    single = {*(suffix[1:] for suffix in IMAGES), "npy"} if len(inputs.names) == 1 else set()
    return frozenset({_LABEL, *single, *(f"{name.lower()}.npy" for name in inputs.names)})


def _block(path: Path, stem: str, parts: dict[str, bytes], inputs: Inputs, how: Preprocessing | None) -> Block:
    where = f"{path}: {stem.lstrip('/')}"
    label = None
    if _LABEL in parts:
        found = _CLASS.fullmatch(parts.pop(_LABEL))
        if found is None:
            raise InputError(f"{where}.cls holds no class; it has to be a whole number from 0")
        label = torch.tensor([int(found[1])])
    columns = tuple(_column(where, name, parts, inputs, how) for name in inputs.names)
    if len(parts) > len(columns):
        raise InputError(f"{where} holds several samples ({', '.join(sorted(parts))}); keep one")
    return Block(where, columns, label)


def _column(where: str, name: str, parts: dict[str, bytes], inputs: Inputs, how: Preprocessing | None) -> Column:
    keys = [f"{name.lower()}.npy", *(["npy"] if len(inputs.names) == 1 else [])]
    key = next((k for k in keys if k in parts), None)
    if key is not None:
        value = parse_npy(parts[key], f"{where}.{key}")
        spec = next(s for s in inputs.specs if s.name == name)
        return HeldColumn(value if value.dim() == len(spec.shape) else value[None])
    image = next((k for k in parts if f".{k}" in IMAGES), None)
    if image is None or len(inputs.names) != 1:
        raise InputError(
            f"{where} has no member for the input '{name}' beside it; add a .{keys[-1]}, and write the members of a "
            "sample one after the other"
        )
    if how is None or inputs.image is None:
        raise images_unknown(where)
    return StoredImage(f"{where}.{image}", io.BytesIO(parts[image]), how, inputs.image[0])
