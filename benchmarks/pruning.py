"""Accuracy against multiply-accumulates without labels and without training, beside Torch-Pruning, on digits.

Small networks are trained on scikit-learn's digits, distorted to 16x16 (1,437 images); the accuracy is that on the
other 360 in ten fixed distortions each. Then each is pruned with 512 unlabelled training images: by `reparam.prune`,
and by Torch-Pruning (group L2, BN scale, Taylor with labels; global), whose result gets new BN statistics on the same
images, or our refit on the channels that it chose, so that the choice and the refit can be told apart. A plain network
is pruned as it is, to the same number of multiply-accumulates as the others. With `--after` the results are then
trained with labels for so many epochs, all in the same way. With `--latency` the budgets are of the time in onnxruntime
on one thread; widths are multiples of 8 then, the peer's too where it can round. All of it takes more than a day: each
figure is added to pruning.jsonl when it is found, and a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import statistics
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, network_of, quiet, say, table
from coverage_page import rows_of
from digits import TRAINED, digits
from pruning_nets import NETS
from pruning_peer import CRITERIA, chosen, peers, torch_pruning
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.errors import InputError
from reparam.ir import Program
from reparam.pruning import prune
from reparam.training import save_training_source

BUDGETS = (0.6, 0.4, 0.25, 0.2, 0.1)
SEEDS, EPOCHS, CALIBRATION = 5, 40, 512
RATE, RATE_AFTER = 3e-3, 1e-3
SIDE, COPIES = 16, 10
FOUND = Path(__file__).parent / "pruning.jsonl"
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # the 97.5 % quantile of Student's t for so many seeds

TEXT = """\
## Pruning on digits

Accuracy in % after pruning without labels and without training, mean over {seeds} seeds, with the half-width of the
95 % interval. The share is of the {budget} that may be left; each method stays just below. *recalibrated*:
BN statistics measured again on the same 512 images. *refitted*: `reparam.refit` on the channels that Torch-Pruning
chose. *reparam, group L2* and *random*: `reparam.prune` with channels chosen by the norm of their weights, as
Torch-Pruning's first criterion does, or drawn at random, refitted in the same loop. *plain network*: `reparam.prune` of
the plain form, to the same share of what the network had before it was made plain. *then ... epochs*: trained
with labels afterwards, ours with batch norms put back.
"""


def distorted(images: Tensor, seed: int) -> Tensor:
    """(N, 1, 16, 16): turned, scaled, sheared and moved at random, with noise; the same for a seed."""
    g = torch.Generator().manual_seed(seed)
    n = len(images)

    def uniform(size: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=g) * 2 - 1) * size

    angle, scale, shear, move = uniform(0.5), 1 + uniform(0.25), uniform(0.3), uniform(0.25, 2)
    rows = [
        torch.stack([angle.cos() * scale, shear - angle.sin(), move[:, 0]], 1),
        torch.stack([angle.sin(), angle.cos() * scale, move[:, 1]], 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, SIDE, SIDE], align_corners=False)
    x = F.grid_sample(F.interpolate(images, (SIDE, SIDE), mode="bilinear"), grid, align_corners=False)
    return x + 0.4 * torch.randn(x.shape, generator=g)


def train(module: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, rate: float = RATE) -> None:
    """AdamW with one cycle, on images that are distorted anew in every epoch."""
    torch.manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), rate)
    steps = epochs * math.ceil(len(images) / 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    module.train()
    for epoch in range(epochs):
        x = distorted(images, 1000 * seed + epoch)
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(module(x[batch]), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    module.eval()


@torch.no_grad()
def accuracy(module: nn.Module, x: Tensor, labels: Tensor) -> float:
    return 100 * float((torch.cat([module(part).argmax(1) for part in x.split(200)]) == labels).float().mean())


# ---- the measurement ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What is measured of a network. budgets: shares that may be left. epochs: of its own training.

    after: epochs of training behind the cut. latency: whether the budgets are of that. only: parts of the names of
    methods that are tried; all of them without any.
    """

    budgets: Sequence[float] = BUDGETS
    epochs: int = EPOCHS
    after: int = 0
    latency: bool = False
    only: Sequence[str] = ()

    def wanted(self, method: str) -> bool:
        """A plain network has no budget of the time that the network took before it was made plain."""
        if self.latency and method.startswith(PLAIN):
            return False
        return not self.only or any(part in method for part in self.only)

    def trained(self, method: str) -> str:
        return f"{method}, then {self.after} epochs"

    def methods(self) -> list[str]:
        """Those that are asked for, and that can be tried here."""
        names = list(OURS)
        for criterion in CRITERIA if torch_pruning() is not None else ():
            names += [f"Torch-Pruning, {criterion}, {how}" for how in ("recalibrated", "refitted")]
        named = [*OURS, *(f"Torch-Pruning, {c}" for c in CRITERIA if torch_pruning() is not None)]
        names += [self.trained(m) for m in named] if self.after else []
        return [m for m in names if self.wanted(m)]


Figure = tuple[str, float]  # a method, and the share that it left; the method "base" has the share 1


def measure(
    name: str, seed: int, setting: Setting, known: Collection[Figure] = ()
) -> Iterator[tuple[str, float, float | None]]:
    """(method, share, accuracy) of one network, but for those that are known; None where no network is that small."""

    def left(method: str, share: float) -> bool:
        return setting.wanted(method) and (method, share) not in known

    if all((m, b) in known for b in setting.budgets for m in setting.methods()) and ("base", 1.0) in known:
        return
    images, labels = digits()
    images, test = images[:TRAINED], images[TRAINED:]
    x = torch.cat([distorted(test, 100_000 + i) for i in range(COPIES)])
    y = labels[TRAINED:].repeat(COPIES)
    torch.manual_seed(seed)
    module = NETS[name]()
    train(module, images, labels[:TRAINED], setting.epochs, seed)
    calibration, own = distorted(images, 77_777)[:CALIBRATION], labels[:CALIBRATION]

    def afterwards(small: nn.Module) -> float:
        train(small, images, labels[:TRAINED], setting.after, seed + SEEDS, RATE_AFTER)
        return accuracy(small, x, y)

    if ("base", 1.0) not in known:
        yield "base", 1.0, accuracy(module, x, y)
    tp = torch_pruning()
    for share in setting.budgets:
        for method, options in OURS.items():
            then = setting.after > 0 and left(setting.trained(method), share)
            if not left(method, share) and not then:
                continue
            budget = {"latency" if setting.latency else "macs": share}
            given, form = module, "residual"
            if method == PLAIN:
                converted, form = convert(module, x[:2], to="plain"), "plain"
                given, size = converted.module, converted.report
                budget = {"macs": share * size.before.macs / size.after.macs}
            try:
                result = prune(given, x[:2], calibration, form=form, seed=seed, **budget, **options)
            except InputError as error:  # no network is as fast as that
                say(f"{method} at {share}: {error}")
                yield method, share, None
                continue
            if left(method, share):
                yield method, share, accuracy(result.module, x, y)
            if then:
                yield setting.trained(method), share, afterwards(trainable(result.program, calibration))
        for criterion in CRITERIA if tp is not None else ():
            trained = setting.trained(f"Torch-Pruning, {criterion}")
            given = {m: f for m, f in peers(criterion, module, calibration).items() if left(m, share)}
            then = setting.after > 0 and left(trained, share)
            if not given and not then:
                continue
            found = chosen(tp, criterion, module, calibration, own, share, latency=setting.latency)
            for method, made in given.items():
                yield method, share, None if found is None else accuracy(made(found[0]), x, y)
            if then:
                yield trained, share, None if found is None else afterwards(found[1])


PLAIN = "reparam, plain network"
OURS: dict[str, dict[str, Any]] = {
    "reparam, coupled": {},
    "reparam, per depth": {"streams": "per-depth"},
    "reparam, group L2": {"score": "magnitude"},
    "reparam, random": {"score": "random"},
    PLAIN: {},
}


def trainable(program: Program, x: Tensor) -> nn.Module:
    """The network with batch norms put back."""
    with tempfile.TemporaryDirectory() as name:
        save_training_source(program, Path(name) / "source", x)
        return network_of(Path(name) / "source")


# ---- what was found ----------------------------------------------------------------------------------------------


def record_of(name: str, seed: int, setting: Setting, file: Path) -> dict[Figure, float | None]:
    """What the file has of a network, measured with such budgets."""
    own = _key(name, seed, setting)
    return {(r["method"], r["share"]): r["accuracy"] for r in rows_of(file) if own.items() <= r.items()}


def _key(name: str, seed: int, setting: Setting) -> dict[str, Any]:
    return {"net": name, "seed": seed, "epochs": setting.epochs, "budget": "latency" if setting.latency else "macs"}


def go_on(name: str, seed: int, setting: Setting, file: Path) -> None:
    """Measures what the file does not have, and adds each figure to it as it is found."""
    known = record_of(name, seed, setting, file)
    for method, share, value in measure(name, seed, setting, known):
        row = _key(name, seed, setting) | {"method": method, "share": share, "accuracy": value}
        whole = not file.exists() or file.read_bytes().endswith(b"\n")
        with file.open("a", encoding="utf-8") as out:
            line = json.dumps(row | {"on": datetime.date.today().isoformat()})
            out.write(f"{line}\n" if whole else f"\n{line}\n")  # behind a line that was cut
        say(f"{name} {seed} {method} {share}: {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nets", nargs="*", help=f"default: all of {', '.join(NETS)}")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--after", type=int, default=0, metavar="EPOCHS", help="train so many more with labels")
    parser.add_argument("--latency", action="store_true", help="budgets are of the time in onnxruntime")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="PART", help="methods with a part of these in the name"
    )
    parser.add_argument("--found", type=Path, default=FOUND, help="the file of JSON lines that is gone on with")
    parser.add_argument("--quick", action="store_true", help="one network, two seeds, two epochs, one budget")
    args = parser.parse_args()
    torch.set_num_threads(1)
    nets = ["resnet20"] if args.quick else args.nets or list(NETS)
    seeds, epochs = (2, 2) if args.quick else (args.seeds, EPOCHS)
    setting = Setting((0.4,) if args.quick else tuple(args.budgets), epochs, args.after, args.latency, args.only)
    print(TEXT.format(seeds=seeds, budget="time" if args.latency else "multiply-accumulates"))
    say(machine())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trial.jsonl" if args.quick else args.found
        for name in nets:
            for seed in range(seeds):
                with quiet():
                    go_on(name, seed, setting, file)
            print(shown(name, [record_of(name, seed, setting, file) for seed in range(seeds)], setting))


def shown(name: str, found: Sequence[Mapping[Figure, float | None]], setting: Setting) -> str:
    """A table of one network. found: the figures of each seed."""

    def cell(method: str, share: float) -> str:
        return told([v for figures in found if (v := figures.get((method, share))) is not None])

    rows = [[m, *(cell(m, b) for b in setting.budgets)] for m in setting.methods()]
    return f"### {name}, {cell('base', 1.0)} before\n\n{table(['', *(f'{b:g}' for b in setting.budgets)], rows)}"


def told(values: Sequence[float]) -> str:
    """Mean and half-width of the 95 % interval."""
    if not values:
        return "—"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = STUDENT.get(len(values), 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


if __name__ == "__main__":
    main()
