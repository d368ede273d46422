"""Static quantisation to int8 by onnxruntime: Q/DQ pairs in the graph, symmetric, one scale for each output channel.

Scales of what is computed come from running the network on calibration data (the largest magnitude of each value).
Biases stay in float32, since TensorRT takes no quantised bias. Zero points are all zero, for the same reason.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from reparam.errors import InputError, MachineError
from reparam.onnx_input import reason_of

from .cleanup import strip
from .fourier import products
from .values import untyped

if TYPE_CHECKING:
    import onnx
    from torch import Tensor


def quantised(
    model: onnx.ModelProto,
    calibration: Sequence[Sequence[Tensor]],
    *,
    per_channel: bool = True,
    floats: Sequence[str] = (),
) -> onnx.ModelProto:
    """The int8 form of a float32 model.

    calibration: one entry for each batch, a tensor for each input of the model. per_channel: whether each output
    channel has a scale of its own, or each layer one. floats: nodes that stay in float32, as Fourier transforms do.
    Raises InputError without any data, and for data on which the model does not run.
    """
    if not calibration:
        raise InputError("int8 needs calibration data; give some with --calibrate")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no types
        def __init__(self) -> None:
            self.rows = _rows(model, calibration)

        def get_next(self) -> Any:
            return next(self.rows, None)

    add_pre_process_metadata(model)  # it is simplified, with its shapes; without this mark that is asked for
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantised.onnx"
        try:
            quantize_static(
                model,
                str(target),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                nodes_to_exclude=sorted({*floats, *products(n.name for n in model.graph.node)}),
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
        except OSError as error:
            raise MachineError(f"the network cannot be quantised: {reason_of(error)}") from error
        except Exception as error:
            raise InputError(
                f"the network cannot be quantised with this calibration data: {reason_of(error)}"
            ) from error
        result = ir.load(target)
    strip(result)
    return ir.to_proto(untyped(result))


def _rows(model: onnx.ModelProto, calibration: Sequence[Sequence[Tensor]]) -> Iterator[dict[str, Any]]:
    names = [v.name for v in model.graph.input]
    for feed in calibration:
        yield {n: v.numpy() for n, v in zip(names, feed, strict=True)}
