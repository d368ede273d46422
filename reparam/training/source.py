"""A converted network as source that trains: ordinary layers with batch norms behind them, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reparam.check import NetworkEvidence, check_emitted
from reparam.data import Preprocessing
from reparam.emit import finalize
from reparam.emit.source import write_source
from reparam.ir import Program
from reparam.utils import SOURCE_FILES, as_path, checked_call, refuse_existing

from .batch_norms import insert


@dataclass(frozen=True)
class TrainingSource:
    """What was written. norms: the names of the batch norms. evidence: that it is the same function before training."""

    model: Path
    weights: Path
    norms: tuple[str, ...]
    evidence: NetworkEvidence


@checked_call
def save_training_source(
    program: Program,
    folder: str | Path,
    batches: Any,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    seed: int = 0,
    force: bool = False,
) -> TrainingSource:
    """Writes `model.py` and `model.safetensors` of the program with batch norms that were measured on samples.

    program: of a conversion, such as `reparam.convert(model, x).program`; it is left untouched. batches, preprocessing,
    seed: as in `with_batch_norms`. The written `Model` is in evaluation mode the function of the program. In training
    mode (`model.train()`) its norms use the statistics of the batch. `convert` folds them again.

    Raises InputError when the files exist and `force` is false, MachineError when they cannot be written,
    NotEquivalentError when the result is not the same function, in float64 or in the dtype of its weights; otherwise
    like `with_batch_norms`.
    """
    path = as_path(folder, "the folder")
    for name in SOURCE_FILES:
        refuse_existing(path / name, force=force)  # before the work
    made = insert(program, batches, preprocessing, seed)
    emitted = finalize(made.program.copy())
    evidence = check_emitted(program, emitted, made.rounds, made.evidence, None)
    model, weights = write_source(emitted, path, force=force)
    return TrainingSource(model, weights, made.names, evidence)
