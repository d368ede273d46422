"""Trains the small reference architectures on scikit-learn's digits, converts them, and compares every prediction.

1,437 of the 1,797 images are for training, the others for the accuracy; the original and its two converted forms
predict all 1,797. Images are enlarged to what an architecture takes; one of features gets as many of the 64 pixels.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.loading import build_architecture
from reparam.models.registry import Entry, entries

ONE_INPUT = 1  # architectures of images or features; sets and points take no digits
EPOCHS = 8
TRAINED = 1437


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) of mean 0 and variance 1, and labels (1797,), in a fixed random order."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)[order]
    return (images - images.mean()) / images.std(), torch.tensor(labels)[order]


def shaped(images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The images as an architecture takes them: (N, *shape)."""
    if len(shape) == 1:
        side = max(1, int(shape[0] ** 0.5))
        return F.adaptive_avg_pool2d(images, side).flatten(1)
    return F.interpolate(images, shape[1:], mode="bilinear").expand(-1, shape[0], -1, -1).contiguous()


def takes_digits(entry: Entry) -> bool:
    """Whether it is a small one of images or of a square number of features."""
    shape = entry.inputs[0]
    square = len(shape) == 1 and round(shape[0] ** 0.5) ** 2 == shape[0]
    return entry.name.endswith("_small") and len(entry.inputs) == ONE_INPUT and (len(shape) == 3 or square)


def train(module: nn.Module, x: Tensor, labels: Tensor, epochs: int) -> None:
    torch.manual_seed(0)
    module.train()
    optimiser = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], 3e-3)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINED).split(64):
            optimiser.zero_grad()
            F.cross_entropy(module(x[batch]), labels[batch]).backward()
            optimiser.step()
    module.eval()


@torch.no_grad()
def predictions(module: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([module(part).argmax(1) for part in x.split(256)])


def measure(name: str, epochs: int = EPOCHS) -> tuple[float, int, int]:
    """The accuracy on what was not trained on, and how many predictions differ in the fused and in the plain form."""
    images, labels = digits()
    built = build_architecture(f"reparam/{name}")
    assert built.input_shapes is not None
    x = shaped(images, tuple(built.input_shapes[0]))
    train(built.module, x, labels, epochs)
    before = predictions(built.module, x)
    accuracy = float((before == labels)[TRAINED:].float().mean())
    fused, plain = (predictions(convert(built.module, x[:2], to=to).module, x) for to in ("fused", "plain"))
    return accuracy, int((fused != before).sum()), int((plain != before).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="small architectures; default: all that take images or features")
    parser.add_argument("--quick", action="store_true", help="one epoch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| architecture | accuracy | predictions that differ: fused | plain | seconds |\n|---|---|---|---|---|")
    for name in args.names or [e.name for e in entries().values() if takes_digits(e)]:
        start = time.perf_counter()
        accuracy, fused, plain = measure(name, 1 if args.quick else EPOCHS)
        seconds = time.perf_counter() - start
        print(f"| `{name}` | {100 * accuracy:.1f} % | {fused} | {plain} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
