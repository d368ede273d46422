"""`analyze --what sensitivity` beside what the gate of int8 measures itself (docs/int8.md): both orders of layers.

Small architectures are trained on digits. The gate quantises one layer after the other and runs the file; the analysis
rounds a layer's weights and inputs and follows the error to the result, to first order, in one pass for all layers.
"""

from __future__ import annotations

import argparse
import time

import torch
from digits import digits, shaped, train
from torch import Tensor

import reparam
from reparam.engines.onnx import model_of, own_errors
from reparam.loading import build_architecture

NAMES = ("resnet_small", "mobilenet_v2_small", "preact_resnet_small")


def ranks(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).argsort().argsort().double()


def compared(name: str, epochs: int) -> tuple[int, float, float, float]:
    """Layers, Spearman's correlation of the two orders, and the seconds of the gate and of the analysis."""
    images, labels = digits()
    torch.manual_seed(0)
    built = build_architecture(f"reparam/{name}")
    assert built.input_shapes is not None
    x, model = shaped(images, built.input_shapes[0]), built.module
    train(model, x[:1437], labels[:1437], epochs)
    made, seen = reparam.convert(model.eval(), x[:2]), x[:256]
    begun = time.perf_counter()
    proto = model_of(made.program)
    own = {layer.name: layer.error for layer in own_errors(proto, [(part,) for part in seen.split(32)])}
    between = time.perf_counter()
    table = reparam.analyze(made.module, x[:2], what="sensitivity", data=[seen], batch=64, batches=2)["sensitivity"]
    ended = time.perf_counter()
    layers = [n.name for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    told = [10 ** (-float(row[3]) / 20) for row in table.rows]  # type: ignore[arg-type]
    pairs = [(own[layer], error) for layer, error in zip(layers, told, strict=True) if layer in own]
    a, b = (ranks([p[i] for p in pairs]) for i in (0, 1))
    return len(pairs), float(torch.corrcoef(torch.stack([a, b]))[0, 1]), between - begun, ended - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| architecture | layers | rank correlation | s, gate | s, analysis |\n|---|---|---|---|---|")
    for name in NAMES:
        count, alike, gate, analysis = compared(name, arguments.epochs)
        print(f"| `{name}` | {count} | {alike:.2f} | {gate:.1f} | {analysis:.1f} |", flush=True)


if __name__ == "__main__":
    main()
