"""What reading a pickle would run, and whether that is more than making tensors and plain containers."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import _weights_only_unpickler

from reparam.errors import InputError, UnsafeFileError
from reparam.utils import one_line

from .pickle_machine import PAIRS, Account, Global, Made, Stored, follow, is_key
from .stand_ins import INERT
from .zip_entries import ZIP_ERRORS, read_content

SHOWN = 8  # names in a message
NESTED = 8  # pickles within pickles that are looked into
MOST_NESTED_BYTES = 64 << 20
MOST_TAKEN = 8  # arguments in which a value of another call is looked for
REBUILD = "torch._utils._rebuild_"
TENSORS = frozenset({f"{REBUILD}tensor", f"{REBUILD}tensor_v2", f"{REBUILD}tensor_v3"})
_WITH_TYPE = "torch._tensor._rebuild_from_type_v2"
_ALLOCATES = frozenset({"builtins.bytearray"})  # from a number; from bytes it only copies them
_PLAIN_CALLS = frozenset(
    {
        "collections.OrderedDict",
        "collections.Counter",
        "builtins.set",
        "builtins.complex",
        "_codecs.encode",
        "torch.Size",
        "torch.device",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        f"{REBUILD}parameter",
        f"{REBUILD}parameter_with_state",
        f"{REBUILD}meta_tensor_no_storage",
        f"{REBUILD}device_tensor_from_cpu_tensor",
        _WITH_TYPE,
    }
)
_CONTAINERS = frozenset({"collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.frozenset"})
_KINDS = {
    f"{REBUILD}qtensor": "a quantised tensor",
    f"{REBUILD}sparse_tensor": "a sparse tensor",
    f"{REBUILD}nested_tensor": "a nested tensor",
    f"{REBUILD}wrapper_subclass": "a tensor of a class of its own",
}
# What unpickles bytes that it is given.
_READERS = frozenset(
    f"{module}.{name}"
    for module in ("pickle", "_pickle", "dill", "dill._dill", "cloudpickle", "joblib", "torch", "torch.serialization")
    for name in ("loads", "load", "Unpickler", "_loads", "_load")
) | {"torch.storage._load_from_bytes"}


def check_calls(accounts: Iterable[Account], name: str) -> dict[int, str]:
    """Refuses pickles that would run more than what makes tensors and plain containers.

    What torch makes without running code, but no network has, may lie beside the weights, and is not to be made: the
    result has what it is, by the ids of the calls.

    name: of the file, for messages. Raises UnsafeFileError with all that they would run, or with the word that it could
    not be determined; InputError for such values that no container holds.
    """
    told = list(accounts)
    unsafe, unclear = what_runs(told)
    if unsafe or unclear:
        raise UnsafeFileError(
            f"{name} holds more than tensors; loading it would run {_listed(unsafe, unclear)}. Save the state_dict "
            "alone, or pass --trust if you trust whoever made it"
        )
    return {call: what for account in told for call, what in _no_networks(account, name).items()}


def what_runs(accounts: Iterable[Account]) -> tuple[list[str], bool]:
    """All names that the pickles would import beyond those that make tensors, and whether there may be others.

    None where all that they name beyond tensors is inert, for which stand-ins are put.
    """
    outside: dict[str, None] = {}
    unclear = False
    for account in _with_nested(accounts):
        here = [str(g) for g in account.globals if str(g) not in allowed()]
        outside.update(dict.fromkeys(here))
        unclear |= bool(account.computed) or bool(not INERT.issuperset(here) and not account.whole)
    return ([] if INERT.issuperset(outside) and not unclear else sorted(outside)), unclear


def allowed() -> frozenset[str]:
    """Names that torch's own restricted reader takes, with those that this process has added to them."""
    user = _weights_only_unpickler._get_user_allowed_globals()
    return _torch_allowed() | frozenset(user)


@functools.cache
def _torch_allowed() -> frozenset[str]:
    return frozenset(_weights_only_unpickler._get_allowed_globals())


def _listed(unsafe: list[str], unclear: bool) -> str:
    """`a, b and 3 more, and what could not be determined`."""
    texts = [one_line(name)[:100] for name in unsafe[:SHOWN]]
    text = ", ".join(texts) + (f" and {len(unsafe) - SHOWN} more" if len(unsafe) > SHOWN else "")
    if not unclear:
        return text
    return f"{text}, and more that could not be determined" if text else "code that could not be determined"


def _with_nested(accounts: Iterable[Account]) -> Iterator[Account]:
    """The accounts, and those of pickles and archives that they hold as bytes and would read."""
    waiting = [(a, 0) for a in accounts]
    size = 0
    while waiting:
        account, depth = waiting.pop()
        yield account
        for content in _read_bytes(account):
            size += len(content)
            if depth >= NESTED or size > MOST_NESTED_BYTES:
                account.computed.append("a pickle in a pickle, too deep to be followed")
                yield account
                continue
            waiting += [(inner, depth + 1) for inner in accounts_of(content)]


def _read_bytes(account: Account) -> Iterator[bytes]:
    for call in account.calls:
        if isinstance(call.function, Global) and str(call.function) in _READERS:
            yield from (c for a in _flat(call.args) for c in _contents(a))


def _contents(value: Any) -> Iterator[bytes]:
    """Bytes, and those of a stream such as io.BytesIO(b'...')."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, Made):
        yield from (a for a in _flat(value.args) if isinstance(a, bytes))


def _flat(args: Any) -> list[Any]:
    return list(args) if isinstance(args, tuple) else [args]


def accounts_of(content: bytes) -> list[Account]:
    """The accounts of bytes that a reader of pickles would take: pickles in a row, or those of a zip archive."""
    if content.startswith(b"PK\x03\x04"):
        return _accounts_of_zip(content)
    return pickles_in(io.BytesIO(content))


def _accounts_of_zip(content: bytes) -> list[Account]:
    found: list[Account] = []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".pkl") and info.file_size <= MOST_NESTED_BYTES:
                    found += pickles_in(io.BytesIO(read_content(archive, info)))
    except ZIP_ERRORS as error:
        found.append(Account(computed=["an archive in a pickle"], error=str(error)))
    return found


def pickles_in(stream: Any, most: int = 64) -> list[Account]:
    """The accounts of pickles that follow each other in a stream, up to the first that is not whole."""
    found: list[Account] = []
    while len(found) < most and stream.read(1):
        stream.seek(-1, io.SEEK_CUR)
        here = stream.tell()
        account = follow(stream)
        if found and not account.whole and not account.globals and not account.computed:
            stream.seek(here)  # what follows the pickles is something else
            break
        found.append(account)
        if not account.whole:
            break
    return found


# ---- what network checkpoints hold -------------------------------------------------------------------------------


def _no_networks(account: Account, name: str) -> dict[int, str]:
    """Calls that torch makes for an untrusted file, but that allocate what they are told or make no plain tensor.

    By their ids, with what they make; those that take one of them too.
    """
    if not account.keys or not all(map(_hashes, calls_of(account))):
        raise InputError(f"{name} has mappings whose keys are no texts or numbers; save the model's state_dict alone")
    odd: dict[int, str] = {}
    for call in account.calls:  # what a call takes is made before it
        function = next((str(c.function) for c in _layers(call) if _odd(c)), "")
        what = _KINDS.get(function) or (f"something that {one_line(function)[:100]} makes" if function else "")
        if odd and not what and str(call.function) not in INERT:
            what = next((odd[id(a)] for c in _layers(call) for a in _leading(c.args) if id(a) in odd), "")
        if what:
            odd[id(call)] = what
    if lost := odd.keys() - {id(made) for _, made in (named(account) if odd else ())}:
        raise InputError(f"{name} holds {odd[min(lost)]}; save plain tensors alone")
    return odd


def _odd(call: Made) -> bool:
    function = str(call.function)
    if function in TENSORS | _PLAIN_CALLS | INERT:
        return False
    if function in _ALLOCATES:
        return not all(isinstance(a, bytes | str) or _is_encoded(a) for a in _flat(call.args))
    return function not in _weights_only_unpickler._get_user_allowed_globals()


def _leading(args: Any) -> tuple[Any, ...]:
    return args[:MOST_TAKEN] if isinstance(args, tuple) else ()


def _is_encoded(value: Any) -> bool:
    """Whether a value is bytes, as pickles of protocol 2 write them."""
    return isinstance(value, Made) and str(value.function) == "_codecs.encode"


def _hashes(call: Made) -> bool:
    """Whether a container that is made of others has keys that are looked up in no time."""
    function = str(call.function)
    if function not in _CONTAINERS:
        return True
    for arg in _flat(call.args):
        items = arg.items if isinstance(arg, Made) else arg if isinstance(arg, tuple) else ()
        pairs = function == "collections.OrderedDict"
        if not all(is_key(_first(item) if pairs else item) for item in items):
            return False
    return True


def _first(item: Any) -> Any:
    parts = item.items if isinstance(item, Made) else item
    return parts[0] if isinstance(parts, list | tuple) and parts else item


def calls_of(account: Account) -> Iterator[Made]:
    """The calls of a pickle, those that are made through `_rebuild_from_type_v2` too."""
    for call in account.calls:
        yield from _layers(call)


def _layers(call: Made) -> Iterator[Made]:
    """A call, and what is called through it."""
    yield call
    if str(call.function) == _WITH_TYPE and len(_flat(call.args)) >= 3:
        yield Made(_flat(call.args)[0], _flat(call.args)[2])


def named(account: Account) -> Iterator[tuple[str, Made]]:
    """Every made value that the pickle's own value holds, with the keys that lead to it, joined by dots."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", account.value)]
    while stack:
        label, value = stack.pop()
        if not isinstance(value, Made | tuple) or isinstance(value, Global | Stored) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Made):
            if value.function is not PAIRS:
                yield label, value
            stack += [(_joined(label, k), v) for k, v in reversed(value.pairs)]
            stack += [(_joined(label, i), v) for i, v in reversed(list(enumerate(value.items)))]
            stack += [(label, v) for v in (value.state, value.args) if v is not None]
        else:
            stack += [(label, v) for v in reversed(value)]


def _joined(label: str, key: Any) -> str:
    text = str(key) if isinstance(key, str | int) else "?"
    return (f"{label}.{text}" if label else text)[:400]


def dtype_of(value: Any) -> torch.dtype | None:
    """The dtype behind a name such as torch.float32."""
    found = getattr(torch, value.name, None) if isinstance(value, Global) and value.module == "torch" else None
    return found if isinstance(found, torch.dtype) else None
