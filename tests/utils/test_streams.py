"""Streams that others close: ours stay open, the standard ones are open again, no file gets their numbers."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from reparam.utils import drop_broken_streams, foreign_code, own_stream
from support.warm_process import WarmProcess


@pytest.fixture
def warm(warm: WarmProcess, monkeypatch: pytest.MonkeyPatch) -> WarmProcess:
    """Its commands end as a whole process does."""
    monkeypatch.setattr(warm, "whole_end", True)
    return warm


def test_what_is_said_arrives_after_the_stream_was_closed(tmp_path: Path) -> None:
    path = tmp_path / "said"
    with open(path, "w", encoding="ascii") as stream:
        stream.write("before, ")
        own = own_stream(stream)
    own.close()
    own.write("after \u00e9")
    own.flush()
    assert path.read_text() == "before, after \\xe9"


def test_a_number_that_leads_elsewhere_is_not_written_to(tmp_path: Path) -> None:
    with open(tmp_path / "said", "w") as stream:
        own = own_stream(stream)
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    os.dup2(other, own.fileno())
    for work in (lambda: own.write("no"), own.flush):
        with pytest.raises(OSError, match="closed it"):
            work()
    assert (tmp_path / "other").read_bytes() == b""
    os.close(own.fileno())
    os.close(other)


def test_streams_in_memory_and_none() -> None:
    memory = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert own_stream(memory) is memory and memory.errors == "backslashreplace"
    text = io.StringIO()
    assert own_stream(text) is text
    nowhere = own_stream(None)
    assert nowhere.write("nowhere") == 7
    nowhere.close()


@pytest.mark.parametrize("spoil", ["close", "detach", "none", "delete", "other"])
def test_the_standard_streams_are_usable_after_foreign_code(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, other = io.TextIOWrapper((tmp_path / "out").open("wb")), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with foreign_code("running a net"):
        if spoil in ("close", "detach"):
            getattr(sys.stdout, spoil)()
        elif spoil == "delete":
            del sys.stdout
        else:
            sys.stdout = None if spoil == "none" else other  # type: ignore[assignment]
    if spoil == "other":
        assert sys.stdout is other  # a choice of the code that leaves something to write to
    else:
        assert (sys.stdout is stream) is (spoil in ("none", "delete"))
        assert not sys.stdout.closed


def test_streams_that_cannot_be_flushed_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    detached = io.TextIOWrapper(io.BytesIO())
    detached.detach()
    monkeypatch.setattr(sys, "stdout", detached)
    monkeypatch.setattr(sys, "stderr", good := io.StringIO())
    drop_broken_streams()
    assert sys.stdout is None and sys.stderr is good


NUMBERS = """
import os
from reparam.utils import foreign_code
with foreign_code("running a net"):
    os.close(1)
    os.close(2)
first = open("out", "wb")
assert first.fileno() > 2, first.fileno()
os.write(1, b"said")
os.write(2, b"told")
"""


def test_no_file_of_ours_gets_the_number_of_a_standard_stream(
    warm: WarmProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = warm.run(NUMBERS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "said", "told")
