"""Runs TensorRT engines on the GPU, with torch's tensors as buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reparam.engines.format import Port, Runnable
from reparam.engines.manifest import read_manifest
from reparam.engines.ports import named_axes
from reparam.engines.precision import DTYPES
from reparam.errors import InputError, MachineError
from reparam.utils import dtype_name, gpus

from .bindings import MODULES, NAME, TITLES, choose_module, import_module, reason, start_log

_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_DAMAGED = ("Serialization", "magic", "plan.header")


def open_engine(path: Path) -> TensorRtRunnable:
    """The engine in a file, by the module that its manifest names, else by what is here.

    Raises MachineError without a GPU that torch can use, or when the engine is not for it, InputError for damage.
    """
    if why := no_gpu():
        raise MachineError(f"{path.name} cannot run on this machine: {why}")
    named = str(((read_manifest(path) or {}).get("build") or {}).get("runtime"))
    runtime = next((r for r, module in MODULES.items() if module == named), None)
    module = choose_module(runtime)
    return TensorRtRunnable(path, import_module(module), torch.device("cuda"))


def no_gpu() -> str:
    """Why no engine runs here; "" when torch has a GPU."""
    if torch.cuda.is_available():
        return ""
    found = gpus()
    if not found:
        return "the driver shows no NVIDIA GPU"
    return f"torch {torch.__version__} cannot use the {found[0].name}; install a torch with CUDA"


class TensorRtRunnable(Runnable):
    """An engine and its context on one device. trt: the module."""

    by = "tensorrt"

    def __init__(self, path: Path, trt: Any, device: torch.device) -> None:
        self.path, self.device = path, device
        title = TITLES[trt.__name__]
        log = start_log(trt.__name__)
        self._runtime = trt.Runtime(log)  # it can fail and still give an object, so its log is read too
        if self._runtime is None or log.errors:
            raise MachineError(f"{title} does not start: {reason(log.errors)}")
        self.engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            told = reason(log.errors)
            if any(word in e for e in log.errors for word in _DAMAGED):
                raise InputError(f"{path} is damaged or no engine of {title} {trt.__version__}: {told}")
            raise MachineError(f"{title} cannot load {path.name} on this machine: {told}")
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise MachineError(f"{title} cannot run {path.name} on this machine: {reason(log.errors)}")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        enters = [self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names]
        self.inputs = tuple(self._port(n) for n, e in zip(names, enters, strict=True) if e)
        self.outputs = tuple(self._port(n) for n, e in zip(names, enters, strict=True) if not e)
        self._log = log
        self.runtime = f"{title} {trt.__version__} ({_name(device)})"
        self.precision = precision_of(str(self.engine.name))

    def _port(self, name: str) -> Port:
        kind = self.engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise InputError(f"'{name}' of {self.path.name} is of the type {kind}, which torch has no tensors of")
        return Port(name, named_axes(self.engine.get_tensor_shape(name)), _TYPES[kind])

    def takes(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether inputs of these shapes lie in the engine's ranges."""
        return all(self._fits(p, s) for p, s in zip(self.inputs, shapes, strict=True))

    def _fits(self, port: Port, shape: tuple[int, ...]) -> bool:
        if not any(isinstance(s, str) for s in port.shape):
            return shape == port.shape
        least, _, most = (tuple(s) for s in self.engine.get_tensor_profile_shape(port.name, 0))
        return len(shape) == len(least) and all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    @property
    def kind(self) -> str:
        """See `Runnable.kind`."""
        return self.device.type

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        """See `Runnable.run`."""
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            buffers = self._bind(values)
            self._enqueue(stream)
            stream.synchronize()
        return [r.cpu() for r in buffers[len(self.inputs) :]]

    def prepared(self, values: Sequence[Tensor]) -> Callable[[], object]:
        """See `Runnable.prepared`."""
        buffers = self._bind(values)

        def call() -> object:
            self._enqueue(torch.cuda.current_stream(self.device))
            return buffers

        return call

    def _bind(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Tensors on the device for the inputs, with their values, and for the outputs; the context knows them then."""
        buffers = [
            v.to(self.device, getattr(torch, p.dtype)).contiguous() for p, v in zip(self.inputs, values, strict=True)
        ]
        for port, buffer in zip(self.inputs, buffers, strict=True):
            shape = tuple(buffer.shape)
            if not self._fits(port, shape) or not self.context.set_input_shape(port.name, shape):
                raise InputError(f"{self.path.name} does not take {shape} as '{port.name}': {self._range(port)}")
            self.context.set_tensor_address(port.name, buffer.data_ptr())
        return [*buffers, *(self._result(p) for p in self.outputs)]

    def _enqueue(self, stream: Any) -> None:
        self._log.errors.clear()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise MachineError(f"{self.path.name} does not run: {reason(self._log.errors)}")

    def _result(self, port: Port) -> Tensor:
        shape = tuple(self.context.get_tensor_shape(port.name))
        if any(s < 0 for s in shape):
            raise InputError(f"the size of '{port.name}' depends on the values of the inputs, which is not run here")
        buffer = torch.empty(shape, dtype=getattr(torch, port.dtype), device=self.device)
        self.context.set_tensor_address(port.name, buffer.data_ptr())
        return buffer

    def _range(self, port: Port) -> str:
        if not any(isinstance(s, str) for s in port.shape):
            return f"it takes {port.shape}"
        least, _, most = (tuple(s) for s in self.engine.get_tensor_profile_shape(port.name, 0))
        return f"it takes from {least} to {most}"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def precision_of(name: str) -> str:
    """The dtype of the weights, as torch calls it, from the name that the network was built under."""
    kind = name.removeprefix(f"{NAME} ")
    return "int8" if kind == "int8" else dtype_name(DTYPES.get(kind, torch.float32))
