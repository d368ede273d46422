"""`bench`: interleaved rounds, medians with their spread, what it refuses; the clock is replaced where it matters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reparam.compare import open_engine
from reparam.engines import Port, Runnable, export
from reparam.engines.format import Probe
from reparam.engines.formats import find_format
from reparam.errors import InputError, MachineError
from reparam.loading import LoadedModel
from reparam.measure import Where, check_runtimes, time_models, timing
from reparam.measure.runtimes import in_runtime, name_of, text_of
from reparam.measure.timing import Call
from support.cli_helpers import TINY, prepare_folder, refuse, succeed
from support.engine_nets import SHAPE, small


class Clock:
    """Time that passes only when an engine runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Slow(Runnable):
    """An engine that takes `seconds` a sample, in the order in which it is asked."""

    runtime, precision = "a fake", "float32"

    def __init__(self, clock: Clock, seconds: Sequence[float], log: list[str], name: str, batch: int | str) -> None:
        self.clock, self.seconds, self.log, self.name, self.count = clock, seconds, log, name, 0
        self.inputs = self.outputs = (Port("x", (batch, 3), "float32"),)

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        self.clock.now += self.seconds[self.count % len(self.seconds)] * values[0].shape[0]
        self.count += 1
        self.log.append(self.name)
        return list(values)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_medians_ratios_and_throughput(clock: Clock) -> None:
    log: list[str] = []
    models = {n: Slow(clock, [s], log, n, "batch") for n, s in (("a", 0.2), ("b", 0.1))}
    found = time_models(models, batches=(1, 4), rounds=4)
    rows = [(r.model, r.batch, round(r.median_ms, 6), round(r.throughput, 6), round(r.speed, 6)) for r in found.rows]
    assert rows == [("a", 1, 200, 5, 1), ("b", 1, 100, 10, 2), ("a", 4, 800, 5, 1), ("b", 4, 400, 10, 2)]
    assert found.shapes == ((3,),)


def test_rounds_are_interleaved_and_their_order_turns(clock: Clock) -> None:
    log: list[str] = []
    models = {n: Slow(clock, [0.2], log, n, "batch") for n in "abc"}
    time_models(models, rounds=3)
    assert log[-9:] == list("abcbcacab")


def test_fast_models_run_many_times_a_round(clock: Clock) -> None:
    log: list[str] = []
    time_models({"a": Slow(clock, [0.001], log, "a", "batch"), "b": Slow(clock, [0.2], log, "b", "batch")}, rounds=3)
    assert (log[-153:].count("a"), log[-153:].count("b")) == (150, 3)


def test_the_spread_is_that_of_the_middle_half(clock: Clock) -> None:
    engine = Slow(clock, [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5], [], "a", "batch")
    (row,) = time_models({"a": engine}, rounds=5).rows
    assert row.low_ms <= row.median_ms <= row.high_ms
    assert (row.low_ms, row.high_ms) != (row.median_ms, row.median_ms)


def test_what_cannot_be_timed(clock: Clock) -> None:
    one = Slow(clock, [0.1], [], "one", 1)
    with pytest.raises(InputError, match=r"one takes inputs of \(1, 3\), not \(2, 3\); see --batch"):
        time_models({"one": one}, batches=(2,))
    with pytest.raises(InputError, match=r"not \(1, 4\)"):
        time_models({"one": one}, input_shapes=[[4]])
    with pytest.raises(InputError, match="three rounds"):
        time_models({"one": one}, rounds=2)
    with pytest.raises(InputError, match="the input's shape is not known"):
        time_models({"net": LoadedModel(small())})
    with pytest.raises(InputError, match="net does not run on these inputs"):
        time_models({"net": LoadedModel(small())}, input_shapes=[[4, 16, 16]])


def test_a_real_module_is_timed_without_gradients() -> None:
    net = small()
    seen: list[bool] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(torch.is_grad_enabled()))
    (row,) = time_models({"net": LoadedModel(net, input_shapes=((3, 16, 16),))}, rounds=3).rows
    assert row.median_ms > 0.0
    assert row.runtime == f"torch {torch.__version__}"
    assert not any(seen)


@pytest.mark.sweep
def test_the_command_prints_a_table_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("COLUMNS", "160")  # long figures fold no names
    succeed("export", *TINY, "--format", "onnx")
    words = ("bench", "tiny.pt", "tiny-fused.onnx", "--arch", "cli_nets:tiny", "--batch", "1,2", "--rounds", "3")
    result = succeed(*words, "--threads", "1", "--json", "bench.json")
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [(r["model"], r["batch"]) for r in found["rows"]] == [
        ("tiny.pt", 1),
        ("tiny-fused.onnx", 1),
        ("tiny.pt", 2),
        ("tiny-fused.onnx", 2),
    ]
    assert found["machine"]["threads"] == 1
    assert result.stdout.count("tiny-fused.onnx") == 2
    assert "medians of 3 interleaved rounds" in result.stdout
    assert refuse(2, "bench", "tiny-fused.onnx", "--batch", "1,x") == (
        "--batch '1,x' names no batch sizes; write 1, or 1,8,32"
    )
    assert refuse(2, "bench", "tiny-fused.onnx", "tiny-fused.onnx").startswith("a model is named twice")


# ---- runtimes --------------------------------------------------------------------------------------------------------


def test_every_model_is_run_by_every_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_folder(tmp_path, monkeypatch)
    words = ("bench", "tiny.pt", "--arch", "cli_nets:tiny", "--runtime", "torch,onnxruntime", "--rounds", "3")
    succeed(*words, "--json", "bench.json")
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(r["model"], r["by"]) for r in rows] == [("tiny.pt", "torch"), ("tiny.pt", "onnxruntime")]
    assert rows[1]["runtime"].startswith("onnxruntime ")
    assert {r["device_ms"] for r in rows} == {None}
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix in (".onnx", ".xml")) == []  # built elsewhere


def test_an_onnx_file_is_run_by_two_runtimes_and_other_engines_by_one(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(small(), torch.randn(SHAPE), path=path)
    engine = open_engine(path)
    assert engine is not None
    options = Where(("onnxruntime", "openvino"))
    rows = time_models({"net.onnx": engine}, input_shapes=[SHAPE[1:]], rounds=3, where=options).rows
    assert [r.by for r in rows] == ["onnxruntime", "openvino"]
    with pytest.raises(InputError, match=r"net\.onnx is run by onnxruntime or openvino, not by aoti"):
        time_models({"net.onnx": engine}, input_shapes=[SHAPE[1:]], where=Where(("aoti",)))
    with pytest.raises(InputError, match="a is run by engine, not by openvino"):
        time_models({"a": Slow(Clock(), [0.1], [], "a", "batch")}, where=Where(("openvino",)))


def test_a_compiled_network_computes_the_same() -> None:
    loaded = LoadedModel(small(), input_shapes=(SHAPE[1:],))
    found = in_runtime("compile", "net", loaded, None, Path("unused"), device="cpu", seed=0)
    assert isinstance(found, LoadedModel)
    assert (name_of(found), text_of(found)) == ("compile", f"torch {torch.__version__} (compiled)")
    x = torch.randn(SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), loaded.module(x), rtol=1e-4, atol=1e-5)


def test_a_network_of_low_precision_stays_it_in_every_runtime(tmp_path: Path) -> None:
    loaded = LoadedModel(small().half(), input_shapes=(SHAPE[1:],))
    for runtime in ("onnxruntime", "openvino"):
        found = in_runtime(runtime, "net", loaded, None, tmp_path / runtime, device="cpu", seed=0)
        assert isinstance(found, Runnable)
        assert [found.precision, *(p.dtype for p in (*found.inputs, *found.outputs))] == ["float16"] * 3


@pytest.mark.parametrize(
    ("code", "words", "message"),
    [
        (2, ("--runtime", "torch,tflite"), "unknown runtime 'tflite'; choose from torch, compile, onnxruntime"),
        (2, ("--runtime", "torch,torch"), "a runtime is named twice"),
        (2, ("--device", "tpu"), "unknown device 'tpu'; choose from cpu, cuda"),
        (2, ("--cuda-graphs",), "CUDA graphs are of what runs on a GPU, and none of these models does; see --device"),
    ],
)
def test_choices_that_do_not_exist(
    code: int, words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_folder(tmp_path, monkeypatch)
    assert refuse(code, "bench", "tiny.pt", "--arch", "cli_nets:tiny", *words).startswith(message)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="nothing can be timed on a GPU here"):
        time_models({"net": LoadedModel(small(), input_shapes=(SHAPE[1:],))}, where=Where(device="cuda"))


def test_a_runtime_that_can_build_here_and_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Probe("tensorrt", True, False, {}, "the driver shows no NVIDIA GPU; engines are built for others")
    kind = type(find_format("tensorrt"))
    monkeypatch.setattr(kind, "require", lambda self: None)
    monkeypatch.setattr(kind, "probe", lambda self: found)
    with pytest.raises(MachineError, match=r"^tensorrt cannot run on this machine: the driver shows no NVIDIA GPU$"):
        check_runtimes(["onnxruntime", "tensorrt"])


# ---- on a GPU, against a stand-in ------------------------------------------------------------------------------------


class Gpu:
    """A stand-in for torch.cuda: a queue whose work takes time only when somebody waits for it."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds, self.queued, self.done = clock, seconds, 0, 0.0
        self.log: list[str] = []

    def work(self) -> None:
        self.clock.now += 0.001  # what it takes to enqueue
        self.queued += 1

    def synchronize(self) -> None:
        self.clock.now += self.seconds * self.queued
        self.done, self.queued = self.done + self.seconds * self.queued, 0
        self.log.append("synchronize")

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        made = SimpleNamespace(at=0.0)
        made.record = lambda: setattr(made, "at", self.done + self.seconds * self.queued)
        made.elapsed_time = lambda other: 1e3 * (other.at - made.at)
        return made

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.log.append("wait"))

    def current_stream(self) -> None:
        return None

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=self.work)

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.log.append("capture")
        yield


@pytest.fixture
def gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu(clock, 0.02)
    for name in ("synchronize", "Event", "Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(timing.torch.cuda, name, getattr(made, name))
    return made


def test_host_and_device_are_measured_apart(gpu: Gpu) -> None:
    sample = Call("net", gpu.work, gpu=True).time(4)
    assert (round(sample.total, 9), round(sample.host or 0, 9), round(sample.device or 0, 9)) == (0.021, 0.001, 0.02)
    assert gpu.log == ["synchronize", "synchronize"]  # what was there before is not counted, what is asked for is


def test_a_call_is_warmed_up_and_captured_before_it_is_replayed(gpu: Gpu) -> None:
    runs: list[str] = []
    captured = Call("net", lambda: runs.append("run"), gpu=True).captured()
    assert (gpu.log, len(runs)) == (["wait", "synchronize", "capture"], 4)
    assert captured.time(1).device == pytest.approx(0.02)
    assert len(runs) == 4


def test_what_cannot_be_captured_is_one_sentence(gpu: Gpu) -> None:
    def run() -> None:
        if "synchronize" in gpu.log:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(InputError, match="net cannot be captured as a CUDA graph: operation not permitted when stream"):
        Call("net", run, gpu=True).captured()


@pytest.mark.gpu
def test_a_network_on_the_gpu() -> None:
    loaded = LoadedModel(small(), input_shapes=(SHAPE[1:],))
    (row,) = time_models({"net": loaded}, rounds=3, where=Where(device="cuda", cuda_graphs=True)).rows
    assert row.host_ms is not None and row.device_ms is not None
    assert 0.0 < row.device_ms <= row.median_ms
    assert not any(p.is_cuda for p in loaded.module.parameters())
