"""OpenVINO: converted from the ONNX model, run on the CPU. A model is two files, `net.xml` and `net.bin`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.engines.format import BuildOptions, Built, Format, Runnable, Tell

if TYPE_CHECKING:
    from reparam.ir import Program


class OpenVino(Format):
    """The files hold no code: the graph is XML, the weights are numbers."""

    name = "openvino"
    suffix = ".xml"
    native = False
    precisions = ("fp32", "fp16", "bf16", "int8")
    needs = ("onnx", "onnxscript", "onnxsim", "onnxruntime", "openvino")

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `Format.recognises`."""
        return head.startswith(b"<?xml") and b"<net " in head

    def build(self, program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
        """See `Format.build`."""
        from reparam.engines.openvino import build_openvino

        self.require()
        return build_openvino(program, path, options, tell)

    def load(self, path: Path) -> Runnable:
        """See `Format.load`."""
        from reparam.engines.openvino import OpenVinoRunnable

        return OpenVinoRunnable(path)

    def side_files(self, path: Path) -> list[Path]:
        """See `Format.side_files`."""
        return [path.with_suffix(".bin")]

    def stamp(self, path: Path, facts: Mapping[str, Any]) -> bool:
        """The facts as runtime information of the model, each under a key of its own."""
        from reparam.engines.openvino import stamp_openvino

        stamp_openvino(path, facts)
        return True


FORMAT = OpenVino()
