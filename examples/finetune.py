"""Fine-tunes source that `reparam.training.save_training_source` wrote, alone or under torchrun.

    python examples/finetune.py net --data images --input-shape 3,224,224 --config config.json -o tuned
    torchrun --nproc-per-node 4 examples/finetune.py net --data images --input-shape 3,224,224 -o tuned

Without labels, the network learns to give what a teacher gives on the same samples (Hinton et al. 2015): the network
itself as it is at the start, or the original that it was made of (--teacher original.pt2). With --labels it learns the
labels. Every fifth sample, chosen by the hash of its bytes, is held out, and figures are of those.

The folder of the result holds `model.py`, `model.safetensors` and `last.pt`, from which --resume goes on: the result is
that of a run that was not interrupted. `reparam convert tuned --trust` folds the norms again.

Several processes compute what one does with a batch as large as theirs together: gradients are averaged by
DistributedDataParallel, samples shared out by DistributedSampler, and batch norms use the statistics of all of
it (`processes.py`). They share a disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from processes import World, prepared
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from reparam import InputError, ReparamError
from reparam.capture import capture
from reparam.data import Deck, Preprocessing, Spooled, open_samples, read_config, spool
from reparam.loading import load

NOT_COMPARED = {"resume", "stop_after", "save_every", "workers", "scratch", "device", "output"}


def main(words: Sequence[str] | None = None) -> None:
    """Trains and writes the result."""
    args = parse(words)
    world = World(args.device)
    try:
        with spooled(args, world) as decks:
            Run(args, world, decks).train()
    except ReparamError as error:
        print(f"finetune: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    world.close()


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options; paths of the teacher, labels and data as they were given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, help="folder with model.py and model.safetensors")
    add("--data", required=True, help="samples: .npy, .npz, .safetensors, .tar; a folder of those or of images")
    add("--input-shape", required=True, metavar="C,H,W", help="shape of one sample")
    add("--labels", nargs="?", const="", metavar="y.npy|folders", help="learn labels; without a value, those in DATA")
    add("--teacher", metavar="original.pt2|DIR", help="network to learn from; default: SOURCE as it is at the start")
    add("--temperature", type=float, default=1.0, help="scores are divided by it before they are compared")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the result")
    add("--epochs", type=int, default=10)
    add("--batch", type=int, default=32, help="samples in one step of each process")
    add("--optimizer", choices=("adamw", "sgd"), default="adamw")
    add("--lr", type=float, default=1e-3, help="largest learning rate")
    add("--weight-decay", type=float, default=1e-4, help="of weights; biases and norms have none")
    add(
        "--warmup",
        type=float,
        default=0.05,
        help="share of the steps in which the rate rises; it falls as a cosine",
    )
    add("--ema", type=float, default=0.0, metavar="DECAY", help="write an average of the weights, such as 0.999")
    add("--clip", type=float, default=0.0, metavar="NORM", help="largest norm of the gradient")
    add("--bf16", action="store_true", help="compute in bfloat16 where autocast does")
    add("--config", type=Path, help="of images: a config.json or preprocessor_config.json")
    add("--mean", help="of images: R,G,B in [0, 1]")
    add("--std", help="of images: R,G,B in [0, 1]")
    add("--limit", type=int, help="use at most so many samples")
    add("--scratch", type=Path, help="where samples are laid out; seen by all processes")
    add("--workers", type=int, default=0, help="processes that read samples")
    add(
        "--save-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="write last.pt so often, not only after epochs",
    )
    add("--stop-after", type=int, default=0, metavar="STEPS", help="stop after so many steps, to be resumed")
    add("--resume", action="store_true", help="go on from last.pt")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    args = parser.parse_args(words)
    if min(args.epochs, args.batch) < 1 or args.lr <= 0 or args.temperature <= 0 or not 0 <= args.ema < 1:
        parser.error("--epochs, --batch, --lr and --temperature have to be above 0, and --ema from 0 to below 1")
    return args


# ---- networks and samples ----------------------------------------------------------------------------------------


def load_network(name: str | Path) -> nn.Module:
    """A folder of source, whose code is run, or a file, of which nothing is run."""
    return load(name, trust=Path(name).is_dir()).module


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Samples and labels of a deck, in files that are mapped into memory."""

    def __init__(self, deck: Deck) -> None:
        rows, (_, *shape) = len(deck), deck.shapes[0]
        flat = torch.from_file(str(deck.files[0]), size=rows * math.prod(shape), dtype=deck.dtypes[0])
        self.inputs = flat.reshape(rows, *shape)
        labels = deck.labels
        self.labels = torch.from_file(str(labels), size=rows, dtype=torch.int64) if labels else torch.zeros(rows).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]


@contextlib.contextmanager
def spooled(args: argparse.Namespace, world: World) -> Iterator[Spooled]:
    """The samples in flat files, which the first process writes and all read."""
    with contextlib.ExitStack() as stack:
        box: list[Any] = [None]
        if world.rank == 0:
            box = [stack.enter_context(spool(samples_of(args), limit=args.limit, folder=args.scratch))]
        if world.size > 1:
            dist.broadcast_object_list(box)
        yield box[0]
        if world.size > 1:
            dist.barrier()  # the files are there until all have read them


def samples_of(args: argparse.Namespace) -> Any:
    """The samples of --data, for the network's input."""
    shape = [int(n) for n in args.input_shape.split(",")]
    program = capture(load_network(args.source), (torch.zeros(2, *shape),)).program
    how = read_config(args.config) if args.config else None
    if args.mean and args.std:
        mean, std = (tuple(float(v) for v in text.split(",")) for text in (args.mean, args.std))
        how = Preprocessing(mean, std, (shape[-2], shape[-1]))
    samples = open_samples(args.data, program, preprocessing=how, labels=args.labels or None)
    if samples.inputs.fixed or len(samples.inputs.specs) != 1:
        raise InputError("the network has to take one input, with a batch of any size")
    return samples


# ---- training ----------------------------------------------------------------------------------------------------


def averaging(decay: float) -> Any:
    """The update of AveragedModel: what does not change stays as it is, infinite bounds of clamps among it."""

    def update(averages: list[Tensor], values: list[Tensor], _: Any) -> None:
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.add_((value - average).nan_to_num(0.0, 0.0, 0.0), alpha=1 - decay)
            else:
                average.copy_(value)

    return update


class Run:
    """One run of training."""

    def __init__(self, args: argparse.Namespace, world: World, decks: Spooled) -> None:
        self.args, self.world = args, world
        self.fit, self.held = Samples(decks.fit), Samples(decks.held)
        if args.labels is not None and not decks.fit.labelled:
            raise InputError(f"{args.data} holds no labels; give them with --labels y.npy")
        if args.source.resolve() == args.output.resolve():
            raise InputError(f"{args.output} is the source; name another folder with -o")
        self.sampler: DistributedSampler[Any] = DistributedSampler(
            self.fit, world.size, world.rank, seed=args.seed, drop_last=True
        )
        self.steps = len(self.sampler) // args.batch
        if not self.steps:
            raise InputError(f"{len(self.fit)} samples to train on fill no batch of {args.batch} in each process")
        self.model = prepared(load_network(args.source), world)
        self.teacher = None
        if args.labels is None:
            teacher = load_network(args.teacher or args.source)
            self.teacher = teacher.to(world.device).requires_grad_(False)
        average = AveragedModel(self.model, multi_avg_fn=averaging(args.ema), use_buffers=True) if args.ema else None
        self.average = average
        self.optimizer = self._optimizer()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        gpus = [world.device] if world.device.type == "cuda" else None
        self.parallel: nn.Module = self.model
        if world.size > 1:  # buffers are equal everywhere, since norms see the whole batch
            self.parallel = DistributedDataParallel(self.model, device_ids=gpus, broadcast_buffers=False)
        self.settings = {k: str(v) for k, v in vars(args).items() if k not in NOT_COMPARED} | {"world": str(world.size)}
        self.step = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        args, trained = self.args, [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": args.weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if args.optimizer == "sgd":
            return torch.optim.SGD(groups, args.lr, momentum=0.9, nesterov=True)
        return torch.optim.AdamW(groups, args.lr)

    def _rate(self, step: int) -> float:
        total = self.args.epochs * self.steps
        rising = max(1, round(self.args.warmup * total))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    def train(self) -> None:
        """Trains from the start or from last.pt, and writes the result."""
        args, last = self.args, self.args.output / "last.pt"
        if args.resume:
            self._restore(last)
        elif last.exists():
            raise InputError(f"{last} is of another run; go on from it with --resume, or name another folder with -o")
        begun = self.step
        while self.step < args.epochs * self.steps:
            epoch, done = divmod(self.step, self.steps)
            loss = 0.0
            for inputs, labels in self._batches(epoch, done):
                loss = self._learn(inputs.to(self.world.device), labels.to(self.world.device))
                stop = args.stop_after and self.step - begun >= args.stop_after
                if stop or (args.save_every and self.step % args.save_every == 0):
                    self._save(last)
                if stop:
                    return
            self._save(last)
            self._tell(epoch, loss)
        self._write()

    def _batches(self, epoch: int, done: int) -> DataLoader[tuple[Tensor, Tensor]]:
        """What is left of an epoch after `done` steps, for this process."""
        self.sampler.set_epoch(epoch)
        order = list(self.sampler)[done * self.args.batch : self.steps * self.args.batch]
        own = torch.Generator()  # the loader draws from it, and nothing from the one that networks draw from
        return DataLoader(
            self.fit,
            self.args.batch,
            sampler=order,
            num_workers=self.args.workers,
            generator=own,  # type: ignore[arg-type]
        )

    def _learn(self, inputs: Tensor, labels: Tensor) -> float:
        """One step; returns the loss of this process."""
        args = self.args
        torch.manual_seed(args.seed + self.step * self.world.size + self.world.rank)  # the same after an interruption
        self.model.train()
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=args.bf16):
            scores = self.parallel(inputs)
        loss = self._loss(scores.float(), inputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if args.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), args.clip)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1
        return loss.item()

    def _loss(self, scores: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy to the labels; without them, T^2 KL(teacher || network) at the temperature T."""
        if self.teacher is None:
            return F.cross_entropy(scores, labels)
        with torch.no_grad():
            wanted = self.teacher(inputs).float()
        one, other = (F.log_softmax(s / self.args.temperature, 1) for s in (scores, wanted))
        return F.kl_div(one, other, reduction="batchmean", log_target=True) * self.args.temperature**2

    @torch.no_grad()
    def _tell(self, epoch: int, loss: float) -> None:
        """Prints, for the held-out samples, how often the network says what the labels or the teacher say."""
        network = (self.model if self.average is None else self.average.module).eval()
        found = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        mine = range(self.world.rank, len(self.held), self.world.size)
        for batch, labels in DataLoader(self.held, self.args.batch, sampler=mine):
            inputs = batch.to(self.world.device)
            wanted = labels.to(self.world.device) if self.teacher is None else self.teacher(inputs).argmax(1)
            same = network(inputs).argmax(1) == wanted
            found += torch.tensor([int(same.sum()), same.numel()], device=found.device)
        right, count = self.world.total(found).tolist()
        if self.world.rank == 0:
            name = "accuracy" if self.teacher is None else "agreement"
            figures = {"epoch": epoch + 1, "loss": round(loss, 6), name: round(right / max(1, count), 4)}
            print(json.dumps(figures | {"held_out": int(count)}), flush=True)

    # ---- files -----------------------------------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        if self.world.rank != 0:
            return
        state = {
            "step": self.step,
            "settings": self.settings,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def _restore(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"there is no {path} to resume from; leave out --resume")
        state = torch.load(path, map_location=self.world.device, weights_only=True)
        other = [k for k, v in self.settings.items() if state["settings"].get(k) != v]
        if other:
            raise InputError(f"{path} is of a run with another --{other[0].replace('_', '-')}; resume with the same")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _write(self) -> None:
        """The result as source: the network, or the average of its weights."""
        if self.world.rank != 0:
            return
        folder = self.args.output
        network = self.model if self.average is None else self.average.module
        state = {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}
        save_file(state, folder / "model.new", metadata={"format": "pt"})
        (folder / "model.new").replace(folder / "model.safetensors")
        shutil.copyfile(self.args.source / "model.py", folder / "model.py")


if __name__ == "__main__":
    main()
