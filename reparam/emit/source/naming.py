"""Where the weights of a program live in the written source: module names, state-dict keys, what is declared.

A weight keeps the name that it had in the original (its `origin`). A call whose weights are `stem.weight`, `stem.bias`
and so on, and which nothing else reads, becomes the module `stem`, so that these keys survive.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from reparam.ir import Constant, Program, module_of
from reparam.utils import prefixes

from .modules import ModuleForm, flattens_batch, module_form

_BAKED = (
    (re.compile(r"^(.+)\.parametrizations\.(\w+)\.original\d*$"), r"\1.\2"),
    (re.compile(r"^(.+\.weight)_(?:v|g|orig)$"), r"\1"),
)
MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))  # such as forward; no layer can have these names
_CHAIN_METHODS = frozenset(dir(nn.Sequential())) | {"add"}


@dataclass(frozen=True)
class Declaration:
    """One assignment of the constructor: `self.path = text`."""

    path: str
    text: str


@dataclass
class Naming:
    """names: weight (the get_attr target) -> key in the state dict. modules: call -> its module's path and form.

    declarations: modules and weights in forward order. extra: keys of integer buffers that no call reads.
    dtype: what all floating weights have, when it is one dtype and not float32.
    """

    names: dict[str, str] = field(default_factory=dict)
    modules: dict[fx.Node, tuple[str, ModuleForm]] = field(default_factory=dict)
    declarations: list[Declaration] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    dtype: torch.dtype | None = None


@dataclass
class _Group:
    """Calls of one module: the same constructor on the same weights."""

    keys: dict[str, str]
    calls: dict[fx.Node, ModuleForm] = field(default_factory=dict)


def operands(node: fx.Node) -> list[fx.Node]:
    """The values that the written call reads; a reshape that is written as flatten(1) does not read the batch size."""
    return [node.all_input_nodes[0]] if flattens_batch(node) else node.all_input_nodes


def live_nodes(program: Program) -> list[fx.Node]:
    """The nodes that the outputs need, in execution order."""
    needed: set[fx.Node] = set()
    for node in reversed(list(program.graph.nodes)):
        if node.op == "output" or node in needed:
            needed.update(operands(node))
    return [n for n in program.graph.nodes if n in needed]


def leaves(argument: Any) -> Iterator[Any]:
    """The values inside nested argument lists."""
    if isinstance(argument, (list, tuple)):
        for item in argument:
            yield from leaves(item)
    elif isinstance(argument, Mapping):
        yield from leaves(list(argument.values()))
    else:
        yield argument


def plan_layout(program: Program, live: Sequence[fx.Node]) -> Naming:
    """Decides every name. `live` is what `live_nodes` gives."""
    naming = Naming()
    used = list(dict.fromkeys(str(n.target) for n in live if n.op == "get_attr"))
    constants = {k: program.constants[k] for k in used}
    naming.dtype, mixed = _dtype(constants.values())
    forms = {n: f for n in live if (f := module_form(n)) is not None}
    taken = _Names()
    groups = _groups(program, live, forms)
    _name_modules(naming, groups, constants, taken)
    for key in sorted((k for k in used if k not in naming.names), key=lambda k: k != constants[k].origin):
        naming.names[key] = taken.claim(constants[key].origin)
    _name_leaves(naming, live, forms, taken)
    _declare(program, naming, live, mixed)
    return naming


def _dtype(constants: Iterable[Constant]) -> tuple[torch.dtype | None, bool]:
    found = {c.dtype for c in constants if c.dtype.is_floating_point or c.dtype.is_complex}
    if len(found) > 1 or any(d.is_complex for d in found):
        return None, True
    return (found.pop() if found - {torch.float32} else None), False


class _Names:
    """The tree of names in use: weights and modules are leaves, which contain nothing else."""

    def __init__(self) -> None:
        self._leaves: set[str] = set()
        self._inner: set[str] = set()

    def free(self, name: str) -> bool:
        return not (name in self._leaves or name in self._inner or any(p in self._leaves for p in prefixes(name)))

    def opens(self, name: str) -> bool:
        """True when names may be added below `name`."""
        return not any(p in self._leaves for p in (name, *prefixes(name)))

    def add(self, name: str) -> None:
        self._leaves.add(name)
        self._inner.update(prefixes(name))

    def claim(self, wanted: str) -> str:
        """`wanted`, or the first free one of a.b_1, a.b_2, ...; of a_1.b, a_2.b, ... where `a` is a module."""
        wanted = ".".join(_usable(part) for part in wanted.split("."))
        parent, _, leaf = wanted.rpartition(".")
        name, serial = wanted, 0
        while not self.free(name):
            serial += 1
            name = f"{parent}_{serial}.{leaf}" if parent and not self.opens(parent) else f"{wanted}_{serial}"
        self.add(name)
        return name


def _usable(part: str) -> str:
    """A part of a name as an attribute of a module, in the body of a class, where Python changes `__name` by itself."""
    if part.startswith("__") and not part.endswith("__"):
        part = "_" + part.lstrip("_")
    return f"{part}_" if part in MODULE_ATTRIBUTES else part


def _groups(program: Program, live: Sequence[fx.Node], forms: Mapping[fx.Node, ModuleForm]) -> list[_Group]:
    """The calls that can be modules: whatever reads one of their weights is the same call."""
    groups: dict[Any, _Group] = {}
    of: dict[fx.Node, _Group] = {}
    for node, form in forms.items():
        keys = {slot: str(weight.target) for slot, weight in form.slots.items()}
        if keys and _fits(program, keys):
            group = groups.setdefault((form.name, form.args, tuple(keys.items())), _Group(keys))
            group.calls[node] = form
            of[node] = group
    holders: dict[str, list[_Group]] = {}
    for group in groups.values():
        for key in set(group.keys.values()):
            holders.setdefault(key, []).append(group)
    broken = {id(g) for g in groups.values() if len(set(g.keys.values())) < len(g.keys)}
    for reader in [*live, program.output]:
        mine = of.get(reader)
        for weight in (
            a for a in leaves((reader.args, reader.kwargs)) if isinstance(a, fx.Node) and a.op == "get_attr"
        ):
            broken.update(id(g) for g in holders.get(str(weight.target), ()) if g is not mine)
    return [g for g in groups.values() if id(g) not in broken]


def _fits(program: Program, keys: Mapping[str, str]) -> bool:
    """Parameters are trainable, statistics are not, and all have one dtype, as in an ordinary module."""
    found = {slot: program.constants[key] for slot, key in keys.items()}
    if any(c.trainable == slot.startswith("running_") for slot, c in found.items()):
        return False
    return len({c.dtype for c in found.values()}) == 1


def _tidy(origin: str) -> str:
    """The name of the weight that a parametrisation made: conv.weight for conv.parametrizations.weight.original1."""
    for pattern, name in _BAKED:
        origin = pattern.sub(name, origin)
    return origin


def _name_modules(naming: Naming, groups: Sequence[_Group], constants: Mapping[str, Constant], taken: _Names) -> None:
    below: dict[str, set[str]] = {}
    for constant in constants.values():
        for prefix in prefixes(constant.origin):
            below.setdefault(prefix, set()).add(constant.origin)
    shared = Counter(c.origin for c in constants.values())
    origins = set(shared)
    for group in sorted(groups, key=lambda g: any(k != constants[k].origin for k in g.keys.values())):
        slot, key = next(iter(group.keys.items()))
        name = _tidy(constants[key].origin)
        stem = name.removesuffix(f".{slot}")
        if shared[constants[key].origin] > 1:  # pieces of one weight, such as attention's in_proj_weight
            stem = stem.removesuffix(f"_{slot}")
        if stem == name or stem in origins or any(p in origins for p in prefixes(stem)):
            continue
        own = {f"{stem}.{s}" for s in group.keys} | {constants[k].origin for k in group.keys.values()}
        if below.get(stem, set()) - own:
            continue
        path = taken.claim(stem)
        naming.names.update({k: f"{path}.{s}" for s, k in group.keys.items()})
        naming.modules.update({node: (path, form) for node, form in group.calls.items()})


def _name_leaves(naming: Naming, live: Sequence[fx.Node], forms: Mapping[fx.Node, ModuleForm], taken: _Names) -> None:
    """Calls without weights become modules where the original had a module for just them."""
    inner = {p for n in live if n.op == "call_function" for p in prefixes(module_of(n))}
    at: dict[str, list[fx.Node]] = {}
    for node in live:
        if node.op == "call_function":
            at.setdefault(module_of(node), []).append(node)
    for path, nodes in at.items():
        form = forms.get(nodes[0])
        if not path or path in inner or form is None or form.slots or not taken.free(path):
            continue
        if any(_usable(part) != part for part in path.split(".")):
            continue
        texts = {f.text() if (f := forms.get(n)) is not None else "" for n in nodes}
        if texts == {form.text()}:
            taken.add(path)
            naming.modules.update({n: (path, forms[n]) for n in nodes})


def _declare(program: Program, naming: Naming, live: Sequence[fx.Node], mixed: bool) -> None:
    done: set[str] = set()
    for node in [*(n for n in live if n.op == "call_function"), program.output]:
        if node in naming.modules and naming.modules[node][0] not in done:
            path, form = naming.modules[node]
            own = [str(w.target) for w in form.slots.values()]
            dtype = _suffix(program.constants[k].dtype for k in own) if mixed else ""
            naming.declarations.append(Declaration(path, form.text(dtype)))
            naming.extra += [f"{path}.{name}" for name in form.extra]
            done.update([path, *(naming.names[k] for k in own)])
        for weight in (i for i in node.all_input_nodes if i.op == "get_attr"):
            name = naming.names[str(weight.target)]
            if name not in done:
                done.add(name)
                naming.declarations.append(
                    Declaration(name, _weight_text(program.constants[str(weight.target)], mixed))
                )


def _suffix(dtypes: Iterable[torch.dtype]) -> str:
    dtype = next(iter(dtypes), torch.float32)
    return "" if dtype == torch.float32 else str(dtype)


def _weight_text(constant: Constant, mixed: bool) -> str:
    shape = ", ".join(map(str, constant.value.shape)) or "()"
    spelled = _suffix([constant.dtype]) if mixed or not constant.dtype.is_floating_point else ""
    zeros = f"torch.zeros({shape}{f', dtype={spelled}' if spelled else ''})"
    return f"nn.Parameter({zeros})" if constant.trainable else f"nn.Buffer({zeros})"


# ---- chains ------------------------------------------------------------------------------------------------------


def chain_layout(program: Program, live: Sequence[fx.Node], naming: Naming) -> list[Declaration] | None:
    """The layers of a program that is one chain of modules, in order, as nested nn.Sequential; None when it is not."""
    calls = _chain_calls(program, live, naming)
    if calls is None:
        return None
    for beside in (False, True):
        names = _chain_names(calls, naming, beside)
        if names is not None:
            texts = {d.path: d.text for d in naming.declarations}
            pairs = zip(names, calls, strict=True)
            return [Declaration(name, texts[name] if form.slots else form.text()) for name, (_, form) in pairs]
    return None


def _chain_calls(program: Program, live: Sequence[fx.Node], naming: Naming) -> list[tuple[fx.Node, ModuleForm]] | None:
    inputs = [n for n in program.graph.nodes if n.op == "placeholder"]
    calls: list[tuple[fx.Node, ModuleForm]] = []
    if len(inputs) != 1 or not isinstance(inputs[0].meta.get("val"), torch.Tensor):
        return None
    current, paths = inputs[0], set()
    for node in (n for n in live if n.op == "call_function"):
        form = module_form(node)
        if form is None or form.operand is not current:
            return None
        if form.slots:
            if node not in naming.modules or naming.modules[node][0] in paths:
                return None
            paths.add(naming.modules[node][0])
        if sum(n is current for n in leaves((node.args, node.kwargs))) != 1:
            return None
        calls.append((node, form))
        current = node
    if not calls or list(leaves(program.output.args)) != [current]:
        return None
    return calls


def _chain_names(calls: Sequence[tuple[fx.Node, ModuleForm]], naming: Naming, beside: bool) -> list[str] | None:
    """A name for each layer such that every container's layers are consecutive.

    beside: layers without weights go into the container of the layer before them.
    """
    fixed = {naming.modules[n][0] for n, form in calls if form.slots}
    taken = _Names()
    for name in fixed:
        taken.add(name)
    names: list[str] = []
    closed: set[str] = set()
    for node, form in calls:
        name = _chain_name(node, form, naming, names[-1] if beside and names else None, taken)
        last, now = (prefixes(names[-1]) if names else []), prefixes(name)
        closed.update(p for p in last if p not in now)
        if any(p in closed for p in now):
            return None
        names.append(name)
    return names if _CHAIN_METHODS.isdisjoint(part for name in names for part in name.split(".")) else None


def _chain_name(node: fx.Node, form: ModuleForm, naming: Naming, before: str | None, taken: _Names) -> str:
    if form.slots:
        return naming.modules[node][0]
    if node in naming.modules and before is None and taken.free(naming.modules[node][0]):
        taken.add(naming.modules[node][0])
        return naming.modules[node][0]
    kind = form.name.removeprefix("nn.").lower()
    parent = before.rpartition(".")[0] if before is not None else module_of(node)
    parent = next((p for p in [parent, *reversed(prefixes(parent))] if p and taken.opens(p)), "")
    name, serial = f"{parent}.{kind}" if parent else kind, 0
    while not taken.free(name):
        serial += 1
        name = f"{parent}.{kind}_{serial}" if parent else f"{kind}_{serial}"
    taken.add(name)
    return name
