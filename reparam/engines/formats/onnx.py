"""ONNX: plain standard operators of opset 20 (22 for bfloat16), run here by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reparam.engines.format import BuildOptions, Built, Format, Runnable, Tell

if TYPE_CHECKING:
    from reparam.ir import Program


class Onnx(Format):
    """The file holds no code: its weights and operators are all there is."""

    name = "onnx"
    suffix = ".onnx"
    native = False
    precisions = ("fp32", "fp16", "bf16", "int8")
    needs = ("onnx", "onnxscript", "onnxsim", "onnxruntime")

    def recognises(self, path: Path, head: bytes) -> bool:
        """See `Format.recognises`."""
        from reparam.onnx_input import is_onnx

        return is_onnx(path, head)

    def fitting(self, program: Program) -> Program:
        """Without bfloat16 in parts of it: no runtime takes a convolution in that dtype at opset 20."""
        from reparam.engines.precision import without_bfloat16_parts

        return without_bfloat16_parts(program)

    def build(self, program: Program, path: Path, options: BuildOptions, tell: Tell) -> Built:
        """See `Format.build`."""
        self.require()
        from onnx import ModelProto

        from reparam.engines.onnx import build_model, write_model

        model = build_model(program, options, tell)
        opset = model.opset_import[0].version if isinstance(model, ModelProto) else model.opset_imports[""]
        facts = {"opset": int(opset), "ir_version": int(model.ir_version)}
        return Built(facts, write_model(model, path))

    def load(self, path: Path) -> Runnable:
        """See `Format.load`."""
        from reparam.engines.onnx import OnnxRunnable

        return OnnxRunnable(path)

    def side_files(self, path: Path) -> list[Path]:
        """See `Format.side_files`."""
        from reparam.onnx_input import external_files

        return external_files(path)

    def stamp(self, path: Path, facts: Mapping[str, Any]) -> bool:
        """The facts as metadata of the model, each under a key of its own."""
        from reparam.engines.onnx import stamp_model

        stamp_model(path, facts)
        return True


FORMAT = Onnx()
