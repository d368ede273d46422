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

from reparam.data import Preprocessing
from reparam.errors import InputError, ReparamError, UnsafeFileError
from reparam.ir import draw_examples, exported_shapes, refuse_odd_tensors, unlift
from reparam.onnx_input import import_onnx, is_onnx
from reparam.utils import (
    SOURCE_FILES,
    Facts,
    Shapes,
    Shown,
    Stamp,
    as_path,
    checked_call,
    counted,
    describe_error,
    first_line,
    foreign_code,
    opened,
)

from .adapting import told_arguments
from .checkpoint import Checkpoint, load_checkpoint
from .fit import compare, shapes_of
from .hub import read_hub
from .infer import Inference, adapted, check_architecture, infer_architecture, same_function
from .pretrained import build_pretrained
from .random_statistics import randomize_statistics
from .shards import is_index, load_folder, load_index
from .state import check_finite, check_program_finite, load_state
from .state_parts import Part, likely_parts, network_part
from .wanted import Want
from .zoo import Architecture, build_architecture, build_without_init, shapes_of_network

LARGEST = 1e6  # outputs of a network with random weights that are taken as they are


@dataclass(frozen=True, repr=False)
class LoadedModel(Shown):
    """A network ready to be captured.

    module: in evaluation mode, with the weights in place, in the checkpoint's dtype.
    spec, arch_args: its architecture, where it has one; arch_inferred: whether the file alone told it.
    twins: architectures whose keys and shapes fit as well but which compute something else.
    equivalents: architectures that fit and compute the same.
    input_shapes: without the batch. exported: the program that `module` was made of.
    random_seed: of random weights, None for others. published: the name of published weights.
    notes: what the user should know, in plain sentences. stamp: of the file as it was read.
    preprocessing, labels: of images and classes, where a config file tells them.
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
    published: str | None = None
    notes: tuple[str, ...] = ()
    stamp: Stamp | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values: where the network comes from, what it takes, and its notes.

        `parameters` are what training changes, `weights` all floating numbers, those of buffers (the statistics of
        batch norms) included: as a report counts them.
        """
        return {
            "source": None if self.source is None else str(self.source),
            "architecture": self.spec,
            "arch_args": dict(self.arch_args),
            "arch_inferred": self.arch_inferred,
            "input_shapes": None if self.input_shapes is None else [list(s) for s in self.input_shapes],
            "parameters": sum(p.numel() for p in self.module.parameters()),
            "weights": sum(v.numel() for v in _weights(self.module)),
            "random_seed": self.random_seed,
            "published": self.published,
            "notes": list(self.notes),
        }

    def summary(self) -> tuple[str, Facts]:
        """The architecture, and what is worth knowing of it."""
        known = self.as_dict()
        shapes = [" ".join("x".join(map(str, s)) for s in self.input_shapes)] if self.input_shapes else []
        facts = [("file", known["source"])] if known["source"] else []
        count, held = known["parameters"], known["weights"]
        facts += [("parameters", f"{count:,}{'' if held == count else f' ({held:,} with buffers, as reports count)'}")]
        facts += [("inputs", s) for s in shapes]
        return self.spec or type(self.module).__name__, [*facts, *(("note", n) for n in self.notes)]


def _weights(module: nn.Module) -> Iterable[Tensor]:
    """Every floating tensor of a module, once."""
    return (v for v in (*module.parameters(), *module.buffers()) if v.is_floating_point())


@checked_call
def load(
    model: str | Path | None,
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    trust: bool = False,
    seed: int = 0,
    key: str | None = None,
    prefix: str | None = None,
    pretrained: str | None = None,
) -> LoadedModel:
    """Loads the file `model` (or folder), or builds `arch` without one, with random weights from `seed`.

    model: a checkpoint or a program; the index of shards; a folder of a hub, of shards or of written source.
    arch, arch_args: the architecture. Without it that of a state dict is what a hub's config.json says, or is inferred
        from what the file says, its name, its keys and its shapes.
    trust: whether the file may run code. key: of the weights in the file ("ema.module"), where it has several.
    prefix: of the tensors' names; others are left out.
    pretrained: in place of a file, the published weights of `arch`: their name, or "default".

    The result holds the module, in evaluation mode, and the shapes of its inputs, where they are known; its tensors are
    (N, ...) of these.

    Random weights come with the statistics that a new network has, or, where its values would then grow without bound,
    with those of a random batch; a note says so.

    Raises InputError for a file that is missing, damaged or of another kind, weights that are not finite or do not fit
    the architecture; UnsafeFileError for a file that would run code; MachineError when a zoo package is missing.

    >>> import tempfile, torch, reparam
    >>> state = torch.nn.Linear(2, 3).state_dict()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"student": state, "teacher": state}, f"{folder}/pair.pt")
    ...     sizes = {"in_features": 2, "out_features": 3}
    ...     loaded = reparam.load(f"{folder}/pair.pt", key="teacher", arch="torch.nn:Linear", arch_args=sizes)
    >>> tuple(loaded.module.weight.shape)
    (3, 2)
    """
    with foreign_code(f"loading {model if model is not None else arch}", errors=True):
        if model is not None:
            if pretrained is not None:
                raise InputError(f"--pretrained takes published weights in place of {model}; leave out one of them")
            return _load(as_path(model, "the model"), arch, arch_args or {}, trust=trust, want=Want(key, prefix))
        if arch is None:
            raise InputError("there is nothing to load; give a checkpoint, or an architecture with --arch")
        if key is not None or prefix is not None:
            raise InputError("--key and --prefix choose among the weights of a file; give one")
        if pretrained is not None:
            return _from_pretrained(arch, arch_args or {}, pretrained)
        return _from_random(arch, arch_args or {}, seed)


def _from_random(arch: str, arch_args: Mapping[str, Any], seed: int) -> LoadedModel:
    built = build_architecture(arch, arch_args, seed=seed)
    notes = _settled(built, seed)
    return LoadedModel(
        built.module, None, arch, dict(arch_args), input_shapes=built.input_shapes, random_seed=seed, notes=notes
    )


def _from_pretrained(arch: str, arch_args: Mapping[str, Any], name: str) -> LoadedModel:
    found = build_pretrained(arch, arch_args, name)
    check_finite(found.built.module, found.label)
    shapes, note = found.built.input_shapes, f"the published weights {found.label} are used"
    return LoadedModel(
        found.built.module, None, arch, dict(arch_args), input_shapes=shapes, published=found.label, notes=(note,)
    )


def _load(path: Path, arch: str | None, arch_args: Mapping[str, Any], *, trust: bool, want: Want) -> LoadedModel:
    if (path / SOURCE_FILES[0]).is_file():
        return _from_source(path, arch, trust=trust)
    if path.is_dir():
        return _from_folder(path, arch, arch_args, trust=trust, want=want)
    if _is_onnx(path):
        return _from_onnx(path, arch, want)
    read = load_index if is_index(path) else load_checkpoint
    checkpoint = read(path, trust=trust, want=want)
    return dataclasses.replace(_from_checkpoint(checkpoint, arch, arch_args), stamp=checkpoint.stamp)


def _from_folder(path: Path, arch: str | None, arch_args: Mapping[str, Any], *, trust: bool, want: Want) -> LoadedModel:
    """The network of a folder of weights: of the architecture that its config.json names, where none is given."""
    checkpoint = load_folder(path, trust=trust, want=want)
    shapes = shapes_of(checkpoint.state)
    try:
        config = read_hub(path) if checkpoint.state else None
        args = {} if config is None else config.arguments(shapes)
    except ReparamError:
        if arch is None:
            raise
        config, args = None, {}  # a config that is not asked for
    if config is None or (arch is not None and arch != config.spec):
        loaded = _from_checkpoint(checkpoint, arch, arch_args)
        return dataclasses.replace(loaded, stamp=checkpoint.stamp)
    refuse_odd_tensors(checkpoint.state.items(), checkpoint.path.name)
    made = config.load(checkpoint.state)
    loaded = _from_made(checkpoint, made) if made else _from_state(checkpoint, config.spec, {**args, **arch_args})
    shapes_in, images = config.input_shapes or loaded.input_shapes, config.preprocessing
    if images is not None and shapes_in is not None and len(shapes_in[0]) == 3:
        images = images.fitted(*shapes_in[0][1:])
    return dataclasses.replace(
        loaded, stamp=checkpoint.stamp, input_shapes=shapes_in, preprocessing=images, labels=config.labels
    )


def _from_made(checkpoint: Checkpoint, made: Architecture) -> LoadedModel:
    """A network that has its weights already."""
    check_finite(made.module, checkpoint.path)
    source, notes = checkpoint.source or checkpoint.path, _notes(checkpoint)
    return LoadedModel(made.module, source, made.spec, input_shapes=made.input_shapes, notes=notes)


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


def _is_onnx(path: Path) -> bool:
    """Whether a file is an ONNX model; not for what cannot be read, which its own reader tells."""
    if not path.is_file():
        return False
    with opened(path) as file:
        return is_onnx(path, file.read(512))


def _from_onnx(path: Path, arch: str | None, want: Want) -> LoadedModel:
    if arch is not None:
        raise InputError(f"{path.name} holds its architecture already; leave out --arch {arch}")
    if want != Want():
        raise InputError(f"{path.name} holds one network; leave out --key and --prefix")
    module = import_onnx(path)
    check_finite(module, path)
    return LoadedModel(module, path, input_shapes=module.input_shapes, stamp=module.original.stamp)


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
    notes = list(_notes(checkpoint))
    if arch is None:
        found = _inferred(checkpoint)
        arch, arch_args, also = found.spec, {**found.arch_args, **arch_args}, found.also
        notes += [f"the architecture is {arch}, which the file names"] if found.told else []
    built, part = _built_for(checkpoint, arch, arch_args)
    fits = compare(arch, arch_args, shapes_of_network(built.module), shapes_of(part.state)).fits
    if not (inferred or fits) and (extra := adapted(arch, arch_args, likely_parts(checkpoint.state))):
        arch_args = {**arch_args, **extra}
        notes.append(f"{arch} is built with {told_arguments(extra)}, as the weights have it")
        built, part = _built_for(checkpoint, arch, arch_args)
    state = part.state
    load_state(built, state, arch_args, checkpoint.path, checkpoint.others)
    check_finite(built.module, checkpoint.path)  # only now: shapes before values, which may be more than there seem
    twins, equivalents = _split_twins(built, state, also, checkpoint.path)
    return LoadedModel(
        module=built.module,
        source=checkpoint.source or checkpoint.path,
        spec=arch,
        arch_args=dict(arch_args),
        arch_inferred=inferred,
        twins=twins,
        equivalents=equivalents,
        input_shapes=built.input_shapes,
        notes=(*notes, *([part.note] if part.note else [])),
    )


def _built_for(checkpoint: Checkpoint, arch: str, arch_args: Mapping[str, Any]) -> tuple[Architecture, Part]:
    """The architecture, and the part of the checkpoint that is its state."""
    built = build_without_init(arch, arch_args)
    expected = shapes_of_network(built.module, shapes_of(checkpoint.state))
    return built, network_part(checkpoint.state, expected, checkpoint.path.name, checkpoint.want)


def _inferred(checkpoint: Checkpoint) -> Inference:
    """The architecture of the state, or of the part of it that is a network. Raises InputError about the whole."""
    first, *rest = likely_parts(checkpoint.state) or [checkpoint.state]
    try:
        return infer_architecture(first, str(checkpoint.path), checkpoint.names)
    except InputError:
        for part in rest:
            with contextlib.suppress(InputError):
                return infer_architecture(part, str(checkpoint.path), checkpoint.names)
        raise


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Says which of several state dicts was taken, since an average and the last step differ, and what was left out."""
    notes = []
    if checkpoint.choices:
        under, others = checkpoint.found_under, ", ".join(checkpoint.choices)
        which = "it" if len(checkpoint.choices) == 1 else "one of these"
        instead = f"take {which} with {checkpoint.want.keys(checkpoint.choices)}"
        notes.append(f"the weights under '{under}' are used; the file also holds {others}; {instead}")
    if checkpoint.left_out:
        left, verb = checkpoint.left_out, "is" if checkpoint.left_out == 1 else "are"
        notes.append(f"{counted(left, 'tensor')} outside of the prefix {verb} not used")
    return tuple(notes)


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
