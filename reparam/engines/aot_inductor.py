"""AOTInductor packages: the program compiled by torch into a library, for this machine's CPU or for its GPU.

A package runs on torch alone. It is compiled for the very processor of this machine, and says so in its metadata,
which torch itself does not look at when it loads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.emit import export_program
from reparam.errors import InputError, MachineError
from reparam.ir import CPU, Program, batch_one
from reparam.utils import dtype_name, first_line, memory_told

from .format import BuildOptions, Built, Port, Runnable, Tell
from .ports import ports_of
from .precision import DTYPES

KEY = "reparam"  # of the ports and the precision in a package's metadata
DEVICES = ("cpu", "cuda")
LARGE_BATCH = 16
# What torch calls the extensions that it compiles for -> whether this CPU has them.
_EXTENSIONS = {
    "AVX2": "_is_avx2_supported",
    "AVX512": "_is_avx512_supported",
    "AVX512_VNNI": "_is_vnni_supported",
    "AMX_TILE": "_is_amx_tile_supported",
}


def is_package(path: Path, head: bytes) -> bool:
    """Whether a file is a zip archive with a compiled library of AOTInductor in it."""
    if not head.startswith(b"PK"):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/data/aotinductor/" in n for n in archive.namelist())
    except Exception:  # what is wrong with an archive is for its reader to say
        return False


def compiler() -> str | None:
    """The C++ compiler that torch would call, None when there is none."""
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return shutil.which(wanted)


def _check_compiler() -> None:
    """Raises MachineError without a C++ compiler, and for one whose libraries torch cannot load.

    A library that holds the C++ library itself, instead of asking for the one that torch has loaded, ends the process.
    """
    found = compiler()
    if found is None:
        raise MachineError("AOTInductor needs a C++ compiler; install g++, or name one in the variable CXX")
    if not sys.platform.startswith("linux"):
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "probe.cpp", Path(folder) / "probe.so"
        source.write_text("#include <string>\nstd::string probe(int n) { return std::to_string(n) + 'n'; }\n")
        words = [found, "-shared", "-fPIC", str(source), "-o", str(library)]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
            raise MachineError(f"the C++ compiler {found} does not build a library: {said[:200]}")
        content = library.read_bytes()
    if b"libstdc++.so" not in content and b"libc++.so" not in content:
        raise MachineError(
            f"the C++ compiler {found} links the C++ library statically, and torch crashes with what it builds; name "
            "another one in the variable CXX"
        )


def choose_device(wanted: str | None) -> str:
    """`cuda` where torch has a GPU, else `cpu`, unless one is named.

    Raises InputError for an unknown one, MachineError for a GPU that is not there.
    """
    if wanted is not None and wanted not in DEVICES:
        raise InputError(f"'{wanted}' is not a device of AOTInductor; choose from {', '.join(DEVICES)}")
    able = torch.cuda.is_available()
    if wanted == "cuda" and not able:
        raise MachineError(f"there is no GPU that torch {torch.__version__} can use; leave out --device cuda")
    return wanted or ("cuda" if able else "cpu")


def build_package(program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
    """Compiles the program to `path`.

    Raises InputError for another suffix than .pt2 and for what torch does not compile, MachineError without a compiler.
    """
    device = choose_device(options.settings.get("device"))
    if path.suffix != ".pt2":
        raise InputError(f"torch writes its packages into .pt2 files; name the file {path.stem}.aoti.pt2")
    _check_compiler()
    inputs, outputs = ports_of(program)
    ports = {"inputs": [p.as_dict() for p in inputs], "outputs": [p.as_dict() for p in outputs]}
    facts = json.dumps(ports | {"precision": options.precision}, sort_keys=True)
    tell("compile", 0, 1)
    with warnings.catch_warnings(), _exact():
        warnings.simplefilter("ignore")
        exported = export_program(program, _large_batch(program))
        if device != CPU.type:
            from torch.export.passes import move_to_device_pass

            exported = move_to_device_pass(exported, device)
        try:
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs=_configuration(device, facts)
            )
        except Exception as error:
            raise _explained(error) from error
    tell("compile", 1, 1)
    built_for = {k.removeprefix("AOTI_").lower(): v for k, v in metadata_of(path).items() if k.startswith("AOTI_")}
    return Built({"compiled_for": built_for})


def _large_batch(program: Program) -> dict[str, int]:
    """A free batch of which torch's convolutions do not conclude that it is below sixteen, as they do from a small one.

    They choose a kernel by it; the package would take no larger batch. That sixteen is not the least is not checked.
    """
    traced = program.traced_sizes
    return {s: max(LARGE_BATCH, traced.get(s, 1)) for s in batch_one(program)}


def _checks_inputs() -> bool:
    """Whether this torch can check inputs and yet take a batch of 1, which it excludes from the range of free sizes."""
    import torch._inductor.config

    return hasattr(torch._inductor.config.aot_inductor, "check_lowerbound")


def _configuration(device: str, facts: str) -> dict[str, Any]:
    bounds = {"aot_inductor.check_lowerbound": False} if _checks_inputs() else {}
    # Frozen weights are laid out once for the CPU's kernels of convolutions.
    return {"aot_inductor.metadata": {KEY: facts}, "freezing": device == "cpu", **bounds}


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """Products of float32 stay products of float32 on a GPU, when they are compiled and when they run."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _explained(error: Exception) -> InputError | MachineError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    if "CppCompile" in type(error).__name__ or any("CppCompileError" in line for line in lines):
        told = next((line for line in lines if "error:" in line), first)
        return MachineError(f"the C++ compiler fails on what AOTInductor writes: {told}")
    return InputError(f"AOTInductor does not compile the network: {first}")


def metadata_of(path: Path) -> dict[str, str]:
    """What a package says of itself; nothing of it is loaded or run. Raises InputError for a damaged one."""
    try:
        loader: Any = torch._C._aoti.AOTIModelPackageLoader
        found: dict[str, str] = loader.load_metadata_from_package(str(path), "model")
    except RuntimeError as error:
        raise InputError(f"{path} is damaged ({first_line(error)}); export it again") from error
    return found


def misfit(metadata: Mapping[str, str]) -> str:
    """Why a package with this metadata does not run on this machine; "" when it does."""
    if metadata.get("AOTI_DEVICE_KEY", "cpu") == "cuda":
        if not torch.cuda.is_available():
            return "it is compiled for a GPU, and torch has none here"
        major, minor = torch.cuda.get_device_capability()
        wanted = metadata.get("AOTI_COMPUTE_CAPABILITY", "")
        return (
            "" if wanted in ("", f"{major}{minor}") else f"it is compiled for sm{wanted}, this GPU is sm{major}{minor}"
        )
    machine = metadata.get("AOTI_MACHINE", platform.machine())
    if (metadata.get("AOTI_PLATFORM", sys.platform), machine) != (sys.platform, platform.machine()):
        return f"it is compiled for {metadata.get('AOTI_PLATFORM')} on {machine}"
    for name in metadata.get("AOTI_CPU_ISA", "").split():
        check = getattr(torch.cpu, _EXTENSIONS.get(name, ""), None)
        if check is not None and not check():
            return f"it is compiled for a CPU with {name}, which this one lacks"
    return ""


class AotiRunnable(Runnable):
    """A loaded package."""

    by = "aoti"

    def __init__(self, path: Path) -> None:
        self.path = path
        metadata = metadata_of(path)
        if why := misfit(metadata):
            raise MachineError(f"{path.name} does not run here: {why}")
        try:
            facts = json.loads(metadata[KEY])
            self.inputs = tuple(_port(p) for p in facts["inputs"])
            self.outputs = tuple(_port(p) for p in facts["outputs"])
            self.precision = dtype_name(DTYPES[facts["precision"]])
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path} was not written by reparam: it does not say what it takes") from error
        self.device = torch.device(metadata.get("AOTI_DEVICE_KEY", "cpu"))
        if _checks_inputs():
            os.environ.setdefault("AOTI_RUNTIME_CHECK_INPUTS", "1")  # off by default; torch reads it once
        try:
            self._loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        except RuntimeError as error:
            raise InputError(f"{path} cannot be loaded ({first_line(error)}); export it again") from error
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        self.runtime = f"AOTInductor, torch {torch.__version__} ({where})"

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See `Runnable.run`."""
        sizes: dict[str, int] = {}
        for port, value in zip(self.inputs, values, strict=True):
            if not _fits(port, value, sizes):
                raise InputError(
                    f"{self.path.name} does not take {tuple(value.shape)} as '{port.name}': it takes "
                    f"({', '.join(map(str, port.shape))})"
                )
        feed = self._on_device(values)
        try:
            with torch.no_grad(), _exact(), memory_told(f"running {self.path.name}"):
                found = self._loader.boxed_run(feed)
        except RuntimeError as error:
            first = first_line(error)
            raise InputError(f"{self.path.name} does not run on these inputs: {first}") from error
        return [v.cpu() for v in found]

    @property
    def kind(self) -> str:
        """See `Runnable.kind`."""
        return self.device.type

    def prepared(self, values: Sequence[Tensor]) -> Callable[[], object]:
        """See `Runnable.prepared`."""
        feed = self._on_device(values)

        def call() -> object:
            with torch.no_grad():
                return self._loader.boxed_run(list(feed))  # it empties the list that it gets

        return call

    def _on_device(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [v.detach().to(self.device).contiguous() for v in values]


def _port(row: Mapping[str, Any]) -> Port:
    """Raises TypeError or ValueError for what is no port."""
    shape = tuple(row["shape"])
    if not all(isinstance(s, int | str) for s in shape) or not isinstance(getattr(torch, row["dtype"]), torch.dtype):
        raise ValueError("no shape or no dtype")
    return Port(str(row["name"]), shape, str(row["dtype"]))


def _fits(port: Port, value: Tensor, sizes: dict[str, int]) -> bool:
    """Whether the shape is the port's; free sizes of one name are equal, and remembered in `sizes`."""
    if value.dim() != len(port.shape):
        return False
    pairs = zip(port.shape, value.shape, strict=True)
    return all((sizes.setdefault(s, n) if isinstance(s, str) else s) == n for s, n in pairs)
