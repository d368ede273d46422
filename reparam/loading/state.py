"""A state dict becomes the weights of an architecture: every key, shape and kind of number must fit."""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.ir import category, give_back, refuse_odd_tensors
from reparam.utils import dtype_name, first_line

from .adapting import NAMES, replaced_head
from .fit import Fit, compare, shapes_of
from .infer import check_architecture
from .zoo import Architecture, shapes_of_network

STATISTICS = ("running_mean", "running_var")
COUNTERS = "num_batches_tracked"


def load_state(
    built: Architecture,
    state: Mapping[str, Tensor],
    arch_args: Mapping[str, Any],
    path: Path,
    others: Mapping[str, str] | None = None,
) -> None:
    """Puts `state` into `built.module` without copying it.

    The network takes the state's dtype: its own where all agree, otherwise the one that holds them all exactly. A tied
    weight may be stored once. others: keys of values that are no tensors, with what they are.

    Raises InputError naming up to three keys of each kind that do not fit, and the first tensor of a wrong kind.
    """
    module = built.module
    refuse_odd_tensors(state.items(), path.name)
    expected = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    tied = _tied(module)
    full = dict(state)
    for key, first in tied.items():
        if key not in full and first in full:
            full[key] = full[first]
        if first not in full and key in full:
            full[first] = full[key]
    full = {**{k: v for k, v in expected.items() if k.endswith(COUNTERS)}, **full}
    fit = compare(built.spec, arch_args, shapes_of_network(module, shapes_of(full)), shapes_of(full))
    if not fit.fits:
        raise InputError(_misfit(fit, built, state, arch_args, path, others or {}))
    for key, first in tied.items():
        if not torch.equal(full[key], full[first]):
            raise InputError(f"'{first}' and '{key}' are one weight in {built.spec}, but differ in {path.name}")
    own = {k: _own(_of_its_kind(k, v, expected[k], built.spec, path)) for k, v in full.items()}
    try:
        module.load_state_dict(own, strict=False, assign=True)  # what a module saves beside tensors is left alone
    except RuntimeError as error:
        raise InputError(f"{path.name} cannot be loaded into {built.spec}: {first_line(error)}") from error
    for key, first in tied.items():
        _set_parameter(module, key, module.get_parameter(first))
    _unify_dtype(module, full.values())


def _misfit(
    fit: Fit,
    built: Architecture,
    state: Mapping[str, Tensor],
    arch_args: Mapping[str, Any],
    path: Path,
    others: Mapping[str, str],
) -> str:
    for key in fit.missing:
        name = next((o for o in others if o == key or o.endswith(f".{key}")), None)
        if name is not None:
            return f"{path.name} has {others[name]} in '{name}', where {built.spec} has a tensor; save its state_dict"
    return f"{path.name} does not fit {built.spec}: {fit.describe()}{_hint(fit, state, arch_args)}"


def _of_its_kind(key: str, value: Tensor, wanted: Tensor, spec: str, path: Path) -> Tensor:
    """The value, of the kind of number that the network has there; masks and counters of other kinds are converted."""
    have, want = category(value.dtype), category(wanted.dtype)
    if have == want or key.endswith(COUNTERS):
        return value
    if want == "bool" and have == "integer" and bool(((value == 0) | (value == 1)).all()):
        return value.bool()
    kinds = dtype_name(value.dtype), dtype_name(wanted.dtype)
    raise InputError(f"{path.name} has {_an(kinds[0])} tensor in '{key}', where {spec} has {_an(kinds[1])} one")


def _an(kind: str) -> str:
    return f"{'an' if kind.startswith(('int', 'u')) and not kind.startswith('uint') else 'a'} {kind}"


def _own(value: Tensor) -> Tensor:
    """The value without its history; one that is stored once and repeated gets a storage of its own."""
    repeated = any(stride == 0 and size > 1 for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.detach().clone(memory_format=torch.contiguous_format) if repeated else value.detach()


def _hint(fit: Fit, state: Mapping[str, Tensor], arch_args: Mapping[str, Any]) -> str:
    others = {k: v for k, v in arch_args.items() if k not in NAMES}
    again = check_architecture(fit.spec, shapes_of(state), others)
    if again.fits and dict(again.arch_args) != dict(arch_args):
        return f"; it fits with --arch-args {shlex.quote(json.dumps(dict(again.arch_args), default=str))}"
    if head := replaced_head(fit):
        return (
            f"; its '{head}' was replaced by other layers, of which a state dict does not tell all: write a function "
            "that builds the network, and name it with --arch package.module:function"
        )
    return "; name the right architecture with --arch, or its arguments with --arch-args"


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


def _unify_dtype(module: nn.Module, values: Iterable[Tensor]) -> None:
    dtypes = {v.dtype for v in values if v.is_floating_point()}
    if dtypes and dtypes != {torch.float32}:
        module.to(functools.reduce(torch.promote_types, dtypes))


# ---- values ------------------------------------------------------------------------------------------------------


def check_finite(module: nn.Module, path: Path | str = "the model") -> None:
    """Raises InputError for weights and statistics that hold a NaN or an infinity, naming the first tensor.

    Other buffers, and parameters that are not trained, may hold infinities, which are data: a mask, a bound.
    """
    parameters = {k: (v, not v.requires_grad) for k, v in module.named_parameters(remove_duplicate=False)}
    buffers = {k: (v, not k.endswith(STATISTICS)) for k, v in module.named_buffers(remove_duplicate=False)}
    tensors = {**parameters, **buffers}
    refuse_odd_tensors(((k, v) for k, (v, _) in tensors.items()), Path(path).name)
    _check(tensors, path)


def check_program_finite(program: torch.export.ExportedProgram, path: Path | str) -> None:
    """`check_finite` of a program."""
    buffers = set(program.graph_signature.buffers)
    state = program.state_dict
    refuse_odd_tensors(state.items(), Path(path).name)
    _check({k: (v, k in buffers and not k.endswith(STATISTICS)) for k, v in state.items()}, path)


def _is_broken(value: Tensor, data: bool) -> bool:
    broken = bool((torch.isnan(value) if data else ~torch.isfinite(value)).any())
    give_back(value)
    return broken


def _check(tensors: Mapping[str, tuple[Tensor, bool]], path: Path | str) -> None:
    numbers = {k: (v, data) for k, (v, data) in tensors.items() if v.is_floating_point() or v.is_complex()}
    bad = [k for k, (v, data) in numbers.items() if _is_broken(v, data)]
    if bad:
        raise InputError(
            f"{Path(path).name} has NaN or infinite values in '{bad[0]}' ({len(bad)} of {len(numbers)} tensors); "
            "take a checkpoint from before the training diverged"
        )
