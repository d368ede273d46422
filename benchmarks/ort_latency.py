"""Latency in onnxruntime of the fused network, the original, and what other tools make of the original.

One thread, batch 1. Every variant is first compared with the float64 truth; one that is wrong is not timed.
"""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from common import (
    MISSING,
    Spread,
    Subject,
    Timing,
    export_onnx,
    geometric_mean,
    interleaved,
    onnxsim_clean,
    onnxslim_clean,
    options,
    quiet,
    ratios,
    say,
    short,
    spread,
    subject,
    table,
)
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.engines.onnx import model_of

MODELS = (
    "timm/repvgg_a0",
    "timm/repvgg_b1g4",
    "timm/mobileone_s0",
    "timm/mobileone_s1",
    "timm/mobileone_s4",
    "timm/fastvit_t8",
    "timm/repvit_m1",
    "timm/ghostnetv3_100",
    "timm/repghostnet_100",
    "timm/levit_128",
    "torchvision/resnet50",
)
QUICK_MODELS = ("timm/repvgg_a0", "timm/fastvit_t8", "torchvision/resnet50")
ROUNDS, QUICK_ROUNDS = 30, 5
TRIALS = 8

BASE, SLIM, FX, TIMM, FUSED = "onnxsim", "onnxslim", "torch fx fuse", "timm deploy", "reparam fused"
VARIANTS = (SLIM, FX, TIMM, FUSED)

TEXT = """\
## Latency in onnxruntime

How many times as fast as the original, exported by `torch.onnx.export(dynamo=True)` and cleaned by onnxsim, the
variants run in onnxruntime on the CPU with one thread and batch 1: the same export cleaned by onnxslim; the original
after `torch.fx.experimental.optimization.fuse` and the original after timm's `reparameterize_model`, both exported and
cleaned in the same way; and what `reparam export --format onnx` writes of the original. The last column is
timm's form against reparam's: above 1, reparam's is the faster. Median of {rounds} interleaved rounds, of the ratio
within a round (interquartile range). onnxruntime itself folds a BatchNormalization into the Conv before it, so
resnet50, in which nothing else can be fused, shows the noise of the comparison.

The time is the CPU time of the thread that runs the network, which leaves out what other processes take. The time
on the wall was {idle:.2f} times as long (median); it is the same, 1.00, on a machine that does nothing else.

Each variant was first compared with the float64 outputs of the original on {trials} inputs. **WRONG**: on half of
them or more, the RMS error exceeds {wrong} times the original's own in float32 plus 4·eps·RMS(y); the variant was not
timed. "{missing}": the tool does not take the network, or changes nothing in it.
"""
COUNTS = """\
Nodes of the ONNX graphs (Conv nodes among them), and, last, the RMS error of the fused network in onnxruntime over
that of the original in onnxruntime, both against the float64 truth: median of the inputs (interquartile range).
"""
WRONG_FACTOR = 2.0  # the bar that reparam itself sets for the dtype that it emits


@dataclass
class Variant:
    """One form of a network: its ONNX graph as a session and its size.

    errors: RMS against the float64 truth, for each input. wrong: whether they are too large on half of the inputs.
    """

    run: Callable[[Tensor], Tensor]
    nodes: int
    convs: int
    errors: list[float] = field(default_factory=list)
    wrong: bool = True

    @property
    def size(self) -> str:
        return f"{self.nodes} ({self.convs})"


@dataclass
class Result:
    """What was measured of one network: its variants by name, and the times of those that are right."""

    variants: dict[str, Variant] = field(default_factory=dict)
    timings: dict[str, Timing] = field(default_factory=dict)

    def speedup(self, name: str, base: str = BASE) -> Spread | None:
        """How many times as fast as `base` the variant `name` is, None where either was not timed."""
        if not {name, base} <= self.timings.keys():
            return None
        return ratios(self.timings[base].cpu, self.timings[name].cpu)

    def cell(self, name: str, base: str = BASE) -> str:
        """The speed-up as the table shows it."""
        if any(n in self.variants and self.variants[n].wrong for n in (name, base)):
            return "**WRONG**"
        return str(self.speedup(name, base) or MISSING)


# ---- the variants ------------------------------------------------------------------------------------------------


def graphs(network: Subject, inputs: tuple[Tensor, ...]) -> Iterator[tuple[str, Any]]:
    """Every variant's ONNX model by name; a tool that does not take the network is left out."""
    original = export_onnx(network.module, inputs)
    yield BASE, onnxsim_clean(original)
    makers: dict[str, Callable[[], Any]] = {
        SLIM: lambda: onnxslim_clean(original),
        FX: lambda: _export(_fx_fused(network.module), inputs),
        TIMM: lambda: _export(_timm_deployed(network.module), inputs),
        FUSED: lambda: model_of(convert(network.module, *inputs, dynamic=()).program),
    }
    for name, make in makers.items():
        try:
            model = make()
        except Exception as error:
            say(f"  {name}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
            continue
        if model is not None:
            yield name, model


def _export(module: nn.Module | None, inputs: tuple[Tensor, ...]) -> Any:
    return None if module is None else onnxsim_clean(export_onnx(module, inputs))


def _fx_fused(module: nn.Module) -> nn.Module | None:
    """None when it folded nothing. Raises where torch.fx cannot trace."""
    from torch.fx.experimental.optimization import fuse

    return _changed(module, fuse(module))


def _timm_deployed(module: nn.Module) -> nn.Module | None:
    """None when no layer has a deploy form."""
    from timm.utils.model import reparameterize_model

    return _changed(module, reparameterize_model(module))


def _changed(module: nn.Module, other: nn.Module) -> nn.Module | None:
    return other if module.state_dict().keys() != other.state_dict().keys() else None


def _variant(model: Any) -> Variant:
    """An onnxruntime session of one thread."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    convs = sum(node.op_type == "Conv" for node in model.graph.node)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return Variant(run, len(model.graph.node), convs)


# ---- truth -------------------------------------------------------------------------------------------------------


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())


@torch.no_grad()
def judge(module: nn.Module, variants: Mapping[str, Variant], inputs: Sequence[Tensor]) -> None:
    """Sets every variant's errors against the float64 outputs of `module`, and whether it is wrong.

    Counted by inputs, not summed over them: where a network amplifies rounding a million times, as levit_128 with
    random weights does on some inputs, the sum would be the error of those inputs alone.
    """
    exact = copy.deepcopy(module).double()
    eps = torch.finfo(torch.float32).eps
    misses = dict.fromkeys(variants, 0)
    for x in inputs:
        truth = exact(x.double())
        bar = WRONG_FACTOR * _rms(module(x) - truth) + 4 * eps * _rms(truth)
        for name, variant in variants.items():
            variant.errors.append(_rms(variant.run(x) - truth))
            misses[name] += not variant.errors[-1] <= bar
    for name, variant in variants.items():
        variant.wrong = 2 * misses[name] >= len(inputs)


# ---- the measurement ---------------------------------------------------------------------------------------------


def measure(arch: str, rounds: int) -> Result:
    """Builds, checks and times all variants of one network, which has one input and one output."""
    network = subject(arch)
    trials = [network.inputs(1, seed)[0] for seed in range(TRIALS)]
    result = Result()
    with torch.no_grad():
        for name, model in graphs(network, (trials[0],)):
            result.variants[name] = _variant(model)
    judge(network.module, result.variants, trials)
    timed = {name: _on(v, trials[0]) for name, v in result.variants.items() if not v.wrong}
    result.timings = interleaved(timed, rounds)
    return result


def _on(variant: Variant, x: Tensor) -> Callable[[], Tensor]:
    return lambda: variant.run(x)


def _tables(results: Mapping[str, Result]) -> str:
    speed = [[arch, *(r.cell(v) for v in VARIANTS), r.cell(FUSED, TIMM)] for arch, r in results.items()]
    branched = [r for r in results.values() if r.speedup(TIMM) is not None]
    title = f"geometric mean of the {len(branched)} with a deploy form"
    speed.append([title, *(_mean(branched, v) for v in VARIANTS), _mean(branched, FUSED, TIMM)])
    size = [[arch, *(_size(r, v) for v in (BASE, *VARIANTS)), _exactness(r)] for arch, r in results.items()]
    return "\n\n".join(
        (
            table(("model", *VARIANTS, "timm deploy / reparam fused"), speed),
            COUNTS.rstrip(),
            table(("model", BASE, *VARIANTS, "error, fused / original"), size),
        )
    )


def _mean(results: Iterable[Result], name: str, base: str = BASE) -> str:
    values = [s.median for r in results if (s := r.speedup(name, base)) is not None]
    return f"{geometric_mean(values):.3f}" if values else MISSING


def _size(result: Result, name: str) -> str:
    return result.variants[name].size if name in result.variants else MISSING


def _exactness(result: Result) -> str:
    if FUSED not in result.variants:
        return MISSING
    return str(ratios(result.variants[FUSED].errors, result.variants[BASE].errors))


def main() -> None:
    args = options(__doc__, worker=False)
    models, rounds = (QUICK_MODELS, QUICK_ROUNDS) if args.quick else (MODELS, ROUNDS)
    torch.set_num_threads(1)
    results: dict[str, Result] = {}
    with quiet():
        for arch in models:
            say(f"ort_latency {short(arch)}")
            result = measure(arch, rounds)
            for name, variant in result.variants.items():
                time = f"{1e3 * spread(result.timings[name].cpu).median:.2f} ms" if name in result.timings else "WRONG"
                say(f"  {name}: {time}, error {spread(variant.errors).median:.3g}, nodes {variant.size}")
            results[short(arch)] = result
            gc.collect()
    timings = [t for r in results.values() for t in r.timings.values()]
    idle = statistics.median(wall / cpu for t in timings for wall, cpu in zip(t.wall, t.cpu, strict=True))
    print(TEXT.format(rounds=rounds, idle=idle, trials=TRIALS, wrong=f"{WRONG_FACTOR:g}", missing=MISSING))
    print(_tables(results))


if __name__ == "__main__":
    main()
