"""Loads what the command line calls MODEL: a checkpoint, a `.pt2` program, or an architecture with random weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
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
from reparam.ir import draw_examples, exported_shapes
from reparam.utils import SOURCE_FILES, Shapes

from .checkpoint import HOLDERS, Checkpoint, check_finite, check_values, load_checkpoint
from .infer import check_architecture, compare, infer_architecture, same_function, shapes_of
from .random_statistics import randomize_statistics
from .zoo import Architecture, build_architecture, build_without_init

LARGEST = 1e6  # outputs of a network with random weights that are taken as they are

__all__ = ["Checkpoint", "LoadedModel", "check_finite", "load_checkpoint", "load_model", "load_state"]


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be captured.

    module: in evaluation mode, with the weights in place, in the checkpoint's dtype.
    spec, arch_args: its architecture, where it has one; arch_inferred: whether the file alone told it.
    twins: architectures whose keys and shapes fit as well but which compute something else.
    equivalents: architectures that fit and compute the same.
    input_shapes: without the batch. exported: the program that `module` was made of.
    random_seed: of random weights, None for a checkpoint's. notes: what the user should know, in plain sentences.
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
    if checkpoint.exported is not None:
        return _from_exported(checkpoint, checkpoint.exported, arch)
    if checkpoint.module is not None and arch is None:
        check_finite(checkpoint.module.state_dict(), checkpoint.path)
        return LoadedModel(checkpoint.module.eval(), checkpoint.path, notes=_notes(checkpoint))
    if checkpoint.module is not None:
        checkpoint = dataclasses.replace(checkpoint, state=checkpoint.module.state_dict())
    return _from_state(checkpoint, arch, arch_args or {})


def _settled(built: Architecture, seed: int) -> tuple[str, ...]:
    """Gives norms the statistics of a random batch if the network explodes with those of a new one; returns the note.

    In evaluation mode a new batch norm is the identity, and each of a thousand residual blocks doubles the variance.
    """
    module = built.module
    if built.input_shapes is None or not any(isinstance(m, _NormBase) for m in module.modules()):
        return ()
    examples = draw_examples(module, built.input_shapes, batch=1, seed=seed)
    with torch.no_grad():
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
        raise InputError(f"{file} does not load ({type(error).__name__}: {error})") from error
    check_finite(module.state_dict(), folder)
    return LoadedModel(module.eval(), folder)


def _from_exported(checkpoint: Checkpoint, program: torch.export.ExportedProgram, arch: str | None) -> LoadedModel:
    if arch is not None:
        raise InputError(f"{checkpoint.path.name} holds its architecture already; leave out --arch {arch}")
    check_finite(program.state_dict, checkpoint.path)
    module = program.module(check_guards=False)
    return LoadedModel(module, checkpoint.path, input_shapes=exported_shapes(program), exported=program)


def _from_state(checkpoint: Checkpoint, arch: str | None, arch_args: Mapping[str, Any]) -> LoadedModel:
    inferred = arch is None
    check_values(checkpoint.state, checkpoint.path)
    also: tuple[str, ...] = ()
    if arch is None:
        found = infer_architecture(checkpoint.state, str(checkpoint.path))
        arch, arch_args, also = found.spec, {**found.arch_args, **arch_args}, found.also
    built = build_without_init(arch, arch_args)
    state = _aligned(checkpoint.state, built.module.state_dict())
    load_state(built, state, arch_args, checkpoint.path)
    check_finite(checkpoint.state, checkpoint.path)  # only now: shapes before values, which may be more than there seem
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
        notes=_notes(checkpoint),
    )


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


def _aligned(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Drops or adds a first name that all keys share (`model.conv.weight`), where the architecture's keys want that."""
    have, want = _first_names(state), _first_names(expected)
    if len(have) == 1 and not have & want and all("." in key for key in state):
        return {key.partition(".")[2]: value for key, value in state.items()}
    if len(want) == 1 and not have & want and all("." in key for key in expected):
        return {f"{next(iter(want))}.{key}": value for key, value in state.items()}
    return state


def _first_names(keys: Iterable[str]) -> set[str]:
    return {key.partition(".")[0] for key in keys}


def load_state(built: Architecture, state: Mapping[str, Tensor], arch_args: Mapping[str, Any], path: Path) -> None:
    """Puts `state` into `built.module` without copying it; every key and shape must fit.

    The network takes the state's dtype: its own where all agree, otherwise the one that holds them all exactly. A tied
    weight may be stored once. Raises InputError naming up to three keys of each kind that do not fit.
    """
    module = built.module
    expected = module.state_dict()
    tied = _tied(module)
    full = dict(state)
    for key, first in tied.items():
        if key not in full and first in full:
            full[key] = full[first]
        if first not in full and key in full:
            full[first] = full[key]
    full = {**{k: v for k, v in expected.items() if k.endswith("num_batches_tracked")}, **full}
    fit = compare(built.spec, arch_args, shapes_of(expected), shapes_of(full))
    if not fit.fits:
        raise InputError(
            f"{path.name} does not fit {built.spec}: {fit.describe()}{_hint(built.spec, state, arch_args)}"
        )
    for key, first in tied.items():
        if not torch.equal(full[key], full[first]):
            raise InputError(f"'{first}' and '{key}' are one weight in {built.spec}, but differ in {path.name}")
    module.load_state_dict({k: _own(v) for k, v in full.items()}, strict=True, assign=True)
    for key, first in tied.items():
        _set_parameter(module, key, module.get_parameter(first))
    _unify_dtype(module, full.values(), path)


def _own(value: Tensor) -> Tensor:
    """The value without its history; one that is stored once and repeated gets a storage of its own."""
    repeated = any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.detach().clone(memory_format=torch.contiguous_format) if repeated else value.detach()


def _hint(spec: str, state: Mapping[str, Tensor], arch_args: Mapping[str, Any]) -> str:
    fit = check_architecture(spec, shapes_of(state), arch_args)
    extra = {k: v for k, v in fit.arch_args.items() if k not in arch_args}
    if not fit.fits or not extra:
        return "; name the right architecture with --arch, or its arguments with --arch-args"
    text = ", ".join(f'"{k}": {str(v).lower()}' for k, v in extra.items())
    return f"; it fits with --arch-args '{{{text}}}'"


def _tied(module: nn.Module) -> dict[str, str]:
    """The second and later names of each parameter, with its first name."""
    first: dict[int, str] = {}
    named = list(module.named_parameters(remove_duplicate=False))
    for name, parameter in named:
        first.setdefault(id(parameter), name)
    return {name: first[id(p)] for name, p in named if first[id(p)] != name}


def _set_parameter(module: nn.Module, key: str, parameter: nn.Parameter) -> None:
    owner, _, name = key.rpartition(".")
    setattr(module.get_submodule(owner), name, parameter)


def _unify_dtype(module: nn.Module, values: Iterable[Tensor], path: Path) -> None:
    dtypes = {v.dtype for v in values if v.is_floating_point()}
    if small := [d for d in dtypes if d.itemsize < 2]:
        raise InputError(f"{path.name} has weights in {small[0]}, which no layer computes with; convert them first")
    if dtypes and dtypes != {torch.float32}:
        module.to(functools.reduce(torch.promote_types, dtypes))
