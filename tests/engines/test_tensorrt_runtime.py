"""Running an engine: what is asked of TensorRT, against a stand-in that computes on the CPU.

It holds the backend to the order of the calls and to the addresses that it hands over; it proves nothing of TensorRT.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reparam.compare import verify
from reparam.conversion import convert
from reparam.engines import Runnable, check_engine
from reparam.engines.ports import ports_of
from reparam.engines.tensorrt import runtime as tensorrt_run
from reparam.engines.tensorrt.runtime import TensorRtRunnable, precision_of
from reparam.errors import InputError, MachineError
from reparam.ir import Program, evaluate
from reparam.loading import LoadedModel
from support.engine_nets import SHAPE, small

IN, OUT = (-1, 3), (-1, 2)


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


class Context:
    """Adds up the first two columns and the last one, in float32, through the addresses that it was given."""

    def __init__(self, works: bool) -> None:
        self.shape: tuple[int, ...] = IN
        self.addresses: dict[str, int] = {}
        self.works = works

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert name == "y"
        return self.shape[0], 2

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        given = self._tensor("x", self.shape)
        self._tensor("y", (self.shape[0], 2)).copy_(torch.stack([given[:, 0] + given[:, 1], given[:, 2]], 1))
        return self.works

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(shape)
        memory = (ctypes.c_float * count).from_address(self.addresses[name])
        return torch.frombuffer(memory, dtype=torch.float32, count=count).view(shape)


class Engine:
    """One input of one to four rows, one output."""

    num_io_tensors = 2
    name = "reparam bf16"

    def __init__(self, works: bool = True) -> None:
        self.works = works

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return IN if name == "x" else OUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("x", 0)
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self) -> Context:
        return Context(self.works)


def module(engine: Any, log: Any, *messages: str) -> Any:
    """A stand-in for the module, whose runtime gives `engine` and logs `messages` with it."""

    def deserialize(content: bytes) -> Any:
        assert content == b"ftrt"
        log.errors.extend(messages)
        return engine

    runtime = SimpleNamespace(deserialize_cuda_engine=deserialize)
    return SimpleNamespace(
        __name__="tensorrt",
        __version__="11.4",
        TensorIOMode=Mode,
        Runtime=lambda logger: runtime if engine != 0 else None,
    )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = SimpleNamespace(errors=[], warnings=[])
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)
    monkeypatch.setattr(tensorrt_run, "start_log", lambda name: made)
    monkeypatch.setattr(tensorrt_run.torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(tensorrt_run.torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(tensorrt_run.torch.cuda, "get_device_name", lambda device: "a stand-in")
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "net.engine"
    made.write_bytes(b"ftrt")
    return made


CPU = torch.device("cpu")


def test_an_engine_runs_on_the_addresses_of_tensors(path: Path, log: Any) -> None:
    engine = TensorRtRunnable(path, module(Engine(), log), CPU)
    assert [(p.name, p.shape, p.dtype) for p in engine.inputs] == [("x", ("batch", 3), "float32")]
    assert [(p.name, p.shape) for p in engine.outputs] == [("y", ("batch", 2))]
    assert (engine.precision, engine.runtime) == ("bfloat16", "TensorRT 11.4 (a stand-in)")
    for rows in (4, 1):
        x = torch.rand(3, rows).t()  # not contiguous
        (y,) = engine.run([x])
        assert torch.equal(y, torch.stack([x[:, 0] + x[:, 1], x[:, 2]], 1))


def test_a_prepared_run_binds_its_buffers_once(path: Path, log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TensorRtRunnable(path, module(Engine(), log), torch.device("cpu"))
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(tensorrt_run.torch.cuda, "current_stream", lambda device: stream)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    call = engine.prepared([x])
    addresses = dict(engine.context.addresses)
    for _ in range(2):
        *_, result = call()
    assert engine.context.addresses == addresses
    assert result.tolist() == [[3.0, 3.0]]


def test_sizes_outside_of_the_profile_are_refused(path: Path, log: Any) -> None:
    engine = TensorRtRunnable(path, module(Engine(), log), CPU)
    assert engine.takes([(4, 3)])
    assert not engine.takes([(5, 3)])
    assert not engine.takes([(4, 3, 1)])
    with pytest.raises(InputError, match=r"does not take \(5, 3\) as 'x': it takes from \(1, 3\) to \(4, 3\)"):
        engine.run([torch.rand(5, 3)])


def test_a_failure_while_it_runs_has_its_reason(path: Path, log: Any) -> None:
    engine = TensorRtRunnable(path, module(Engine(works=False), log), CPU)
    with pytest.raises(MachineError, match=r"net\.engine does not run: it gives no reason"):
        engine.run([torch.rand(2, 3)])


def test_engines_that_do_not_load(path: Path, log: Any) -> None:
    with pytest.raises(InputError, match=r"is damaged or no engine of TensorRT 11\.4: magic tag does not match"):
        TensorRtRunnable(path, module(None, log, "Error Code 1: Serialization (magic tag does not match.)"), CPU)
    log.errors.clear()
    with pytest.raises(MachineError, match=r"TensorRT cannot load net\.engine on this machine: needs sm120"):
        TensorRtRunnable(path, module(None, log, "needs sm120"), CPU)
    log.errors.clear()
    with pytest.raises(MachineError, match="TensorRT does not start: it gives no reason"):
        TensorRtRunnable(path, module(0, log), CPU)
    log.errors.append("no driver")  # an object all the same
    with pytest.raises(MachineError, match="TensorRT does not start: no driver"):
        TensorRtRunnable(path, module(Engine(), log), CPU)


def test_the_precision_is_in_the_networks_name() -> None:
    names = ("reparam fp32", "reparam fp16", "reparam int8", "Unnamed Network 0")
    assert [precision_of(n) for n in names] == ["float32", "float16", "int8", "float32"]


# ---- ranges ------------------------------------------------------------------------------------------------------


class Narrow(Runnable):
    """The program itself, which takes batches from `least` to `most`."""

    runtime, precision = "torch", "float32"

    def __init__(self, program: Program, most: int, least: int = 1) -> None:
        self.program, self.least, self.most = program, least, most
        self.inputs, self.outputs = ports_of(program)

    def takes(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        return self.least <= shapes[0][0] <= self.most

    def run(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        assert self.takes([tuple(v.shape) for v in values])
        return list(evaluate(self.program, values, None))


def test_an_engine_is_checked_on_the_sizes_that_it_takes() -> None:
    program = convert(small(), torch.rand(SHAPE), to="fused").program
    check = check_engine(program, program, Narrow(program, 2))
    assert check.shapes == ((1, 3, 16, 16), (2, 3, 16, 16))
    with pytest.raises(InputError, match="takes none of the sizes that it would be checked on; widen its ranges"):
        check_engine(program, program, Narrow(program, 0))


def test_models_are_compared_on_the_batches_that_both_take() -> None:
    model = small()
    program = convert(model, torch.rand(SHAPE), to="fused").program
    loaded = LoadedModel(model, input_shapes=(SHAPE[1:],))
    verdict = verify(loaded, Narrow(program, 4, least=2))
    assert verdict.equivalent
    assert [s[0] for s in verdict.shapes] == [2, 4, 4]
    both = verify(Narrow(program, 8, least=3), Narrow(program, 4))
    assert [s[0] for s in both.shapes] == [3, 4, 4]
    with pytest.raises(InputError, match="takes none of the batches from 1 to 64"):
        verify(loaded, Narrow(program, 0))
