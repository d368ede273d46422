"""Python text: literals, expressions with their binding strength, lines folded to a width."""

from __future__ import annotations

import ast
import keyword
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reparam.errors import InputError
from reparam.utils import one_line

WIDTH = 120
ATOM, UNARY, PRODUCT, SUM, BOTH, EITHER, COMPARE = 10, 8, 7, 6, 5, 4, 3
RANKS: Mapping[str, int] = {
    **dict.fromkeys(("*", "/", "//", "%", "@"), PRODUCT),
    **dict.fromkeys(("+", "-"), SUM),
    "&": BOTH,
    "|": EITHER,
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), COMPARE),
}
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Expr:
    """An expression and how strongly it binds: an atom needs no parentheses anywhere."""

    text: str
    rank: int = ATOM

    def inside(self, rank: int) -> str:
        """The text, in parentheses when it binds more weakly than `rank`."""
        return self.text if self.rank >= rank else f"({self.text})"

    @property
    def atom(self) -> str:
        return self.inside(ATOM)


Ref = Callable[[Any], Expr]


def infix(symbol: str, left: Expr, right: Expr) -> Expr:
    """`left symbol right`, grouped from the left; comparisons do not chain."""
    rank = RANKS[symbol]
    return Expr(f"{left.inside(rank + (rank == COMPARE))} {symbol} {right.inside(rank + 1)}", rank)


def literal(value: Any) -> Expr:
    """A constant argument of a graph as Python source. Raises InputError for what has no spelling."""
    if value is None or isinstance(value, bool):
        return Expr(repr(value))
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, str):
        return Expr(quoted(value))
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return Expr(str(value))
    if isinstance(value, torch.device):
        return Expr(f"torch.device({quoted(str(value))})")
    if isinstance(value, complex):
        return Expr(f"complex({literal(value.real).text}, {literal(value.imag).text})")
    raise InputError(f"the graph has a constant of type {type(value).__name__}, which has no spelling as Python source")


def _number(value: int | float) -> Expr:
    if math.isnan(value):
        return Expr('float("nan")')
    if math.isinf(value):
        return Expr('float("inf")') if value > 0 else Expr('-float("inf")', UNARY)
    return Expr(repr(value), UNARY if value < 0 or repr(value).startswith("-") else ATOM)


def tuple_text(parts: Sequence[str]) -> str:
    """`(a, b)`; one part keeps its comma."""
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


def call_text(function: str, args: Iterable[str], keywords: Mapping[str, str] | None = None) -> str:
    """`function(a, b, key=c)`."""
    return f"{function}({', '.join([*args, *(f'{k}={v}' for k, v in (keywords or {}).items())])})"


def is_name(text: str) -> bool:
    """True for what can stand after a dot."""
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text)


def path_text(root: str, path: str) -> str:
    """A dotted module path below the variable `root`; numbers become indices: self.layer1[0].conv1."""
    result = root
    for part in path.split(".") if path else ():
        if is_name(part):
            result += f".{part}"
        elif part.isdecimal() and str(int(part)) == part:
            result += f"[{part}]"
        else:
            result += f"[{quoted(part)}]"
    return result


# ---- texts ------------------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """A text as a Python literal, in double quotes and ASCII. This is the one place where texts become source."""
    written = f'"{"".join(map(_escaped, text))}"'
    assert ast.literal_eval(written) == text
    return written


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if " " <= character <= "~":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain_text(text: str) -> str:
    """One line of printable ASCII; everything else is spelled out."""
    return one_line(text).encode("ascii", "backslashreplace").decode("ascii")


def comment(text: str) -> str:
    """A comment of one line, whatever `text` holds. This is the one place where texts become comments."""
    return f"# {plain_text(text)}".rstrip()[: WIDTH - 8]


def docstring(text: str, indent: int) -> list[str]:
    """The lines of a docstring, folded."""
    inside = plain_text(text).replace("\\", "\\\\").replace('"', '\\"')
    lines = textwrap.wrap(f'"""{inside}', WIDTH - 4 - indent, break_long_words=False, break_on_hyphens=False)
    return [f"{' ' * indent}{line}" for line in (*lines[:-1], f'{lines[-1]}"""')]


# ---- folding -----------------------------------------------------------------------------------------------------


def _outside_strings(text: str) -> Iterator[tuple[int, str]]:
    """The characters of a line that are in no string, with their positions."""
    quoted, skip = False, False
    for i, c in enumerate(text):
        if skip:
            skip = False
        elif quoted:
            skip = c == "\\"
            quoted = c != '"'
        elif c == '"':
            quoted = True
        else:
            yield i, c


def _brackets(text: str) -> list[tuple[int, int]]:
    """The outermost bracket pairs of a line, as (open, close) positions."""
    pairs: list[tuple[int, int]] = []
    depth, start = 0, 0
    for i, c in _outside_strings(text):
        if c in _OPEN:
            start = start if depth else i
            depth += 1
        elif c in _CLOSE:
            depth -= 1
            if not depth:
                pairs.append((start, i))
    return pairs


def split_commas(text: str) -> list[str]:
    """The parts of an argument list, split at its own commas and not at those inside brackets or strings."""
    inside = _brackets(text)
    commas = [i for i, c in _outside_strings(text) if c == "," and not any(a < i < b for a, b in inside)]
    cuts = [-1, *commas]
    parts = [text[a + 1 : b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    return [p for p in parts if p]


def fold(text: str, indent: int = 0) -> list[str]:
    """`text` as one line, or folded at its last brackets (a `def` at its first) until every line fits."""
    pad = " " * indent
    if indent + len(text) <= WIDTH or text.startswith("#"):
        return [pad + text]
    pairs = [p for p in _brackets(text) if p[1] > p[0] + 1]
    if not pairs:
        return [pad + text]
    start, end = pairs[0] if text.startswith("def ") else pairs[-1]
    body = text[start + 1 : end]
    lines = [pad + text[: start + 1]]
    if indent + 4 + len(body) <= WIDTH and not body.endswith(","):
        lines.append(f"{pad}    {body}")
    else:
        for part in split_commas(body):
            lines += fold(f"{part},", indent + 4)
    return [*lines, pad + text[end:]]
