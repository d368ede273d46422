"""`diff`: two graphs side by side as text, aligned by the layers' names, then by operator and shape.

Layers that own weights are the anchors: the same weight name on both sides is the same layer, also in a `.pt2` that
has forgotten its modules. Between two anchors the calls are aligned by operator and shape; operators that do the same
under several names, or move nothing but sizes, are aligned with each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import torch
from rich.text import Text
from torch import fx

from reparam.engines import ListedCall
from reparam.ir import Program, batch_one, is_tensor, module_of, settings_of, size_hint
from reparam.utils import Facts, Shown, one_line

CONTEXT = 1  # unchanged rows shown around a change
ALIGNABLE = 1_000_000  # pairs of calls; a longer stretch without a common layer is not aligned

Status = Literal["same", "weights", "changed", "removed", "added"]
_KINDS = {
    **dict.fromkeys(("view", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"), "reshape"),
    **dict.fromkeys(("relu6", "hardtanh"), "clamp"),
    **dict.fromkeys(("bmm", "mm"), "matmul"),
    "transpose": "permute",
    "adaptive_avg_pool2d": "mean",
}
_MARKS: dict[Status, str] = {"same": " ", "weights": "w", "changed": "~", "removed": "-", "added": "+"}
_STYLES: dict[Status, str] = {"same": "", "weights": "cyan", "changed": "yellow", "removed": "red", "added": "green"}


@dataclass(frozen=True)
class Row:
    """One row: the same call in both graphs, or a call of one of them."""

    status: Status
    left: ListedCall | None
    right: ListedCall | None


@dataclass(frozen=True, repr=False)
class ProgramDiff(Shown):
    """The aligned rows of two programs, from input to output. `print` shows them in two columns."""

    rows: tuple[Row, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many rows there are of each status."""
        found = [r.status for r in self.rows]
        return {status: found.count(status) for status in _MARKS}

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values: the counts, and the rows with their marks."""
        return {"counts": self.counts, "rows": [_row_dict(r) for r in self.rows]}

    def text(self, width: int = 160, *, full: bool = False) -> Text:
        """Two columns with a mark between them; runs of unchanged rows are collapsed unless `full`."""
        column = max(20, (width - 3) // 2)
        result = Text(no_wrap=True, overflow="ignore")
        for item in self.rows if full else _collapsed(self.rows):
            if isinstance(item, int):
                result.append(f"{f'... {item} unchanged':^{2 * column + 3}}".rstrip() + "\n", "dim")
                continue
            left, right = (c.text(column) if c else "" for c in (item.left, item.right))
            result.append(f"{left:<{column}} {_MARKS[item.status]} {right}".rstrip() + "\n", _STYLES[item.status])
        return result

    def __str__(self) -> str:
        return f"{self.text().plain}{self.counted()}"

    def summary(self) -> tuple[str, Facts]:
        """The rows that differ, and the counts."""
        counts, total = self.counts, len(self.rows)
        other = total - counts["same"]
        return f"{other} of {total} rows differ", [(s, str(n)) for s, n in counts.items()]

    def counted(self) -> str:
        """One line of counts."""
        c = self.counts
        return (
            f"{c['same']} unchanged, {c['weights']} with other weights (w), {c['changed']} changed (~), "
            f"{c['removed']} only left (-), {c['added']} only right (+)"
        )


def _row_dict(row: Row) -> dict[str, Any]:
    sides = {"left": row.left, "right": row.right}
    return {"status": row.status} | {
        side: None if call is None else {"module": call.module, "op": call.op, "shape": call.shape}
        for side, call in sides.items()
    }


def _collapsed(rows: Sequence[Row]) -> list[Row | int]:
    """The rows near a change; in place of each run of others, its length."""
    near = {j for i, r in enumerate(rows) if r.status != "same" for j in range(i - CONTEXT, i + CONTEXT + 1)}
    result: list[Row | int] = []
    for i, row in enumerate(rows):
        if i in near:
            result.append(row)
        elif result and isinstance(result[-1], int):
            result[-1] += 1
        else:
            result.append(1)
    return result


# ---- reading a program -------------------------------------------------------------------------------------------


def read_calls(program: Program) -> list[ListedCall]:
    """The calls of a program in execution order; those that only compute with weights or sizes are left out."""
    batch = set(batch_one(program))
    return [_read_call(program, n, batch) for n in program.calls() if n.meta["data"] and is_tensor(n)]


def _read_call(program: Program, node: fx.Node, batch: set[str]) -> ListedCall:
    weights = [n for n in node.all_input_nodes if n.op == "get_attr"]
    names = [program.constants[str(n.target)].origin for n in weights]
    name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
    module = module_of(node) or (names[0].rpartition(".")[0] if names else "")
    sizes = ["x".join(map(str, program.constants[str(n.target)].value.shape)) for n in weights]
    inside = ", ".join([*sizes[:1], *(["bias"] if len(sizes) == 2 else []), *settings_of(node)])
    return ListedCall(
        module=one_line(module),
        op=one_line(f"{name}({inside})" if inside else name),
        shape=_shape(node, batch),
        anchor=one_line(f"{name} {names[0]}") if names else "",
        weights=tuple(program.constants[str(n.target)].value for n in weights),
        results=(node.name,),
        operands=tuple(n.name for n in node.all_input_nodes if n.op != "get_attr"),
    )


def _shape(node: fx.Node, batch: set[str]) -> str:
    """`Nx64x56x56`: N where the batch is free, other sizes as traced."""
    sizes = node.meta["val"].shape
    return "x".join("N" if not isinstance(s, int) and str(s.node.expr) in batch else str(size_hint(s)) for s in sizes)


# ---- aligning ----------------------------------------------------------------------------------------------------


def diff_programs(a: Program, b: Program) -> ProgramDiff:
    """Aligns two programs. Weights are compared by value, so a layer with other numbers does not look the same."""
    return diff_calls(read_calls(a), read_calls(b))


def diff_calls(left: Sequence[ListedCall], right: Sequence[ListedCall]) -> ProgramDiff:
    """Aligns the calls of two graphs, as `read_calls` reads them."""
    return ProgramDiff(tuple(align(left, right)))


def align(left: Sequence[ListedCall], right: Sequence[ListedCall]) -> list[Row]:
    """The rows of two sequences of calls, anchored at the layers that both have."""
    rows: list[Row] = []
    i = j = 0
    for p, q in [*_anchors(left, right), (len(left), len(right))]:
        rows += _align_gap(left[i:p], right[j:q])
        if p < len(left):
            rows.append(_pair(left[p], right[q]))
        i, j = p + 1, q + 1
    return rows


def _anchors(left: Sequence[ListedCall], right: Sequence[ListedCall]) -> list[tuple[int, int]]:
    """Index pairs of the layers with the same weight names, in an order that both graphs have."""
    a = [(i, c.anchor) for i, c in enumerate(left) if c.anchor]
    b = [(j, c.anchor) for j, c in enumerate(right) if c.anchor]
    matcher = SequenceMatcher(None, [k for _, k in a], [k for _, k in b], autojunk=False)
    blocks = matcher.get_matching_blocks()
    return [(a[m.a + k][0], b[m.b + k][0]) for m in blocks for k in range(m.size)]


def _align_gap(left: Sequence[ListedCall], right: Sequence[ListedCall]) -> list[Row]:
    if len(left) * len(right) > ALIGNABLE:
        return [*(Row("removed", c, None) for c in left), *(Row("added", None, c) for c in right)]
    matcher = SequenceMatcher(None, [_key(c) for c in left], [_key(c) for c in right], autojunk=False)
    rows: list[Row] = []
    for tag, i, p, j, q in matcher.get_opcodes():
        if tag == "equal":
            rows += [_pair(x, y) for x, y in zip(left[i:p], right[j:q], strict=True)]
            continue
        rows += [Row("removed", c, None) for c in left[i:p]]
        rows += [Row("added", None, c) for c in right[j:q]]
    return rows


def _key(call: ListedCall) -> tuple[str, str]:
    """What two calls between anchors share when they are aligned: the operator's kind and the shape of the result."""
    name = call.op.partition("(")[0]
    return _KINDS.get(name, name), call.shape


def _pair(left: ListedCall, right: ListedCall) -> Row:
    reshaped = _key(left) == _key(right) and _key(left)[0] == "reshape"
    if not reshaped and (_spelled(left), left.shape) != (_spelled(right), right.shape):
        return Row("changed", left, right)
    same = len(left.weights) == len(right.weights) and all(
        x.shape == y.shape and torch.equal(x.to(torch.float64), y.to(torch.float64))
        for x, y in zip(left.weights, right.weights, strict=True)
    )
    return Row("same" if same else "weights", left, right)


def _spelled(call: ListedCall) -> str:
    """The operator with its settings: 2.0 is 2, a pool moves by its window unless told otherwise, a mean is a pool."""
    text = re.sub(r"(\d)\.0\b", r"\1", call.op).replace("adaptive_avg_pool2d(output_size=1)", "mean")
    swapped = re.fullmatch(r"transpose\(dim0=(-?\d+), dim1=(-?\d+)\)", text)
    if swapped:
        axes = list(range(call.shape.count("x") + 1))
        i, j = int(swapped[1]), int(swapped[2])
        axes[i], axes[j] = axes[j], axes[i]
        return f"permute(dims=[{','.join(map(str, axes))}])"
    return re.sub(r"(kernel_size=(\[[\d,]+\]|\d+)), stride=\2(?=[,)])", r"\1", text)
