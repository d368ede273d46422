"""Loads what the command line calls MODEL: a checkpoint, a `.pt2` program, or an architecture with random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from reparam.errors import InputError, UnsafeFileError
from reparam.ir import draw_examples, exported_shapes, refuse_odd_tensors, unlift
from reparam.utils import SOURCE_FILES, Shapes, Stamp, describe_error, first_line, foreign_code

from .checkpoint import HOLDERS, Checkpoint, load_checkpoint
from .infer import Inference, check_architecture, infer_architecture, same_function, shapes_of
from .random_statistics import randomize_statistics
from .state import check_finite, check_program_finite, load_state
from .state_parts import likely_parts, network_part
from .zoo import Architecture, build_architecture, build_without_init, shapes_of_network

LARGEST = 1e6  # outputs of a network with random weights that are taken as they are


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be captured.

    module: in evaluation mode, with the weights in place, in the checkpoint's dtype.
    spec, arch_args: its architecture, where it has one; arch_inferred: whether the file alone told it.
    twins: architectures whose keys and shapes fit as well but which compute something else.
    equivalents: architectures that fit and compute the same.
    input_shapes: without the batch. exported: the program that `module` was made of.
    random_seed: of random weights, None for a checkpoint's. notes: what the user should know, in plain sentences.
    stamp: of the file as it was read.
    """

    module: nn.Module
    source: Path | None = None
    spec: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    arch_inferred: bool = False
    twins: tuple[str, ...] = ()
    equivalents: tuple[str, ...] = ()
    input_shapes: Shapes | None = None
    exported: torch.export.ExportedProgram | None = None
    random_seed: int | None = None
    notes: tuple[str, ...] = ()
    stamp: Stamp | None = None


def load_model(
    model: str | Path | None,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    trust: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Loads the file `model` (or folder of source), or builds `arch` with random weights from `seed` without one.

    Without `arch`, the architecture of a state dict is inferred from the file's name, its keys and its shapes. Random
    weights come with the statistics that a new network has, or, where its values would then grow without bound, with
    those of a random batch; a note says so.

    Raises InputError for a file that is missing, damaged or of another kind, weights that are not finite or do not fit
    the architecture; UnsafeFileError for a file that would run code; MachineError when a zoo package is missing.
    """
    with foreign_code(f"loading {model if model is not None else arch}", errors=True):
        return _load(model, arch, arch_args, trust=trust, seed=seed)


def _load(
    model: str | Path | None, arch: str | None, arch_args: Mapping[str, Any] | None, *, trust: bool, seed: int
) -> LoadedModel:
    if model is None:
        if arch is None:
            raise InputError("there is nothing to load; give a checkpoint, or an architecture with --arch")
        built = build_architecture(arch, arch_args, seed=seed)
        args, notes = dict(arch_args or {}), _settled(built, seed)
        return LoadedModel(
            built.module, None, arch, args, input_shapes=built.input_shapes, random_seed=seed, notes=notes
        )
    if (Path(model) / SOURCE_FILES[0]).is_file():
        return _from_source(Path(model), arch, trust=trust)
    checkpoint = load_checkpoint(model, trust=trust)
    return dataclasses.replace(_from_checkpoint(checkpoint, arch, arch_args or {}), stamp=checkpoint.stamp)


def _from_checkpoint(checkpoint: Checkpoint, arch: str | None, arch_args: Mapping[str, Any]) -> LoadedModel:
    if checkpoint.exported is not None:
        return _from_exported(checkpoint, checkpoint.exported, arch)
    if checkpoint.module is not None and arch is None:
        check_finite(checkpoint.module, checkpoint.path)
        return LoadedModel(checkpoint.module.eval(), checkpoint.path, notes=_notes(checkpoint))
    if checkpoint.module is not None:
        checkpoint = dataclasses.replace(checkpoint, state=checkpoint.module.state_dict())
    return _from_state(checkpoint, arch, arch_args)


def _settled(built: Architecture, seed: int) -> tuple[str, ...]:
    """Gives norms the statistics of a random batch if the network explodes with those of a new one; returns the note.

    In evaluation mode a new batch norm is the identity, and each of a thousand residual blocks doubles the variance.
    """
    module = built.module
    if built.input_shapes is None or not any(isinstance(m, _NormBase) for m in module.modules()):
        return ()
    examples = draw_examples(module, built.input_shapes, batch=1, seed=seed)
    with torch.no_grad(), foreign_code(f"running {built.spec} on a random input", errors=True):
        outputs = [t for t in pytree.tree_leaves(module(*examples)) if isinstance(t, Tensor) and t.is_floating_point()]
    if all(bool((t.abs() <= LARGEST).all()) for t in outputs):
        return ()
    with contextlib.suppress(InputError):  # of outputs that are still large; the conversion judges them
        randomize_statistics(module, examples, seed, gains=False)
    return (f"{built.spec} explodes with the statistics of a new network; it has those of a random batch, disturbed",)


def _from_source(folder: Path, arch: str | None, *, trust: bool) -> LoadedModel:
    """The network of a folder that `convert --source` wrote: its `model.py` is run, so it has to be trusted."""
    file = folder / SOURCE_FILES[0]
    if not trust:
        raise UnsafeFileError(f"loading {folder} runs the code in {file}; read it, and then pass --trust")
    if arch is not None:
        raise InputError(f"{folder} holds its architecture already; leave out --arch {arch}")
    found = importlib.util.spec_from_file_location("reparam_source", file)
    assert found is not None and found.loader is not None
    code = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(code)
        module = code.load(folder)
    except Exception as error:
        raise InputError(f"{file} does not load ({describe_error(error)})") from error
    check_finite(module, folder)
    return LoadedModel(module.eval(), folder)


def _from_exported(checkpoint: Checkpoint, program: torch.export.ExportedProgram, arch: str | None) -> LoadedModel:
    if arch is not None:
        raise InputError(f"{checkpoint.path.name} holds its architecture already; leave out --arch {arch}")
    check_program_finite(program, checkpoint.path)
    try:
        module = unlift(program)
    except Exception as error:  # of what torch writes as Python
        raise InputError(
            f"{checkpoint.path.name} is not a program that runs ({first_line(error)[:200]}); export it again"
        ) from error
    return LoadedModel(module, checkpoint.path, input_shapes=exported_shapes(program), exported=program)


def _from_state(checkpoint: Checkpoint, arch: str | None, arch_args: Mapping[str, Any]) -> LoadedModel:
    inferred = arch is None
    refuse_odd_tensors(checkpoint.state.items(), checkpoint.path.name)
    also: tuple[str, ...] = ()
    if arch is None:
        found = _inferred(checkpoint)
        arch, arch_args, also = found.spec, {**found.arch_args, **arch_args}, found.also
    built = build_without_init(arch, arch_args)
    expected = shapes_of_network(built.module, shapes_of(checkpoint.state))
    part = network_part(checkpoint.state, expected, checkpoint.path.name)
    state = part.state
    load_state(built, state, arch_args, checkpoint.path, checkpoint.others)
    check_finite(built.module, checkpoint.path)  # only now: shapes before values, which may be more than there seem
    twins, equivalents = _split_twins(built, state, also, checkpoint.path)
    return LoadedModel(
        module=built.module,
        source=checkpoint.path,
        spec=arch,
        arch_args=dict(arch_args),
        arch_inferred=inferred,
        twins=twins,
        equivalents=equivalents,
        input_shapes=built.input_shapes,
        notes=(*_notes(checkpoint), *([part.note] if part.note else [])),
    )


def _inferred(checkpoint: Checkpoint) -> Inference:
    """The architecture of the state, or of the part of it that is a network. Raises InputError about the whole."""
    first, *rest = likely_parts(checkpoint.state) or [checkpoint.state]
    try:
        return infer_architecture(first, str(checkpoint.path))
    except InputError:
        for part in rest:
            with contextlib.suppress(InputError):
                return infer_architecture(part, str(checkpoint.path))
        raise


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Says which of several state dicts was taken, since an average and the last step differ."""
    others = [k for k in checkpoint.ignored if k.partition(".")[0] in HOLDERS]
    if not others:
        return ()
    return (f"the weights under '{checkpoint.found_under}' are used; the file also holds {', '.join(others)}",)


def _split_twins(
    built: Architecture, state: Mapping[str, Tensor], also: Iterable[str], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the other architectures that fit which compute something else, and those which compute the same."""
    twins: list[str] = []
    equivalents: list[str] = []
    for spec in also:
        args = check_architecture(spec, shapes_of(state)).arch_args
        other = build_without_init(spec, args)
        load_state(other, state, args, path)
        same = same_function(built.module, other.module, built.input_shapes)
        (equivalents if same else twins).append(spec)
    return tuple(twins), tuple(equivalents)
