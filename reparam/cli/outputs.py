"""Where the command line writes: names of outputs, the checks before any work is done, and the JSON report."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.engines import manifest_path
from reparam.errors import InputError, MachineError
from reparam.utils import SOURCE_FILES, refuse_existing, together, write_atomically

from .session import Session
from .which_weights import refuse_missing

STANDARD_OUTPUT = "-"
CHECKPOINTS = (".pt", ".pth", ".safetensors")
PAGES = (".html", ".htm")
_SUFFIXES = frozenset({".onnx", ".pt", ".pth", ".pt2", ".safetensors", ".bin", ".ckpt", ".tar"})


@dataclass(frozen=True)
class Outputs:
    """What a conversion writes."""

    model: Path
    source: Path | None

    @property
    def names(self) -> list[str]:
        return [str(p) for p in (self.model, self.source) if p is not None]


def default_output(model: str | None, arch: str | None, label: str, suffix: str = ".pt2") -> Path:
    """`dir/resnet50.pt` -> `dir/resnet50-fused.pt2`; without a file, the architecture's name in the current folder.

    Raises InputError when there is nothing to name it after.
    """
    if model is not None:
        path = Path(model)
        stem = path.name
        if stem in ("", ".."):
            raise InputError(f"{model} is a folder; give a checkpoint")
        stem = stem.removesuffix(".index.json")
        while Path(stem).suffix in _SUFFIXES and Path(stem).stem:
            stem = Path(stem).stem
        return path.with_name(f"{stem}-{label}{suffix}")
    if arch is None:
        raise InputError("there is nothing to convert; give a checkpoint, or an architecture with --arch")
    name = arch.replace(":", "/").rpartition("/")[2]
    return Path(f"{name or 'model'}-{label}{suffix}")


def plan_outputs(
    model: str | None, arch: str | None, output: Path | None, source: Path | None, label: str, *, force: bool
) -> Outputs:
    """The outputs of a conversion, checked before the work. Raises InputError or MachineError."""
    refuse_missing(model)
    path = output if output is not None else default_output(model, arch, label)
    if path.suffix != ".pt2":
        raise InputError(f"the output {path} is a .pt2 archive; name it {path.stem or 'model'}.pt2")
    _check_output(path, model, force=force)
    if source is not None:
        check_folder(source, force=force)
    return Outputs(path, source)


def export_label(to: str, precision: str) -> str:
    """What the name of an exported file ends with: `fused`, `fused-int8`."""
    return to if precision == "fp32" else f"{to}-{precision}"


def plan_export(
    model: str | None, arch: str | None, output: Path | None, label: str, suffix: str, *, force: bool
) -> Path:
    """The file that an export writes, checked with its manifest before the work. Raises InputError or MachineError."""
    refuse_missing(model)
    path = output if output is not None else default_output(model, arch, label, suffix)
    if not path.name.endswith(suffix) or path.name == suffix:
        raise InputError(f"the output {path} is a {suffix} file; name it {path.stem or 'model'}{suffix}")
    _check_output(path, model, force=force)
    check_file(manifest_path(path), force=force)
    return path


def plan_checkpoint(
    model: str | None, arch: str | None, output: Path | None, label: str, read: Iterable[Path | None], *, force: bool
) -> Path:
    """The checkpoint that a verb writes, checked before the work: a state dict as .pt or .safetensors, like the input.

    read: other files that are read, and not to be overwritten. Raises InputError or MachineError.
    """
    refuse_missing(model)
    suffix = checkpoint_suffix(model)
    path = output if output is not None else default_output(model, arch, label, suffix)
    if path.suffix not in CHECKPOINTS:
        raise InputError(f"the output {path} is a checkpoint; name it {path.stem or 'model'}{suffix}")
    for name in (model, *read):
        _check_output(path, None if name is None else str(name), force=force)
    return path


def checkpoint_suffix(model: str | None) -> str:
    """The suffix of a checkpoint that is named after the file `model`."""
    return ".safetensors" if model is not None and model.endswith(".safetensors") else ".pt"


def _check_output(path: Path, model: str | None, *, force: bool) -> None:
    check_file(path, force=force)
    if model is not None and _same(path, Path(model)):
        raise InputError(f"{path} is the input; name another output with -o")


def check_report(target: str | None, others: Iterable[Path | None], *, force: bool) -> None:
    """`--json FILE` is checked like every output, and must not be one of the files that are read or written."""
    if target is None or target == STANDARD_OUTPUT or _is_device(Path(target)):
        return
    path = Path(target)
    check_file(path, force=force)
    if clash := next((o for o in others if o is not None and _same(path, o)), None):
        raise InputError(f"--json {path} would overwrite {clash}; name another file")


def check_apart(path: Path, others: Iterable[Path | None], *, force: bool) -> None:
    """Raises unless `path` can be written as a file (see `check_file`) and is none of the files that are read."""
    check_file(path, force=force)
    if clash := next((o for o in others if o is not None and _same(path, o)), None):
        raise InputError(f"{path} would overwrite {clash}; name another file")


def check_page(page: Path | None, report: str | None, others: Iterable[Path | None], *, force: bool) -> None:
    """`--html FILE` is checked like `--json FILE`, and is not the same file."""
    if page is None:
        return
    if page.suffix.lower() not in PAGES:
        raise InputError(f"--html {page} is a web page; name it {page.stem or 'report'}.html")
    check_file(page, force=force)
    written = Path(report) if report is not None and report != STANDARD_OUTPUT else None
    if clash := next((o for o in (written, *others) if o is not None and _same(page, o)), None):
        raise InputError(f"--html {page} would overwrite {clash}; name another file")


def check_file(path: Path, *, force: bool) -> None:
    """Raises unless `path` can be written as a new file, or overwritten with `force`."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file to write")
    refuse_existing(path, force=force)
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not an ordinary file; name another output")
    _check_parent(path)


def check_folder(path: Path, *, force: bool) -> None:
    """Raises unless the source's files can be written into `path`, which is made when it is missing."""
    check_writable_folder(path, "--source")
    for name in SOURCE_FILES:
        refuse_existing(path / name, force=force)


def check_writable_folder(path: Path, option: str) -> None:
    """Raises unless files can be written into the folder, which is made when it is missing. option: that names it."""
    if os.path.lexists(path) and not path.is_dir():
        raise InputError(f"{path} is a file; {option} names a folder")
    nearest = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not nearest.is_dir():
        raise InputError(f"cannot make the folder {path}: {nearest} is not a folder")
    _check_permission(nearest)


def _check_parent(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        kind = "is not a folder" if os.path.lexists(folder) else "does not exist; create it first"
        raise InputError(f"cannot write {path}: {folder} {kind}")
    _check_permission(folder)


def _check_permission(folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MachineError(f"no permission to write in {folder.resolve()}; name an output elsewhere")
    try:  # /proc and the like permit what they cannot do
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MachineError(f"cannot write in {folder.resolve()} ({reason}); name an output elsewhere") from error


def _same(a: Path, b: Path) -> bool:
    with contextlib.suppress(OSError):
        if a.exists() and b.exists():
            return a.samefile(b)
    return os.path.abspath(a) == os.path.abspath(b)


def _is_device(path: Path) -> bool:
    """/dev/null, a pipe and the like, which are written in place."""
    return path.exists() and not path.is_file() and not path.is_dir()


# ---- JSON --------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """Indented JSON. What is not finite becomes null, since JSON has no word for it."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def delivering(session: Session, target: str | None) -> Iterator[Callable[[Any], None]]:
    """Outputs of one run, which appear together at the end of the block; yields what takes the report for `--json`.

    A report for standard output or a device comes last, when the outputs are there; nothing takes one without `--json`.
    """
    late: list[str] = []
    into_file = target is not None and target != STANDARD_OUTPUT and not _is_device(Path(target))

    def deliver(value: Any) -> None:
        if into_file:
            content = f"{to_json(value)}\n".encode()
            # `check_report` asked about overwriting before the work
            write_atomically(Path(str(target)), lambda file: file.write(content), force=True)
        elif target is not None:
            late.append(to_json(value))

    with _written(session):
        yield deliver
        if session.recipe is not None:
            session.recipe()
    for text in late:
        _print_report(session, text, str(target))


@contextlib.contextmanager
def _written(session: Session) -> Iterator[None]:
    """`together`, and the session knows what was written."""
    outputs = None
    try:
        with together() as outputs:
            yield
    finally:
        session.written.extend(outputs.written if outputs is not None else ())


def _print_report(session: Session, text: str, target: str) -> None:
    if target == STANDARD_OUTPUT:
        session.print(text)
        return
    try:
        Path(target).write_bytes(f"{text}\n".encode())
    except OSError as error:
        raise MachineError(f"cannot write the report {target}: {error.strerror}") from error


def deliver_json(session: Session, value: Any, target: str | None) -> None:
    """Writes the report where `--json` says; nothing when it was not given. Raises MachineError."""
    with delivering(session, target) as deliver:
        deliver(value)
