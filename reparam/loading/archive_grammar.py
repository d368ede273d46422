"""Which texts of a `.pt2` archive are harmless: the strict grammars behind `archive`.

`torch.export.load` hands several of an archive's strings to an evaluator: symbolic sizes go through sympy, guards and
the names of values become Python source, containers import modules by name. Each function here parses one kind of text
without evaluating any of it and returns a complaint (a few words, for an error message), or None when the text is fine.
Whatever a grammar does not name is refused.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from reparam.utils import name_complaint

Rule = Callable[[str], str | None]

MAX_TEXT = 20_000  # characters of one expression; genuine ones have a few hundred
MAX_DEPTH = 100  # nested brackets of one expression
MAX_EXPONENT = 16  # a literal exponent or, times four, a shift: larger ones only serve to exhaust memory
MAX_POWERS = 2  # powers within powers


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SYMBOL = re.compile(r"(?:s|u|ps|zf|zuf)[0-9]{1,6}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,4000}")
_PATH = re.compile(r"[A-Za-z0-9_.@\-]{0,4000}")
_KEY = re.compile(r"[A-Za-z0-9_.\- /:]{0,400}")
_EXPRESSION = re.compile(r"[A-Za-z0-9_ .,+\-*/%()<>=!&|~']*")
_GUARD = re.compile(r"[A-Za-z0-9_ .,+\-*/%()<>=!\[\]'\"]*")

_CONSTANTS = frozenset({"true", "false", "oo", "int_oo"})
_ASSUMPTIONS = _words("integer positive negative nonnegative nonpositive nonzero zero real finite extended_real")
_FUNCTIONS = _words(
    "Add Mul Max Min Abs Mod PythonMod FloorDiv CeilDiv CleanDiv ModularIndexing Where Piecewise ExprCondPair"
    " floor ceiling CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt RoundDecimal ToFloat FloatTrueDiv"
    " IntTrueDiv IsNonOverlappingAndDenseIndicator Identity And Or Not Xor Eq Ne Lt Le Gt Ge Equality Unequality"
    " StrictLessThan LessThan StrictGreaterThan GreaterThan"
)
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift"})
_NUMBERS = frozenset({"Integer", "Rational", "Float"})
_GUARD_FUNCTIONS = _FUNCTIONS | {"min", "max", "abs", "math.ceil", "math.floor", "math.trunc", "math.isnan"}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_LOGIC = (ast.BitAnd, ast.BitOr)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_SIZE_METHODS = frozenset({"size", "stride", "storage_offset"})
_CONTAINERS = _words(
    "builtins.tuple builtins.list builtins.dict collections.OrderedDict collections.deque torch.Size"
    " torch.fx.immutable_collections.immutable_list torch.fx.immutable_collections.immutable_dict"
)

_OPERATOR = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
_HIGHER_ORDER = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast", "cond", "while_loop"})
_SYMBOLIC_CALLS = frozenset(
    [f"_operator.{n}" for n in _words("eq ne le ge lt gt neg pos mul add sub floordiv mod truediv and_ or_ getitem")]
    + [f"torch.{n}" for n in _words("sym_not sym_int sym_float sym_ite sym_max sym_min sym_sqrt")]
    + ["_operator.pow", "_operator.lshift", "_operator.rshift", "math.trunc", "math.ceil", "math.floor"]
)
_NO_TENSOR = frozenset({"_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"})
_REPLACES_STORAGE = frozenset({"set_", "set", "set_data", "resize", "resize_", "resize_as", "resize_as_"})
_PRIVATE = _words(
    "__and__ __or__ __xor__ _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_scalar _assert_tensor_metadata"
    " _batch_norm_no_update _batch_norm_with_update _cdist_forward _conj _convolution _convolution_mode _embedding_bag"
    " _fft_c2c _fft_c2r _fft_r2c _functional_assert_scalar _fused_rms_norm _int_mm _linalg_det _linalg_svd"
    " _local_scalar_dense _log_softmax _native_batch_norm_legit _native_batch_norm_legit_no_training _neg_view"
    " _pdist_forward _prelu_kernel _reshape_alias"
    " _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
    " _scaled_dot_product_efficient_attention _scaled_dot_product_attention_math"
    " _scaled_dot_product_fused_attention_overrideable _shape_as_tensor _softmax _to_copy _trilinear _unique2"
    " _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d"
    " _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm _weight_norm_interface"
)


def identifier(text: str) -> str | None:
    """A value's name: it is written into Python source as it stands."""
    return None if _IDENTIFIER.fullmatch(text) and not keyword.iskeyword(text) else "is not an identifier"


def parameter(text: str) -> str | None:
    """The name of a parameter of `forward`, which has one called self already."""
    return identifier(text) if text != "self" else "is the name of the module itself"


def optional_identifier(text: str) -> str | None:
    """A value's name, or nothing."""
    return identifier(text) if text else None


def dotted_path(text: str) -> str | None:
    """A parameter's or submodule's qualified name: its parts are written into Python source."""
    return None if _PATH.fullmatch(text) else "is not a qualified name"


def symbol(text: str) -> str | None:
    """A size's symbol, such as s77 or u0."""
    return None if _SYMBOL.fullmatch(text) else "is not the symbol of a size"


def container_key(text: str) -> str | None:
    """A key of a dict among the outputs: a name, which is kept as a text."""
    return name_complaint(text)


def operator(text: str) -> str | None:
    """A node's target: an ATen operator that takes or gives tensors and no file, or arithmetic on sizes."""
    prefix, _, name = text.rpartition(".")
    if text in _SYMBOLIC_CALLS or (prefix == "torch.ops.higher_order" and name in _HIGHER_ORDER):
        return None
    match = _OPERATOR.fullmatch(text)
    if match is None:
        return "is not an ATen operator"
    overload = getattr(getattr(torch.ops.aten, match[1], None), match[2], None)
    if not isinstance(overload, OpOverload):
        return "is not an operator that this torch has"
    if match[1].startswith("_") and match[1] not in _PRIVATE and torch.Tag.core not in overload.tags:
        return "is an internal operator"
    if match[1] in _REPLACES_STORAGE:
        return "replaces a tensor's storage"
    signature = overload._schema
    if any(a.name == "filename" for a in signature.arguments):
        return "opens a file"
    values = [*signature.arguments, *signature.returns]
    if match[1] not in _NO_TENSOR and not any("Tensor" in str(v.type) for v in values):
        return "is not an operator on tensors"
    return None


def argument_names(text: str) -> frozenset[str] | None:
    """The names of the arguments of an ATen operator; None for what else a node may call."""
    match = _OPERATOR.fullmatch(text)
    overload = getattr(getattr(torch.ops.aten, match[1], None), match[2], None) if match else None
    if not isinstance(overload, OpOverload):
        return None
    return frozenset(argument.name for argument in overload._schema.arguments)


def expression(text: str) -> str | None:
    """A symbolic size, in sympy's constructor form (`Add(Symbol('s0', integer=True), Integer(1))`) or as arithmetic.

    Allowed: integers, floats, symbols such as s0, + - * / // % comparisons & | ~, small literal powers, and the
    functions that torch's own printer writes.
    """
    return _judge(text, _EXPRESSION, lambda tree: _term(tree, 0))


def guard(text: str) -> str | None:
    """A guard on the inputs' sizes, such as `L['x'].size()[2] // 2 != 1`; torch compiles these as Python source."""
    return _judge(text, _GUARD, _guard_term)


def input_tree_spec(text: str) -> str | None:
    """How inputs nest, like `tree_spec`; the keys may become names of arguments in Python source."""
    return tree_spec(text, identifier)


def tree_spec(text: str, key: Rule = container_key) -> str | None:
    """How outputs nest: tuples, lists and dicts with plain keys, nothing that names a module."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return "is not JSON"
    if not isinstance(parsed, list) or len(parsed) != 2 or parsed[0] != 1:
        return "is not a container description of a known version"
    return _tree_node(parsed[1], key, 0)


def _judge(text: str, allowed: re.Pattern[str], complaint: Callable[[ast.expr], str | None]) -> str | None:
    if len(text) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters"
    if not allowed.fullmatch(text):
        return "holds characters that no expression needs"
    if _bracket_depth(text) > MAX_DEPTH:
        return f"nests brackets deeper than {MAX_DEPTH}"
    try:
        return complaint(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "is not an expression"


def _bracket_depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        deepest = max(deepest, depth)
    return deepest


def _first(complaints: list[str | None]) -> str | None:
    return next((c for c in complaints if c is not None), None)


def _number(node: ast.expr) -> str | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    if not isinstance(node, ast.Constant) or not isinstance(node.value, bool | int | float):
        return "holds something other than numbers, symbols and arithmetic"
    if isinstance(node.value, int) and abs(node.value) >= 2**70:
        return "holds an integer beyond 70 bits"
    return None


def _term(node: ast.expr, powers: int) -> str | None:
    """Complaint about one term of a symbolic size; `powers` is the number of powers that it stands in."""
    match node:
        case ast.Constant():
            return _number(node)
        case ast.Name(id=name):
            return None if _SYMBOL.fullmatch(name) or name in _CONSTANTS else f"names '{name}'"
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Invert(), operand=operand):
            return _term(operand, powers)
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
            return _power(base, exponent, powers, MAX_EXPONENT)
        case ast.BinOp(op=op, left=left, right=right) if isinstance(op, _ARITHMETIC + _LOGIC):
            return _first([_term(left, powers), _term(right, powers)])
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(o, _COMPARISONS) for o in ops):
            return _first([_term(t, powers) for t in (left, *others)])
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            return _call(name, args, keywords, powers)
        case _:
            return f"holds a {type(node).__name__.lower()}"


def _call(name: str, args: list[ast.expr], keywords: list[ast.keyword], powers: int) -> str | None:
    if name == "Symbol":
        return _symbol_call(args, keywords)
    if name in _NUMBERS:
        return _number_call(args, keywords)
    if keywords:
        return f"passes '{keywords[0].arg}' to {name}"
    if name in _POWERS:
        if len(args) != 2:
            return f"calls {name} with {len(args)} arguments"
        return _power(args[0], args[1], powers, 4 * MAX_EXPONENT if "Shift" in name else MAX_EXPONENT)
    if name in _FUNCTIONS:
        return _first([_term(a, powers) for a in args])
    return f"calls '{name}'"


def _symbol_call(args: list[ast.expr], keywords: list[ast.keyword]) -> str | None:
    match args:
        case [ast.Constant(value=str(name))] if _SYMBOL.fullmatch(name):
            pass
        case _:
            return "makes a symbol that is not the symbol of a size"
    plain = all(
        k.arg in _ASSUMPTIONS and isinstance(k.value, ast.Constant) and isinstance(k.value.value, bool)
        for k in keywords
    )
    return None if plain else "makes a symbol with unknown assumptions"


def _number_call(args: list[ast.expr], keywords: list[ast.keyword]) -> str | None:
    if any(k.arg != "precision" or _number(k.value) for k in keywords):
        return "makes a number with unknown options"
    for arg in args:
        quoted = isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        if quoted and re.fullmatch(r"-?[0-9.]{1,40}(?:e[+\-]?[0-9]{1,3})?", str(arg.value)):  # type: ignore[attr-defined]
            continue
        if complaint := _number(arg):
            return complaint
    return None


def _power(base: ast.expr, exponent: ast.expr, powers: int, limit: int) -> str | None:
    if powers >= MAX_POWERS:
        return "nests powers"
    value = _literal(exponent)
    if value is None or abs(value) > limit:
        return f"has an exponent that is not a literal of at most {limit}"
    return _term(base, powers + 1)


def _literal(node: ast.expr) -> float | None:
    """The value of 3, -3, Integer(-3) or Rational(1, 2); None for anything else."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return float(value) if abs(value) < 2**63 else None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _literal(operand)
            return None if inner is None else -inner
        case ast.Call(func=ast.Name(id="Integer" | "Float"), args=[operand, *_]):
            return _literal(operand)
        case ast.Call(func=ast.Name(id="Rational"), args=[top, bottom]):
            over, under = _literal(top), _literal(bottom)
            return over / under if over is not None and under else None
        case _:
            return None


def _guard_term(node: ast.expr) -> str | None:
    match node:
        case ast.Constant():
            return _number(node)
        case ast.BoolOp(values=values):
            return _first([_guard_term(v) for v in values])
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return _guard_term(operand)
        case ast.BinOp(op=ast.Pow(), left=base, right=exponent):
            value = _literal(exponent)
            return "has a large power" if value is None or abs(value) > MAX_EXPONENT else _guard_term(base)
        case ast.BinOp(op=op, left=left, right=right) if isinstance(op, _ARITHMETIC):
            return _first([_guard_term(left), _guard_term(right)])
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(o, _COMPARISONS) for o in ops):
            return _first([_guard_term(t) for t in (left, *others)])
        case ast.Call(func=function, args=args, keywords=[]) if ast.unparse(function) in _GUARD_FUNCTIONS:
            return _first([_guard_term(a) for a in args])
        case _:
            return None if _is_source(node) else f"holds '{ast.unparse(node)[:60]}'"


def _is_source(node: ast.expr) -> bool:
    """Whether the node reads an input's value or size: L['x'], L['x'][0]['k'].size()[1], L['x'].stride()[0]."""
    match node:
        case ast.Name(id="L"):
            return True
        case ast.Subscript(value=value, slice=ast.Constant(value=int())):
            return _is_source(value)
        case ast.Subscript(value=value, slice=ast.Constant(value=str(key))):
            return _KEY.fullmatch(key) is not None and _is_source(value)
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=[], keywords=[]):
            return attr in _SIZE_METHODS and _is_source(value)
        case _:
            return False


def _tree_node(node: Any, key: Rule, depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return "nests too deep"
    if not isinstance(node, dict) or set(node) != {"type", "context", "children_spec"}:
        return "is not a container description"
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is None:
        return None if context is None and children == [] else "has a leaf with contents"
    if kind not in _CONTAINERS or not isinstance(children, list):
        return f"names the container {kind!r}"
    return _first([_tree_context(context, key), *(_tree_node(c, key, depth + 1) for c in children)])


def _tree_context(context: Any, rule: Rule) -> str | None:
    if not isinstance(context, str) or len(context) > 10 * MAX_TEXT:
        return "has a container whose description is not text"
    try:
        value = json.loads(context)
    except (ValueError, RecursionError):
        return "has a container whose description is not JSON"
    keys = [] if value is None else value if isinstance(value, list) else [value]
    for key in keys:
        if not isinstance(key, int) and not (isinstance(key, str) and rule(key) is None):
            return f"has the key {str(key)[:60]!r}"
    return None
