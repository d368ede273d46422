"""Checkpoints: the state dict of a module as a file that convert takes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.utils import write_atomically

CHECKPOINTS = (".pt", ".pth", ".safetensors")


def save_checkpoint(module: nn.Module, path: Path, *, force: bool) -> None:
    """The state dict as the suffix says, whole or not at all.

    It is made in memory: torch's writer ends the process where a disk is full. Raises InputError for another suffix,
    for a file that exists, and for a state that holds anything but tensors; MachineError when it cannot be written.
    """
    if path.suffix not in CHECKPOINTS:
        raise InputError(f"the output {path} is a checkpoint; name it {path.stem or 'model'}.pt")
    state: Mapping[str, Any] = module.state_dict()

    def write(file: IO[bytes]) -> None:
        if path.suffix == ".safetensors":
            from safetensors.torch import save

            file.write(save(_apart(state), metadata={"format": "pt"}))
            return
        content = io.BytesIO()
        torch.save(dict(state), content)
        file.write(content.getbuffer())

    write_atomically(path, write, force=force)


def _apart(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state, each with storage of its own. Raises InputError for a state that holds anything else."""
    other = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        raise InputError(f"'{other}' of the state is no tensor, and a .safetensors file holds nothing else; name a .pt")
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
