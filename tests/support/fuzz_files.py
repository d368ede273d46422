"""Opens mutated files one after the other, in a process of its own, and reports what should not be.

    python -m support.fuzz_files KIND,KIND FIRST COUNT FOLDER

Each file is opened as the command line opens it. It may be refused, in one printable sentence. What is reported: any
other error (the command line would end with exit code 4), an audit event that only running code raises, a file that is
written, one that takes more than ten seconds, and one that takes more than 1 GiB of memory beside its own size. One
line of JSON is written for each finding and one at the end of a kind; the number of the file that is being opened
stands in FOLDER/at, so that a process that dies is continued behind it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import resource
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from reparam.errors import InputError

from .genuine_files import IMAGES, SUFFIXES, beside, seed_of
from .mutating import mutated

SECONDS = 10
MEMORY = 1 << 30  # bytes, beside the file's own
ADDRESSES = 6 << 30  # bytes of address space beside what there was; beyond, allocations fail
# What only code that a file brings would do.
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.startfile", "os.remove"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "pty.spawn", "shutil.rmtree", "ctypes.dlopen"),
    *("urllib.Request", "ftplib.connect", "smtplib.connect", "webbrowser.open", "pickle.find_class"),
)
OWN = ("shutil.rmtree", "os.remove")  # what writing files does
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Notes forbidden events while a file is open. writing: whether what is written is asked for."""

    def __init__(self) -> None:
        self.active = self.writing = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active:
            return
        forbidden = event in FORBIDDEN and not (self.writing and event in OWN)
        if event == "open" and not self.writing:
            forbidden = isinstance(args[2], int) and bool(args[2] & WRITING) and args[0] != os.devnull
        if forbidden:
            self.active = False
            self.seen.append(f"{event} {str(args)[:120]}")
            self.active = True


def open_file(kind: str, path: Path, convert: bool) -> None:
    """As `convert`, `run` and `export --calibrate` do. convert: whether a program that is taken is converted too."""
    import torch

    from reparam.compare import open_model
    from reparam.data import load_array
    from reparam.engines.format import Runnable
    from reparam.engines.manifest import read_manifest

    if kind == "manifest":
        read_manifest(path.with_suffix(""))
        return
    if kind in ("npy", "npz"):
        found = load_array(path)
        for array in found.values() if isinstance(found, dict) else [found]:
            torch.from_numpy(array)
        return
    if kind in IMAGES:
        _read_images(path)
        return
    if kind == "moves":
        _clean_up(path)
        return
    arch = "support.planting:make" if kind in ("zip", "legacy", "safetensors") else None
    model = open_model(path, arch=arch)
    if isinstance(model, Runnable):
        model.calls()
        shapes = [p.sizes(2, {}) for p in model.inputs]
        if all(s is not None and len(s) < 8 and max(s, default=0) < 100 for s in shapes):
            model.run(
                [torch.zeros(s, dtype=getattr(torch, p.dtype)) for s, p in zip(shapes, model.inputs, strict=True)]
            )
    elif convert:
        import reparam

        given = model.exported if model.exported is not None else model.module
        inputs = () if model.exported is not None else (torch.zeros(2, 3, 8, 8),)
        reparam.convert(given, *inputs).save_source(path.parent / "source", force=True)


@functools.cache
def _image_network() -> Any:
    import torch

    from reparam.capture import capture

    return capture(torch.nn.Conv2d(3, 2, 3).eval(), (torch.zeros(2, 3, 8, 8),)).program


def _read_images(path: Path) -> None:
    from reparam.engines import read_calibration

    how = {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [8, 8], "resize": 9, "interpolation": "bilinear"}
    read_calibration(path.parent, _image_network(), how)


def _clean_up(path: Path) -> None:
    """Cleans up after a run that was killed, whose list of moves is the mutated file; nothing else may go or come."""
    from reparam.utils.leftovers import NEW, TEMPORARY, make_temporary, remove_leftovers

    folder = path.parent / "moves"
    name = make_temporary(path.parent)
    name.rmdir()
    gone = folder / f"{TEMPORARY}{name.name.split('-')[1]}-4194999-00000000"
    (gone / NEW).mkdir(parents=True)
    (gone / NEW / "a").write_bytes(b"")
    (gone / "moves.json").write_bytes(path.read_bytes())
    (folder / "kept").write_bytes(b"kept")
    before = sorted(path.parent.iterdir())
    remove_leftovers(folder)
    assert not gone.exists() and sorted(path.parent.iterdir()) == before
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("kept", b"kept")]


def attempt(kind: str, path: Path, watch: Watch, convert: bool) -> tuple[str, str]:
    """(outcome, details): taken, refused, or what should not be."""
    from reparam.errors import MachineError, NotEquivalentError, ReparamError, RuleError

    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted anew
    before = memory()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    watch.seen.clear()
    watch.active, watch.writing = True, convert or kind in ("moves", "package", "engine")
    try:
        open_file(kind, path, convert)
        outcome, details = "taken", ""
    except RuleError as error:
        outcome, details = "internal", _where(error)
    except (MachineError, NotEquivalentError) as error:
        outcome, details = "refused", str(error)
    except ReparamError as error:
        outcome, details = "refused", str(error)
    except BaseException as error:
        outcome, details = "internal", _where(error)
    finally:
        watch.active = False
        faulthandler.cancel_dump_traceback_later()
    if outcome == "refused" and not details.isprintable():
        outcome = "not printable"
    if watch.seen or "REPARAM_CANARY" in os.environ:
        outcome, details = "ran", "; ".join(watch.seen) or "the canary"
    if memory() - before > MEMORY + path.stat().st_size:
        outcome, details = "memory", f"{(memory() - before) >> 20} MiB"
    return outcome, details


def memory() -> int:
    """The peak of memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) << 10


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/reparam/" in f.filename]
    last = frames[-1] if frames else None
    place = f"{Path(last.filename).name}:{last.lineno}" if last else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:200]}"


def limit_addresses() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES, size + ADDRESSES))


def prepared(kind: str, folder: Path) -> Path:
    """Where the mutated file goes; what lies beside it is there, and the genuine file was opened once."""
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    for name, content in beside(kind).items():
        (place / name).write_bytes(content)
    path = place / f"net.{SUFFIXES[kind]}"
    path.write_bytes(seed_of(kind))
    with contextlib.suppress(InputError):  # what is never taken, such as TorchScript
        open_file(kind, path, convert=True)  # everything is imported by now
    return path


def fuzz(kind: str, first: int, count: int, folder: Path, watch: Watch) -> None:
    """Opens the files of so many seeds of one kind."""
    path = prepared(kind, folder)
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        content = mutated(kind, seed)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        (folder / "at").write_text(json.dumps([kind, seed, outcomes]))
        outcome, details = attempt(kind, path, watch, convert=seed % 20 == 0)
        outcomes[outcome] += 1
        if outcome not in ("taken", "refused"):
            keep(folder, kind, seed)
            tell({"kind": kind, "seed": seed, "outcome": outcome, "details": details})
    tell({"kind": kind, "outcomes": outcomes})


def keep(folder: Path, kind: str, seed: int) -> None:
    """Writes the file of a finding, to be looked at."""
    (folder / f"found-{kind}-{seed}.{SUFFIXES[kind]}").write_bytes(mutated(kind, seed))


def tell(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def main(kinds: list[str], first: int, count: int, folder: Path) -> None:
    """Opens the files of so many seeds of each kind."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True
    watch = Watch()
    for kind in kinds:
        prepared(kind, folder)
    limit_addresses()
    for kind in kinds:
        fuzz(kind, first, count, folder, watch)


def in_processes(kind: str, first: int, count: int, folder: Path) -> tuple[Counter[str], list[dict[str, Any]]]:
    """The same for one kind in processes of their own, each of which goes on where one has died."""
    outcomes: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    at, end = first, first + count
    while at < end:
        words = [sys.executable, "-m", "support.fuzz_files", kind, str(at), str(end - at), str(folder)]
        (folder / "at").write_text(json.dumps([kind, -1, {}]))
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        findings += [row for row in rows if "outcomes" not in row]
        if done.returncode == 0:
            outcomes.update(rows[-1]["outcomes"])
            break
        _, seed, before = json.loads((folder / "at").read_text())
        assert seed >= 0, done.stderr[-3000:]
        keep(folder, kind, seed)
        outcomes.update(before)
        outcomes["died"] += 1
        findings.append({"kind": kind, "seed": seed, "outcome": "died", "details": done.stderr[-2000:]})
        at = seed + 1
    assert outcomes.total() == count, (outcomes, count)
    return outcomes, findings


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
