"""What a format of exported networks is: it builds a file of a program, loads it, runs it, and knows what it needs.

A format is one file in `reparam.formats` that defines a `Format` under the name FORMAT; nothing else has to know it.
Importing this module, or a format, imports neither torch nor any engine, so that `doctor` works without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from reparam.errors import InputError, MachineError
from reparam.utils import check_package

if TYPE_CHECKING:
    from torch import Tensor

    from reparam.ir import Program

    from .listing import ListedCall

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Port:
    """One input or output. shape: a name stands for a free size. dtype: as torch calls it ("float32")."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    def sizes(self, batch: int, default: Mapping[str, int] | None = None) -> tuple[int, ...] | None:
        """The concrete shape with a free first size of `batch`; None when another free size is not in `default`."""
        known = dict(default or {})
        if self.shape and isinstance(self.shape[0], str):
            known.setdefault(self.shape[0], batch)
        sizes = [s if isinstance(s, int) else known.get(s) for s in self.shape]
        return None if None in sizes else tuple(s for s in sizes if s is not None)


class Runnable(ABC):
    """A loaded engine.

    inputs, outputs: what it takes and gives, in order. by: what runs it, in one word. runtime: the same with its
    version and the device.
    precision: the coarsest dtype that it holds weights in, as torch calls it ("int8" when it is quantised).
    copied: whether a copy of the file runs here, since the runtime has no kernels for what the file holds.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    by: ClassVar[str] = "engine"
    copied: bool = False
    runtime: str
    precision: str

    @property
    def kind(self) -> str:
        """The kind of the device that it computes on: cpu or cuda."""
        return "cpu"

    @abstractmethod
    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The outputs on `values`, one CPU tensor for each input in order, of its dtype and shape.

        Raises InputError when the engine does not take them.
        """

    def prepared(self, values: Sequence[Tensor]) -> Callable[[], object]:
        """A call that runs on `values`, brought to the device once; on a GPU it returns when its work is enqueued."""
        return lambda: self.run(values)

    def takes(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether it was built for inputs of these shapes, one for each; some engines take a range of sizes only."""
        return True

    def trace(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Every floating value inside, where the engine can show them; for naming the layer where two models part."""
        return []

    def calls(self) -> list[ListedCall] | None:
        """The calls of its graph for `diff`; None where it does not show them."""
        return None

    def twin(self, eps: float, seed: int) -> Runnable | None:
        """The same engine with weights that are off by a relative rounding of `eps`; None where they are sealed."""
        return None


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    precision: one of PRECISIONS; the program's weights have that dtype already, except for int8, where they are fp32.
    calibration: for int8, what the values inside are measured on: one entry for each batch, a tensor for each input.
    held_out: further samples, which the result is measured on. floats: for int8, nodes of the ONNX form that stay in
    float32.
    settings: the format's own, as texts, out of `Format.settings`.
    """

    precision: str = "fp32"
    calibration: Sequence[Sequence[Tensor]] = ()
    held_out: Sequence[Sequence[Tensor]] = ()
    floats: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Built:
    """What a build gave. side: files that belong to the main one. remarks: what the user should know.

    facts: JSON-ready values for the manifest, such as the versions of what built it or the GPUs that it is for.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    side: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probe:
    """What a format can do here. why: what it cannot, in a sentence ("" when it can do everything).

    versions: of the packages that it found. install: the command that brings what is missing, if anything is.
    untried: what is written but was never run, for want of the hardware ("" when all of it was).
    """

    name: str
    can_build: bool
    can_run: bool
    versions: Mapping[str, str]
    why: str = ""
    install: str | None = None
    untried: str = ""


class Format(ABC):
    """One format of exported networks.

    name: on the command line. suffix: of its files. native: whether loading one runs native code that it holds, so that
    it needs a manifest. precisions: out of PRECISIONS. needs: modules that building and running import. settings: the
    names of its own options with what they mean.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    native: ClassVar[bool]
    precisions: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]
    settings: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether the file is of this format. head: its first 512 bytes."""

    def fitting(self, program: Program) -> Program:
        """The program as the format can express it, which is what is built and what the file is compared with."""
        return program

    @abstractmethod
    def build(self, program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
        """Writes the program to `path`, and side files beside it, in a folder that holds nothing else.

        Raises InputError for what the format cannot express (naming the operator and its layer), MachineError when
        what builds it is missing.
        """

    @abstractmethod
    def load(self, path: Path) -> Runnable:
        """The engine in the file. Raises InputError for a file that is damaged, MachineError when it cannot run here.

        The trust in native code was checked before.
        """

    def side_files(self, path: Path) -> list[Path]:
        """The files that belong to the file and hold weights of it. Raises InputError for a damaged file."""
        return []

    def stamp(self, path: Path, facts: Mapping[str, Any]) -> bool:
        """Writes the manifest's `facts` into the file itself; False where the format has no place for them."""
        return False

    def probe(self) -> Probe:
        """What can be done here: everything when all of `needs` imports."""

        states = [check_package(n) for n in self.needs]
        missing = [s for s in states if not s.works]
        versions = {s.name: s.version for s in states if s.version is not None}
        why = ", ".join(f"{s.name} {s.problem}" for s in missing)
        installs = list(dict.fromkeys(s.install for s in missing if s.install is not None))
        return Probe(self.name, not missing, not missing, versions, why, " && ".join(installs) or None)

    def require(self) -> None:
        """Raises MachineError, with the command that helps, unless everything in `needs` imports."""

        for name in self.needs:
            state = check_package(name)
            if not state.works:
                raise MachineError(f"{self.name} needs {name}, which {state.complaint}; {state.install}")

    def check(self, precision: str, settings: Mapping[str, str]) -> None:
        """Raises InputError for a precision or a setting that the format does not have."""
        if precision not in self.precisions:
            raise InputError(f"{self.name} is not written in {precision}; choose from {', '.join(self.precisions)}")
        for name in settings:
            if name not in self.settings:
                raise InputError(f"--{name} is not an option of {self.name}")
