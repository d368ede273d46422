"""`Program`: one captured network as a functional ATen graph that owns its weights.

The graph is the single source of truth. Weights are graph values (`get_attr` nodes) whose tensors live in
`constants`, so a weight used twice is one entry. A weight that no rule touched keeps its dtype and storage; a
folded one is held in float64 and cast once, when it is emitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import sympy  # type: ignore[import-untyped]  # it ships no types
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from reparam.errors import RuleError, UnknownSizeError

from . import mapped
from .devices import CPU
from .mapped import LEAST, give_back, in_file
from .scratchpad import Scratchpad
from .structure import Structure, shapes_alone

FOLD_DTYPE = torch.float64
NOWHERE = "_empty_nn_module_stack_from_metadata_hook"  # what torch says of a call that lies in no module


@dataclass(frozen=True)
class Constant:
    """A weight of the program.

    value: the tensor, float64 when folded. dtype: what it is emitted as. origin: the qualified name it wants.
    trainable: whether it came from an nn.Parameter (or was folded from one).
    """

    value: Tensor
    dtype: torch.dtype
    origin: str
    trainable: bool

    @property
    def folded(self) -> bool:
        return self.value.dtype != self.dtype


@dataclass(frozen=True)
class InputSpec:
    """One tensor input: `shape` has an int for a fixed axis and a name for a dynamic one.

    label: what the file that the network came from calls it, where that is no name of a parameter in Python. few:
    whether of integers only 0 and 1 are drawn, since the network does not take all.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: torch.dtype
    low: float = -math.inf
    high: float = math.inf
    label: str = ""
    few: bool = False


@dataclass
class Program:
    """A functional graph, its weights and its input contract.

    graph: torch.fx graph of ATen calls; `meta["val"]` holds a fake tensor, `meta["module"]` the module path and
        `meta["data"]` whether the value depends on the inputs.
    constants: weight name (the get_attr target) -> Constant.
    inputs: one InputSpec for each tensor placeholder, in order.
    in_spec, out_spec: pytrees that the original model's arguments and results have.
    probes: values of free sizes at which something that torch took for granted does not hold.
    samples: how many samples one input holds, where the model fixes its batch.
    home: the device that the original lies on; the program lies on the CPU, with all that is computed of it.
    kept: which of the model's flat results are the outputs; None for all.
    """

    graph: fx.Graph
    constants: dict[str, Constant]
    inputs: tuple[InputSpec, ...]
    in_spec: pytree.TreeSpec | None
    out_spec: pytree.TreeSpec | None
    fake_mode: FakeTensorMode
    dtype: torch.dtype
    probes: tuple[Mapping[str, int], ...] = ()
    samples: int = 1
    kept: tuple[int, ...] | None = None
    home: torch.device = CPU
    notes: Scratchpad = field(default_factory=Scratchpad, repr=False)
    _gone: set[fx.Node] = field(default_factory=set, repr=False)
    _created: list[fx.Node] | None = field(default=None, repr=False)

    # ---- reading -------------------------------------------------------------------------------------------

    @property
    def output(self) -> fx.Node:
        node: fx.Node = next(iter(reversed(self.graph.nodes)))
        return node

    @property
    def placeholders(self) -> list[fx.Node]:
        return [n for n in self.graph.nodes if n.op == "placeholder"]

    @property
    def traced_sizes(self) -> dict[str, int]:
        """The free sizes as they were traced, by symbol."""
        specs = {s.name: s for s in self.inputs}
        found: dict[str, int] = {}
        for node in self.placeholders:
            spec = specs.get(str(node.target))
            for name, size in zip(spec.shape, shape_of(node), strict=True) if spec is not None else ():
                if isinstance(name, str):
                    found.setdefault(name, size)
        return found

    def calls(self) -> Iterator[fx.Node]:
        """The call nodes in execution order."""
        return (n for n in self.graph.nodes if n.op == "call_function")

    def constant(self, node: Any) -> Constant | None:
        """The Constant behind a get_attr node; None for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.constants.get(str(node.target))
        return None

    def tensor(self, node: Any) -> Tensor | None:
        """The float64 (or integer) value of a weight node, None when `node` is not a weight."""
        constant = self.constant(node)
        if constant is None:
            return None
        value = constant.value.detach()
        if not value.is_floating_point():
            return value
        wide = value.to(FOLD_DTYPE)
        give_back(value)
        return wide

    def parameters(self) -> int:
        """Number of scalars in the floating weights that the graph uses, a tied weight counted once, and a complex
        number once."""
        used = {str(n.target) for n in self.graph.nodes if n.op == "get_attr" and n.users}
        values = [self.constants[n].value for n in used]
        return sum(v.numel() for v in values if v.is_floating_point() or v.is_complex())

    def verify(self, nodes: Iterable[fx.Node] | None = None) -> None:
        """Checks that the program, or only `nodes` of it, is well formed.

        Every node has one of four operations, operands that come before it, a value (`meta["val"]`) and the right
        `meta["data"]`. No call writes to its operands; every call is read by somebody, and has the shape and dtype that
        its operator gives, free sizes as they were traced. Every weight that is read exists and has the shape that its
        node says. Of the whole program also: one output, at its end; no weight without a reader; a placeholder of the
        same shape and dtype for every input.

        Raises RuleError that names the node and what is wrong with it.
        """
        weights = {name: c.value.shape for name, c in self.constants.items()}
        inputs = {s.name: (s.shape, s.dtype) for s in self.inputs}
        structure = Structure(self.graph, weights, inputs, self.fake_mode)
        if problem := structure.problem(nodes):
            raise RuleError(f"the program is broken {problem}")

    # ---- building ------------------------------------------------------------------------------------------

    def fake(self, args: Any) -> Any:
        """`args` with every node replaced by its fake value."""
        return fx.node.map_arg(args, lambda n: n.meta["val"])

    def call(
        self,
        target: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        like: fx.Node,
        same: fx.Node | None = None,
    ) -> fx.Node:
        """A new call node just before `like`, with inferred shape and `like`'s module path.

        same: a call of the same operator on operands of the same shapes and dtypes, whose shape then need not be
        inferred again. Raises RuleError when the shapes do not fit: the rule that asked for it is wrong.
        """
        kwargs = dict(kwargs or {})
        try:
            with shapes_alone(self.fake_mode):
                value = same.meta["val"] if same else target(*self.fake(tuple(args)), **self.fake(kwargs))
        except Exception as e:
            raise RuleError(f"the new {target} for {like.name} does not fit its operands: {e}") from e
        with self.graph.inserting_before(like):
            node = self.graph.call_function(target, tuple(args), kwargs)
        data = any(i.meta["data"] for i in node.all_input_nodes)
        node.meta = {"val": value, "module": module_of(like), "data": data}
        self._track(node)
        return node

    def clone(self, node: fx.Node, substitution: Mapping[fx.Node, fx.Node], *, like: fx.Node | None = None) -> fx.Node:
        """A copy of the call `node` with some operands substituted, placed before `like` (default `node`)."""

        def swap(n: fx.Node) -> fx.Node:
            return substitution.get(n, n)

        args = fx.node.map_arg(node.args, swap)
        kwargs = fx.node.map_arg(node.kwargs, swap)
        alike = all(_alike(n.meta["val"], swap(n).meta["val"]) for n in node.all_input_nodes)
        new = self.call(node.target, args, kwargs, like=like or node, same=node if alike else None)
        new.meta["module"] = module_of(node)
        return new

    def weight(
        self, value: Tensor, origin: str, *, dtype: torch.dtype | None = None, trainable: bool = True, like: fx.Node
    ) -> fx.Node:
        """A new weight before `like`. `value` is kept in float64; it is emitted as `dtype` (default: the program's)."""
        floating = value.is_floating_point()
        out_dtype = dtype or (self.dtype if floating else value.dtype)
        name = origin
        serial = 0
        while name in self.constants:
            serial += 1
            name = f"{origin}__{serial}"
        stored = value.detach().to(FOLD_DTYPE) if floating else value.detach()
        self.constants[name] = Constant(stored.contiguous(), out_dtype, origin, trainable and floating)
        with self.graph.inserting_before(like):
            node = self.graph.create_node("get_attr", name)
        with self.fake_mode:
            fake = torch.empty(value.shape, dtype=out_dtype)
        node.meta = {"val": fake, "module": module_of(like), "data": False}
        self._track(node)
        return node

    def infer(self) -> None:
        """Every call has the value (`meta["val"]`) that its operator gives, after inputs or weights changed theirs."""
        for node in self.calls():
            with shapes_alone(self.fake_mode):
                node.meta["val"] = node.target(*self.fake(node.args), **self.fake(node.kwargs))  # type: ignore[operator]

    def settle(self, nodes: Iterable[fx.Node]) -> None:
        """Weights among `nodes` are here to stay: the large ones go into files where folded ones fill the memory."""
        names = [str(n.target) for n in nodes if n.op == "get_attr"]
        large = [n for n in names if self.constants[n].folded and _size(self.constants[n].value) >= LEAST]
        if not large:
            return
        held = sum(_size(c.value) for c in self.constants.values() if c.folded and not c.value.is_shared())
        for name in large:
            if held > mapped.IN_MEMORY:
                constant = self.constants[name]
                self.constants[name] = replace(constant, value=in_file(constant.value))
                held -= _size(constant.value)

    def give_back(self, node: fx.Node) -> None:
        """The weights that a call has read are left to the files that they lie in, if they do."""
        for operand in node.all_input_nodes:
            constant = self.constant(operand)
            if constant is not None:
                give_back(constant.value)

    def _track(self, node: fx.Node) -> None:
        if self._created is not None:
            self._created.append(node)

    @contextmanager
    def recording(self) -> Iterator[list[fx.Node]]:
        """Collects the nodes made inside the block, so that a refused rewrite can be undone."""
        if self._created is not None:
            raise RuleError("recordings do not nest")
        self._created = []
        try:
            yield self._created
        finally:
            self._created = None

    def erase(self, nodes: Iterable[fx.Node]) -> None:
        """Erases unused nodes and the weights that only they read."""
        for node in nodes:
            self.graph.erase_node(node)
            self._gone.add(node)
            if node.op == "get_attr":
                self.constants.pop(str(node.target), None)

    def erased(self, node: fx.Node) -> bool:
        """Whether the node was erased, so that nothing that was said of it holds any more."""
        return node in self._gone

    def copy(self) -> Program:
        """An independent graph over the same tensors (no weight is copied)."""
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        out = graph.graph_copy(self.graph, mapping)
        node = graph.output(out)
        for old, new in mapping.items():
            new.meta = dict(old.meta)
        node.meta = dict(self.output.meta)
        return replace(
            self, graph=graph, constants=dict(self.constants), notes=Scratchpad(), _gone=set(), _created=None
        )


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are tensors of the same kind and shape, so that a call on either gives the same kind."""
    if a is b:
        return True
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.dtype != b.dtype or a.dim() != b.dim():
        return False
    return [str(s) for s in (*a.shape, *a.stride())] == [str(s) for s in (*b.shape, *b.stride())]


def _size(value: Tensor) -> int:
    return value.numel() * value.element_size()


def size_hint(value: Any, env: Mapping[Any, int] | None = None) -> int:
    """A concrete int for a size: symbols named in `env` take its values, the others the traced ones.

    A size that does not exist with these, since it is divided by zero, is the traced one.

    Raises UnknownSizeError for a size that depends on the values of the inputs.
    """
    if isinstance(value, int):
        return value
    expr = value.node.expr
    if env:
        known = {s: sympy.Integer(env[str(s)]) for s in expr.free_symbols if str(s) in env}
        try:
            replaced = expr.xreplace(known)
        except ZeroDivisionError:  # as by a fourth of one sample
            replaced = expr
        if replaced.is_Integer:
            return int(replaced)
    hint = value.node.hint
    if hint is None and not expr.is_Integer:
        raise UnknownSizeError("a size depends on the values of the inputs")
    return int(hint) if hint is not None else int(expr)


def shape_of(node: fx.Node, env: Mapping[Any, int] | None = None) -> tuple[int, ...]:
    """The concrete shape of a node's tensor at the traced sizes (or with the symbols of `env` replaced).

    Raises UnknownSizeError for a tensor whose size depends on the values of the inputs.
    """
    try:
        return tuple(size_hint(s, env) for s in node.meta["val"].shape)
    except UnknownSizeError as error:
        raise UnknownSizeError(f"the size of '{place_of(node)}' depends on the values of the inputs") from error


def fixed_size(value: Any) -> int | None:
    """The size as an int, None when it is free. A size that torch.export found to be fixed can still be symbolic."""
    if isinstance(value, int):
        return value
    return int(value.node.expr) if value.node.expr.is_Integer else None


def static_shape(node: fx.Node) -> tuple[int | None, ...]:
    """The shape with None for every axis whose size is not fixed."""
    return tuple(fixed_size(s) for s in node.meta["val"].shape)


def free_shape(node: fx.Node) -> tuple[Any, ...]:
    """The shape with an expression of symbols for every axis whose size is not fixed; equal ones are equal shapes."""
    return tuple(s.node.expr if fixed_size(s) is None else fixed_size(s) for s in node.meta["val"].shape)


def is_tensor(node: Any) -> bool:
    """True for a node whose value is one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def is_float(node: Any) -> bool:
    """True for a node whose value is one floating tensor."""
    return is_tensor(node) and bool(node.meta["val"].is_floating_point())


def module_of(node: fx.Node) -> str:
    """The path of the module that made the node, "" for the root."""
    return str(node.meta.get("module") or "")


def place_of(node: fx.Node) -> str:
    """What messages and new weights name a node after: its module's path, or its own name where it has none."""
    return module_of(node) or node.name


def upstream(roots: Iterable[fx.Node], stop: Callable[[fx.Node], bool] = lambda _: False) -> list[fx.Node]:
    """The nodes that `roots` need, themselves included, operands first. Nodes where `stop` holds end the search."""
    order: list[fx.Node] = []
    seen: set[fx.Node] = set()
    stack = [(r, False) for r in reversed(list(roots))]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen and not stop(node):
            seen.add(node)
            stack.append((node, True))
            stack.extend((i, False) for i in node.all_input_nodes)
    return order
