"""What a pickle would run is told truly, for every protocol and whatever it does to hide it."""

from __future__ import annotations

import collections
import copyreg
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reparam.errors import InputError, UnsafeFileError
from reparam.loading.checkpoint import load_checkpoint
from reparam.loading.pickle_calls import accounts_of, what_runs
from reparam.loading.pickle_machine import MOST_STEPS, Global, Made, follow


class Runs:
    """Unpickling it calls `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def told(content: bytes) -> tuple[list[str], bool]:
    return what_runs(accounts_of(content))


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol(protocol: int) -> None:
    value = [{"a": (1, 2.5, "é", b"x")}, Runs(os.system, "true"), Runs(subprocess.Popen, ["true"]), {1}, 10**30]
    unsafe, unclear = told(pickle.dumps(value, protocol))
    assert {"posix.system", "subprocess.Popen"} <= set(unsafe) and not unclear


def test_a_name_out_of_the_memo_is_found() -> None:
    """The texts `numpy` and `dtype` stand right before the name is taken, which comes out of the memo."""
    hidden = text("posix") + b"\x940" + text("system") + b"\x940" + text("numpy") + b"0" + text("dtype") + b"0"
    content = b"\x80\x04" + hidden + b"h\x00h\x01\x93" + text("touch RAN") + b"\x85R."
    assert told(content) == (["posix.system"], False)


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"cposix\nsystem\n(S'true'\ntR.", ["posix.system"]),  # protocol 0
        (b"(S'true'\niposix\nsystem\n.", ["posix.system"]),  # INST
        (b"(cposix\nsystem\nS'true'\no.", ["posix.system"]),  # OBJ
        (b"c__builtin__\neval\n(S'1'\ntR.", ["builtins.eval"]),  # a name of Python 2
        (b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("true") + b"\x85R.", ["posix.system"]),
        (b"\x80\x04" + text("a") + text("posix") + b"\x94" + b"0h\x00" + text("system") + b"\x93.", ["posix.system"]),
        (
            b"\x80\x04(" + text("x") + b"1" + text("posix") + text("system") + b"2\x93.",
            ["system.system"],
        ),  # POP_MARK, DUP
        (b"\x80\x02" + b"cposix\nsystem\nq\x00K\x01q\x010h\x00h\x01\x85R.", ["posix.system"]),
        (b"\x80\x04" + text("os.path") + text("join") + b"\x93" + text("a") + b"\x85R.", ["os.path.join"]),
    ],
)
def test_handwritten_pickles(content: bytes, expected: list[str]) -> None:
    unsafe, unclear = told(content)
    assert (unsafe, unclear) == (expected, False)


@pytest.mark.parametrize(
    "content",
    [
        # the name is what a call gives
        b"\x80\x04" + text("builtins") + text("getattr") + b"\x93N\x85R" + text("system") + b"\x93.",
        b"\x80\x04" + text("posix") + text("system")[:2] + b"\x8e" + struct.pack("<Q", 3) + b"abc" + b"\x93.",
        b"\x80\x04N" + text("system") + b"\x93.",
        b"\x80\x02\x82\xf0)R.",  # EXT1
        b"\x80\x02\x84\x01\x02\x03\x04)R.",  # EXT4
        b"cposix\nsystem\n(S'true'\ntR" + b"\xff" * 20,  # not whole, behind a call
        b"\x80\x04" + text("posix") + b"\x8c\x02\xc3\x28" + b"\x93.",
    ],
)
def test_what_cannot_be_known_is_not_claimed(content: bytes, tmp_path: Path) -> None:
    _, unclear = told(content)
    path = tmp_path / "x.pt"
    path.write_bytes(content if content.startswith(b"\x80") else b"\x80\x02" + content)
    with pytest.raises(InputError) as error:
        load_checkpoint(path)
    assert not unclear or "could not be determined" in str(error.value)
    assert unclear or "damaged" in str(error.value)


def test_a_registered_extension_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("posix", "system"))  # type: ignore[attr-defined]
    assert told(b"\x80\x02\x82\xf0)R.") == (["posix.system"], False)


def test_pickles_within_pickles_and_archives_are_followed() -> None:
    inner = pickle.dumps(Runs(os.system, "true"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Runs(os.listdir, ".")))
    nested = [Runs(pickle.loads, inner), Runs(torch.storage._load_from_bytes, buffer.getvalue())]
    unsafe, unclear = told(pickle.dumps([nested, Runs(pickle.loads, pickle.dumps(nested))]))
    assert {"_pickle.loads", "posix.system", "posix.listdir", "torch.storage._load_from_bytes"} <= set(unsafe)
    assert not unclear
    deep: Any = Runs(os.system, "true")
    for _ in range(12):
        deep = Runs(pickle.loads, pickle.dumps(deep))
    assert told(pickle.dumps(deep)) == (["_pickle.loads"], True)


def test_python_itself_looks_up_what_was_told(tmp_path: Path) -> None:
    """Names that the account gives are those that unpickling asks for, over pickles of all kinds."""
    values = [collections.Counter("ab"), Path("a"), ValueError("x"), complex(1, 2), slice(1), collections.deque([1])]
    for protocol in range(6):
        content = pickle.dumps([values, Runs(divmod, 7, 2)], protocol)
        asked: list[str] = []

        class Asks(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                found = super().find_class(module, name)
                asked.append(f"{module}.{name}")  # noqa: B023  # read within this very round
                return found

        Asks(io.BytesIO(content)).load()
        mapped = {str(g) for g in follow(io.BytesIO(content)).globals}
        assert {
            re.sub(r"^(__builtin__|exceptions)\b", "builtins", a).replace("copy_reg", "copyreg") for a in asked
        } == mapped


def test_values_are_followed_as_stand_ins() -> None:
    account = follow(io.BytesIO(pickle.dumps({"a": [1, (2, "x")], "b": Runs(os.system, "true")}, 2)))
    assert account.whole and isinstance(account.value, Made)
    pairs = dict(account.value.pairs)
    assert pairs["a"].items == [1, (2, "x")]
    assert (pairs["b"].function, pairs["b"].args) == (Global("posix", "system"), ("true",))


@given(st.binary(max_size=200), st.integers(0, 5))
def test_any_bytes_are_followed_without_an_error(content: bytes, protocol: int) -> None:
    told(b"\x80" + bytes([protocol]) + content)
    told(content)


def test_a_pickle_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reparam.loading.pickle_machine.MOST_STEPS", 1000)
    assert "more than 1000 operations" in follow(io.BytesIO(b"\x80\x02" + b"N0" * 5000)).error
    assert MOST_STEPS >= 1_000_000


@pytest.mark.parametrize("protocol", range(6))
def test_the_refusal_of_a_checkpoint_lists_it(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    value = {"w": torch.ones(2), "x": Runs(os.system, f"touch {marker}")}
    for name, new in (("zip.pt", True), ("old.pt", False)):
        torch.save(value, tmp_path / name, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        if protocol < 2 and not new:
            continue  # begins with neither of a pickle's marks; it is no checkpoint
        with pytest.raises(UnsafeFileError, match=r"would run posix\.system\. Save"):
            load_checkpoint(tmp_path / name)
    assert not marker.exists()


def test_names_in_the_refusal_cannot_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x02c\x1b[31mred\nx\x07\n.")
    with pytest.raises(UnsafeFileError) as error:
        load_checkpoint(tmp_path / "x.pt")
    assert str(error.value).isprintable()


def test_keys_that_take_endless_time_to_look_up_are_refused(tmp_path: Path) -> None:
    """Each level of the tuple holds the one below twice: its hash takes 2**60 steps."""
    doubled = b"\x80\x02}" + b"K\x01\x85" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "x.pt", "w") as target:
        for entry in source.namelist():
            target.writestr(entry, doubled if entry.endswith("data.pkl") else source.read(entry))
    with pytest.raises(InputError, match="keys are no texts or numbers"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    nested: dict[str, Any] = {"w": 1}
    nested["model"] = nested
    torch.save(nested, tmp_path / "x.pt")
    with pytest.raises(InputError, match="nests its weights deeper"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("call", [Runs(bytearray, 1 << 40), Runs(torch.FloatTensor, 1 << 40)])
def test_calls_that_only_take_memory_are_refused(call: Runs, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": call}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="in 'x', which no network takes"):
        load_checkpoint(tmp_path / "x.pt")


def test_the_interpreter_that_runs_this_has_the_opcodes_that_are_known() -> None:
    import pickletools

    from reparam.loading import pickle_machine as machine

    known = set(machine._ACTIONS) | set(machine._VALUES) | set(machine._MAKERS)
    assert {o.name for o in pickletools.opcodes} == known, sys.version
