"""What a plain network costs: multiply-accumulates, parameters and onnxruntime latency against the original.

Dense carrying (the published form) beside grouped (what the block structure allows), in one run. Then how conversion
time grows with depth.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common import (
    MISSING,
    Subject,
    Timing,
    export_onnx,
    geometric_mean,
    interleaved,
    onnxsim_clean,
    options,
    quiet,
    ratios,
    say,
    short,
    subject,
    table,
)
from torch import nn

from reparam.conversion import convert
from reparam.loading import randomize_statistics
from reparam.models.stochastic_depth_resnet import StochasticDepthResNet
from reparam.report import Report

MODELS = (
    "torchvision/resnet18",
    "torchvision/resnet34",
    "torchvision/resnet50",
    "torchvision/wide_resnet50_2",
    "torchvision/resnext50_32x4d",
    "torchvision/mobilenet_v2",
    "torchvision/regnet_x_400mf",
    "timm/resnet50d",
    "timm/resnetv2_50",
    "timm/darknet53",
    "timm/cspdarknet53",
    "timm/vovnet39a",
    "timm/repvgg_a0",
)
QUICK_MODELS = ("torchvision/resnet18", "torchvision/mobilenet_v2")
UNTIMED = ("timm/densenet121", "torchvision/resnet101")  # priced only: their dense forms are too large to time here
DEPTHS, QUICK_DEPTHS = (110, 302, 602, 1202), (110, 302)
ROUNDS, QUICK_ROUNDS = 10, 3
CARRIES = ("auto", "split=8", "dense")
LARGEST = 12.0  # a dense form with more multiply-accumulates than this, against the original, is not timed

TEXT = """\
## The price of a plain network

`reparam.convert(..., to="plain")` against the original, both with their batch norms folded (`to="fused"`), at
224 x 224: multiply-accumulates and parameters, counted; layers of the chain with weights; and latency in onnxruntime
(CPU, one thread, batch 1, exported by torch's exporter and cleaned by onnxsim), as plain / fused, so that above 1 the
plain form is the slower. *auto* groups layers by the block structure of what they carry; *split=8* cuts layers into
partial sums over eight slices; *dense* does neither, which is the form that has been published for four block types.
Layers: of auto / split=8. Median of {rounds} interleaved rounds (interquartile range).
"""
DEEP = """\
Seconds of rewriting and verification of a stochastic-depth ResNet (CIFAR sizes, pooled and zero-padded shortcuts) to
`plain`, against those of the 110-layer one; and the largest relative float64 error, end to end.
"""


@dataclass
class Result:
    """Reports by the way of carrying, and the timings that were taken."""

    reports: dict[str, Report] = field(default_factory=dict)
    fused: Report | None = None
    timings: dict[str, Timing] = field(default_factory=dict)

    def price(self, carry: str, what: str) -> str:
        if carry not in self.reports or self.fused is None:
            return MISSING
        after, before = self.reports[carry].after, self.fused.after
        return f"{getattr(after, what) / getattr(before, what):.2f}"

    def latency(self, carry: str) -> str:
        if carry not in self.timings:
            return MISSING
        return str(ratios(self.timings[carry].cpu, self.timings["fused"].cpu))


def measure(arch: str, rounds: int, *, timed: bool) -> Result:
    """Converts one network, prices it, and times what is not too large."""
    network = subject(arch)
    result = Result()
    runs: dict[str, Callable[[], object]] = {}
    example = network.inputs(2)
    fused = convert(network.module, *example, to="fused")
    result.fused = fused.report
    if timed:
        runs["fused"] = _session(fused.module, network)
    for carry in CARRIES:
        plain = convert(network.module, *example, to="plain", carry=carry)
        assert plain.report.plain
        result.reports[carry] = plain.report
        ratio = plain.report.after.macs / fused.report.after.macs
        if timed and ratio <= LARGEST:
            runs[carry] = _session(plain.module, network)
        gc.collect()
    result.timings = interleaved(runs, rounds) if timed else {}
    return result


def _session(module: nn.Module, network: Subject) -> Callable[[], object]:
    import onnxruntime

    (x,) = network.inputs(1)
    with torch.no_grad():
        model = onnxsim_clean(export_onnx(module, (x,)))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    name, value = session.get_inputs()[0].name, x.numpy()
    return lambda: session.run(None, {name: value})


# ---- depth -----------------------------------------------------------------------------------------------------------


def stochastic_depth(depth: int) -> nn.Module:
    """The network of 6n + 2 layers, with healthy random statistics."""
    torch.manual_seed(0)
    return randomize_statistics(StochasticDepthResNet(depth).eval(), [torch.randn(16, 3, 32, 32)])


def deepen(depths: tuple[int, ...]) -> list[list[str]]:
    """A row for each depth: time against the first one, and the error."""
    rows: list[list[str]] = []
    base = 0.0
    for depth in depths:
        start = time.perf_counter()
        report = convert(stochastic_depth(depth), torch.randn(2, 3, 32, 32), to="plain").report
        assert report.plain
        assert report.evidence is not None
        spent = report.seconds["rewrite"] + report.seconds["verify"]
        base = base or spent
        rows.append(
            [str(depth), f"{depth / depths[0]:.1f}", f"{spent / base:.1f}", f"{report.evidence.float64_max_rel:.1e}"]
        )
        say(f"  depth {depth}: {time.perf_counter() - start:.0f} s")
    return rows


def main() -> None:
    args = options(__doc__, worker=False)
    models, rounds = (QUICK_MODELS, QUICK_ROUNDS) if args.quick else (MODELS, ROUNDS)
    torch.set_num_threads(1)
    results: dict[str, Result] = {}
    with quiet():
        for arch in (*models, *(() if args.quick else UNTIMED)):
            say(f"plain_cost {short(arch)}")
            results[short(arch)] = measure(arch, rounds, timed=arch not in UNTIMED)
        deep = deepen(QUICK_DEPTHS if args.quick else DEPTHS)
    header = (
        "model",
        "layers",
        *(f"{what} {carry}" for what in ("MACs", "params", "latency") for carry in CARRIES),
    )
    rows = [
        [
            name,
            " / ".join(str(r.reports[c].after.convs) for c in CARRIES[:2]),
            *(r.price(c, what) for what in ("macs", "params") for c in CARRIES),
            *(r.latency(c) for c in CARRIES),
        ]
        for name, r in results.items()
    ]
    means = [
        f"{geometric_mean(r.reports[c].after.macs / r.fused.after.macs for r in results.values() if r.fused):.2f}"
        for c in CARRIES
    ]
    rows.append(["geometric mean", "", *means, *[""] * (2 * len(CARRIES))])
    print(TEXT.format(rounds=rounds))
    print(table(header, rows))
    print()
    print(DEEP)
    print(table(("layers", "× 110 layers", "time × that of 110", "float64 error"), deep))


if __name__ == "__main__":
    main()
