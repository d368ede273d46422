"""A checkpoint's tensors against the records that hold their values, before any value is read.

torch maps a record by the size that the pickle declares for it. A record that is shorter would be read on into its
neighbour, and nothing would tell. Every storage is therefore compared with its record, and every tensor with its
storage.
"""

from __future__ import annotations

import functools
import io
import math
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import torch

from reparam.errors import InputError
from reparam.utils import first_line, one_line, size_of

from .pickle_calls import TENSORS, check_calls, dtype_of, named, pickles_in
from .pickle_machine import LIST, Account, Global, Made, Stored, follow
from .plain_pickle import PROTOCOL as READ_PROTOCOL
from .plain_pickle import rewritten
from .told_names import told_names
from .zip_entries import ZIP_ERRORS, check_content, check_zip, content_start, damaged, read_content, refusal

PICKLE = "data.pkl"
MAX_PICKLE_BYTES = 256 << 20
MAX_DIMENSIONS = 64
MOST = 2**62  # of a size, a stride or an offset
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how files of torch before 1.6 begin
_HEAD = 3  # pickles before the object: magic number, protocol, system


@dataclass(frozen=True)
class Storage:
    """One storage as the pickle declares it. key: of its record. count: of elements. item: bytes of one."""

    key: str
    count: int
    item: int

    @property
    def size(self) -> int:
        return self.count * self.item


@dataclass(frozen=True)
class Inspected:
    """A file that may be read.

    stored: whether all records of an archive are stored as they are, so that they can be mapped. pickles: to be read in
    place of the first of the file, where torch could not read these, or would make what no network takes. rest: where
    the file goes on behind those. strange: whether it holds such values. names: what it calls its architecture.
    """

    stored: bool = False
    pickles: bytes | None = None
    rest: int = 0
    strange: bool = False
    names: tuple[str, ...] = ()


def inspect_zip(file: IO[bytes], name: str) -> Inspected:
    """Checks a zip checkpoint.

    Raises UnsafeFileError for a file that would run code or shows two contents, InputError naming the tensor whose
    record is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = check_zip(archive, name)
            account = _account(archive, entries, name)
            left_out = check_calls([account], name)
            storages = check_tensors(account, name)
            owners = _owners(account)
            for storage in storages.values():
                _check_record(archive, entries, storage, owners.get(storage.key, storage.key), name)
            check_content(archive, entries[PICKLE], name)
            starts = {e: content_start(archive, i, name) for e, i in entries.items() if e.startswith("data/")}
            stored = all(i.compress_type == zipfile.ZIP_STORED for i in entries.values())
    except ZIP_ERRORS as error:
        raise InputError(f"{name} is damaged or cut short ({one_line(str(error))}); copy or save it again") from error
    _check_same_to_torch(file, set(entries), starts, name)
    pickles = None if _is_plain([account], left_out) else _rewritten([account], left_out, name)
    return Inspected(stored, pickles, strange=bool(left_out), names=told_names(account.value))


def _is_plain(accounts: Iterable[Account], left_out: Mapping[int, str]) -> bool:
    """Whether torch's restricted reader may read these pickles as they are."""
    return not left_out and all(a.protocol == READ_PROTOCOL for a in accounts)


def _rewritten(accounts: Iterable[Account], left_out: Mapping[int, str], name: str, **how: bool) -> bytes:
    """Pickles to be read in place of those with these accounts."""
    try:
        return b"".join(rewritten(account, left_out, **how) for account in accounts)
    except ValueError as error:
        raise InputError(f"{name} is not a checkpoint, or is damaged ({error}); copy or save it again") from error


def _account(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str) -> Account:
    info = entries.get(PICKLE)
    if info is None:
        raise InputError(f"{name} is a zip archive but not a checkpoint; save one with torch.save(…)")
    if info.file_size > MAX_PICKLE_BYTES:
        raise refusal(name, f"{PICKLE} has {info.file_size} bytes, over {MAX_PICKLE_BYTES}")
    return follow(io.BytesIO(read_content(archive, info)))


def _check_same_to_torch(file: IO[bytes], entries: set[str], starts: Mapping[str, int], name: str) -> None:
    """torch has a zip reader of its own, which has to find the same records in the same places."""
    file.seek(0)
    try:
        reader: Any = torch._C.PyTorchFileReader(file)
        same = set(reader.get_all_records()) == entries
        same = same and all(reader.get_record_offset(e) == at for e, at in starts.items())
    except (RuntimeError, UnicodeDecodeError) as error:
        raise InputError(f"{name} is damaged: {first_line(error)}") from error
    finally:
        file.seek(0)
    if not same:
        raise refusal(name, "two readers of the archive see different contents")


def _check_record(
    archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], storage: Storage, owner: str, name: str
) -> None:
    info = entries.get(f"data/{storage.key}")
    if info is None:
        raise damaged(name, f"the record of '{owner}' is missing")
    if not storage.size <= info.file_size < storage.size + storage.item:
        raise damaged(name, f"the record of '{owner}' holds {info.file_size} bytes, where {storage.size} are declared")
    try:
        check_content(archive, info, name)
    except InputError as error:
        raise damaged(name, f"the record of '{owner}' is not what was written (its checksum differs)") from error


# ---- files of torch before 1.6 -----------------------------------------------------------------------------------


def inspect_pickle(file: IO[bytes], name: str) -> Inspected:
    """Checks a file of pickles that follow each other, with the values of the storages behind them.

    Raises like `inspect_zip`; the file is left at its beginning.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:"):
            raise InputError(f"{name} is in the tar format of torch 0.1; load it with an old torch and save it again")
    except (tarfile.TarError, EOFError, ValueError, OSError):
        file.seek(0)
    accounts = pickles_in(file, _HEAD + 2)
    rest = file.tell()
    left_out = check_calls(accounts, name)
    values = [a.value for a in accounts]
    if len(accounts) < _HEAD + 2 or values[:2] != [MAGIC, PROTOCOL] or not accounts[_HEAD + 1].whole:
        raise InputError(f"{name} is not a checkpoint, or is damaged ({_trouble(accounts)}); copy or save it again")
    account, keys = accounts[_HEAD], values[_HEAD + 1]
    storages = check_tensors(account, name)
    listed = keys.items if isinstance(keys, Made) and keys.function is LIST else []
    _check_values(file, storages, listed, _owners(account), name)
    file.seek(0)
    names = told_names(account.value)
    if _is_plain(accounts, left_out):
        return Inspected(names=names)
    pickles = _rewritten(accounts, left_out, name, all_stored=True)
    return Inspected(pickles=pickles, rest=rest, strange=bool(left_out), names=names)


def _trouble(accounts: Sequence[Account]) -> str:
    error = next((a.error for a in accounts if a.error), "")
    return one_line(error)[:100] or "it does not begin as torch.save begins its files"


def _check_values(
    file: IO[bytes], storages: Mapping[str, Storage], keys: Iterable[Any], owners: Mapping[str, str], name: str
) -> None:
    """The numbers of elements and the room for the values of the storages, one after the other."""
    size = size_of(file)
    seen: set[str] = set()
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in seen:
            raise damaged(name, f"it lists the storage '{one_line(str(key))[:60]}', which no tensor has")
        seen.add(key)
        owner = owners.get(key, key)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.count:
            raise damaged(name, f"'{owner}' holds {count} values, where {storage.count} are declared")
        if file.tell() + storage.size > size:
            raise damaged(name, f"the values of '{owner}' are cut short")
        file.seek(storage.size, io.SEEK_CUR)
    if missing := next((k for k in storages if k not in seen), None):
        raise damaged(name, f"the values of '{owners.get(missing, missing)}' are missing")


# ---- tensors -----------------------------------------------------------------------------------------------------


def check_tensors(account: Account, name: str) -> dict[str, Storage]:
    """The storages by their keys, each tensor compared with its own. Raises InputError naming the tensor."""
    if not account.whole:
        raise InputError(
            f"{name} is not a checkpoint, or is damaged ({one_line(account.error)[:100]}); copy or save it again"
        )
    storages: dict[str, Storage] = {}
    for stored in account.stored:
        storage = read_storage(stored, name)
        if storages.setdefault(storage.key, storage) != storage:
            raise damaged(name, f"the storage '{storage.key}' is declared twice, in two ways")
    checked = set()
    for label, made in named(account):
        if str(made.function) in TENSORS:
            _check_tensor(made, one_line(label) or "its only tensor", name)
            checked.add(id(made))
    for made in account.calls:
        if str(made.function) in TENSORS and id(made) not in checked:
            _check_tensor(made, "a tensor that is thrown away", name)
    return storages


def _owners(account: Account) -> dict[str, str]:
    """Key of a storage -> the name of the first tensor in it."""
    owners: dict[str, str] = {}
    for label, made in named(account):
        if str(made.function) in TENSORS and isinstance(made.args, tuple) and isinstance(made.args[0], Stored):
            owners.setdefault(str(made.args[0].id[2]), one_line(label) or "its only tensor")
    return owners


def read_storage(stored: Stored, name: str) -> Storage:
    """The storage behind an id. Raises InputError for an id that torch does not write."""
    match stored.id:
        case ("storage", Global() as kind, str(key), str(), int(count), *rest) if len(rest) <= 1 and count >= 0:
            item = _item_sizes().get(str(kind))
            if item is None or not (key.isascii() and key.isprintable() and 0 < len(key) <= 60):
                raise damaged(name, "it has a storage of an unknown kind")
            if rest and rest[0] is not None:
                _check_view(rest[0], count, name)
            return Storage(key, count, item)
        case _:
            raise damaged(name, "it has a storage that torch does not write")


def _check_view(view: Any, count: int, name: str) -> None:
    match view:
        case (str(), int(offset), int(size)) if 0 <= offset <= offset + size <= count:
            return
        case _:
            raise damaged(name, "a view leaves its storage")


@functools.cache
def _item_sizes() -> Mapping[str, int]:
    """Name of a class of storages -> bytes of one element."""
    found = {"torch.UntypedStorage": 1, "torch.storage.UntypedStorage": 1}
    for kind, dtype in torch.storage._storage_type_to_dtype_map().items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            found[f"{module}.{kind}"] = dtype.itemsize
    return found


def _check_tensor(made: Made, label: str, name: str) -> None:
    """Raises InputError unless every element of the tensor lies in its storage."""
    args = made.args if isinstance(made.args, tuple) else ()
    if len(args) < 4 or not isinstance(args[0], Stored) or not isinstance(args[1], int):
        raise damaged(name, f"'{label}' is not written as torch writes tensors")
    storage, offset, shape, strides = read_storage(args[0], name), args[1], _sizes(args[2]), _sizes(args[3])
    item = storage.item
    if str(made.function).endswith("_v3"):
        dtype = dtype_of(args[6]) if len(args) > 6 else None
        if dtype is None:
            raise damaged(name, f"'{label}' is of an unknown dtype")
        item = dtype.itemsize
    if shape is None or strides is None or len(shape) != len(strides) or not 0 <= offset < MOST:
        raise damaged(name, f"'{label}' has an impossible shape")
    last = last_element(shape, strides, offset)
    if last * item > storage.size:
        raise damaged(name, f"'{label}' takes {last} values from a record of {storage.size // item}")


def last_element(shape: Sequence[int], strides: Sequence[int], offset: int) -> int:
    """How many elements a storage needs for a tensor: one more than the position of its last element."""
    if math.prod(shape) == 0:
        return 0
    return offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1


def _sizes(value: Any) -> tuple[int, ...] | None:
    """A tuple of sizes, or what torch.Size would make of one; None for anything else."""
    if isinstance(value, Made) and str(value.function) == "torch.Size":
        value = value.args[0] if isinstance(value.args, tuple) and value.args else None
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        return None
    return value if all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MOST for n in value) else None
