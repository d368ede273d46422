"""Outputs of one run appear together or not at all, also when the run is killed between two of them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam.errors import InputError, MachineError
from reparam.utils import refuse_existing, together, write_atomically
from reparam.utils.leftovers import LONG_AGO, TEMPORARY, make_temporary, remove_leftovers
from support.choice import mostly_in_sweeps

NAMES = ("first.bin", "side.bin", "deep/folder/model.py", "report.json")  # the first one is moved last


def write_all(folder: Path, content: bytes, *, force: bool = False) -> None:
    with together() as outputs:
        for name in NAMES:
            staged = outputs.stage(folder / name, force=force, make_folder=True)
            staged.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` that is not in a temporary folder."""
    found = (p for p in folder.rglob("*") if p.is_file() and TEMPORARY not in str(p))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def all_of(content: bytes) -> dict[str, bytes]:
    return dict.fromkeys(NAMES, content)


def child(folder: Path, function: str, last: int, links: bool = True) -> subprocess.Popen[bytes]:
    """A process that writes all, and is killed at the given call."""
    words = [sys.executable, "-c", KILLED, str(folder), function, str(last), "links" if links else "none"]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE)


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"{TEMPORARY}*"))


# ---- failures ----------------------------------------------------------------------------------------------------


def test_all_appear_at_the_end(tmp_path: Path) -> None:
    with together() as outputs:
        outputs.stage(tmp_path / "a", force=False).write_bytes(b"a")
        write_atomically(tmp_path / "b", lambda file: file.write(b"b"), force=False)  # joins the others
        assert contents(tmp_path) == {} and outputs.written == []
    assert contents(tmp_path) == {"a": b"a", "b": b"b"}
    assert outputs.written == [tmp_path / "a", tmp_path / "b"] and not temporaries(tmp_path)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("function", ["replace", "link", "fsync", "chmod", "mkdir"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_whichever_step_fails_nothing_appears(
    error: BaseException, function: str, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if older:
        write_all(tmp_path, b"old")
    before, folders = contents(tmp_path), {p for p in tmp_path.rglob("*") if p.is_dir()}
    real, calls = getattr(os, function), 0
    for last in range(1, 30):
        calls = 0

        def failing(*words: object, last: int = last, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == last:
                raise error
            return real(*words, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, failing)
            try:
                write_all(tmp_path, b"new", force=older)
            except (MachineError, KeyboardInterrupt) as raised:
                assert isinstance(raised, MachineError) == isinstance(error, OSError)
            else:
                break
        assert contents(tmp_path) == before and not temporaries(tmp_path)
        assert {p for p in tmp_path.rglob("*") if p.is_dir()} == folders
    assert contents(tmp_path) == all_of(b"new"), "a run of so many steps did not end"


def test_one_output_cannot_be_two(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two outputs are named"), together() as outputs:
        outputs.stage(tmp_path / "a", force=True)
        outputs.stage(tmp_path / "a", force=True)


def test_one_output_cannot_be_the_folder_of_another(tmp_path: Path) -> None:
    for names in (("net.pt2", "net.pt2/model.py"), ("net.pt2/model.py", "net.pt2")):
        told = "net.pt2 is an output and the folder of another, .*model.py"
        with pytest.raises(InputError, match=told), together() as outputs:
            for name in names:
                outputs.stage(tmp_path / name, force=False, make_folder=True)
        assert not list(tmp_path.iterdir())


def test_an_error_names_the_outputs_as_they_were_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, together() as outputs:
        staged = outputs.stage(tmp_path / "net.onnx", force=False)
        raise InputError(f"{staged} and {staged}.json are refused")
    assert str(caught.value) == f"{tmp_path / 'net.onnx'} and {tmp_path / 'net.onnx'}.json are refused"


def test_a_file_that_appeared_in_the_meantime_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"), together() as outputs:
        outputs.stage(tmp_path / "a", force=False).write_bytes(b"ours")
        outputs.stage(tmp_path / "b", force=False).write_bytes(b"ours")
        (tmp_path / "b").write_bytes(b"theirs")
    assert contents(tmp_path) == {"b": b"theirs"}


def test_a_disk_without_links_moves_older_files_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for content in (b"one", b"two"):
        write_all(tmp_path, content, force=True)
        assert contents(tmp_path) == all_of(content)


def test_outputs_of_several_disks_are_staged_on_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").mkdir()
    monkeypatch.setattr("reparam.utils.staging._mounts_between", lambda outer, inner: inner.name == "mounted")
    with together() as outputs:
        for name in ("here", "mounted/there"):
            outputs.stage(tmp_path / name, force=False).write_bytes(b"x")
        assert [p.parent.name for p in temporaries(tmp_path)] == [tmp_path.name, "mounted"]
    assert contents(tmp_path) == {"here": b"x", "mounted/there": b"x"} and not temporaries(tmp_path)


# ---- kills -------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from utils.test_staging import write_all

function, last, links = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "links"
calls = 0

def refuse(*words, **options):
    raise OSError(1, "no links")

if not links:
    os.link = refuse
real = getattr(os, function)

def counted(*words, **options):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **options)

setattr(os, function, counted)
write_all(Path(sys.argv[1]), b"new", force=True)
"""


def killed(folder: Path, function: str, last: int, links: bool = True) -> bool:
    """Writes in a child that is killed at the given call; whether it was."""
    process = child(folder, function, last, links)
    _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err.decode()
    return process.returncode != 0


RUNS = list(itertools.product((False, True), (False, True)))


@pytest.mark.parametrize(("older", "links"), mostly_in_sweeps(RUNS, (True, False)))
def test_a_run_that_is_killed_between_its_moves(older: bool, links: bool, tmp_path: Path) -> None:
    old = all_of(b"old") if older else {}
    for function in ("replace", "mkdir", "fsync"):
        for last in range(1, 30):
            folder = tmp_path / f"{function}{last}"
            folder.mkdir()
            if older:
                write_all(folder, b"old")
            ended = not killed(folder, function, last, links)
            left = contents(folder)
            assert set(left.values()) <= {b"old", b"new"}  # never half a file
            assert "first.bin" not in left or left["first.bin"] == b"old" or left == all_of(b"new")
            if ended:
                assert left == all_of(b"new") and not temporaries(folder)
                break
            assert [t.parent for t in temporaries(folder)] in ([], [folder])
            refuse_existing(folder / "another", force=False)  # what the next run asks first
            assert contents(folder) in (old, all_of(b"new")) and not temporaries(folder)
        else:
            pytest.fail(f"a run that calls {function} so often did not end")


@pytest.mark.parametrize("older", mostly_in_sweeps([False, True], True))
def test_a_run_that_is_killed_at_any_time(older: bool, tmp_path: Path) -> None:
    """By a clock, and so anywhere; whatever the next run finds, it leaves all or nothing."""
    start = time.perf_counter()
    killed(tmp_path, "replace", 99)
    span = time.perf_counter() - start
    for i in range(8):
        folder = tmp_path / str(i)
        folder.mkdir()
        if older:
            write_all(folder, b"old")
        process = child(folder, "replace", 99)
        time.sleep(span * (0.6 + 0.05 * i))
        process.kill()
        process.communicate()
        remove_leftovers(folder)
        assert contents(folder) in (all_of(b"old") if older else {}, all_of(b"new"))
        assert not temporaries(folder)


# ---- what is left over, and what is not --------------------------------------------------------------------------


def leftover(folder: Path) -> Path:
    """A temporary folder of a process that is gone."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from pathlib import Path; from reparam.utils.leftovers import *; "
         "print(make_temporary(Path(sys.argv[1])).name)", str(folder)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return folder / done.stdout.strip()


def test_only_what_is_ours_and_left_over_is_removed(tmp_path: Path) -> None:
    gone, alive = leftover(tmp_path), make_temporary(tmp_path)
    elsewhere = tmp_path / f"{TEMPORARY}00000000-1-00000000"  # of another machine, whose processes nobody here sees
    long_ago = tmp_path / f"{TEMPORARY}00000000-2-00000000"
    others = [tmp_path / f"{TEMPORARY}notes", tmp_path / f"{TEMPORARY}abcdefgh", tmp_path / "precious"]
    for path in (elsewhere, long_ago, *others):
        path.mkdir()
    past = time.time() - 2 * LONG_AGO
    for path in (long_ago, *others):
        os.utime(path, (past, past))
    file, link = tmp_path / leftover_name(), tmp_path / f"{leftover_name()[:-1]}1"
    file.write_bytes(b"a file of such a name")
    link.symlink_to(tmp_path / "precious")
    remove_leftovers(tmp_path)
    assert not gone.exists() and not long_ago.exists()
    assert all(p.exists() for p in (alive, elsewhere, *others, file, link))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_a_list_of_moves_of_any_content_moves_nothing(tmp_path_factory: pytest.TempPathFactory, row: object) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "kept").write_bytes(b"kept")
    gone = folder / leftover_name()
    (gone / "new").mkdir(parents=True)
    (gone / "moves.json").write_text(json.dumps(row))
    remove_leftovers(folder)
    assert contents(folder) == {"kept": b"kept"} and not gone.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "", "nul\0"])
def test_a_list_of_moves_that_leads_outside_is_not_followed(name: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.write_bytes(b"kept")
    found = outside.lstat()
    stamp = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]
    gone = folder / leftover_name()
    (gone / "new").mkdir(parents=True)
    (gone / "new" / "inside").write_bytes(b"")
    (gone / "moves.json").write_text(json.dumps({"moves": [[name, stamp], ["inside", [0, 0, 0, 0]]], "made": []}))
    remove_leftovers(folder)
    assert outside.read_bytes() == b"kept" and not gone.exists()


@pytest.mark.parametrize("link", ["place", "old", "deep"])
def test_a_list_of_moves_follows_no_link(link: str, tmp_path: Path) -> None:
    """A folder of somebody else's may hold links, a list of moves, and files to be put where the links lead."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    gone = folder / leftover_name()
    for part in ("new", "old/sub"):
        (gone / part).mkdir(parents=True)
    (gone / "new" / "other").write_bytes(b"")
    (gone / "old" / "sub" / "brought").write_bytes(b"brought")
    name = "sub/brought" if link == "place" else "sub/kept"
    if link == "place":
        (folder / "sub").symlink_to(outside)
    else:
        (folder / "sub").mkdir()
        shutil.rmtree(gone / ("old" if link == "old" else "old/sub"))
        (gone / ("old" if link == "old" else "old/sub")).symlink_to(outside)
        if link == "old":
            (outside / "sub").mkdir()
            (outside / "sub" / "kept").write_bytes(b"kept")
    plan = {"moves": [[name, [0, 0, 0, 0]], ["other", [0, 0, 0, 0]]], "made": []}
    (gone / "moves.json").write_text(json.dumps(plan))
    before = contents(outside)
    remove_leftovers(folder)
    assert contents(outside) == before and not gone.exists()
    assert not (folder / "sub" / "kept").is_file() or link == "place"


UNREADABLE = (
    '{"moves": [["a", [1e999]]], "made": []}',
    '{"moves": [["a", [1]]], "made": ["\\ud800"]}',
    '{"moves": [["a", "9"]], ',
    "[" * 100_000,
)


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_list_of_moves_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    gone = tmp_path / leftover_name()
    (gone / "new").mkdir(parents=True)
    (gone / "new" / "a").touch()
    (gone / "moves.json").write_text(text)
    remove_leftovers(tmp_path)
    assert not gone.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_list_of_moves_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    gone = tmp_path / leftover_name()
    gone.mkdir()
    os.mkfifo(gone / "moves.json")
    remove_leftovers(tmp_path)
    assert not gone.exists()


def leftover_name() -> str:
    """The name of a temporary folder of this machine, of a process that never was."""
    place = make_temporary.__globals__["_place"]()
    return f"{TEMPORARY}{place}-4194999-00000000"  # above the largest number that Linux gives
