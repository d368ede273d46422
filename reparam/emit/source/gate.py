"""The last look at written source: it is parsed, and holds what the emitter is meant to write, or it is refused.

Everything that names of layers, keys and other texts of a file could have become is seen here as code, whatever way it
took. The known imports, the two known classes, layers made of numbers, and calls of torch's own functions pass; a text
in quotes is only a text. Nothing else does.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

import torch
from torch import nn

from reparam.errors import InputError

from .expressions import is_name
from .naming import MODULE_ATTRIBUTES
from .spelling import FUNCTIONS, METHODS
from .templates import ADD, BLOCK, FILE_DTYPES, LOAD

_IMPORTS = frozenset(
    ast.dump(ast.parse(line).body[0])
    for line in (
        "from __future__ import annotations",
        "import json",
        "import math",
        "import operator",
        "from collections import OrderedDict",
        "from pathlib import Path",
        "import torch",
        "import torch.nn.functional as F",
        "from torch import Tensor, nn",
    )
)
_SUPER = ast.dump(ast.parse("super().__init__()").body[0])
_ANNOTATIONS = frozenset({"Tensor", "None", "tuple", "list", "dict", "OrderedDict", "str", "int", "float", "bool"})
_ATTRIBUTES = frozenset({"shape", "device", "training"})  # that are read of a value or of the model
_OPERATORS = frozenset({"pow", "lshift", "rshift", "pos", "invert", "inv", "not_", "or_", "xor", "index", "truth"})
_SYMBOLIC = frozenset(f"torch.sym_{n}" for n in ("not", "int", "float", "ite", "max", "min", "sqrt", "sum"))
_CONSTANTS = (torch.dtype, torch.layout, torch.memory_format)
_ROOTS = frozenset({"torch", "F", "nn", "math", "operator"})


class _Unexpected(Exception):
    """A node that the emitter does not write."""

    def __init__(self, node: ast.AST, what: str) -> None:
        super().__init__(what)
        self.line = getattr(node, "lineno", 0)


def check_source(text: str, class_name: str) -> None:
    """Raises InputError, naming the line, unless `text` is a model.py as the emitter writes it, in printable ASCII."""
    try:
        if not text.isascii() or not text.replace("\n", "").isprintable():
            raise _Unexpected(ast.Module([], []), "a character that is not printable ASCII")
        _check_module(ast.parse(text), class_name)
    except _Unexpected as error:
        raise _refusal(error.line, str(error)) from error
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refusal(getattr(error, "lineno", None) or 0, "something that is not Python") from error


def _refusal(line: int, what: str) -> InputError:
    return InputError(
        f"line {line} of the source that would be written is not what reparam writes: {what}; save the network as .pt2"
    )


def _check_module(tree: ast.Module, class_name: str) -> None:
    rest = [s for s in tree.body if ast.dump(s) not in _IMPORTS]
    block, loader = ast.parse(BLOCK).body[0], ast.parse(LOAD.format(class_name=class_name, dtypes="")).body
    if rest and ast.dump(rest[0]) == ast.dump(block):
        rest = rest[1:]
    if len(rest) != 3 or not isinstance(rest[0], ast.ClassDef):
        raise _Unexpected(rest[0] if rest else tree, "a statement outside of the class and its loader")
    _check_class(rest[0], class_name)
    for written, known in zip(rest[1:], loader, strict=True):
        for node in ast.walk(written):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "dtypes":
                _check_dtypes(node)
        if ast.dump(written) != ast.dump(known):
            raise _Unexpected(written, "another loader")


def _check_dtypes(node: ast.Assign) -> None:
    """The table of dtypes in the loader is one of known names; emptied, the loader is the known one."""
    table = node.value
    known = {name: ast.dump(ast.parse(str(dtype), mode="eval").body) for dtype, name in FILE_DTYPES.items()}
    if not isinstance(table, ast.Dict):
        raise _Unexpected(node, "another loader")
    for key, value in zip(table.keys, table.values, strict=True):
        if not isinstance(key, ast.Constant) or known.get(str(key.value)) != ast.dump(value):
            raise _Unexpected(node, "another loader")
    node.value = ast.Dict([], [])


def _check_class(node: ast.ClassDef, class_name: str) -> None:
    base = ast.unparse(node.bases[0]) if len(node.bases) == 1 else ""
    if node.name != class_name or base not in ("Block", "nn.Sequential") or node.keywords or node.decorator_list:
        raise _Unexpected(node, "another class")
    add = ast.dump(ast.parse(f"class Chain:\n    pass{ADD}").body[0].body[1])  # type: ignore[attr-defined]
    for i, part in enumerate(node.body):
        if i == 0 and _is_text(part):
            continue
        if not isinstance(part, ast.FunctionDef) or part.decorator_list:
            raise _Unexpected(part, "a statement in the class")
        if part.name == "__init__":
            _check_constructor(part)
        elif part.name == "forward":
            _Forward(part).check()
        elif ast.dump(part) != add:
            raise _Unexpected(part, f"the method {part.name}")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# ---- the constructor ---------------------------------------------------------------------------------------------


def _check_constructor(node: ast.FunctionDef) -> None:
    if ast.unparse(node.args) != "self" or ast.dump(node.body[0]) != _SUPER:
        raise _Unexpected(node, "another constructor")
    for part in node.body[1:]:
        match part:
            case ast.Assign(targets=[target], value=value):
                _check_path(target, ("self",))
                _check_layer(value)
            case ast.Expr(
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="self"), attr="add"),
                    args=[ast.Constant(value=str()), layer],
                    keywords=[],
                )
            ):
                _check_layer(layer)
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr="to"), args=[dtype], keywords=[])
            ):
                _check_plain(dtype)
            case _:
                raise _Unexpected(part, "a statement in the constructor")


def _check_path(node: ast.expr, roots: tuple[str, ...]) -> None:
    """`self.a[0]["b c"].d`: a module or a weight below one of the roots."""
    steps = 0
    while True:
        match node:
            case ast.Attribute(value=inner, attr=attr) if attr not in MODULE_ATTRIBUTES:
                node = inner
            case ast.Subscript(value=inner, slice=ast.Constant(value=int() | str())):
                node = inner
            case ast.Name(id=name) if name in roots and steps:
                return
            case _:
                raise _Unexpected(node, "a name outside of the model")
        steps += 1


def _is_path(node: ast.expr, roots: tuple[str, ...]) -> bool:
    try:
        _check_path(node, roots)
    except _Unexpected:
        return False
    return True


def _check_layer(node: ast.expr) -> None:
    """Block(), a layer of torch.nn made of numbers and texts, or a weight of zeros."""
    match node:
        case ast.Call(func=ast.Name(id="Block"), args=[], keywords=[]):
            return
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="nn"), attr="Parameter" | "Buffer"), args=[zeros], keywords=[]
        ):
            if not isinstance(zeros, ast.Call) or ast.unparse(zeros.func) != "torch.zeros":
                raise _Unexpected(node, "a weight that is not zeros")
            _check_arguments(zeros, _check_plain)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="nn"), attr=name)):
            kind = getattr(nn, name, None)
            if name not in nn.modules.__all__ or not isinstance(kind, type) or not issubclass(kind, nn.Module):
                raise _Unexpected(node, f"nn.{name}")
            _check_arguments(node, _check_plain)
        case _:
            raise _Unexpected(node, "something that is no layer")


def _check_arguments(node: ast.Call, check: Callable[[ast.expr], None]) -> None:
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _Unexpected(node, "arguments out of a mapping")
        check(keyword.value)
    for argument in node.args:
        check(argument)


def _check_plain(node: ast.expr) -> None:
    """A number, a text, a dtype, infinity, or a tuple or list of them."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _check_plain(operand)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            for part in parts:
                _check_plain(part)
        case ast.Attribute(value=ast.Name(id="torch"), attr=name) if isinstance(getattr(torch, name, None), _CONSTANTS):
            return
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value="nan" | "inf")], keywords=[]):
            return
        case ast.Call(func=ast.Name(id="complex"), args=[real, imaginary], keywords=[]):
            _check_plain(real)
            _check_plain(imaginary)
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="torch"), attr="device"), args=[ast.Constant(value=str())], keywords=[]
        ):
            return
        case _:
            raise _Unexpected(node, "something that is neither a number nor a text")


# ---- forward -----------------------------------------------------------------------------------------------------


class _Forward:
    """The function `forward`: assignments to its own variables, and what it returns."""

    def __init__(self, node: ast.FunctionDef) -> None:
        self.node = node
        self.names: set[str] = set()

    def check(self) -> None:
        a = self.node.args
        if a.vararg or a.kwarg or a.defaults or a.kw_defaults or a.posonlyargs or a.kwonlyargs:
            raise _Unexpected(self.node, "parameters of another kind")
        for argument in a.args:
            self.own(argument.arg, argument)
            self.annotation(argument.annotation)
        self.annotation(self.node.returns)
        for part in self.node.body:
            self.statement(part)

    def own(self, name: str, node: ast.AST) -> None:
        if not is_name(name) or name in _ROOTS or name.startswith("__"):
            raise _Unexpected(node, f"a variable '{name}'")
        self.names.add(name)

    def annotation(self, node: ast.expr | None) -> None:
        for part in ast.walk(node) if node is not None else ():
            plain = isinstance(part, ast.Subscript | ast.Tuple | ast.Load)
            none = isinstance(part, ast.Constant) and part.value is None
            if not plain and not none and not (isinstance(part, ast.Name) and part.id in _ANNOTATIONS):
                raise _Unexpected(part, "an annotation")

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Return(value=value) if value is not None:
                self.value(value)
            case ast.Assign(targets=[ast.Name(id=name) as target], value=value):
                if name == "block":
                    _check_path(value, ("self",))
                else:
                    self.value(value)
                self.own(name, target)
            case ast.Assign(targets=[ast.Tuple(elts=parts)], value=value):
                self.value(value)
                for part in parts:
                    if not isinstance(part, ast.Name):
                        raise _Unexpected(part, "an assignment")
                    self.own(part.id, part)
            case _:
                raise _Unexpected(node, "a statement in forward")

    def value(self, node: ast.expr) -> None:
        parts = _parts(node)
        if parts is not None:
            for part in parts:
                self.value(part)
            return
        match node:
            case ast.Name(id=name):
                if name not in self.names or name in ("self", "block"):
                    raise _Unexpected(node, f"the name '{name}'")
            case ast.Subscript(value=inner, slice=index) if not self.is_path(node):
                self.value(inner)
                self.index(index)
            case ast.Attribute() | ast.Subscript():
                self.attribute(node)
            case ast.Call():
                self.call(node)
            case _:
                raise _Unexpected(node, f"a {type(node).__name__.lower()}")

    def is_path(self, node: ast.expr) -> bool:
        return _is_path(node, ("self", "block") if "block" in self.names else ("self",))

    def index(self, node: ast.expr) -> None:
        match node:
            case ast.Slice(lower=lower, upper=upper, step=step):
                for part in (lower, upper, step):
                    if part is not None:
                        self.value(part)
            case ast.Tuple(elts=parts):
                for part in parts:
                    self.index(part)
            case ast.Constant(value=value) if value is ...:
                return
            case _:
                self.value(node)

    def attribute(self, node: ast.expr) -> None:
        """A weight, the size or the device of a value, a dtype."""
        if self.is_path(node):
            return
        match node:
            case ast.Attribute(value=ast.Name(id="torch")):
                _check_plain(node)
            case ast.Attribute(value=inner, attr=attr) if attr in _ATTRIBUTES:
                self.value(inner)
            case _:
                raise _Unexpected(node, "an attribute")

    def call(self, node: ast.Call) -> None:
        name = _dotted(node.func)
        root = name.partition(".")[0]
        if not (
            self.is_path(node.func)
            or (root in _ROOTS and root not in self.names and _is_known(name))
            or (name == "round" and name not in self.names and len(node.args) == 1)
            or (name == "OrderedDict" and len(node.args) == 1 and isinstance(node.args[0], ast.Dict))
        ):
            match node.func:
                case ast.Attribute(value=inner, attr=attr) if attr in METHODS and root not in _ROOTS:
                    self.value(inner)
                case _:
                    _check_plain(node)
                    return
        _check_arguments(node, self.value)


def _parts(node: ast.expr) -> list[ast.expr] | None:
    """The expressions inside of one that only holds or combines others; none inside of a constant; None for others."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return []
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return parts
        case ast.Dict(keys=keys, values=parts) if all(isinstance(key, ast.Constant) for key in keys):
            return parts
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.Compare(left=left, comparators=others):
            return [left, *others]
        case _:
            return None


def _dotted(node: ast.expr) -> str:
    """`torch.linalg.vector_norm`, "" for what is no chain of names."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _is_known(name: str) -> bool:
    """Whether a dotted name is a function that the emitter writes."""
    module, _, function = name.partition(".")
    if name in FUNCTIONS or name in _SYMBOLIC:
        return True
    if module == "math":
        return not function.startswith("_") and callable(getattr(math, function, None))
    if module == "operator":
        return function in _OPERATORS and callable(getattr(operator, function, None))
    match name.split("."):
        case ["torch", "ops", ("aten" | "prims") as namespace, packet, overload]:
            found = getattr(getattr(getattr(torch.ops, namespace), packet, None), overload, None)
            return isinstance(found, torch._ops.OpOverload) and all(
                a.name != "filename" for a in found._schema.arguments
            )
    return False
