"""The parameters and the results of the written `forward`: the original's own structure."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from reparam.ir import Program, keys_of
from reparam.utils import dtype_name

from .expressions import Expr, Ref, is_name, literal, tuple_text


@dataclass
class Signature:
    """params: name and annotation of each. names: placeholder -> its variable.

    unpacks: assignments that take nested inputs apart, as (placeholder, expression).
    """

    params: list[tuple[str, str]] = field(default_factory=list)
    names: dict[fx.Node, str] = field(default_factory=dict)
    unpacks: list[tuple[fx.Node, str]] = field(default_factory=list)


def children(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    """The parts of a pytree, also in a torch that has no `children()` yet."""
    method = getattr(spec, "children", None)
    return list(method()) if method is not None else list(spec.children_specs)


def is_leaf(spec: pytree.TreeSpec) -> bool:
    return bool(spec.num_nodes == 1 and spec.num_leaves == 1)


def read_signature(program: Program, reserved: set[str]) -> Signature:
    """The parameters of `program`, under the names that its placeholders have; `reserved` grows by them."""
    signature = Signature()
    nodes = iter(program.placeholders)
    for keyword, spec in _arguments(program):
        own = [next(nodes) for _ in range(spec.num_leaves)] if spec is not None else [next(nodes)]
        if spec is None or is_leaf(spec):
            name = _unique(keyword or str(own[0].target), reserved)
            annotation = "Tensor" if isinstance(own[0].meta.get("val"), Tensor) else ""
            signature.params.append((name, annotation))
            signature.names[own[0]] = name
            continue
        accesses = list(_accesses(spec))
        name = _unique(keyword or _stem(own, accesses), reserved)
        signature.params.append((name, ""))
        for node, (text, _) in zip(own, accesses, strict=True):
            if node.users:
                signature.names[node] = _unique(str(node.target), reserved)
                signature.unpacks.append((node, name + text))
    return signature


def _arguments(program: Program) -> Iterator[tuple[str, pytree.TreeSpec | None]]:
    """(keyword or '', structure) of each argument of the original."""
    if program.in_spec is None:
        for _ in program.placeholders:
            yield "", None
        return
    args, kwargs = children(program.in_spec)
    for spec in children(args):
        yield "", spec
    for key, spec in zip(kwargs.context or (), children(kwargs), strict=True):
        yield str(key), spec


def _accesses(spec: pytree.TreeSpec, text: str = "", suffix: str = "") -> Iterator[tuple[str, str]]:
    """(subscript, name suffix) of every leaf."""
    if is_leaf(spec):
        yield text, suffix
        return
    keyed = spec.type in (dict, OrderedDict)
    keys = list(spec.context) if keyed else list(range(len(children(spec))))
    for key, child in zip(keys, children(spec), strict=True):
        yield from _accesses(child, f"{text}[{literal(key).text}]", f"{suffix}_{key}")


def _stem(nodes: Sequence[fx.Node], accesses: Sequence[tuple[str, str]]) -> str:
    """`batch` for placeholders batch_image, batch_mask."""
    for node, (_, suffix) in zip(nodes, accesses, strict=True):
        name = str(node.target)
        if name.lower().endswith(suffix.lower()) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return "inputs"


def _unique(wanted: str, reserved: set[str]) -> str:
    base = wanted if is_name(wanted) else "".join(c if c.isalnum() and c.isascii() else "_" for c in f"arg_{wanted}")
    name, serial = base, 1
    while name in reserved:
        serial += 1
        name = f"{base}_{serial}"
    reserved.add(name)
    return name


@dataclass
class Result:
    """The text of the returned value, its annotation ('' for none), and notes on types that became dicts or tuples."""

    text: str
    annotation: str
    comments: list[str]


def results(program: Program) -> list[Any]:
    """The flat list of what the graph returns."""
    given = program.output.args[0]
    return list(given) if isinstance(given, (list, tuple)) else [given]


def result_text(program: Program, ref: Ref) -> Result:
    """The returned value as a Python literal of the original's structure."""
    flat = iter(results(program))
    result = Result("", "", [])
    if program.out_spec is None:
        spec = (
            pytree.tree_structure(tuple(results(program))) if len(results(program)) != 1 else pytree.tree_structure(0)
        )
    else:
        spec = program.out_spec
    result.text, result.annotation = _build(spec, flat, ref, result)
    return result


def _build(spec: pytree.TreeSpec, flat: Iterator[Any], ref: Ref, result: Result) -> tuple[str, str]:
    if is_leaf(spec):
        item = next(flat)
        tensor = isinstance(item, fx.Node) and isinstance(item.meta.get("val"), Tensor)
        expr: Expr = ref(item) if isinstance(item, fx.Node) else literal(item)
        return expr.text, "Tensor" if tensor else "None" if item is None else ""
    parts = [_build(child, flat, ref, result) for child in children(spec)]
    texts = [text for text, _ in parts]
    kinds = [kind for _, kind in parts]
    plain = all(kinds) and bool(kinds)
    if spec.type in (dict, OrderedDict) and all(isinstance(k, (str, int, float, bool)) for k in spec.context):
        pairs = [f"{literal(k).text}: {text}" for k, text in zip(spec.context, texts, strict=True)]
        keys = {type(k).__name__ for k in spec.context}
        known = plain and len(set(kinds)) == 1 and len(keys) == 1
        annotation = f"dict[{keys.pop()}, {kinds[0]}]" if known else "dict"
        if spec.type is dict:
            return f"{{{', '.join(pairs)}}}", annotation
        return f"OrderedDict({{{', '.join(pairs)}}})", "OrderedDict"
    if spec.type is list:
        return f"[{', '.join(texts)}]", f"list[{kinds[0]}]" if plain and len(set(kinds)) == 1 else "list"
    if spec.type is not tuple:
        result.comments.append(f"here the original returns {_describe(spec)}")
        named = None if spec.type is namedtuple else keys_of(spec)
        if named is not None:
            pairs = [f"{literal(k).text}: {text}" for k, text in zip(named, texts, strict=True)]
            return f"{{{', '.join(pairs)}}}", f"dict[str, {kinds[0]}]" if plain and len(set(kinds)) == 1 else "dict"
    annotation = f"tuple[{', '.join(kinds)}]" if plain and len(kinds) <= 4 else "tuple"
    return tuple_text(texts) if texts else "()", annotation


def _describe(spec: pytree.TreeSpec) -> str:
    """`ModelOutput(logits, hidden)`: the type, with the names of its fields where they are known."""
    context: Any = spec.context
    name = getattr(spec.type, "__name__", str(spec.type))
    if isinstance(context, type):
        name, context = context.__name__, getattr(context, "_fields", None)
    names = (
        context[0]
        if isinstance(context, (list, tuple)) and context and isinstance(context[0], (list, tuple))
        else context
    )
    fields = (
        [str(n) for n in names] if isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names) else []
    )
    return f"{name}({', '.join(fields)})" if fields else name


def fixed_inputs(program: Program) -> list[tuple[str, Any]]:
    """The inputs that are no tensors, each with the one value that the network was verified for."""
    known = {s.name for s in program.inputs}
    fixed = [(str(n.target), n.meta.get("val")) for n in program.placeholders]
    return [(name, value) for name, value in fixed if name not in known]


def shape_text(program: Program) -> str:
    """`x (N, 3, 224, 224) float32, mask (N, 8) bool`, the free axes by letters."""
    letters: dict[str, str] = {}
    texts = []
    for spec in program.inputs:
        sizes = [
            str(s) if isinstance(s, int) else _letter(letters, s, axis, len(spec.shape))
            for axis, s in enumerate(spec.shape)
        ]
        texts.append(f"{spec.name} {tuple_text(sizes) if sizes else '()'} {dtype_name(spec.dtype)}")
    return ", ".join(texts)


def _letter(letters: dict[str, str], symbol: str, axis: int, rank: int) -> str:
    """N for a free first axis, H and W for the last two of an image, L for others; one letter for each symbol."""
    if symbol not in letters:
        image = rank >= 4 and axis >= rank - 2
        wanted = "N" if axis == 0 else "HW"[axis - rank] if image else "L"
        used = sum(name.startswith(wanted) for name in letters.values())
        letters[symbol] = f"{wanted}{used + 1}" if used else wanted
    return letters[symbol]
