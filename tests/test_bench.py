"""`bench`: interleaved rounds, medians with their spread, what it refuses; the clock is replaced where it matters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cli_helpers import TINY, prepare_folder, refuse, succeed
from engine_nets import small
from torch import Tensor

from reparam import bench as timing
from reparam.bench import bench
from reparam.engine import Port, Runnable
from reparam.errors import InputError
from reparam.load import LoadedModel


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
    found = bench(models, batches=(1, 4), rounds=4)
    rows = [(r.model, r.batch, round(r.median_ms, 6), round(r.throughput, 6), round(r.speed, 6)) for r in found.rows]
    assert rows == [("a", 1, 200, 5, 1), ("b", 1, 100, 10, 2), ("a", 4, 800, 5, 1), ("b", 4, 400, 10, 2)]
    assert found.shapes == ((3,),)


def test_rounds_are_interleaved_and_their_order_turns(clock: Clock) -> None:
    log: list[str] = []
    models = {n: Slow(clock, [0.2], log, n, "batch") for n in "abc"}
    bench(models, rounds=3)
    assert log[-9:] == list("abcbcacab")


def test_fast_models_run_many_times_a_round(clock: Clock) -> None:
    log: list[str] = []
    bench({"a": Slow(clock, [0.001], log, "a", "batch"), "b": Slow(clock, [0.2], log, "b", "batch")}, rounds=3)
    assert (log[-153:].count("a"), log[-153:].count("b")) == (150, 3)


def test_the_spread_is_that_of_the_middle_half(clock: Clock) -> None:
    engine = Slow(clock, [0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.4, 0.5], [], "a", "batch")
    (row,) = bench({"a": engine}, rounds=5).rows
    assert row.low_ms <= row.median_ms <= row.high_ms
    assert (row.low_ms, row.high_ms) != (row.median_ms, row.median_ms)


def test_what_cannot_be_timed(clock: Clock) -> None:
    one = Slow(clock, [0.1], [], "one", 1)
    with pytest.raises(InputError, match=r"one takes inputs of \(1, 3\), not \(2, 3\); see --batch"):
        bench({"one": one}, batches=(2,))
    with pytest.raises(InputError, match=r"not \(1, 4\)"):
        bench({"one": one}, input_shapes=[[4]])
    with pytest.raises(InputError, match="three rounds"):
        bench({"one": one}, rounds=2)
    with pytest.raises(InputError, match="the input's shape is not known"):
        bench({"net": LoadedModel(small())})
    with pytest.raises(InputError, match="net does not run on these inputs"):
        bench({"net": LoadedModel(small())}, input_shapes=[[4, 16, 16]])


def test_a_real_module_is_timed_without_gradients() -> None:
    net = small()
    seen: list[bool] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(torch.is_grad_enabled()))
    (row,) = bench({"net": LoadedModel(net, input_shapes=((3, 16, 16),))}, rounds=3).rows
    assert row.median_ms > 0.0
    assert row.runtime == f"torch {torch.__version__}"
    assert not any(seen)


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
