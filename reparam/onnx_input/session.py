"""Sessions of onnxruntime on the CPU: a model opened, run once, and given up where it does not end."""

from __future__ import annotations

import math
import mmap
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reparam.errors import InputError, MachineError, ReparamError
from reparam.utils import Stamp, first_line, memory_available, memory_told, opened, path_of, stamp_of

from .limits import tensors_in
from .run_sizes import RunSizes

if TYPE_CHECKING:
    import onnx

LONGEST = 8  # seconds for one run of a graph with loops
LARGEST = 1 << 29  # bytes by which the process may grow in such a run
LOOK = 0.01  # seconds between looks at it


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every bfloat16 of the model becomes float32, in place; the values of the weights stay."""
    import onnx

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    for tensor in tensors_in(model):
        if tensor.data_type == narrow:
            value = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == narrow:
            value.type.tensor_type.elem_type = wide
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype", "output_dtype") and attribute.i == narrow:
                attribute.i = wide
    return model


def has_bfloat16(model: onnx.ModelProto) -> bool:
    """Whether an input, an output or a weight is bfloat16."""
    import onnx

    narrow = onnx.TensorProto.BFLOAT16
    ports = (*model.graph.input, *model.graph.output)
    return any(v.type.tensor_type.elem_type == narrow for v in ports) or any(
        t.data_type == narrow for t in tensors_in(model)
    )


def runtime_version() -> str:
    """Of onnxruntime."""
    import onnxruntime

    return str(onnxruntime.__version__)


def open_session(
    path: Path,
    model: onnx.ModelProto | None,
    *,
    fuse: bool = True,
    content: bytes | None = None,
    stamp: Stamp | None = None,
) -> Any:
    """A session on one thread for each of torch's, which then compute the same sums in the same order every time.

    Of the model, where there is one, else of the content of the file, which a large one is mapped for; by its path only
    where weights lie beside it. stamp: of the file as it was looked at; another one is refused.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MachineError("running ONNX needs onnxruntime; pip install 'reparam[onnx]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what is wrong is raised; what is only worth knowing stays away from the terminal
    if not fuse:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if model is not None or content is not None:
            source = model.SerializeToString() if model is not None else content
            return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        if stamp is None:
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        with opened(path) as file:
            before = stamp_of(file)
            session = ort.InferenceSession(path_of(file), options, providers=["CPUExecutionProvider"])
            if not before == stamp == stamp_of(file):
                raise InputError(f"{path} has changed while it was loaded; load it again")
        return session
    except InputError:
        raise
    except Exception as error:
        text = reason_of(error)
        if "NOT_IMPLEMENTED" in str(error):
            raise MachineError(f"onnxruntime on this machine cannot run {path.name}: {text}") from error
        raise InputError(f"onnxruntime does not take {path}: {text}") from error


def reason_of(error: BaseException) -> str:
    """onnxruntime's message without its codes."""
    first = first_line(error)
    return _without_place(first.rpartition(" : ")[2] if first.startswith("[ONNXRuntimeError]") else first)


_PLACE = re.compile(r"(?<![^\s:])/\S+\.(?:cc|cpp|h|hpp|cu|cuh):\d+ ")


def _without_place(text: str) -> str:
    """The message behind a line of onnxruntime's own source and the function that it is in; the text where it has none.

    The function ends with the brackets of its arguments.
    """
    place = _PLACE.search(text)
    if place is None:
        return text
    before, rest, depth = text[: place.start()], text[place.end() :], 0
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if letter == ")" and depth == 0 and rest[i + 1 : i + 2] == " ":
            told = re.sub(r"^(const )?(\[with [^\]]*\] )?", "", rest[i + 2 :]).strip()
            return f"{before}{' ' if before.endswith(':') else ''}{told}" if told else text
    return text


class _Watch(threading.Thread):
    """Gives up a run that takes too long or too much memory. why: what it took.

    loops: whether it has any; without, it has as long as it takes, and all the memory that is left.
    """

    def __init__(self, options: Any, loops: bool) -> None:
        super().__init__(daemon=True)
        self.options, self.over, self.why = options, threading.Event(), ""
        self.longest = LONGEST if loops else math.inf
        self.largest = LARGEST if loops else (memory_available() or LARGEST)

    def run(self) -> None:
        """Looks at the clock and at the memory until the run is over."""
        start, before = time.monotonic(), _resident()
        while not self.over.wait(LOOK):
            if time.monotonic() - start > self.longest:
                self.why = f"does not end within {LONGEST} seconds"
            elif _resident() - before > self.largest:
                self.why = f"takes more than {self.largest >> 20} MB"
            if self.why:
                self.options.terminate = True
                return


def _resident() -> int:
    """The bytes of memory that this process has; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        return 0
    return pages * mmap.PAGESIZE


def run_session(
    session: Any, values: Mapping[str, Tensor], name: str, *, limited: bool = False, sizes: RunSizes | None = None
) -> list[Tensor]:
    """The outputs on one tensor for each input.

    limited: whether a loop that takes too much is given up. sizes: of the values of the graph, where they are to be
    looked at before it runs. Raises InputError for inputs that it does not run on, or whose values do not fit into the
    memory.
    """
    import onnxruntime as ort

    feed = {key: v.detach().cpu().contiguous().numpy() for key, v in values.items()}
    options = ort.RunOptions()
    options.log_severity_level = 4
    large = sizes is not None and sizes.check(values, name)
    watch = _Watch(options, limited) if limited or large else None
    try:
        if watch is not None:
            watch.start()
        with memory_told(f"running {name}"):
            found = session.run(None, feed, options)
    except ReparamError:
        raise
    except Exception as error:
        if watch is not None and watch.why:
            raise InputError(
                f"{name} {'has a loop that' if limited else 'is not run on, as it'} {watch.why}"
            ) from error
        raise InputError(f"{name} does not run on these inputs: {reason_of(error)}") from error
    finally:
        if watch is not None:
            watch.over.set()
    return [torch.from_numpy(np.asarray(v, order="C")) for v in found if isinstance(v, np.ndarray)]
