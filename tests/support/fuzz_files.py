"""Opens mutated files one after the other, in a process of its own, and reports what should not be.

    python -m support.fuzz_files KIND FIRST COUNT FOLDER

Each file is opened as the command line opens it. It may be refused, in one printable sentence. What is reported: any
other error (the command line would end with exit code 4), an audit event that only running code raises, a file that
takes more than ten seconds, and one that takes more than 1 GiB of memory beside its own size. One line of JSON is
written for each finding and one at the end; the number of the file that is being opened stands in FOLDER/at, so that
a process that dies is continued behind it.
"""

from __future__ import annotations

import faulthandler
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


class Watch:
    """Notes forbidden events while a file is open."""

    def __init__(self) -> None:
        self.active = self.writing = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        own = self.writing and event in OWN
        if self.active and event in FORBIDDEN and not own:
            self.active = False
            self.seen.append(f"{event} {str(args)[:120]}")
            self.active = True


def open_file(kind: str, path: Path, convert: bool) -> None:
    """As `convert`, `run` and `export --calibrate` do. convert: whether a program that is taken is converted too."""
    import torch

    from reparam.compare import open_model
    from reparam.engines import load_array
    from reparam.engines.format import Runnable
    from reparam.engines.manifest import read_manifest

    if kind == "manifest":
        read_manifest(path)
        return
    if kind in ("npy", "npz"):
        found = load_array(path)
        for array in found.values() if isinstance(found, dict) else [found]:
            torch.from_numpy(array)
        return
    arch = None if kind in ("program", "onnx") else "support.planting:make"
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


def attempt(kind: str, path: Path, watch: Watch, convert: bool) -> tuple[str, str]:
    """(outcome, details): taken, refused, or what should not be."""
    from reparam.errors import MachineError, NotEquivalentError, ReparamError, RuleError

    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is counted anew
    before = memory()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    watch.seen.clear()
    watch.active, watch.writing = True, convert
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


def prepared(kind: str, folder: Path) -> tuple[Path, Path]:
    """The path that is opened, and the one that is mutated; with the genuine file, which is opened once."""
    from .mutating import MIXES, seed_of

    path = folder / f"net.{MIXES[kind][0]}"
    if kind == "manifest":
        path.write_bytes(seed_of("onnx"))
    target = Path(f"{path}.json") if kind == "manifest" else path
    target.write_bytes(seed_of(kind))
    open_file(kind, path, convert=True)  # everything is imported by now
    return path, target


def fuzz(kind: str, first: int, count: int, folder: Path, watch: Watch) -> None:
    """Opens the files of so many seeds of one kind."""
    from .mutating import MIXES, mutated

    path, target = prepared(kind, folder)
    outcomes: Counter[str] = Counter()
    for seed in range(first, first + count):
        (folder / "at").write_text(f"{kind} {seed}")
        content = mutated(kind, seed)
        target.unlink(missing_ok=True)
        target.write_bytes(content)
        outcome, details = attempt(kind, path, watch, convert=seed % 20 == 0)
        outcomes[outcome] += 1
        if outcome not in ("taken", "refused"):
            (folder / f"found-{kind}-{seed}.{MIXES[kind][0]}").write_bytes(content)
            tell({"kind": kind, "seed": seed, "outcome": outcome, "details": details})
    target.unlink(missing_ok=True)
    Path(f"{path}.json").unlink(missing_ok=True)
    tell({"kind": kind, "outcomes": outcomes})


def tell(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


def main(kinds: list[str], first: int, count: int, folder: Path) -> None:
    """Opens the files of so many seeds of each kind."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    watch = Watch()
    for i, kind in enumerate(kinds):
        prepared(kind, folder)
        if i == 0:
            limit_addresses()
    for kind in kinds:
        fuzz(kind, first, count, folder, watch)
    (folder / "at").write_text("done")


def in_processes(kinds: list[str], first: int, count: int, folder: Path) -> tuple[Counter[str], list[dict[str, Any]]]:
    """The same in processes of their own, each of which goes on where one has died. Returns outcomes and findings."""
    outcomes: Counter[str] = Counter()
    findings: list[dict[str, Any]] = []
    for kind in kinds:
        at = first
        while at < first + count:
            words = [sys.executable, "-m", "support.fuzz_files", kind, str(at), str(first + count - at), str(folder)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            findings += [row for row in rows if "outcomes" not in row]
            for row in rows:
                outcomes.update({f"{kind} {k}": n for k, n in row.get("outcomes", {}).items()})
            if done.returncode == 0:
                break
            seed = int((folder / "at").read_text().split()[1])
            outcomes.update({f"{kind} died": 1, f"{kind} before": seed - at})
            findings.append({"kind": kind, "seed": seed, "outcome": "died", "details": done.stderr[-2000:]})
            at = seed + 1
    return outcomes, findings


if __name__ == "__main__":
    main(sys.argv[1].split(","), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
