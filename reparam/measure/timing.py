"""How one model is called and timed: on the CPU by the clock; on a GPU by the clock and by events on the device.

On a GPU the inputs are brought to the device first. A call returns when its work is enqueued; the time until all of a
round is enqueued is the host's, the time between two events around it the device's, and the latency is the time until
the device is done.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reparam.compare import specs_of
from reparam.engines import Runnable
from reparam.errors import InputError, MachineError, ReparamError
from reparam.ir import draw_examples, random_input
from reparam.loading import LoadedModel
from reparam.utils import first_line, foreign_code

CPU, CUDA = "cpu", "cuda"
DEVICES = (CPU, CUDA)
WARM_SECONDS, WARM_RUNS = 0.3, 3
ROUND_SECONDS = 0.05  # what one model runs for in one round, or one run of it


@dataclass(frozen=True)
class Sample:
    """Seconds of one run: until it is done, and on a GPU until it is enqueued and on the device."""

    total: float
    host: float | None = None
    device: float | None = None


@dataclass(frozen=True)
class Call:
    """A model on its inputs. name: for messages. gpu: whether `run` returns before the work is done."""

    name: str
    run: Callable[[], object]
    gpu: bool

    def time(self, runs: int) -> Sample:
        """The mean of `runs` runs."""
        if not self.gpu:
            return Sample(self._repeat(runs) / runs)
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start = time.perf_counter()
        first.record()
        host = self._repeat(runs)
        last.record()
        torch.cuda.synchronize()
        total = time.perf_counter() - start
        return Sample(total / runs, host / runs, 1e-3 * first.elapsed_time(last) / runs)

    def _repeat(self, runs: int) -> float:
        start = time.perf_counter()
        for _ in range(runs):
            self.run()
        return time.perf_counter() - start

    def warm(self) -> int:
        """Runs it until it is warm; returns the number of runs that a round takes."""
        spent, count, last = 0.0, 0, 0.0
        while count < WARM_RUNS or spent < WARM_SECONDS:
            last = self.time(1).total
            spent, count = spent + last, count + 1
        return max(1, round(ROUND_SECONDS / max(last, 1e-9)))

    def captured(self) -> Call:
        """The same work as a CUDA graph. Raises InputError for what cannot be captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_RUNS):
                    self.run()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self.run()
        except RuntimeError as error:
            raise InputError(f"{self.name} cannot be captured as a CUDA graph: {first_line(error)}") from error
        return Call(self.name, graph.replay, gpu=True)


def check_device(device: str) -> None:
    """Raises InputError for an unknown device, MachineError where there is no GPU that torch can use."""
    from reparam.engines.tensorrt import no_gpu

    if device not in DEVICES:
        raise InputError(f"unknown device '{device}'; choose from {', '.join(DEVICES)}")
    if device == CUDA and (why := no_gpu()):
        raise MachineError(f"nothing can be timed on a GPU here: {why}")


def call_of(
    name: str, model: LoadedModel | Runnable, shapes: Sequence[Sequence[int]], batch: int, seed: int, device: str
) -> Call:
    """One run of the model on random inputs of its own dtype, tried once. device: of a network in torch.

    Raises InputError for inputs that it does not take.
    """
    if isinstance(model, Runnable):
        values = _engine_inputs(name, model, shapes, batch, seed)
        _try(name, lambda: model.run(values))
        return Call(name, model.prepared(values), model.kind == CUDA)
    module = _lying_on(model.module, device)
    examples = tuple(v.to(device) for v in draw_examples(module, shapes, batch=batch, seed=seed))

    def run() -> Any:
        with torch.inference_mode():
            return module(*examples)

    _try(name, run)
    return Call(name, run, device == CUDA)


def _lying_on(module: nn.Module, device: str) -> nn.Module:
    """The module, or where a weight of it lies elsewhere a copy on the device."""
    if device == CPU and all(v.device.type == CPU for v in (*module.parameters(), *module.buffers())):
        return module
    return copy.deepcopy(module).to(device)


def _engine_inputs(name: str, engine: Runnable, shapes: Sequence[Sequence[int]], batch: int, seed: int) -> list[Tensor]:
    sizes = [(batch, *s) for s in shapes]
    fits = len(sizes) == len(engine.inputs) and all(
        len(s) == len(p.shape) and all(isinstance(q, str) or q == n for n, q in zip(s, p.shape, strict=True))
        for s, p in zip(sizes, engine.inputs, strict=True)
    )
    if not fits or not engine.takes(sizes):
        ports = ", ".join(str(p.shape) for p in engine.inputs)
        raise InputError(
            f"{name} takes inputs of {ports}, not {', '.join(map(str, sizes))}; see --batch, --input-shape"
        )
    generator = torch.Generator().manual_seed(seed)
    return [
        random_input(spec, size, generator).to(spec.dtype)
        for spec, size in zip(specs_of(engine.inputs), sizes, strict=True)
    ]


def _try(name: str, run: Callable[[], object]) -> None:
    try:
        with foreign_code(f"running {name}"):
            run()
    except ReparamError:
        raise
    except Exception as error:
        raise InputError(f"{name} does not run on these inputs: {first_line(error)}") from error
