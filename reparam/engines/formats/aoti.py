"""AOTInductor: torch compiles the program into a library, for the CPU here, or for the GPU where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from reparam.engines.format import BuildOptions, Built, Format, Probe, Runnable, Tell

if TYPE_CHECKING:
    from reparam.ir import Program


class Aoti(Format):
    """The archive holds a shared library; what tells it from an exported program is its content."""

    name = "aoti"
    suffix = ".aoti.pt2"
    native = True
    precisions = ("fp32", "fp16", "bf16")
    needs = ("torch",)
    settings: ClassVar[Mapping[str, str]] = {"device": "cpu or cuda; the GPU where torch has one"}

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `Format.recognises`."""
        from reparam.engines.aot_inductor import is_package

        return is_package(path, head)

    def check(self, precision: str, settings: Mapping[str, str]) -> None:
        """See `Format.check`; MachineError too, for a GPU that is not here."""
        super().check(precision, settings)
        from reparam.engines.aot_inductor import choose_device

        choose_device(settings.get("device"))

    def build(self, program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
        """See `Format.build`."""
        from reparam.engines.aot_inductor import build_package

        return build_package(program, path, options, tell)

    def load(self, path: Path) -> Runnable:
        """See `Format.load`."""
        from reparam.engines.aot_inductor import AotiRunnable

        return AotiRunnable(path)

    def probe(self) -> Probe:
        """Packages run wherever torch does; compiling them takes a C++ compiler."""
        found = super().probe()
        if not found.can_run:
            return found
        from reparam.engines.aot_inductor import compiler

        if compiler() is None:
            return replace(found, can_build=False, why="no C++ compiler", install="apt-get install g++")
        return found


FORMAT = Aoti()
