"""Trains small capsule networks on scikit-learn's digits, converts them, and compares every prediction.

Each network is a process of its own: training, then `to="fused"`, `to="plain"`, ONNX and onnxruntime.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from common import (
    Digits,
    answer,
    digits,
    export_onnx,
    in_fresh_process,
    options,
    peak_memory,
    quiet,
    resident_memory,
    say,
    table,
)
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.loading import build_architecture
from reparam.models.capsules import capsule_loss
from reparam.models.mocapsnet import CapsNet
from reparam.models.momentum import saved_bytes

EPOCHS, QUICK_EPOCHS = 25, 2
BATCH, RATE, DECAY, SEED = 32, 1e-3, 0.96, 0
MIB = 2**20
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "CapsNet": ("reparam/capsnet_small", {}),
    "MoCapsNet, reversible": ("reparam/mocapsnet_small", {}),
    "MoCapsNet, stored": ("reparam/mocapsnet_small", {"reversible": False}),
    "MoCapsNet, one velocity": ("reparam/mocapsnet_small", {"velocity": "stack"}),
    "MoCapsNet, published form": ("reparam/mocapsnet_small", {"form": "published"}),
    "MoCapsNet, residual form": ("reparam/mocapsnet_small", {"form": "residual"}),
}

TEXT = """\
## Capsule networks on digits

The small configurations on scikit-learn's 1,797 digits, enlarged from 8 x 8 to 28 x 28, with a fixed split (1,437 to
train on, 360 to test on) and seed: Adam at 1e-3, decaying by 0.96 an epoch, {epochs} epochs in batches of {batch},
margin loss and reconstruction, one thread. MoCapsNet has two blocks of two routing layers of 16 capsules. *saved*: MiB
that autograd keeps between the passes of a batch; *peak*: MiB of resident memory that the training adds to the process.

Then each network is converted and verified, exported by torch's ONNX exporter, and run in onnxruntime. *same
predictions*: out of all 1,797, as the trained network in torch predicts them: by the fused network, by the plain one
(in which routing stays: products of data cannot be carried), and by onnxruntime. *nodes*, *merges*: before and after
`to="fused"`. *error*: the largest relative difference in float64, end to end.
"""


def train(model: CapsNet, data: Digits, epochs: int) -> None:
    """The training of the text above, in place."""
    torch.manual_seed(SEED)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, DECAY)
    model.train()
    for _ in range(epochs):
        for rows in data.train[torch.randperm(len(data.train))].split(BATCH):
            optimizer.zero_grad()
            loss_of(model, data.images[rows], data.labels[rows]).backward()
            optimizer.step()
        schedule.step()
    model.eval()


def loss_of(model: CapsNet, images: Tensor, labels: Tensor) -> Tensor:
    capsules = model.encode(images)
    return capsule_loss(capsules.norm(dim=-1), labels, images, model.draw(capsules, labels))


def predictions(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The class of each image, in batches."""
    with torch.no_grad():
        return torch.cat([run(part).argmax(1) for part in images.split(256)])


def in_onnxruntime(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    with torch.no_grad():
        model = export_onnx(module, (example,), dynamic_batch=True)
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def measure(network: str, epochs: int) -> dict[str, Any]:
    """Trains one network and follows it through the compiler."""
    torch.set_num_threads(1)
    arch, changes = NETWORKS[network]
    model = build_architecture(arch, changes, seed=SEED).module
    assert isinstance(model, CapsNet)
    data = digits()
    before, start = resident_memory(), time.perf_counter()
    train(model, data, epochs)
    result: dict[str, Any] = {"seconds": time.perf_counter() - start, "peak": peak_memory() - before}
    rows = data.train[:BATCH]
    model.train()
    kept = saved_bytes(lambda: loss_of(model, data.images[rows], data.labels[rows]), model.parameters())
    model.eval()
    truth = predictions(model, data.images)
    fused = convert(model, data.images[:2], to="fused")
    plain = convert(model, data.images[:2], to="plain")
    runs = {"fused": fused.module, "plain": plain.module, "onnx": in_onnxruntime(fused.module, data.images[:2])}
    evidence = fused.report.evidence
    assert evidence is not None
    return result | {
        "saved": kept,
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": float((truth == data.labels)[data.test].double().mean()),
        "same": {name: int((predictions(run, data.images) == truth).sum()) for name, run in runs.items()},
        "nodes": [fused.report.before.nodes, fused.report.after.nodes],
        "merges": [fused.report.before.merges, fused.report.after.merges],
        "error": evidence.float64_max_rel,
    }


def row(network: str, run: Mapping[str, Any]) -> list[str]:
    """The row of one network; what went wrong when it failed."""
    if "error" in run and "same" not in run:
        return [network, f"failed: {run['error']}", *[""] * (len(HEADER) - 2)]
    return [
        network,
        f"{run['parameters']:,}",
        f"{100 * run['accuracy']:.2f} %",
        f"{run['seconds']:.0f}",
        f"{run['saved'] / MIB:.1f}",
        f"{run['peak'] / MIB:.0f}",
        *(f"{run['same'][name]:,}" for name in ("fused", "plain", "onnx")),
        *(f"{before} → {after}" for before, after in (run["nodes"], run["merges"])),
        f"{run['error']:.1e}",
    ]


HEADER = (
    "network",
    "parameters",
    "test accuracy",
    "seconds",
    "saved",
    "peak",
    "same predictions: fused",
    "plain",
    "onnxruntime",
    "nodes",
    "merges",
    "error",
)


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(**json.loads(args.worker)))
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB // 16)  # glibc: what is freed leaves the process at once
    rows = []
    epochs = QUICK_EPOCHS if args.quick else EPOCHS
    with quiet():
        for network in NETWORKS:
            run = in_fresh_process(__file__, json.dumps({"network": network, "epochs": epochs}))
            say(f"train_mocapsnet {network}: {run}")
            rows.append(row(network, run))
    print(TEXT.format(epochs=epochs, batch=BATCH))
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
