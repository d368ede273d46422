"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from reparam.errors import InputError, MachineError
from reparam.utils import write_atomically


def half_then(error: BaseException) -> Callable[[IO[bytes]], None]:
    """A writer that fails after its first bytes."""

    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_what_is_written_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "file.txt", lambda f, c=content: f.write(c), force=True)
        assert contents(tmp_path) == {"file.txt": content}


def test_a_file_and_a_link_to_nothing_are_kept_unless_forced(tmp_path: Path) -> None:
    file, link = tmp_path / "file.txt", tmp_path / "link.txt"
    file.write_bytes(b"old")
    link.symlink_to("nowhere")
    for path in (file, link):
        with pytest.raises(InputError, match=rf"{path.name} exists already; --force overwrites it"):
            write_atomically(path, half_then(AssertionError("not reached")), force=False)
    assert file.read_bytes() == b"old" and link.is_symlink()
    write_atomically(link, lambda f: f.write(b"new"), force=True)
    assert contents(tmp_path) == {"file.txt": b"old", "link.txt": b"new"}


def test_the_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", lambda f: f.write(b""), force=False)
    (tmp_path / "plain").touch()
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), MemoryError()], ids=repr)
def test_what_interrupts_a_write_is_passed_on_and_leaves_nothing(
    error: BaseException, existing: bool, tmp_path: Path
) -> None:
    path = tmp_path / "file.txt"
    if existing:
        path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_atomically(path, half_then(error), force=True)
    assert contents(tmp_path) == ({"file.txt": b"old"} if existing else {})


@pytest.mark.parametrize("step", ["write", "fsync", "chmod", "replace"])
def test_a_full_disk_at_any_step_is_the_machines_fault_and_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, full = tmp_path / "file.txt", OSError(errno.ENOSPC, "No space left on device")

    def fail(*words: object) -> None:
        raise full

    if step != "write":
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(MachineError, match=r"cannot write .*file\.txt: No space left on device; nothing was written"):
        write_atomically(path, half_then(full) if step == "write" else lambda f: f.write(b"x"), force=False)
    assert contents(tmp_path) == {}


def test_what_is_renamed_was_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    write_atomically(tmp_path / "file.txt", lambda f: f.write(b"12345"), force=False)
    assert synced == [5]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cannot write .*nowhere/file\.txt: No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "file.txt", lambda f: f.write(b"x"), force=False)


def test_a_long_name_and_a_bare_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomically(Path("n" * 255), lambda f: f.write(b"x"), force=False)
    assert contents(tmp_path) == {"n" * 255: b"x"}


def test_the_writer_needs_no_torch() -> None:
    code = "import sys, reparam.utils.staging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
