"""Which of the things that a file holds are the network's weights, and what wrappers put before their names.

Training scripts save a state dict under a key of their own, often with others beside it: an average of the weights, a
teacher, a discriminator. The customary keys are known, and anything else that leads to tensors is a candidate. One
candidate is taken; where there are several and none is customary, the user chooses with `--key`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reparam.errors import InputError
from reparam.utils import one_line

from .stand_ins import LeftOut, describe_value
from .state_parts import is_measure_name
from .wanted import Want

HOLDERS = ("state_dict", "model", "model_state_dict", "ema", "model_ema", "state_dict_ema", "module", "net", "weights")
MOST_HOLDERS = 8  # of each other
DEEPEST = 3  # mappings in mappings that are looked into for weights
SHOWN = 6  # names in a message
WRAPPERS = frozenset(  # modules that hold another one under this name, and nothing else
    [
        "_orig_mod",  # torch.compile
        "_checkpoint_wrapped_module",  # activation checkpointing
        "_fsdp_wrapped_module",  # FSDP
        "_fpw_module",  # FSDP of older versions
        "_forward_module",  # Lightning, with DeepSpeed
    ]
)
_PARALLEL = "module."  # data parallelism, and averages
_FLAT = ("_flat_param", "flat_param")
_NOT_WEIGHTS = ("optim", "sched", "scaler", "rng", "hyper_param", "args", "config", "callback", "loops", "param_groups")


@dataclass(frozen=True)
class Found:
    """What was found.

    value: a state dict or a module. under: the keys that lead to it. ignored: other entries passed on the way. choices:
    those of them that are weights too.
    """

    value: Any
    under: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def find_weights(value: Any, path: Path, want: Want) -> Found:
    """The state dict or the module in what a file holds; under the wanted key, where one is given.

    A key is names joined by dots: "state_dict_ema", "ema.module".

    Raises InputError where there are no weights, where several sets of them fit (naming the options to type), and for a
    key that the file does not have.
    """
    under: list[str] = []
    ignored: list[str] = []
    choices: list[str] = []
    root = value
    if want.key is not None:
        value, under = _follow(value, path, want)
    while not is_state(value):
        if len(under) > MOST_HOLDERS:
            raise InputError(f"{path} nests its weights deeper than any training script; save the model's state_dict")
        if isinstance(value, nn.Module):
            break
        if not isinstance(value, Mapping):
            raise InputError(f"{path} holds {describe_value(value)}, not weights; save the model's state_dict")
        holder = _holder(value, under, path, root, want)
        ignored += [".".join([*under, str(k)]) for k in value if k != holder]
        choices += _typed(root, under, [k for k in _sets(value) if k != holder])
        under.append(holder)
        value = value[holder]
    return Found(value, tuple(under), tuple(ignored), tuple(choices) if want.key is None else ())


def is_state(value: Any) -> bool:
    """A mapping from names to tensors; a few other entries (a version, an empty `_extra_state`) do not matter."""
    if not isinstance(value, Mapping):
        return False
    tensors = _count(value)
    held = any(isinstance(value.get(k), Mapping | nn.Module) for k in HOLDERS)
    return tensors > 0 and not held and all(_count(v) <= tensors for v in value.values())


def refuse_left_out(value: Mapping[Any, Any], under: Sequence[str], path: Path, prefix: str | None = None) -> None:
    """Raises InputError for a value that no network takes, where weights are expected.

    under: the keys that lead here. prefix: of the names that count; None for all.
    """
    start = "" if prefix is None else f"{prefix.removesuffix('.')}."
    for name, entry in value.items():
        if isinstance(entry, LeftOut) and any(n.startswith(start) for n in (str(name), _unwrapped(str(name)))):
            label = one_line(".".join([*under, str(name)]))[:400]
            raise InputError(f"{path.name} has {entry.what} in '{label}', which no network takes; save plain tensors")


def _count(value: Any) -> int:
    return sum(isinstance(v, Tensor) for v in value.values()) if isinstance(value, Mapping) else 0


def _holder(value: Mapping[Any, Any], under: Sequence[str], path: Path, root: Any, want: Want) -> str:
    """The key that leads on to the weights."""
    sets = _sets(value)
    customary = [k for k in HOLDERS if isinstance(value.get(k), Mapping | nn.Module)]
    known = [k for k in customary if k in sets] or customary
    if known:
        return known[0]
    if len(sets) == 1:
        return sets[0]
    if sets:
        keys = _typed(root, under, sets)
        raise InputError(f"{path} holds several sets of weights: {_listed(keys)}; choose one with {want.keys(keys)}")
    refuse_left_out(value, under, path)
    entries = ", ".join(one_line(str(k))[:60] for k in list(value)[:5])
    held = f"; its entries are {entries}" if entries else ", but an empty mapping"
    raise InputError(f"{path} holds no state dict{held}; save the model's state_dict")


def _sets(value: Mapping[Any, Any]) -> list[str]:
    """The keys that lead to weights."""
    known: dict[int, bool] = {}
    return [k for k, v in value.items() if isinstance(k, str) and _named_for_weights(k) and _leads(v, known, DEEPEST)]


def _leads(value: Any, known: dict[int, bool], depth: int) -> bool:
    """Whether a module or a mapping with tensors lies in a value. known: what was found before, by identity."""
    if isinstance(value, nn.Module):
        return True
    if not isinstance(value, Mapping) or depth == 0:
        return False
    if id(value) not in known:
        known[id(value)] = False  # of one that holds itself
        named = ((k, v) for k, v in value.items() if isinstance(k, str))
        known[id(value)] = any(
            isinstance(v, Tensor) or (_named_for_weights(k) and _leads(v, known, depth - 1)) for k, v in named
        )
    return known[id(value)]


def _named_for_weights(key: str) -> bool:
    """Whether a key is not one for the state of an optimizer, a loss and the like."""
    return not any(word in key.lower() for word in _NOT_WEIGHTS) and not is_measure_name(key)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(one_line(n)[:60] for n in names[:SHOWN]) + more


def _follow(root: Any, path: Path, want: Want) -> tuple[Any, list[str]]:
    """What is under the names of the wanted key, and these names."""
    key = want.key or ""
    value, under, rest = _lookup(root, key)
    if rest:
        raise InputError(f"{path} has no '{one_line(key)[:60]}'{_instead(value, under, rest, root, want)}")
    if not isinstance(value, Mapping | nn.Module):
        raise InputError(f"{path} has {describe_value(value)} under '{one_line(key)[:60]}', not weights")
    return value, under


def _lookup(value: Any, key: str) -> tuple[Any, list[str], str]:
    """What is under the names of a key, as far as they lead, these names, and the rest of the key."""
    under: list[str] = []
    rest = key
    while rest:
        names = [k for k in value if isinstance(k, str) and k] if isinstance(value, Mapping) else []
        fitting = [k for k in names if rest == k or rest.startswith(f"{k}.")]
        if not fitting:
            break
        name = max(fitting, key=len)
        under.append(name)
        value, rest = value[name], rest[len(name) + 1 :]
    return value, under, rest


def _typed(root: Any, under: Sequence[str], names: Sequence[str]) -> list[str]:
    """The keys that lead to entries of what lies under some names; not those that would lead elsewhere."""
    holder = root
    for name in under:
        holder = holder[name]
    keys = [(".".join([*under, name]), holder[name]) for name in names]
    return [key for key, value in keys if (found := _lookup(root, key))[0] is value and not found[2]]


def _instead(value: Any, under: Sequence[str], rest: str, root: Any, want: Want) -> str:
    """What to type in place of a key whose first names lead to `value`, which has no `rest`."""
    there = ".".join(under)
    if not isinstance(value, Mapping):
        if not under:
            return f"; leave out --key, since it holds {describe_value(value)}"
        held = f", since '{one_line(there)[:60]}' holds {describe_value(value)}"
        return f"; give {want.keys([there])}{held}" if isinstance(value, nn.Module) else held
    if any(isinstance(k, str) and k.startswith(f"{rest}.") for k in value):
        begins = Want(there or None).prefixes([f"{rest}.{want.prefix or ''}"])
        return f"; names of tensors begin so, and {begins} takes these"
    if is_state(value):
        if not under:
            return "; it holds one state dict, so leave out --key"
        return f"; '{one_line(there)[:60]}' holds one state dict, so give {want.keys([there])}"
    sets = _typed(root, under, _sets(value))
    return f"; choose from {want.keys(sets)}" if sets else ", nor any other weights"


# ---- names -------------------------------------------------------------------------------------------------------


def clean_keys(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Drops what wrappers put into the keys (`module.`, `_orig_mod.`, …, in any order) and the average's counter.

    Raises InputError for parameters that FSDP has flattened, and for keys that only a wrapper tells apart.
    """
    flat = next((k for k in state if k.rpartition(".")[2].startswith(_FLAT)), None)
    if flat is not None:
        raise InputError(
            f"{path} holds parameters that FSDP has flattened ('{flat[:60]}'), without their shapes; save it with "
            "StateDictType.FULL_STATE_DICT"
        )
    averaged = len(state) > 1 and all(k == "n_averaged" or k.startswith(_PARALLEL) for k in state)
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if averaged and key == "n_averaged":
            continue
        name = _unwrapped(key)
        if name in found:
            raise InputError(f"{path} has '{name[:60]}' twice, in a wrapper and outside of it; save it unwrapped")
        found[name] = value
    while found and all(k.startswith(_PARALLEL) for k in found):
        found = {k.removeprefix(_PARALLEL): v for k, v in found.items()}
    return found


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS) or key


def under_prefix(state: Mapping[str, Tensor], prefix: str, path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors whose names begin with a prefix, without it, and how many others there are.

    The names count as they are in the file, and without what wrappers put into them. Raises InputError where none
    begins so.
    """
    start = prefix if prefix.endswith(".") else f"{prefix}."
    for names in (state, clean_keys(state, path)):
        found = {k.removeprefix(start): v for k, v in names.items() if k.startswith(start) and k != start}
        if found:
            return found, len(names) - len(found)
    first = list(dict.fromkeys(f"{k.partition('.')[0]}." for k in state if "." in k))
    raise InputError(
        f"{path} has no tensor whose name begins with '{one_line(start)[:60]}'; names begin with "
        f"{_listed(first) or 'no prefix'}"
    )
