"""Emits a program as readable source: `model.py`, ordinary torch modules in forward order, and `model.safetensors`.

The two files run with torch alone. Weights keep the names that they had in the original, wherever they survive, and
what was trainable still is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx

from ._version import __version__
from .emit_source_calls import Context
from .emit_source_flow import RESERVED, Flow, Line, plan_flow
from .emit_source_layout import Declaration, Layout, chain_layout, live_nodes, plan_layout, prefixes
from .emit_source_signature import Signature, read_signature, result_text, results, shape_text
from .emit_source_table import spell
from .emit_source_text import WIDTH, Expr, call_text, fold, is_name, path_text
from .errors import InputError, MachineError
from .program import Program

FILES = ("model.py", "model.safetensors")


def write_source(
    program: Program, folder: Path, *, class_name: str = "Model", note: str = "", force: bool = False
) -> tuple[Path, Path]:
    """Writes `model.py` and `model.safetensors` into `folder`, which is made when it is missing; returns their paths.

    class_name: of the written module. note: what it was made from, for the comment at the top.

    Raises InputError for files that exist (without `force`), for a bad class name and for a program that torch alone
    cannot run; MachineError when the files cannot be written, and then leaves nothing behind.
    """
    folder = Path(folder)
    if not is_name(class_name) or class_name in RESERVED:
        raise InputError(f"'{class_name}' cannot be the name of the class; choose another identifier")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for {' and '.join(FILES)}")
    existing = next((folder / name for name in FILES if os.path.lexists(folder / name)), None)
    if existing is not None and not force:
        raise InputError(f"{existing} exists already; --force overwrites it")
    live = live_nodes(program)
    layout = plan_layout(program, live)
    text = source_text(program, live, layout, class_name, note)
    tensors = state_dict(program, layout)
    _write_both(folder, text, tensors)
    return folder / FILES[0], folder / FILES[1]


# ---- weights -----------------------------------------------------------------------------------------------------


def state_dict(program: Program, layout: Layout) -> dict[str, Tensor]:
    """The tensors of the file, each in the dtype that it is emitted in and with storage of its own."""
    tensors: dict[str, Tensor] = {}
    for key, name in layout.names.items():
        constant = program.constants[key]
        value = constant.value.detach().to(device="cpu", dtype=constant.dtype)
        if constant.folded and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"weight '{constant.origin}' does not fit {str(constant.dtype).removeprefix('torch.')}")
        value = value.contiguous()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        tensors[name] = value if whole else value.clone()
    tensors |= {name: torch.zeros((), dtype=torch.int64) for name in layout.extra}
    seen: set[int] = set()
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        if pointer in seen and value.numel():
            tensors[name] = value.clone()
        seen.add(pointer)
    return tensors


# ---- files -------------------------------------------------------------------------------------------------------


def _write_both(folder: Path, text: str, tensors: dict[str, Tensor]) -> None:
    """Writes both files under temporary names inside `folder`, then renames them; undoes everything when it fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    made = [p for p in (folder, *folder.parents) if not p.exists()]
    staging: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".reparam-", dir=folder))
        (staging / FILES[0]).write_text(text, encoding="utf-8", newline="\n")
        save_file(tensors, staging / FILES[1], metadata={"format": "pt"})
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(staging / FILES[1], 0o666 & ~mask)
        _swap(staging, folder)
        shutil.rmtree(staging)
    except BaseException as e:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()
        if isinstance(e, SafetensorError):
            raise MachineError(f"cannot write {folder / FILES[1]}: {e}; nothing was written") from e
        if isinstance(e, OSError):
            raise MachineError(f"cannot write into {folder}: {e.strerror or e}; nothing was written") from e
        raise


def _swap(staging: Path, folder: Path) -> None:
    """Moves the staged files into place, the old ones aside; moves the old ones back when one move fails."""
    moved: list[Path] = []
    try:
        for name in reversed(FILES):
            target, aside = folder / name, staging / f"old-{name}"
            if os.path.lexists(target):
                os.replace(target, aside)
            moved.append(target)
            os.replace(staging / name, target)
    except BaseException:
        for target in moved:
            aside = staging / f"old-{target.name}"
            with contextlib.suppress(OSError):
                if aside.exists():
                    os.replace(aside, target)
                else:
                    target.unlink(missing_ok=True)
        raise


# ---- text --------------------------------------------------------------------------------------------------------


def source_text(program: Program, live: Sequence[fx.Node], layout: Layout, class_name: str, note: str) -> str:
    """The whole of model.py."""
    chain = _plain_input(program) and chain_layout(program, live, layout)
    if chain:
        body = _chain_text(program, layout, class_name, chain)
    else:
        body = _class_text(program, live, layout, class_name)
    used = {c.dtype for c in (program.constants[k] for k in layout.names)} | ({torch.int64} if layout.extra else set())
    tail = _LOAD.format(class_name=class_name, dtypes=", ".join(_dtype_entries(used)))
    imports = ["import json"]
    imports += [f"import {name}" for name in ("math", "operator") if re.search(rf"\b{name}\.\w+\(", body)]
    imports += ["from collections import OrderedDict"] if "OrderedDict(" in body else []
    imports += ["from pathlib import Path", "", "import torch"]
    imports += ["import torch.nn.functional as F"] if re.search(r"\bF\.\w+\(", body) else []
    head = [
        *_header(program, note),
        "",
        "from __future__ import annotations",
        "",
        *imports,
        "from torch import Tensor, nn",
    ]
    return "\n".join([*head, "", "", body, "", "", tail])


def _header(program: Program, note: str) -> list[str]:
    source = " ".join(note.split())
    text = f"Generated by reparam {__version__}" + (f" from {source}." if source else ".")
    text += (
        " It computes what the original computes in evaluation mode; the weights are in model.safetensors beside it."
    )
    text += " It needs torch alone."
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)


def _dtype_entries(used: set[torch.dtype]) -> Iterator[str]:
    from safetensors.torch import _TYPES

    names = {dtype: name for name, dtype in _TYPES.items()}
    for dtype in sorted(used, key=str):
        if dtype not in names:
            raise InputError(f"a weight is {str(dtype).removeprefix('torch.')}, which a safetensors file cannot hold")
        yield f'"{names[dtype]}": {dtype}'


def _plain_input(program: Program) -> bool:
    """One positional tensor in, one value out."""
    inner = program.in_spec is None or str(program.in_spec) == str(_ONE)
    return inner and len(results(program)) == 1 and (program.out_spec is None or program.out_spec.num_nodes == 1)


_ONE = torch.utils._pytree.tree_structure(((0,), {}))


def _to_dtype(layout: Layout) -> list[str]:
    return [f"        self.to({layout.dtype})"] if layout.dtype is not None else []


def _chain_text(program: Program, layout: Layout, class_name: str, chain: list[Declaration]) -> str:
    lines = [
        f"class {class_name}(nn.Sequential):",
        *_docstring(program, "a plain chain: the layers run from the first to the last"),
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
    ]
    for d in chain:
        lines += fold(f'self.add("{d.path}", {d.text})', 8)
    lines += _to_dtype(layout)
    return "\n".join(lines) + _ADD


def _docstring(program: Program, what: str) -> list[str]:
    text = f"Input: {shape_text(program)}." if program.inputs else "No tensor inputs."
    wrapped = textwrap.wrap(f'"""{what[0].upper()}{what[1:]}. {text}', WIDTH - 8, break_long_words=False)
    return [f"    {line}" for line in wrapped[:-1]] + [f'    {wrapped[-1]}"""']


def _class_text(program: Program, live: Sequence[fx.Node], layout: Layout, class_name: str) -> str:
    signature = read_signature(program, set(RESERVED))
    forward = _fitting_forward(program, live, layout, signature)
    lines = [_BLOCK, "", "", f"class {class_name}(Block):", *_docstring(program, "the layers in forward order"), ""]
    if layout.declarations:
        lines += ["    def __init__(self) -> None:", "        super().__init__()"]
        made: set[str] = set()
        for d in layout.declarations:
            for parent in (p for p in prefixes(d.path) if p not in made):
                made.add(parent)
                lines.append(f"        {path_text('self', parent)} = Block()")
            lines += fold(f"{path_text('self', d.path)} = {d.text}", 8)
        lines += [*_to_dtype(layout), ""]
    return "\n".join(lines + forward)


def _fitting_forward(program: Program, live: Sequence[fx.Node], layout: Layout, signature: Signature) -> list[str]:
    """The function with as much nested in one statement as fits a line."""
    apart: set[fx.Node] = set()
    while True:
        flow = plan_flow(program, live, layout, signature.names, apart)
        forward = _Forward(program, layout, flow, signature)
        text = forward.text()
        if not forward.too_long:
            return text
        apart |= forward.too_long


class _Forward:
    """Writes the forward function."""

    def __init__(self, program: Program, layout: Layout, flow: Flow, signature: Signature) -> None:
        self._program, self._layout, self._flow, self._signature = program, layout, flow, signature
        self._stage = ""
        self._last: Line | None = None
        self.too_long: set[fx.Node] = set()
        tensors = (n for n in program.placeholders if n in signature.names and isinstance(n.meta.get("val"), Tensor))
        first = next(tensors, None)
        device = f"{signature.names[first]}.device" if first is not None else f'torch.device("{program.device}")'
        self._context = Context(self._ref, device, program.device)

    def text(self) -> list[str]:
        """The lines of the function, indented."""
        statements = [*self._flow.lines]
        self._last = inlined = self._returned(statements)
        if inlined is not None:
            statements.pop()
            self._flow.inline.add(inlined.node)
        body: list[str] = []
        sections = _sections(statements, inlined)
        for i, (stage, lines) in enumerate(sections):
            last = i == len(sections) - 1
            body += self._section(stage, lines, last, first=not body)
        result = result_text(self._program, self._ref)
        params = ", ".join(["self", *(f"{n}: {a}" if a else n for n, a in self._signature.params)])
        arrow = f" -> {result.annotation}" if result.annotation else ""
        unpacks = [f"        {self._signature.names[n]} = {t}" for n, t in self._signature.unpacks]
        head = fold(f"def forward({params}){arrow}:", 4)
        return [*head, *unpacks, *body]

    def _returned(self, statements: Sequence[Line]) -> Line | None:
        """The last statement, when its value is all that is returned: it is written in the return."""
        if not statements:
            return None
        last, given = statements[-1], results(self._program)
        return last if last.targets == given and len(given) == 1 else None

    def _section(self, stage: str, lines: Sequence[Line], last: bool, first: bool) -> list[str]:
        """The statements of one stage, after a blank line and a name for the stage."""
        self._stage = stage
        texts = self._statements(lines, last)
        used = sum(len(re.findall(r"\bblock(?=[.\[])", t)) for t in texts)
        head: list[str] = []
        if stage and used >= 2:
            head = [f"block = {path_text('self', stage)}"]
        elif stage:
            self._stage = ""
            texts = self._statements(lines, last)
            head = [f"# {stage}"]
        blank = [] if first else [""]
        return [*blank, *(folded for text in [*head, *texts] for folded in fold(text, 8))]

    def _statements(self, lines: Sequence[Line], last: bool) -> list[str]:
        texts = []
        for line in lines:
            names = ", ".join("_" if t is None else self._flow.names[t] for t in line.targets)
            texts.append(f"{names} = {self._expression(line.node).text}")
            self._measure(line, texts[-1])
        if last:
            result = result_text(self._program, self._ref)
            texts += [*(f"# {c}" for c in result.comments), f"return {result.text}"]
            if self._last is not None:
                self._measure(self._last, texts[-1])
        return texts

    def _measure(self, line: Line, text: str) -> None:
        if line.nested is not None and len(text) + 8 > WIDTH:
            self.too_long.add(line.nested)

    def _ref(self, node: fx.Node) -> Expr:
        node = self._flow.canonical(node)
        if node.op == "get_attr":
            return Expr(self._path(self._layout.names[str(node.target)]))
        return self._expression(node) if node in self._flow.inline else Expr(self._flow.names[node])

    def _expression(self, node: fx.Node) -> Expr:
        if node in self._layout.modules:
            path, form = self._layout.modules[node]
            return Expr(call_text(self._path(path), [self._ref(form.operand).text]))
        return spell(self._context, node)

    def _path(self, path: str) -> str:
        if self._stage and path.startswith(f"{self._stage}."):
            return path_text("block", path.removeprefix(f"{self._stage}."))
        return path_text("self", path)


def _sections(lines: Sequence[Line], returned: Line | None) -> list[tuple[str, list[Line]]]:
    """Consecutive statements of one stage. There is always a last section, which holds the return."""
    sections: list[tuple[str, list[Line]]] = []
    for line in lines:
        if not sections or sections[-1][0] != line.stage:
            sections.append((line.stage, []))
        sections[-1][1].append(line)
    if returned is not None and (not sections or sections[-1][0] != returned.stage):
        sections.append((returned.stage, []))
    return sections or [("", [])]


_BLOCK = '''class Block(nn.Module):
    """A part of the network. What the original numbered is read by its number: self.layers[0]."""

    def __getitem__(self, key: int | str) -> nn.Module | Tensor:
        return getattr(self, str(key))

    def __setitem__(self, key: int | str, value: nn.Module | Tensor) -> None:
        setattr(self, str(key), value)'''

_ADD = '''

    def add(self, name: str, layer: nn.Module) -> None:
        """Appends a layer under its dotted name; the parts before the last one are nested nn.Sequential."""
        *path, last = name.split(".")
        stage: nn.Sequential = self
        for part in path:
            if part not in stage._modules:
                stage.add_module(part, nn.Sequential())
            stage = stage._modules[part]
        stage.add_module(last, layer)'''

_LOAD = '''def load(folder: str | Path | None = None) -> {class_name}:
    """The model with its weights, in evaluation mode. folder: of model.safetensors (default: beside this file)."""
    path = Path(Path(__file__).parent if folder is None else folder) / "model.safetensors"
    with torch.device("meta"):
        model = {class_name}()
    model.load_state_dict(read_weights(path), strict=True, assign=True)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; where the safetensors package is not installed, read by hand."""
    try:
        from safetensors.torch import load_file
    except ImportError:
        dtypes = {{{dtypes}}}
    else:
        return load_file(path)
    tensors = {{}}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            data = bytearray(file.read(end - begin))
            flat = torch.frombuffer(data, dtype=dtypes[entry["dtype"]]) if data else torch.empty(0)
            tensors[name] = flat.to(dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors
'''
