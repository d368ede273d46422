"""Weights as attributes of a graph module, whatever they are called."""

from __future__ import annotations

import copy
import keyword
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from reparam.utils import unused_name

Path = tuple[str, ...]

# What the modules that torch makes of a program have or set for themselves; `self` is what their code calls them.
OWN_ATTRIBUTES = frozenset(
    {*dir(fx.GraphModule), *vars(fx.GraphModule(nn.Module(), fx.Graph()))}
    | {"self", "shape_env", "range_constraints", "validate_inputs", "_in_spec", "_out_spec", "_guards_fn"}
    | {"_wrapped_call", "___needs_generation_tag_patch"}  # set once a module was called, or torch.compile was used
)


def attribute_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """For each dotted name, one that can be attributes of a graph module.

    A part that such a module has for itself (`graph`, `to`), that is among `taken`, or that Python keeps (`class`) gets
    underscores behind it. All else stays as it is, and different names stay different.
    """
    paths = {name: tuple(name.split(".")) for name in names}
    siblings: dict[Path, set[str]] = defaultdict(set)
    for path in paths.values():
        for depth, part in enumerate(path):
            siblings[path[:depth]].add(part)
    own = OWN_ATTRIBUTES.union(taken)
    found: dict[Path, str] = {}
    for parent, parts in siblings.items():
        for part in sorted(parts):
            kept = part not in own and not keyword.iskeyword(part)
            found[*parent, part] = part if kept else unused_name(f"{part}_", own | parts)
            parts.add(found[*parent, part])
    return {name: ".".join(found[path[: i + 1]] for i in range(len(path))) for name, path in paths.items()}


def with_attribute_names(
    exported: torch.export.ExportedProgram,
) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """The program with weights of such names that torch can make a module of it, and its own name for each of them.

    The program is left as it is, and shares its graph and its weights with the other.
    """
    names = attribute_names([*exported.state_dict, *exported.constants])
    back = {new: old for old, new in names.items()}
    if all(new == old for new, old in back.items()):
        return exported, back
    same: Any = copy.copy(exported)
    signature = exported.graph_signature
    same._graph_signature = replace(
        signature,
        input_specs=[replace(s, target=names.get(str(s.target), s.target)) for s in signature.input_specs],
        output_specs=[replace(s, target=names.get(str(s.target), s.target)) for s in signature.output_specs],
    )
    same._state_dict = {names[n]: value for n, value in exported.state_dict.items()}
    same._constants = {names[n]: value for n, value in exported.constants.items()}
    return same, back


def unlift(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a module that holds its weights as attributes, without guards. Raises what torch raises."""
    module = with_attribute_names(exported)[0].module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module
