"""Checks the JSON of a `.pt2` archive against torch's own schema, and every text in it against a strict grammar."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from torch._export.serde import schema
from torch._export.serde.union import _Union

from reparam.utils import one_line

from . import archive_grammar as grammar
from . import archive_metadata as metadata
from .zip_entries import refusal

_PAYLOAD = re.compile(r"(?:weight|tensor)_[0-9]{1,9}")


def _refused(_: str) -> str | None:
    return "is a custom object"


def _unknown(text: str) -> str | None:
    return (
        None if re.fullmatch(r"[\w.]{0,400}", text, re.ASCII) else "is text that this version of reparam does not know"
    )


# What each text of the JSON must be, by the class and field of torch's schema that holds it. `.key` is the key
# of a dict, `[key]` one of its values. A text that is not listed must be a plain dotted name.
_TEXTS: Mapping[str, grammar.Rule] = {
    "SymExpr.expr_str": grammar.expression,
    "Node.target": grammar.operator,
    "Argument.as_operator": grammar.operator,
    "ExportedProgram.guards_code": grammar.guard,
    "ModuleCallSignature.in_spec": grammar.input_tree_spec,
    "ModuleCallSignature.out_spec": grammar.tree_spec,
    "ModuleCallSignature.forward_arg_names": grammar.parameter,
    "ModuleCallEntry.fqn": grammar.dotted_path,
    "TensorArgument.name": grammar.identifier,
    "TokenArgument.name": grammar.identifier,
    "SymIntArgument.as_name": grammar.identifier,
    "SymFloatArgument.as_name": grammar.identifier,
    "SymBoolArgument.as_name": grammar.identifier,
    "GraphArgument.name": grammar.identifier,
    "Node.name": grammar.identifier,
    "NamedArgument.name": grammar.optional_identifier,
    "InputToConstantInputSpec.name": grammar.optional_identifier,
    "InputToParameterSpec.parameter_name": grammar.dotted_path,
    "InputToBufferSpec.buffer_name": grammar.dotted_path,
    "InputToTensorConstantSpec.tensor_constant_name": grammar.dotted_path,
    "PayloadConfig.config.key": grammar.dotted_path,
    "PayloadMeta.path_name": lambda text: None if _PAYLOAD.fullmatch(text) else "is not a stored tensor",
    "ExportedProgram.range_constraints.key": grammar.symbol,
    "NamedTupleDef.field_names": grammar.identifier,
    "Graph.custom_obj_values.key": _refused,
    "CustomObjArgument.name": _refused,
    "CustomObjArgument.class_fqn": _refused,
    "InputToCustomObjSpec.custom_obj_name": _refused,
    "Node.metadata": metadata.note,
    "Node.metadata[stack_trace]": metadata.stack_trace,
    "Node.metadata[nn_module_stack]": metadata.module_stack,
    "Node.metadata[source_fn_stack]": metadata.functions,
    "Node.metadata[torch_fn]": metadata.functions,
    "Node.metadata[custom]": metadata.json_note,
    "Node.metadata[from_node]": metadata.json_note,
    "GraphModule.metadata": metadata.json_note,
    "Argument.as_string": metadata.string,
    "Argument.as_strings": metadata.string,
    "Argument.as_string_to_argument.key": grammar.container_key,
    "ConstantValue.as_string": metadata.string,
    "ExportedProgram.torch_version": metadata.version,
}


def check_json(kind: type, data: Any, entry: str, name: str) -> frozenset[str]:
    """Follows `data` along the schema class `kind`, as torch's reader does. Returns the targets of its nodes.

    entry, name: the archive's entry and the file, for messages.

    Raises UnsafeFileError for a value of another type than the schema's, and for a text outside its grammar.
    """
    walk = _Walk(name, entry)
    try:
        walk.visit(kind, data, kind.__name__, "")
    except RecursionError:
        walk.fail("", "nests too deep")
    return frozenset(walk.targets)


class _Walk:
    """Follows JSON along torch's own schema, as its reader does, and applies `_TEXTS` to every text on the way."""

    def __init__(self, name: str, entry: str) -> None:
        self.name = name
        self.entry = entry
        self.targets: set[str] = set()

    def fail(self, where: str, complaint: str) -> typing.NoReturn:
        raise refusal(self.name, f"{self.entry} at {where or 'its root'} {complaint}")

    def visit(self, kind: Any, data: Any, rule: str, where: str) -> None:
        """Checks `data` against the schema type `kind`; `rule` is the class and field that hold it."""
        kind = _resolve(kind)
        if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
            if data is not None:
                self.visit(typing.get_args(kind)[0], data, rule, where)
        elif dataclasses.is_dataclass(kind):
            self.visit_fields(typing.cast(type, kind), data, where)
        elif typing.get_origin(kind) is list:
            self.visit_list(kind, data, rule, where)
        elif typing.get_origin(kind) is dict:
            self.visit_dict(kind, data, rule, where)
        else:
            self.visit_leaf(kind, data, rule, where)

    def visit_fields(self, kind: type, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            self.fail(where, f"is not a {kind.__name__}")
        hints = _hints(kind)
        if issubclass(kind, _Union) and (len(data) != 1 or next(iter(data)) not in hints):
            self.fail(where, f"is not a {kind.__name__}")
        if not issubclass(kind, _Union) and (missing := _required(kind) - set(data)):
            self.fail(where, f"lacks {min(missing)}")
        for field, value in data.items():
            place = f"{where}.{field[:60]}".lstrip(".")
            if field in hints:
                self.visit(hints[field], value, f"{kind.__name__}.{field}", place)
            elif complaint := metadata.plain(value) or metadata.note(field):  # torch ignores other fields
                self.fail(one_line(place), complaint)
        if kind is schema.Node:
            self.check_arguments(data, where)

    def check_arguments(self, node: Mapping[str, Any], where: str) -> None:
        """A call passes arguments that its operator has; torch would leave out others without a word."""
        if not isinstance(node["target"], str) or not isinstance(node["inputs"], list):
            return
        known = grammar.argument_names(node["target"])
        given = [i.get("name") for i in node["inputs"] if isinstance(i, dict)]
        if known is not None and (unknown := next((n for n in given if n not in known), None)) is not None:
            self.fail(where, f"passes '{one_line(str(unknown))[:60]}', which its operator does not take")
        if known is not None and len(set(given)) < len(given):
            self.fail(where, "passes an argument twice")

    def visit_list(self, kind: Any, data: Any, rule: str, where: str) -> None:
        if not isinstance(data, list):
            self.fail(where, "is not a list")
        for index, value in enumerate(data):
            self.visit(typing.get_args(kind)[0], value, rule, f"{where}[{index}]")

    def visit_dict(self, kind: Any, data: Any, rule: str, where: str) -> None:
        if not isinstance(data, dict):
            self.fail(where, "is not a mapping")
        for key, value in data.items():
            self.visit_leaf(str, key, f"{rule}.key", where)
            special = f"{rule}[{key}]"
            where_now = f"{where}[{one_line(key)[:60]}]"
            self.visit(typing.get_args(kind)[1], value, special if special in _TEXTS else rule, where_now)

    def visit_leaf(self, kind: Any, data: Any, rule: str, where: str) -> None:
        if kind is str and isinstance(data, str):
            if complaint := _TEXTS.get(rule, _unknown)(data):
                self.fail(where, f"{complaint}: {data[:80]!r}")
            if rule == "Node.target":
                self.targets.add(data)
        elif kind is float and isinstance(data, str):
            if data not in ("Infinity", "-Infinity", "NaN", "inf", "-inf", "nan"):
                self.fail(where, f"is not a number: {data[:80]!r}")
        elif not _is_plain(kind, data):
            self.fail(where, f"is a {type(data).__name__}")


def _resolve(kind: Any) -> Any:
    """The schema class behind an annotation or a forward reference."""
    if isinstance(kind, typing.ForwardRef):
        kind = kind.__forward_arg__
    if isinstance(kind, str):
        kind = getattr(schema, kind)
    return _resolve(typing.get_args(kind)[0]) if typing.get_origin(kind) is typing.Annotated else kind


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    return {k: v for k, v in typing.get_type_hints(kind, globalns=dict(vars(schema))).items() if k in names}


def _required(kind: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}


def _is_plain(kind: Any, data: Any) -> bool:
    if kind is bool:
        return isinstance(data, bool)
    if kind is float:
        return isinstance(data, int | float)
    if kind is int or (isinstance(kind, type) and issubclass(kind, IntEnum)):
        return isinstance(data, int) and not isinstance(data, bool)
    return False
