"""A pickle written anew, from what is known of it, in the few operations that torch's restricted reader takes.

torch reads protocol 2 alone without running code, and makes every sparse or quantised tensor of a file. `rewritten`
gives a pickle of protocol 2 with the same containers, tensors and numbers. What no network takes is not made: a word of
ours stands in its place. Every name in the new pickle was in the old one, and was allowed there.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .pickle_machine import LIST, PAIRS, SET, Account, Global, Made, Stored, Unknown
from .stand_ins import INERT, VALUES, LeftOut

PROTOCOL = 2
DEEPEST = 100  # containers in containers
_LONGEST_NUMBER = 255  # bytes


def rewritten(account: Account, left_out: Mapping[int, str], *, all_stored: bool = False) -> bytes:
    """The value of an account as a pickle of protocol 2.

    left_out: by their ids, what the calls that are not to be made would make, for messages: "a sparse tensor".
    all_stored: whether everything that the old pickle finds in its file is asked for, also what is then not used: torch
    reads old files from one such value to the next.

    Raises ValueError for values that hold themselves otherwise than through containers, and for what is nested deeper
    than any checkpoint.
    """
    writer = _Writer(left_out)
    if all_stored:
        for stored in account.stored:
            writer.value(stored, 0)
    writer.value(account.value, 0)  # what lies below it is dropped
    return b"".join([pickle.PROTO, bytes([PROTOCOL]), *writer.parts, pickle.STOP])


class _Writer:
    def __init__(self, left_out: Mapping[int, str]) -> None:
        self.left_out = left_out
        self.parts: list[bytes] = []
        self.memo: dict[int | str, int] = {}  # of texts by themselves, of all else by the id of what the account holds
        self.begun: set[int] = set()

    def value(self, value: Any, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"it nests its values more than {DEEPEST} deep")
        key = value if isinstance(value, str) else id(value)
        if key in self.memo:
            at = self.memo[key]
            self.parts.append(pickle.BINGET + bytes([at]) if at < 256 else pickle.LONG_BINGET + struct.pack("<I", at))
        elif isinstance(value, Made):
            self.made(value, depth)
        elif isinstance(value, Global):
            self.name(value)
        elif isinstance(value, Stored):
            self.value(value.id, depth + 1)
            self.parts.append(pickle.BINPERSID)
        elif isinstance(value, Unknown):
            self.stand_in(value.why)
        elif isinstance(value, tuple):
            self.begin(value)
            self.tuple(value, depth)
            self.keep(key)
        elif isinstance(value, str):
            content = value.encode("utf-8", "surrogatepass")
            self.parts.append(pickle.BINUNICODE + struct.pack("<I", len(content)) + content)
            self.keep(key)
        else:
            self.plain(value, depth)

    def plain(self, value: Any, depth: int) -> None:
        """A number, bytes, or None."""
        if value is None or isinstance(value, bool):
            self.parts.append({None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value])
        elif isinstance(value, float):
            self.parts.append(pickle.BINFLOAT + struct.pack(">d", value))
        elif isinstance(value, int) and -(1 << 31) <= value < 1 << 31:
            self.parts.append(pickle.BININT + struct.pack("<i", value))
        elif isinstance(value, int):
            content = pickle.encode_long(value)
            if len(content) > _LONGEST_NUMBER:
                raise ValueError(f"it has a number of {len(content)} bytes")
            self.parts.append(pickle.LONG1 + bytes([len(content)]) + content)
            self.keep(id(value))
        elif isinstance(value, bytes):
            self.call(Global("_codecs", "encode"), (value.decode("latin1"), "latin1"), depth)
            self.keep(id(value))
        else:
            raise ValueError(f"it has a value that is not known, a {type(value).__name__}")

    # ---- what holds others ---------------------------------------------------------------------------------------

    def made(self, made: Made, depth: int) -> None:
        inert = made.function not in (PAIRS, LIST, SET) and str(made.function) in INERT
        if made.function is PAIRS:
            self.parts.append(pickle.EMPTY_DICT)
        elif made.function is LIST:
            self.parts.append(pickle.EMPTY_LIST)
        elif made.function is SET:
            self.set(made, depth)
        elif id(made) in self.left_out:
            self.stand_in(self.left_out[id(made)])
        else:
            self.begin(made)
            self.call(made.function, () if inert else made.args, depth)  # a stand-in keeps nothing of them
        self.keep(id(made))
        if made.function is SET or id(made) in self.left_out or str(made.function) in VALUES:
            return
        self.group([part for pair in made.pairs for part in pair], pickle.SETITEMS, depth)
        self.group(made.items, pickle.APPENDS, depth)
        if made.state is not None and not inert:
            self.value(made.state, depth + 1)
            self.parts.append(pickle.BUILD)

    def set(self, made: Made, depth: int) -> None:
        self.name(Global("builtins", "set"))
        self.parts.append(pickle.EMPTY_LIST)
        self.group(made.items, pickle.APPENDS, depth)
        self.parts += [pickle.TUPLE1, pickle.REDUCE]

    def call(self, function: Any, args: Any, depth: int) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise ValueError("it calls what is no function")
        self.name(function)
        self.tuple(args, depth)
        self.parts.append(pickle.REDUCE)

    def stand_in(self, what: str) -> None:
        self.call(Global(LeftOut.__module__, LeftOut.__name__), (what,), 0)

    def name(self, name: Global) -> None:
        text = f"{name.module}\n{name.name}\n"
        if text.count("\n") > 2 or "\r" in text:
            raise ValueError("it has a name of several lines")
        self.parts.append(pickle.GLOBAL + text.encode("utf-8"))

    def tuple(self, values: tuple[Any, ...], depth: int) -> None:
        self.parts.append(pickle.MARK)
        for value in values:
            self.value(value, depth + 1)
        self.parts.append(pickle.TUPLE)

    def group(self, values: Sequence[Any], end: bytes, depth: int) -> None:
        if values:
            self.parts.append(pickle.MARK)
            for value in values:
                self.value(value, depth + 1)
            self.parts.append(end)

    # ---- what is met again ---------------------------------------------------------------------------------------

    def begin(self, value: Any) -> None:
        if id(value) in self.begun:
            raise ValueError("it has a value that holds itself")
        self.begun.add(id(value))

    def keep(self, key: int | str) -> None:
        at = self.memo[key] = len(self.memo)
        self.parts.append(pickle.BINPUT + bytes([at]) if at < 256 else pickle.LONG_BINPUT + struct.pack("<I", at))
