"""The entries of a zip archive, checked before anything in it is used.

A zip file describes itself twice: in a list at its end, and in a header before each entry. What the two say, and where
the entries lie, has to agree; otherwise two programs may read two different archives from one file.
"""

from __future__ import annotations

import copy
import io
import struct
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO

from reparam.errors import InputError, UnsafeFileError
from reparam.utils import name_complaint, one_line

MAX_TOTAL_BYTES = 64 << 30
MAX_RATIO = 200  # uncompressed : compressed, of one entry; torch stores its entries uncompressed
MAX_TOTAL_RATIO, FREE_BYTES = 20, 256 << 20  # of all entries: at most so many times the file, beyond these bytes
MAX_ENTRIES = 200_000
CHUNK = 1 << 20

ZIP_ERRORS = (  # what zipfile raises for archives that are not whole
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)
_HEADER = struct.Struct("<4s5H3I2H")  # of an entry, before its name
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def refusal(name: str, what: str) -> UnsafeFileError:
    """The error for the file `name`, refused because `what`."""
    return UnsafeFileError(
        f"{name} is refused because {one_line(what)}, and loading it could run code or exhaust memory; "
        "export it again, or pass --trust if you trust whoever made it"
    )


def check_zip(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """The entries below the archive's one root folder, by name.

    Raises UnsafeFileError for absolute or climbing names, duplicates (also by letter case), encrypted or overlapping
    entries and decompression bombs; any of these can show one content to us and another to the program that loads it.
    """
    infos = archive.infolist()
    if not infos or len(infos) > MAX_ENTRIES:
        raise refusal(name, f"it has {len(infos)} entries")
    root = infos[0].filename.split("/")[0]
    if complaint := name_complaint(root):
        raise refusal(name, f"the name of its folder {complaint}")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        parts = info.filename.split("/")
        inside = "/".join(parts[1:])  # the root is named after the file that was saved, in any script
        if not inside.isascii() or "\\" in inside or {"", ".", ".."} & set(parts) or parts[0] != root:
            raise refusal(name, f"the entry name {info.filename!r} leaves its folder")
        entries[inside] = info
    check_infos(archive, name)
    return entries


def check_infos(archive: zipfile.ZipFile, name: str) -> None:
    """Duplicates, sizes, methods and places of all entries, whatever their names. Raises UnsafeFileError."""
    seen: set[str] = set()
    for info in archive.infolist():
        if info.filename.lower() in seen:
            raise refusal(name, f"the entry {info.filename!r} is there twice")
        if info.flag_bits & 0x1:
            raise refusal(name, f"the entry {info.filename!r} is encrypted")
        if info.compress_type not in _METHODS:
            raise refusal(name, f"the entry {info.filename!r} is compressed in a way that torch does not read")
        if info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise refusal(name, f"the entry {info.filename!r} unpacks to {info.file_size} bytes")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise refusal(name, f"the entry {info.filename!r} states two sizes")
        seen.add(info.filename.lower())
    _check_sizes(archive, name)
    _check_places(archive, name)


def _check_sizes(archive: zipfile.ZipFile, name: str) -> None:
    size = _file(archive).seek(0, io.SEEK_END)
    total = sum(i.file_size for i in archive.infolist())
    if sum(i.compress_size for i in archive.infolist()) > size:
        raise refusal(name, "its entries overlap")
    if total > MAX_TOTAL_BYTES:
        raise refusal(name, f"it unpacks to more than {MAX_TOTAL_BYTES >> 30} GiB")
    if total > MAX_TOTAL_RATIO * size + FREE_BYTES:
        raise refusal(name, f"it unpacks to {total} bytes")


def _check_places(archive: zipfile.ZipFile, name: str) -> None:
    """Every entry lies behind the one before it, and the list of all behind the last."""
    end = 0
    for info in sorted(archive.infolist(), key=lambda i: i.header_offset):
        if info.header_offset < end:
            raise refusal(name, f"the entry {info.filename!r} overlaps another")
        end = content_start(archive, info, name) + info.compress_size
    if end > archive.start_dir:
        raise refusal(name, "its last entry overlaps the list of entries")


def content_start(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> int:
    """Where in the file the content of an entry begins. Raises UnsafeFileError when its header is not that entry's."""
    file = _file(archive)
    file.seek(info.header_offset)
    header = file.read(_HEADER.size)
    if len(header) == _HEADER.size:
        magic, *_, name_length, extra_length = _HEADER.unpack(header)
        encoded = file.read(name_length)
        text = encoded.decode("utf-8" if info.flag_bits & 0x800 else "cp437", errors="replace")
        if magic == b"PK\x03\x04" and text == info.orig_filename:
            return info.header_offset + _HEADER.size + int(name_length) + int(extra_length)
    raise refusal(name, f"the entry {info.filename!r} is not where the list of entries says")


def read_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The content of an entry. Raises one of ZIP_ERRORS when it is not what its checksum says."""
    with archive.open(_with_checksum(info)) as content:
        return content.read()


def check_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> None:
    """Reads an entry and compares it with its checksum, where it has one. Raises InputError for a damaged one."""
    try:
        with archive.open(_with_checksum(info)) as content:
            while content.read(CHUNK):
                pass
    except ZIP_ERRORS as error:
        raise damaged(name, f"its record {PurePosixPath(info.filename).name} is not what was written") from error


def _with_checksum(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """torch can be told to write no checksums, and then writes zeros; zipfile takes None for none."""
    plain = copy.copy(info)
    if info.CRC == 0:
        plain.CRC = None  # type: ignore[assignment]
    return plain


def damaged(name: str, what: str) -> InputError:
    """The error for a file that is not whole."""
    return InputError(f"{name} is damaged: {one_line(what)}; copy or save it again")


def _file(archive: zipfile.ZipFile) -> IO[bytes]:
    assert archive.fp is not None
    return archive.fp
