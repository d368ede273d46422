"""What messages call a model."""

from __future__ import annotations

from torch import nn

from reparam.onnx_input import Layer


def name_of(module: object) -> str:
    """The name of its class; of the module of an ONNX file, which has none that the user knows, `the ONNX file`."""
    parts = module.modules() if isinstance(module, nn.Module) and "_modules" in module.__dict__ else ()
    return "the ONNX file" if any(isinstance(part, Layer) for part in parts) else type(module).__name__
