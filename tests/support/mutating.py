"""Files of every kind that is read, damaged at random: by bytes, and by what their formats are made of.

`mutated(kind, seed)` gives the same bytes for the same seed. A file is taken apart (entries of an archive, values of
JSON, operations of a pickle, fields of a message), one or a few parts are changed, and it is put together again, so
that what is damaged lies deep inside of a file that is whole.
"""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import onnx

from .genuine_files import seed_of
from .payloads import PAYLOADS

Mutator = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    *(0, 1, -1, 2, 7, 127, 255, 256, 65535, 2**31 - 1),
    *(2**n for n in (31, 32, 40, 53, 60, 62)),
    *(2**63 - 1, -(2**63)),
)
ODD: tuple[Any, ...] = (None, True, "", [], {}, [[]], 1.5, 1e308, "NaN", *NUMBERS, 10**30)
# Operations that a hostile pickle would have.
SNIPPETS = (
    b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R",
    b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R",
    b"cbuiltins\nbytearray\n\x8a\x08\x00\x00\x00\x00\x00\x01\x00\x00\x85R",
    b"ctorch\nFloatTensor\n\x8a\x08\x00\x00\x00\x00\x00\x01\x00\x00\x85R",
    b"ccollections\nOrderedDict\n)R",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"h\x00",
    b"q\x01",
    b"\x94",
    b"0",
    b"2",
    b"(",
    b"t",
    b"1",
    b"}",
    b"]",
    b"s",
    b"u",
    b"R",
    b"b",
    b"Q",
    b"N",
    b"\x81",
    b"\x82\x01",
    b"\x8a\x02\xff\xff",
    b"X\xff\xff\xff\x7f",
    b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"Pid\n",
    b".",
    b"\x80\x05",
)


# ---- bytes -------------------------------------------------------------------------------------------------------


def by_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1 if data:
                data[min(at, len(data) - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 40)))
            case 3:
                del data[at : at + rng.choice((1, 2, 8, 100))]
            case 4:
                size = rng.choice((2, 4, 8))
                data[at : at + size] = (rng.choice(NUMBERS) % (1 << (8 * size))).to_bytes(size, "little")
            case 5:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + rng.choice((1, 4, 30))]
            case 6 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


# ---- JSON --------------------------------------------------------------------------------------------------------


def by_json(content: bytes, rng: random.Random) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return by_bytes(content, rng)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = _json_changed(value, rng)
    text = json.dumps(value)
    if rng.random() < 0.05:
        depth = rng.choice((50, 500, 5000, 100_000))
        text = "[" * depth + text + "]" * depth
    if rng.random() < 0.05:
        text = text.replace(":", f":{'9' * rng.choice((20, 400, 5000))},", 1)
    return text.encode("utf-8", "surrogatepass")


def _json_changed(value: Any, rng: random.Random) -> Any:
    """Another value in a random place, found by going down."""
    if isinstance(value, dict | list) and value and rng.random() < 0.93:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        match rng.randrange(12):
            case 0:
                del value[key]
            case 1 if isinstance(value, dict):
                value[rng.choice((*PAYLOADS, "", "dtype", "as_int"))] = value.pop(key)
            case 1:
                value.append(copy.deepcopy(value[key]))
            case 2 if isinstance(value, dict):
                value[key] = copy.deepcopy(rng.choice(list(value.values())))
            case 2:
                value[key] = copy.deepcopy(rng.choice(value))
            case _:
                value[key] = _json_changed(value[key], rng)
        return value
    if isinstance(value, str) and rng.random() < 0.5:
        return by_bytes(value.encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
    return copy.deepcopy(rng.choice(ODD)) if rng.random() < 0.6 else rng.choice(PAYLOADS)


# ---- pickles -----------------------------------------------------------------------------------------------------


def by_pickle(content: bytes, rng: random.Random) -> bytes:
    """Operations put in, left out, doubled or changed."""
    try:
        places = [at for _, _, at in pickletools.genops(content) if at is not None]
    except Exception:
        return by_bytes(content, rng)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        i = rng.randrange(len(places))
        at, end = places[i], places[i + 1] if i + 1 < len(places) else len(data)
        match rng.randrange(4):
            case 0:
                data[at:at] = rng.choice(SNIPPETS)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3:
                data[at:end] = by_bytes(bytes(data[at:end]), rng)
    return bytes(data)


# ---- archives ----------------------------------------------------------------------------------------------------


def by_entries(content: bytes, rng: random.Random) -> bytes:
    """An entry changed, named otherwise, doubled, left out or packed; the archive itself is whole."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(i.filename, archive.read(i)) for i in archive.infolist()]
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(entries))
        name, value = entries[i]
        match rng.randrange(12):
            case 0:
                root, _, _ = name.partition("/")
                entries[i] = (f"{root}/{rng.choice(PAYLOADS)}".encode("utf-8", "replace").decode(), value)
            case 1:
                entries.insert(rng.randrange(len(entries)), (name, by_bytes(value, rng)))
            case 2:
                del entries[i]
            case 3:
                entries[i] = (name, b"")
            case _:
                texts = [j for j, (n, _) in enumerate(entries) if n.endswith((".json", ".pkl", ".npy"))]
                i = rng.choice(texts) if texts and rng.random() < 0.8 else i
                name, value = entries[i]
                entries[i] = (name, by_name(name)(value, rng))
        if not entries:
            break
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # about names that are there twice
        for name, value in entries:
            archive.writestr(name, value)
    return buffer.getvalue()


def by_name(name: str) -> Mutator:
    suffix = name.rpartition(".")[2]
    return {"json": by_json, "pkl": by_pickle, "npy": by_array, "pt": by_entries}.get(suffix, by_bytes)


def by_directory(content: bytes, rng: random.Random) -> bytes:
    """Fields of the headers of a zip archive: sizes, places, flags, checksums."""
    data = bytearray(content)
    heads = [at for magic in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _all(content, magic)]
    for _ in range(rng.choice((1, 2, 3))):
        at = rng.choice(heads) + rng.randrange(4, 46)
        size = rng.choice((1, 2, 4))
        data[at : at + size] = (rng.choice(NUMBERS) % (1 << (8 * size))).to_bytes(size, "little")
    return bytes(data)


def _all(content: bytes, magic: bytes) -> list[int]:
    found, at = [], content.find(magic)
    while at >= 0:
        found.append(at)
        at = content.find(magic, at + 1)
    return found


# ---- safetensors, arrays, messages -------------------------------------------------------------------------------


def by_header(content: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header = by_json(content[8 : 8 + length], rng)
    stated = len(header) if rng.random() < 0.95 else rng.choice(NUMBERS) % 2**64
    return struct.pack("<Q", stated) + header + content[8 + length :]


def by_array(content: bytes, rng: random.Random) -> bytes:
    """The header of a .npy, as text."""
    length = int.from_bytes(content[8:10], "little")
    text = content[10 : 10 + length].decode("latin-1")
    shapes = ("(1152921504606846976,)", "(-1,)", "()", "(2,3,4)", "('a',)", "((((1,),),),)", "(1,)*9", "[2]")
    kinds_of = ("'|O'", "'<U9'", "'>f8'", "'<c16'", "'|V0'", "'<f16'", "[('a','<f4')]", "'<M8[s]'", "'|b1'", "None")
    match rng.randrange(4):
        case 0:
            text = text.replace("(2, 3)", rng.choice(shapes))
        case 1:
            text = text.replace("'<f4'", rng.choice(kinds_of))
        case 2:
            text = by_bytes(text.encode("latin-1"), rng).decode("latin-1")
        case 3:
            text = rng.choice(PAYLOADS).encode("latin-1", "replace").decode("latin-1")
    encoded = text.encode("latin-1", "replace")
    return content[:8] + struct.pack("<H", len(encoded) % 65536) + encoded + content[10 + length :]


def by_message(content: bytes, rng: random.Random) -> bytes:
    """Fields of an ONNX message."""
    model = onnx.ModelProto()
    model.ParseFromString(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_message(model, rng)
    return bytes(model.SerializeToString())


def _change_message(message: Any, rng: random.Random) -> None:
    for _ in range(12):
        fields = message.ListFields()
        if not fields:
            return
        field, value = rng.choice(fields)
        if field.is_repeated and len(value) and rng.random() < 0.15:
            i = rng.randrange(len(value))
            if rng.random() < 0.5:
                del value[i]
            elif field.message_type is not None:
                value.add().CopyFrom(value[i])
            else:
                value.append(value[i])
            return
        if field.message_type is None:
            _change_scalar(message, field, value, rng)
            return
        if field.is_repeated and not len(value):
            return
        message = rng.choice(list(value)) if field.is_repeated else value


def _change_scalar(message: Any, field: Any, value: Any, rng: random.Random) -> None:
    old = value[0] if field.is_repeated else value
    new: Any = rng.choice(NUMBERS)
    if isinstance(old, bytes):
        new = by_bytes(old, rng)
    elif isinstance(old, str):
        new = rng.choice((*PAYLOADS, "x", "y", "h", "Loop", "Tile", "Reshape")).encode("utf-8", "replace").decode()
    elif isinstance(old, float):
        new = rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    try:
        if field.is_repeated:
            value[rng.randrange(len(value))] = new
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError):  # out of the field's range
        return


# ---- OpenVINO, PNG -----------------------------------------------------------------------------------------------

_ATTRIBUTE = re.compile(rb'(\w+)="([^"]*)"')


def by_attribute(content: bytes, rng: random.Random) -> bytes:
    """Attributes and elements of an XML file."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        found = list(_ATTRIBUTE.finditer(content))
        if not found:
            return by_bytes(content, rng)
        old = rng.choice(found)
        numbers = (*map(str, NUMBERS), "1,-1", "?", "f16", "i64", "u4", "string", "boolean", "dynamic", "9" * 400)
        texts = (rng.choice(PAYLOADS), rng.choice(found)[2].decode("utf-8", "replace"), *rng.choices(numbers, k=4))
        new = (
            rng.choice(texts)
            .replace("&", "&amp;")
            .replace('"', "&quot;")
            .replace("<", "&lt;")
            .encode("utf-8", "replace")
        )
        content = content[: old.start(2)] + new + content[old.end(2) :]
        if rng.random() < 0.2:
            lines = content.split(b"\n")
            i = rng.randrange(len(lines))
            lines[i : i + 1] = rng.choice(([], [lines[i], lines[i]], [rng.choice(lines)]))
            content = b"\n".join(lines)
    return content


def by_chunks(content: bytes, rng: random.Random) -> bytes:
    """Parts of a PNG, with the right checksums."""
    parts, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        parts.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(parts))
    name, value = parts[i]
    notes = (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 24))), (b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 24)))
    changed = (name, by_bytes(value, rng))
    parts[i : i + 1] = rng.choice(
        ([changed], [changed], [changed], [changed, (name, value)], [], [rng.choice(notes), (name, value)])
    )
    if rng.random() < 0.2 and parts[0][0] == b"IHDR":
        sides = struct.pack(">II", *(rng.choice(NUMBERS) % 2**32 for _ in range(2)))
        parts[0] = (b"IHDR", sides + parts[0][1][8:])
    written = (struct.pack(">I", len(v)) + n + v + struct.pack(">I", zlib.crc32(n + v)) for n, v in parts)
    return content[:8] + b"".join(written)


# ---- kinds -------------------------------------------------------------------------------------------------------

Mix = tuple[tuple[float, Mutator], ...]
BYTES: Mix = ((1.0, by_bytes),)
ARCHIVE: Mix = ((0.2, by_bytes), (0.15, by_directory), (0.65, by_entries))
MESSAGE: Mix = ((0.35, by_bytes), (0.65, by_message))
JSON: Mix = ((0.3, by_bytes), (0.7, by_json))
MIXES: Mapping[str, Mix] = {  # mutators by weight
    "zip": ARCHIVE,
    "legacy": ((0.5, by_bytes), (0.5, by_pickle)),
    "script": ARCHIVE,
    "safetensors": ((0.3, by_bytes), (0.7, by_header)),
    "program": ARCHIVE,
    "onnx": MESSAGE,
    "external": MESSAGE,
    "manifest": JSON,
    "openvino": ((0.4, by_bytes), (0.6, by_attribute)),
    "package": ARCHIVE,
    "engine": BYTES,
    "npy": ((0.5, by_bytes), (0.5, by_array)),
    "npz": ARCHIVE,
    "png": ((0.5, by_bytes), (0.5, by_chunks)),
    "jpeg": BYTES,
    "webp": BYTES,
    "bmp": BYTES,
    "moves": JSON,
}


def mutated(kind: str, seed: int) -> bytes:
    """The file of that kind and seed; every fifth is a mutation of a mutated one."""
    rng = random.Random(f"{kind} {seed}")
    content = seed_of(kind)
    for _ in range(rng.choice((1, 1, 1, 1, 2))):
        weights, mutators = zip(*MIXES[kind], strict=True)
        mutator = rng.choices(mutators, weights)[0]
        try:
            content = mutator(content, rng)
        except Exception:  # what an earlier mutation has broken is taken as bytes
            content = by_bytes(content, rng)
    return content
