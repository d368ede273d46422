"""Why a model cannot be captured, in words about the model: the class and the line, and what to do there.

torch.export speaks of its own insides. What it says is translated where that is known, and the line is looked for where
it names none: the model is run once more, and what takes or replaces the memory of a tensor, or takes a derivative,
tells where it is called.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.ir import is_inplace, op_name
from reparam.utils import first_line

from .names import name_of
from .places import Line, autograd_function_of, line_of, line_of_caller, line_of_error


@dataclass(frozen=True)
class _Cause:
    """A kind of what torch says. says: what in it tells. reason, advice: in words about the model."""

    says: str
    reason: str
    advice: str


_MEMORY = "a tensor's memory is freed or replaced while it runs"
_KEEP = "keep the tensor as it is in evaluation mode, where nothing needs its memory back"
_CAUSES = (
    _Cause("fake tensor in the exported program constant", _MEMORY, _KEEP),
    _Cause(r"set_storage_offset\(\) called|aten\.set_|aten\.resize_", _MEMORY, _KEEP),
    _Cause(r"\.numpy\(\) is not supported", "a tensor leaves torch for NumPy", "compute it with torch's own functions"),
    _Cause(
        "Cannot access (data pointer|storage)|data_ptr|to_dlpack|__dlpack__",
        "the memory of a tensor is handed to code outside of torch",
        "compute it with torch's own functions, or make it a torch.library.custom_op with a fake",
    ),
    _Cause(
        "Could not guard on data-dependent|data-dependent|GuardOnDataDependent",
        "its control flow depends on the data",
        "choose between values with torch.where in place of Python's if",
    ),
    _Cause(
        "unhashable type: non-nested SymInt",
        "the size of a free axis is a key of a table or a member of a set",
        "fix that size, or compute with it in place of looking it up",
    ),
    _Cause(
        r"unsupported format string passed to SymInt|argument 0 of type SymInt",
        "the size of a free axis is made a text or a number of another library",
        "fix that size, or compute with it as it is",
    ),
    _Cause(
        r"in output, which is not a known type|unsupported output|not a supported (tree )?type",
        "an output is of a class that torch cannot take apart",
        "return tensors, tuples, lists or dicts of them",
    ),
)
_GRADIENT = _Cause(
    "",
    "it takes a derivative while it runs, which torch.export does not trace",
    "write the derivative out as a formula, or convert the part that it is taken of",
)
_LINKS = re.compile(r"\s*(Please file an issue on github|See https?://|For more (information|details))[^\n]*", re.I)
# What takes or replaces the memory of a tensor.
_TAKES = frozenset(
    ("set_", "resize_", "resize_as_", "numpy", "data_ptr", "untyped_storage", "storage", "__dlpack__", "__array__")
)


# What takes derivatives: the code of each function, whatever name a model calls it by.
_DERIVATIVES = frozenset(
    f.__code__
    for f in (
        torch.autograd.grad,
        torch.autograd.backward,
        torch.func.grad,
        torch.func.grad_and_value,
        torch.func.vjp,
        torch.func.jvp,
        torch.func.jacrev,
        torch.func.jacfwd,
        torch.func.hessian,
        torch.func.linearize,
    )
)


def explain(module: nn.Module, error: BaseException, run: Callable[[], object] | None = None) -> str:
    """One sentence about a capture that failed: what stopped it, the class and the line, what to do.

    run: runs the model on its inputs, for when torch names no line.
    """
    cause = next((c for c in _CAUSES if re.search(c.says, _all_messages(error))), None)
    line, function = line_of_error(error), autograd_function_of(error)
    vague = cause is None or cause.reason == _MEMORY
    if vague and run is not None and (gradient := _gradient(run)) is not None:
        return _sentence(name_of(module), gradient, None, _GRADIENT.reason, _GRADIENT.advice)
    if line is None and cause is not None and cause.reason == _MEMORY and run is not None:
        line, function = _suspect(run)
    reason = first_line(error) if cause is None else cause.reason
    if cause is not None and cause.reason.startswith("its control flow"):
        reason = f"{reason} ({first_line(error)})"
    if kind := re.search(r"Found <class '(?:[^']*\.)?(\w+)'> in output", _all_messages(error)):
        reason = f"an output is of the class {kind[1]}, which torch cannot take apart"
    return _sentence(name_of(module), line, function, reason, cause.advice if cause is not None else "")


def explain_writes(graph: fx.Graph, error: BaseException | None = None) -> str:
    """One sentence about a write that cannot be made functional. error: what torch said to it."""
    writes = [n for n in graph.nodes if n.op == "call_function" and is_inplace(n)]
    memory = next((n for n in writes if op_name(n) in ("set_", "resize_", "resize_as_")), None)
    node = memory or next((n for n in writes if line_of(n) is not None), next(iter(writes), None))
    line = line_of(node) if node is not None else None
    what = f"the write in place by {op_name(node)}" if node is not None else "a write in place"
    reason = _MEMORY if memory is not None else f"{what}, through a view, cannot be made functional"
    if error is not None and memory is None:
        reason = f"{reason} ({first_line(error)})"
    advice = _KEEP if memory is not None else "write it as a new value"
    return _sentence(_class_of(graph), line, None, reason, advice)


def explain_derivative(node: fx.Node) -> str:
    """One sentence about a derivative that was traced as if it were a value."""
    return _sentence(_class_of(node.graph), line_of(node), None, _GRADIENT.reason, _GRADIENT.advice)


def _class_of(graph: fx.Graph) -> str:
    """The name of the class that the graph was captured from."""
    stacks = (n.meta.get("nn_module_stack") for n in graph.nodes)
    stack = next((s for s in stacks if s), None)
    if stack is None:
        return "the model"
    kind = next(iter(stack.values()))[1]
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _sentence(name: str, line: Line | None, function: type[Any] | None, reason: str, advice: str) -> str:
    inside = f" in {line.name}" if line is not None and "." in line.name else ""
    place = f" at {line}{inside}" if line is not None else ""
    whose = ""
    if function is not None and not (line is not None and line.name.startswith(f"{function.__name__}.")):
        whose = f", in the autograd function {function.__name__}"
    tail = f"; {_LINKS.sub('', advice)}" if advice else ""
    if function is not None and advice:
        tail += f", or leave {function.__name__} out in evaluation mode and call what it computes"
    return f"{name} cannot be captured as one graph{place}{whose}: {_LINKS.sub('', reason).rstrip('. ')}{tail}"


def _all_messages(error: BaseException) -> str:
    """All that an error and those behind it say."""
    texts: list[str] = []
    while error is not None and len(texts) < 4:
        with contextlib.suppress(Exception):
            texts.append(f"{type(error).__name__} {error}")
        if isinstance(error, DataDependentOutputException):
            texts.append("data-dependent")
        error = error.__cause__  # type: ignore[assignment]
    return "\n".join(texts)


# ---- the model, run once more ------------------------------------------------------------------------------------


def _gradient(run: Callable[[], object]) -> Line | None:
    """The first line of the model that takes a derivative."""
    found: list[Line | None] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and not found and frame.f_code in _DERIVATIVES:
            found.append(line_of_caller(frame.f_back))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        with contextlib.suppress(Exception):
            run()
    finally:
        sys.setprofile(before)
    return found[0] if found else None


def _suspect(run: Callable[[], object]) -> tuple[Line | None, type[Any] | None]:
    """The first line that takes or replaces the memory of a tensor, and the autograd function that it lies in."""
    notes = _Notes()
    modes = _Calls(notes), _Operators(notes)
    with contextlib.suppress(Exception), _applied(notes.functions), torch.no_grad(), modes[0], modes[1]:
        run()
    return notes.line, notes.function


@dataclass
class _Notes:
    """What was seen first. functions: autograd functions under way."""

    line: Line | None = None
    function: type[Any] | None = None
    functions: list[type[Any]] = field(default_factory=list)

    def see(self, name: str) -> None:
        """Notes the line of the model that calls this, when it is the first of its kind."""
        if self.line is None and name in _TAKES:
            self.line = line_of_caller(sys._getframe(2))
            self.function = self.functions[-1] if self.functions else None


class _Calls(TorchFunctionMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()
        self.notes = notes

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.notes.see(str(getattr(func, "__name__", "")))
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, notes: _Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notes = notes

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.notes.see(str(func._schema.name).rpartition("::")[2])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _applied(under_way: list[type[Any]]) -> Iterator[None]:
    """Keeps the list of autograd functions that are being applied."""
    real = torch.autograd.Function.__dict__["apply"]

    def apply(cls: type[Any], *words: Any, **options: Any) -> Any:
        under_way.append(cls)
        try:
            return real.__get__(None, cls)(*words, **options)
        finally:
            under_way.pop()

    function: Any = torch.autograd.Function
    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = real
