"""The peak memory of the verbs of the command line, against the size of the checkpoint, each in a fresh process."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import GIB, MISSING, answer, in_fresh_process, options, peak_memory, quiet, record, say, table
from torch import Tensor, nn

SEED = 0
TEXT = """\
## Peak memory

The highest resident memory of a process that runs a verb of the command line, imports of every package included:
relative to the size of the checkpoint, and, in brackets, to the bar of 2 checkpoints + 0.7 GiB, which is met below 1.
`verify` compares the checkpoint with what `convert` wrote. Each is a fresh process with one thread of torch. The
compiler of AOTInductor runs in processes of its own, which are not counted; neither are pages that the system keeps of
files. Random weights. The convolutional network has a stem and layers of 3x3 with batch norms, on 8 x 8 values; the
transformers are of pre-norm blocks, on 16 tokens.
"""


class ConvNet(nn.Module):
    """images (N, 3, H, W) -> (N, 10): 3x3 convolutions of one width with batch norms."""

    def __init__(self, width: int = 1536, depth: int = 7) -> None:
        super().__init__()
        sizes = [3, *[width] * (depth + 1)]
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).mean((2, 3)))
        return found


class Block(nn.Module):
    """(N, T, C) -> (N, T, C): attention and a perceptron, a layer norm before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        found: Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return found


class Transformer(nn.Module):
    """images (N, 3, H, W) -> (N, 10), in patches of 16 x 16."""

    def __init__(self, width: int = 1024, depth: int = 12) -> None:
        super().__init__()
        self.patch, self.blocks = nn.Conv2d(3, width, 16, 16), nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.blocks(self.patch(x).flatten(2).transpose(1, 2))).mean(1))
        return found


@dataclass(frozen=True)
class Case:
    """A network: its class, what it is called with, and the shape of one image."""

    kind: str
    sizes: tuple[int, int]
    shape: str

    @property
    def options(self) -> list[str]:
        """Those of the command line that name it."""
        return ["--arch", f"peak_memory:{self.kind}", "--arch-args", self.arguments, "--input-shape", self.shape]

    @property
    def options_of_a(self) -> list[str]:
        return ["--arch-a", f"peak_memory:{self.kind}", "--arch-args-a", self.arguments, "--input-shape", self.shape]

    @property
    def arguments(self) -> str:
        return json.dumps(dict(zip(("width", "depth"), self.sizes, strict=True)))

    def write(self, path: Path) -> None:
        """The checkpoint: random weights, and norms that a wrong fold would not survive."""
        torch.manual_seed(SEED)
        network = globals()[self.kind](*self.sizes)
        for part in network.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.normal_(part.bias, 0.0, 0.1)
            if isinstance(part, nn.BatchNorm2d):
                assert part.running_mean is not None and part.running_var is not None
                nn.init.normal_(part.running_mean, 0.0, 0.1)
                nn.init.uniform_(part.running_var, 0.5, 1.5)
        torch.save(network.state_dict(), path)


CASES = {
    "7 convolutions of 1536": Case("ConvNet", (1536, 7), "3,8,8"),
    "transformer, 12 layers of 1024": Case("Transformer", (1024, 12), "3,64,64"),
    "transformer, 19 layers of 1536": Case("Transformer", (1536, 19), "3,64,64"),
}
QUICK_CASES = {"transformer, 4 layers of 512": Case("Transformer", (512, 4), "3,64,64")}
VERBS = ("convert", "convert --source", "verify", "export onnx", "export openvino", "export aoti")


def command(verb: str, case: Case, folder: Path) -> list[str]:
    """The arguments of the command line."""
    checkpoint, program = str(folder / "net.pt"), str(folder / "net.pt2")
    if verb == "verify":
        return ["verify", checkpoint, program, *case.options_of_a, "--quiet"]
    if verb.startswith("export"):
        kind = verb.split()[1]
        suffix = {"onnx": "onnx", "openvino": "xml", "aoti": "aoti.pt2"}[kind]
        target = ["--format", kind, "--output", str(folder / f"exported.{suffix}")]
        return ["export", checkpoint, *case.options, *target, "--force", "--quiet"]
    source = ["--source", str(folder / "source")] if "--source" in verb else []
    return ["convert", checkpoint, *case.options, "--output", program, *source, "--force", "--quiet"]


def measure(arguments: Sequence[str]) -> dict[str, int]:
    """Bytes of the peak of this process, in which the command line runs once."""
    from reparam.cli import main as reparam

    torch.set_num_threads(1)
    sys.argv = ["reparam", *arguments]
    code: Any = 0
    try:
        reparam()
    except SystemExit as end:
        code = end.code
    if code:
        raise RuntimeError(f"exit code {code}")
    return {"peak": peak_memory()}


def _cell(run: Mapping[str, Any], checkpoint: int) -> str:
    if "error" in run:
        return MISSING
    return f"{run['peak'] / checkpoint:.2f} ({run['peak'] / (2 * checkpoint + 0.7 * GIB):.2f})"


def main() -> None:
    args = options(__doc__, worker=True)
    if args.worker:
        answer(lambda: measure(json.loads(args.worker)))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    figures: dict[str, float] = {}
    with quiet():
        for name, case in (QUICK_CASES if args.quick else CASES).items():
            with tempfile.TemporaryDirectory() as text:
                folder = Path(text)
                maker = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import peak_memory as p; "
                written = f"p.Case{case.kind, case.sizes, case.shape}.write(p.Path({str(folder / 'net.pt')!r}))"
                subprocess.run([sys.executable, "-c", maker + written], check=True)
                checkpoint = (folder / "net.pt").stat().st_size
                row = [f"{name} ({checkpoint / GIB:.2f} GiB)"]
                for verb in VERBS:
                    run = in_fresh_process(__file__, json.dumps(command(verb, case, folder)))
                    say(f"peak_memory {name}, {verb}: {run}")
                    row.append(_cell(run, checkpoint))
                    if "peak" in run:
                        figures[f"peak memory, {name}, {verb}"] = run["peak"] / checkpoint
                    for file in folder.glob("exported.*"):
                        file.unlink()
                rows.append(row)
    record(figures)
    print(TEXT)
    print(table(("network", *VERBS), rows))


if __name__ == "__main__":
    main()
