"""What a pickle would do, told without doing any of it.

A pickle is a program for a stack machine. `follow` runs that program on stand-ins: a function that the pickle names is
a `Global`, what calling it would give is a `Made`, a storage that lies elsewhere in the file is a `Stored`. Nothing is
imported or called, so every name that the pickle would import is found, however it hides it (memo, stack tricks,
names of any protocol), and so is every tensor, with its shape, before any of its values is read.
"""

from __future__ import annotations

import _compat_pickle
import copyreg
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

MOST_STEPS = 4_000_000  # operations of one pickle; a checkpoint of a thousand tensors has some fifty thousand
MOST_PARTS = 16  # of a tuple that is a key
PAIRS, LIST, SET = "a mapping", "a list", "a set"
_PY2 = 3  # the first protocol whose names are those of Python 3


class Global(NamedTuple):
    """A function or class that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Stored(NamedTuple):
    """What the pickle finds elsewhere in its file, by an id of its own."""

    id: Any


class Unknown(NamedTuple):
    """A value that only running the pickle would tell."""

    why: str


@dataclass(eq=False)
class Made:
    """A container, or what calling `function` with `args` would give, with what is then put into it."""

    function: Any
    args: Any = ()
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    state: Any = None


@dataclass
class Account:
    """All that is known of a pickle.

    value: what it would give, of stand-ins. globals: all that it names, in order. calls: what it would call. stored:
    what it reads elsewhere. computed: names that it would make while it runs, which nobody can tell. protocol: the
    highest that it declares. keys: whether every key of a mapping is a text, a number, or a few of them; others can
    take endless time to be looked up. error: what ends it before its own end, "" for a whole pickle.
    """

    value: Any = None
    globals: dict[Global, None] = field(default_factory=dict)
    calls: list[Made] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    protocol: int = 0
    keys: bool = True
    error: str = ""

    @property
    def whole(self) -> bool:
        return not self.error


def follow(stream: IO[bytes]) -> Account:
    """The account of one pickle; the stream is left behind it. Never raises for what is in the pickle."""
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if step >= MOST_STEPS:
                raise ValueError(f"it has more than {MOST_STEPS} operations")
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        machine.account.error = str(error)[:200] or type(error).__name__
    return machine.account


class _Mark:
    """Where a group of values begins on the stack."""


class _Machine:
    def __init__(self) -> None:
        self.account = Account()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.protocol = 0

    def step(self, name: str, argument: Any) -> None:
        action = _ACTIONS.get(name)
        if action is not None:
            action(self, argument)
        elif name in _VALUES:
            self.stack.append(argument)
        elif name in _MAKERS:
            self.stack.append(_MAKERS[name]())
        else:
            raise ValueError(f"the operation {name} is not known")

    # ---- the stack ---------------------------------------------------------------------------------------------

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise ValueError("it takes a mark for a value")
        return value

    def top(self) -> Any:
        if isinstance(self.stack[-1], _Mark):
            raise ValueError("it takes a mark for a value")
        return self.stack[-1]

    def group(self) -> list[Any]:
        """The values above the last mark, which goes too."""
        at = next(i for i in range(len(self.stack) - 1, -2, -1) if i < 0 or isinstance(self.stack[i], _Mark))
        if at < 0:
            raise ValueError("it has no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    # ---- names -------------------------------------------------------------------------------------------------

    def name(self, module: Any, name: Any) -> None:
        """Pushes what the pickle calls by a name; one that is computed is unknown."""
        if not isinstance(module, str) or not isinstance(name, str):
            self.account.computed.append("a name that it computes")
            self.stack.append(Unknown("a name that is computed"))
            return
        if self.protocol < _PY2:  # as Python's own reader takes names of Python 2
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            elif module in _compat_pickle.IMPORT_MAPPING:
                module = _compat_pickle.IMPORT_MAPPING[module]
        found = Global(module, name)
        self.account.globals[found] = None
        self.stack.append(found)

    def extension(self, code: int) -> None:
        """A number in place of a name, out of a table that lies in the reading process."""
        registry: dict[int, tuple[str, str]] = getattr(copyreg, "_inverted_registry", {})
        if code in registry:
            self.name(*registry[code])
            return
        self.account.computed.append(f"the extension number {code}")
        self.stack.append(Unknown(f"the extension number {code}"))

    # ---- calls -------------------------------------------------------------------------------------------------

    def call(self, function: Any, args: Any) -> None:
        made = Made(function, args)
        self.account.calls.append(made)
        self.stack.append(made)

    def store(self, id: Any) -> None:
        found = Stored(id)
        self.account.stored.append(found)
        self.stack.append(found)


Action = Callable[[_Machine, Any], None]

_VALUES = frozenset(
    {
        *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": lambda: Made(PAIRS),
    "EMPTY_LIST": lambda: Made(LIST),
    "EMPTY_SET": lambda: Made(SET),
    "MARK": _Mark,
    "NEXT_BUFFER": lambda: Unknown("a buffer from outside"),
}


def _tuple(size: int) -> Action:
    def act(machine: _Machine, argument: Any) -> None:
        if size > len(machine.stack) or any(isinstance(v, _Mark) for v in machine.stack[-size:]):
            raise IndexError("it takes more than it has")
        machine.stack[-size:] = [tuple(machine.stack[-size:])]

    return act


def _text(machine: _Machine, argument: Any) -> None:
    """A text of protocol 0 or 1: how its bytes are read depends on the reader, unless they are ASCII."""
    plain = isinstance(argument, bytes | str) and argument.isascii()
    value = argument.decode("ascii") if isinstance(argument, bytes) and plain else argument
    machine.stack.append(value if plain else Unknown("a text of an unknown encoding"))


def _put(machine: _Machine, argument: Any) -> None:
    machine.memo[argument if isinstance(argument, int) else len(machine.memo)] = machine.top()


def _pairs(values: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(values) % 2:
        raise ValueError("a mapping has a key without a value")
    yield from zip(values[::2], values[1::2], strict=True)


def is_key(value: Any, depth: int = 0) -> bool:
    """Whether a value is a text or a number, or a short tuple of such."""
    if isinstance(value, tuple) and not isinstance(value, Global | Stored | Unknown):
        return depth < 2 and len(value) <= MOST_PARTS and all(is_key(v, depth + 1) for v in value)
    return value is None or isinstance(value, str | bytes | int | float | Global)


def _add_pairs(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, Made):
        added = list(_pairs(values))
        machine.account.keys &= all(is_key(key) for key, _ in added)
        target.pairs.extend(added)


def _add_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.top()
    if isinstance(target, Made):
        machine.account.keys &= target.function is LIST or all(map(is_key, values))
        target.items.extend(values)


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _add_pairs(machine, [key, value])


def _append(machine: _Machine, argument: Any) -> None:
    value = machine.pop()
    _add_items(machine, [value])


def _build(machine: _Machine, argument: Any) -> None:
    state = machine.pop()
    target = machine.top()
    if isinstance(target, Made):
        target.state = state


def _stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.name(module, name)


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.name(module, name)


def _inst(machine: _Machine, argument: str) -> None:
    args = tuple(machine.group())
    _global(machine, argument)
    machine.call(machine.pop(), args)


def _obj(machine: _Machine, argument: Any) -> None:
    function, *args = machine.group()
    machine.call(function, tuple(args))


def _reduce(machine: _Machine, argument: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.call(function, args)


def _new_ex(machine: _Machine, argument: Any) -> None:
    keywords, args, function = machine.pop(), machine.pop(), machine.pop()
    machine.call(function, (args, keywords))


def _container(kind: str, mapping: bool = False) -> Action:
    def act(machine: _Machine, argument: Any) -> None:
        values = machine.group()
        machine.stack.append(Made(kind))
        (_add_pairs if mapping else _add_items)(machine, values)

    return act


def _drop(machine: _Machine, argument: Any) -> None:
    machine.stack.pop()


def _drop_group(machine: _Machine, argument: Any) -> None:
    machine.group()


def _stop(machine: _Machine, argument: Any) -> None:
    machine.account.value = machine.pop()


def _protocol(machine: _Machine, argument: int) -> None:
    machine.protocol = argument
    machine.account.protocol = max(argument, machine.account.protocol)


_ACTIONS: dict[str, Action] = {
    "STRING": _text,
    "BINSTRING": _text,
    "SHORT_BINSTRING": _text,
    "BYTEARRAY8": lambda m, a: m.stack.append(bytes(a)),
    "READONLY_BUFFER": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "PROTO": _protocol,
    "STOP": _stop,
    "POP": _drop,
    "POP_MARK": _drop_group,
    "DUP": lambda m, a: m.stack.append(m.top()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.group())),
    "LIST": _container(LIST),
    "DICT": _container(PAIRS, mapping=True),
    "FROZENSET": _container(SET),
    "APPEND": _append,
    "APPENDS": lambda m, a: _add_items(m, m.group()),
    "ADDITEMS": lambda m, a: _add_items(m, m.group()),
    "SETITEM": _set_item,
    "SETITEMS": lambda m, a: _add_pairs(m, m.group()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": lambda m, a: m.stack.append(m.memo[a]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _inst,
    "OBJ": _obj,
    "EXT1": lambda m, a: m.extension(a),
    "EXT2": lambda m, a: m.extension(a),
    "EXT4": lambda m, a: m.extension(a),
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_ex,
    "BUILD": _build,
    "PERSID": lambda m, a: m.store(a),
    "BINPERSID": lambda m, a: m.store(m.pop()),
}
