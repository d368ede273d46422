"""What equalisation gains in int8: fused multi-branch networks trained on digits, quantised with and without it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Digits, digits, export_onnx, onnxsim_clean, options, quiet, say, table
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.emit import finalize, to_module
from reparam.engines.onnx import quantised
from reparam.ir import Program
from reparam.models.multi_branch import dbbnet, mobileone, repvgg
from reparam.passes import equalize_phases
from reparam.passes.equalize import measure as activation_ranges
from reparam.rewrite import Driver

SIZE = 16
STAGES = ((16, 2, 1), (32, 2, 2), (64, 2, 2))
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": lambda: repvgg(16, STAGES, num_classes=10),
    "dbbnet": lambda: dbbnet(16, STAGES, num_classes=10),
    "mobileone": lambda: mobileone(16, STAGES, copies=2, num_classes=10),
}
EPOCHS, QUICK_EPOCHS = 15, 2
BATCH = 64
BY_DATA = ", equalised by data"
SEEDS, QUICK_SEEDS = 3, 1

TEXT = """\
## Equalisation before int8

Small networks of multi-branch blocks, trained on scikit-learn's digits ({size} x {size}, {epochs} epochs, {seeds}
seeds; 1,437 to train, 360 to test), fused, and quantised to int8 by onnxruntime, calibrated on 256 training images:
weights with one scale for each layer or for each output channel (which is what `reparam export` writes); without
`equalize` before, with it on the ranges of the weights, and on those of the results on the calibration data (which is
what `--equalize` does). *SQNR*: of the outputs on the test images against float32, in dB. *Agreement*: the share of all
1,797 images with the same prediction as in float32. Mean over the seeds (smallest to largest).
"""


@dataclass(frozen=True)
class Outcome:
    """Of one form of one network: accuracy on the test images, SQNR in dB, agreement with float32 on all images."""

    accuracy: float
    sqnr: float
    agreement: float


def train(network: nn.Module, data: Digits, epochs: int) -> nn.Module:
    """With SGD and a cosine schedule."""
    images, labels = data.images.expand(-1, 3, -1, -1), data.labels
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    network.train()
    for _ in range(epochs):
        for rows in data.train[torch.randperm(len(data.train))].split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimiser.step()
        schedule.step()
    return network.eval()


def measure(network: nn.Module, data: Digits) -> dict[str, Outcome]:
    """Every form of a trained network."""
    images = data.images.expand(-1, 3, -1, -1).contiguous()
    fused = convert(network, images[:2], to="fused")
    calibration = [[part] for part in images[data.train[:256]].split(BATCH)]
    measured = activation_ranges(fused.program, calibration)
    forms = {
        "": fused.module,
        ", equalised by weights": _equalised(fused.program, None),
        BY_DATA: _equalised(fused.program, measured),
    }
    with torch.no_grad():
        truth = network(images)
    found = {"float32": _judge(truth, truth, data)}
    for scales, per_channel in (("layer", False), ("channel", True)):
        for name, module in forms.items():
            if name == BY_DATA and not per_channel:
                continue  # it takes the rows of weights to have scales of their own
            model = onnxsim_clean(export_onnx(module, (images[:2],), dynamic_batch=True))
            found[scales + name] = _judge(
                _run(quantised(model, calibration, per_channel=per_channel), images), truth, data
            )
    return found


def _equalised(program: Program, measured: Mapping[str, Tensor] | None) -> nn.Module:
    copy = program.copy()
    Driver(copy, allow_cost=False).run(equalize_phases(measured))
    return to_module(finalize(copy))


def _run(model: Any, images: Tensor) -> Tensor:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.from_numpy(
        np.concatenate([session.run(None, {name: part.numpy()})[0] for part in images.split(BATCH)])
    )


def _judge(output: Tensor, truth: Tensor, data: Digits) -> Outcome:
    same = output.argmax(1) == truth.argmax(1)
    right = output.argmax(1)[data.test] == data.labels[data.test]
    noise = float((output - truth)[data.test].square().sum())
    signal = float(truth[data.test].square().sum())
    sqnr = 10 * math.log10(signal / noise) if noise else math.inf
    return Outcome(100 * float(right.float().mean()), sqnr, 100 * float(same.float().mean()))


def _row(name: str, form: str, found: list[Outcome]) -> list[str]:
    def mean(values: list[float]) -> str:
        if not all(map(math.isfinite, values)):
            return ""
        return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"

    return [name, form, *(mean([getattr(f, key) for f in found]) for key in ("accuracy", "sqnr", "agreement"))]


def main() -> None:
    args = options(__doc__, worker=False)
    epochs, seeds = (QUICK_EPOCHS, QUICK_SEEDS) if args.quick else (EPOCHS, SEEDS)
    data = digits(SIZE)
    rows: list[list[str]] = []
    with quiet():
        for name, build in NETWORKS.items():
            found: list[dict[str, Outcome]] = []
            for seed in range(seeds):
                say(f"int8_equalized {name}, seed {seed}")
                torch.manual_seed(seed)
                found.append(measure(train(build(), data, epochs), data))
            rows += [_row(name, form, [f[form] for f in found]) for form in found[0]]
    print(TEXT.format(size=SIZE, epochs=epochs, seeds=seeds))
    print(table(("network", "scales", "test accuracy, %", "SQNR, dB", "agreement, %"), rows))


if __name__ == "__main__":
    main()
