"""The file itself as the judge of what was read from it: onnxruntime runs it as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .limits import has_loops, tensors_in
from .reading import StoredModel
from .session import has_bfloat16, open_session, run_session, runtime_version, widen

if TYPE_CHECKING:
    import onnx

LARGEST = 1_500_000_000  # bytes of weights that lie beside the file and are handed over; above, they are opened there


class Original:
    """An ONNX file that runs. It is opened when it is first run."""

    def __init__(self, path: Path, stored: StoredModel) -> None:
        self.path, self.stamp = path, stored.stamp
        self._stored: StoredModel | None = stored
        self._session: Any = None
        inputs = stored.model.graph.input
        self._unknown = {v.name for v in inputs if not v.type.tensor_type.HasField("shape")}  # which take any shape

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return self  # a file is one, however often its network is copied

    @property
    def runtime(self) -> str:
        """`onnxruntime 1.20.1 (CPU)`."""
        return f"onnxruntime {runtime_version()} (CPU)"

    def run(self, values: Sequence[Tensor]) -> list[Tensor] | None:
        """The file's outputs on one tensor for each input; None for sizes that it does not take.

        What is bfloat16 in the file is computed in float32. Raises InputError where onnxruntime does not take the
        file, MachineError where it is missing or has no kernel for an operator.
        """
        session = self._opened()
        ports = session.get_inputs()
        if not all(p.name in self._unknown or _takes(p.shape, v.shape) for p, v in zip(ports, values, strict=True)):
            return None
        feed = {p.name: v.float() if v.dtype == torch.bfloat16 else v for p, v in zip(ports, values, strict=True)}
        return run_session(session, feed, self.path.name, limited=self._limited)

    def _opened(self) -> Any:
        if self._session is None:
            assert self._stored is not None
            proto, beside = self._stored.model, self._stored.beside
            self._limited = has_loops(proto)
            whole: onnx.ModelProto | None = None
            if has_bfloat16(proto):
                whole = widen(_copy(proto))
            elif beside and sum(len(t.raw_data) for t in tensors_in(proto)) < LARGEST:
                whole = proto
            content = None if beside else self._stored.content
            self._session = open_session(self.path, whole, content=content)
            self._stored = None  # the session has its own copy
        return self._session


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    twin = type(proto)()
    twin.CopyFrom(proto)
    return twin


def _takes(wanted: Sequence[Any], sizes: Sequence[int]) -> bool:
    return len(wanted) == len(sizes) and all(
        not isinstance(w, int) or w == s for w, s in zip(wanted, sizes, strict=True)
    )
