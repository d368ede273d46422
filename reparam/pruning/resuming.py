"""The state of a pruning in a folder, so that a run that was interrupted can go on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from reparam.data import Spooled
from reparam.errors import InputError
from reparam.ir import Program
from reparam.utils import one_line, write_atomically, writing

from .gated import Gated
from .options import PruneOptions
from .quality import Quality
from .refitting import Fitted
from .report import Step

NAME = "prune.safetensors"


class State:
    """The folder, and what has to be the same for a state in it to fit: network, samples, and options of the rounds."""

    def __init__(self, folder: Path, program: Program, options: PruneOptions, decks: Spooled) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the state")
        self.path = folder / NAME
        self.run = {"model": _digest_of(program), "samples": _digest_of_samples(decks)}
        self.run["options"] = json.dumps(options.of_the_rounds)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def read(self, gated: Gated) -> tuple[list[Step], list[Fitted]]:
        """Puts the network into the state of the folder, if it holds one; returns the rounds and the last refit.

        Raises InputError for the state of another run, and for a file that is damaged.
        """
        if not self.path.exists():
            return [], []
        try:
            with safetensors.safe_open(str(self.path), "pt") as file:
                notes = file.metadata() or {}
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            steps = [_step(s) for s in json.loads(notes.get("steps", "null"))]
            fitted = [Fitted(**f) for f in json.loads(notes.get("fitted", "null"))]
            options = dict(json.loads(notes.get("options", "null")))
        except (OSError, ValueError, TypeError, KeyError, safetensors.SafetensorError) as error:
            raise InputError(
                f"{self.path} is damaged: {one_line(str(error))[:200]}; remove it to begin anew"
            ) from error
        constants = gated.program.constants
        fits = {n: v.shape for n, v in weights.items()} == {n: c.value.shape for n, c in constants.items()}
        other = self._other(notes, options) or ("" if fits else "of another model")
        if other:
            raise InputError(
                f"{self.path} is the state of another run, {other}; give another folder, or the same model, samples "
                "and options"
            )
        for name, value in weights.items():
            gated.set_weight(name, value)
        return steps, fitted

    def _other(self, notes: Mapping[str, str], options: Mapping[str, Any]) -> str:
        """What is not the same in a state, in words; empty where all is."""
        if notes.get("model") != self.run["model"]:
            return "of another model"
        if notes.get("samples") != self.run["samples"]:
            return "on other samples or labels"
        found = next((n for n, value in json.loads(self.run["options"]).items() if options.get(n) != value), None)
        return "" if found is None else f"with {found} {one_line(str(options.get(found)))[:60]}"

    def write(self, gated: Gated, steps: Sequence[Step], fitted: Sequence[Fitted]) -> None:
        """Keeps the state, in place of the one before. Raises MachineError when it cannot be written."""
        weights: dict[str, Tensor] = {
            n: c.value.detach().contiguous().clone() for n, c in gated.program.constants.items()
        }
        told: Mapping[str, Sequence[Step | Fitted]] = {"steps": steps, "fitted": fitted}
        notes = {name: json.dumps([dataclasses.asdict(r) for r in rows]) for name, rows in told.items()}
        notes |= self.run
        content = safetensors.torch.save(weights, notes)
        write_atomically(self.path, lambda file: file.write(content), force=True)


def _step(kept: Any) -> Step:
    return Step(float(kept["cost"]), Quality(**kept["cut"]), Quality(**kept["refitted"]))


def _digest_of(program: Program) -> str:
    """Of every weight."""
    digest = hashlib.blake2b(digest_size=16)
    for name, constant in sorted(program.constants.items()):
        value = constant.value.detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def _digest_of_samples(decks: Spooled) -> str:
    """Of all samples with their labels."""
    digest = hashlib.blake2b(digest_size=16)
    for deck in (decks.fit, decks.held):
        digest.update(f"{len(deck)} {deck.labelled}".encode())
        for piece in deck.contents():
            digest.update(piece)
    return digest.hexdigest()
