"""Writes a checkpoint of an architecture: random weights, normalisation statistics as of a trained network.

The state dict has the architecture's own names. Example: make_checkpoint.py torchvision/resnet50 resnet50.pt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from common import subject

from reparam.errors import ReparamError
from reparam.utils import write_atomically


def make_checkpoint(arch: str, path: Path, seed: int = 0) -> str:
    """Writes the state dict of `arch` to `path`, atomically. Returns a line that says what was written.

    Raises InputError for an unknown architecture, MachineError when the file cannot be written.
    """
    state = subject(arch, seed).module.state_dict()
    write_atomically(path, lambda file: torch.save(state, file), force=True)
    millions = sum(value.numel() for value in state.values()) / 1e6
    return f"{path}: {arch}, random weights (seed {seed}), {len(state)} tensors, {millions:.1f} M values"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", metavar="ARCH", help="torchvision/NAME, timm/NAME, reparam/NAME or module:factory")
    parser.add_argument("path", metavar="OUT.pt", type=Path, help="the file to write; an existing one is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the statistics (default 0)")
    args = parser.parse_args()
    try:
        print(make_checkpoint(args.arch, args.path, args.seed))
    except ReparamError as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
