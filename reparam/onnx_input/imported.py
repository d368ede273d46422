"""A file's network as a torch module: every node a call of its operator, in the layer that the file says it belongs to.

What depends on constants alone is computed here, once. What depends on sizes alone stays arithmetic on sizes (`known`),
so that torch.export sees a network whose free axes are free.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reparam.errors import InputError, MachineError, ReparamError
from reparam.ir import attribute_names, check_shapes
from reparam.utils import (
    Shapes,
    Unasked,
    axis_name,
    axis_words,
    batch_is_unasked,
    first_line,
    is_batch,
    memory_told,
    one_line,
    quiet,
    read_named_axis,
    unused_name,
)

from .call import Call, Node, fold
from .graph import read_graph
from .known import Known, Value, known_tensor
from .layers import Inner, Layer, Step, as_tensor, result_of
from .naming import as_path, free_path, identifier, layer_path
from .nodes import Branch, Graph, GraphNode, Port
from .operators import Operator, find_operator
from .original import Original
from .ports import axes_of, drawn, shape_of, sizes_of_example
from .reading import read_file

_STATISTICS = {"BatchNormalization": (3, 4)}  # inputs that are buffers
_WEIGHTED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LayerNormalization", "LSTM", "GRU", "RNN"}
    | {"RMSNormalization"}
)


class ImportedModel(fx.GraphModule):
    """The network of an ONNX file.

    ports: its inputs as the file has them. original: the file itself, run by onnxruntime. notes: what there is to say.
    It takes a tensor for each input and returns a dict with the file's own names of the outputs.
    """

    spells_sizes = True  # as they are: paddings of a known size go into the call that is padded
    ports: tuple[Port, ...]
    original: Original
    notes: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """What its parameters are called, which is what the file calls its inputs where Python has such names."""
        return tuple(str(n.target) for n in self.graph.nodes if n.op == "placeholder")

    def labels(self, names: Iterable[str]) -> dict[str, str]:
        """The file's own name for each input that is called otherwise in a program of it.

        names: what the program calls its inputs, in order; torch spells them in small letters.
        """
        return {name: port.name for name, port in zip(names, self.ports, strict=True) if name != port.name}

    @property
    def input_shapes(self) -> Shapes | None:
        """The shapes of the inputs without the batch; None where the file leaves one of these sizes free."""
        known = [(p, p.shape) for p in self.ports if p.shape]
        if len(known) < len(self.ports) or any(isinstance(s, str) for _, sizes in known for s in sizes[1:]):
            return None
        return tuple(shape_of(p, sizes[1:]) for p, sizes in known)

    def examples(
        self, shapes: Sequence[Sequence[int]] | None, *, batch: int | Sequence[int], seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Random inputs: numbers from a normal distribution, integers that are 0 or 1.

        shapes: one for each input, without the batch; None for those of the file. batch: where the file leaves it free,
        one number, or one for each input.

        Raises InputError for shapes that do not fit those of the file, and for sizes that nothing tells.
        """
        if shapes is not None and len(shapes) != len(self.ports):
            raise InputError(f"{len(shapes)} shapes were given for {len(self.ports)} inputs")
        rows = [batch] * len(self.ports) if isinstance(batch, int) else list(batch)
        wanted = [sizes_of_example(p, None if shapes is None else shapes[i], rows[i]) for i, p in enumerate(self.ports)]
        check_shapes([s or (1,) for s in wanted])
        generator = torch.Generator().manual_seed(seed)
        return tuple(drawn(p.dtype, s, generator) for p, s in zip(self.ports, wanted, strict=True))

    def check_inputs(self, inputs: Sequence[Any]) -> None:
        """Raises InputError for example inputs that are not a tensor for each input of the file; none are fine."""
        if inputs and (len(inputs) != len(self.ports) or not all(isinstance(v, Tensor) for v in inputs)):
            names = ", ".join(one_line(p.name)[:60] for p in self.ports)
            raise InputError(f"pass a tensor for each input of the file, one after the other: {names}")

    def settled(
        self, inputs: tuple[Tensor, ...], dynamic: tuple[str, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[str, ...], tuple[str, ...]]:
        """The inputs and the free axes with the batch fixed at one, and a note, where the file says that it is free and
        the network runs on one sample alone. Raises InputError where a free batch was asked for.
        """
        if all(v.dim() == 0 or v.shape[0] == 1 for v in inputs) or not any(map(is_batch, dynamic)):
            return inputs, dynamic, ()
        reason = self._complaint(inputs)
        single = tuple(v[:1] if v.dim() else v for v in inputs)
        if reason is None or self._complaint(single) is not None:
            return inputs, dynamic, ()
        if not batch_is_unasked(dynamic):
            raise InputError(f"the batch cannot stay free, although the file says so: {reason}; leave it out")
        note = f"the batch is fixed at 1, although the file says that it is free: {reason}"
        return single, tuple(d for d in dynamic if not is_batch(d)), (note,)

    def _complaint(self, inputs: Sequence[Tensor]) -> str | None:
        """What goes wrong when the network runs on inputs of these sizes; nothing is computed."""
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad(), quiet(FakeTensorMode.__module__):
            try:
                self(*(mode.from_tensor(v) for v in inputs))
            except MachineError:
                raise
            except Exception as error:
                return first_line(error)
        return None

    def free_axes(self, dynamic: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of the axes that are to stay free, those that the file leaves free, each by its input; and notes.

        A batch that nobody asked for is left out with a note where the file fixes it. Raises InputError for another
        axis that the file fixes.
        """
        found: list[str] = []
        notes: list[str] = []
        own = {port.name: name for name, port in zip(self.input_names, self.ports, strict=True)}
        for text in dynamic:
            named = read_named_axis(text)
            meant = None if named is None else own.get(named.input, named.input)
            here = [
                (name, port, axis, size)
                for name, port in zip(self.input_names, self.ports, strict=True)
                for sizes in (axes_of(port, numbered=named is not None),)
                for axis, size in enumerate(sizes)
                if (axis_name(axis, len(sizes)) == text if named is None else (name, axis) == (meant, named.axis))
            ]
            free = [(name, axis) for name, _, axis, size in here if isinstance(size, str)]
            label = text if named is None else named.name
            if here and not free:
                _, port, _, size = here[0]
                fixed = f"the file fixes {axis_words(label)} of '{port.name}' at {size}"
                if not isinstance(text, Unasked):
                    raise InputError(f"{fixed}, so that it cannot stay free; export the network with that axis dynamic")
                notes.append(fixed)
            elif not here or (named is None and len(free) == len(here)):
                found.append(text)
            else:
                found += [type(text)(f"{name}:{axis}={label}") for name, axis in free]
        return tuple(found), tuple(notes)


# ---- import ------------------------------------------------------------------------------------------------------


def import_onnx(path: Path) -> ImportedModel:
    """The network of an ONNX file, ready to be captured.

    Raises InputError for a damaged file, one that asks for endless time or memory, and one with an operator that is not
    read, naming the node; UnsafeFileError for weights outside of its folder; MachineError where onnx is missing.
    """
    stored = read_file(path)
    original = Original(path, stored)
    graph = read_graph(stored.model, path)
    with memory_told(f"importing {path.name}"):
        return _Builder(graph, path).build(original)


class _Builder:
    """An import under way: what is known of each value of the file, and the module that it becomes."""

    def __init__(self, graph: Graph, path: Path) -> None:
        self.file, self.path = graph, path
        self.constants: dict[str, Value] = {name: known_tensor(v) or v for name, v in graph.constants.items()}
        self.origins: dict[str, str] = {}  # of a computed constant: the only constant that it was computed of
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, fx.Node] = {}

    def build(self, original: Original) -> ImportedModel:
        """The module."""
        needed, self.wanted = _needed(self.file.nodes, self.file.outputs)
        nodes = [n for n in needed if not self._folded(n)]
        self._name(nodes)
        taken: list[str] = []
        for port in self.file.inputs:
            taken.append(identifier(port.name, taken))
            self.values[port.name] = self.graph.placeholder(taken[-1])
        for node in nodes:
            self._add(node)
        results = {o: self.graph.call_function(as_tensor, (self._read(o),)) for o in self.file.outputs}
        self.graph.output(results)
        module = ImportedModel(self.root, self.graph, class_name="ImportedModel")
        module.ports, module.original, module.notes = self.file.inputs, original, ()
        return module.eval()

    def _operator(self, node: GraphNode, wanted: Container[str]) -> tuple[Node, Operator]:
        """wanted: the names of the values that are read."""
        if node.refusal is not None:
            raise node.refusal
        read = tuple(o in wanted for o in node.outputs)
        constant = tuple(i in self.constants for i in node.inputs)
        branches = tuple(self._branch(b, node.inputs[1:]) for b in node.branches)
        seen = Node(node.op, node.shown, self.file.opset, node.attributes, len(node.outputs), read, constant, branches)
        return seen, find_operator(seen)

    def _branch(self, branch: Branch, inputs: Sequence[str]) -> Inner:
        """inputs: the names of the values that it is given."""
        nodes, wanted = _needed(branch.nodes, branch.outputs)
        steps = []
        for node in nodes:
            try:
                step = Step(*self._operator(node, wanted), {})
            except InputError as error:  # this branch may not be chosen
                step = Step(
                    Node(node.op, node.shown, self.file.opset, {}), Operator(functools.partial(_refuse, error)), {}
                )
            steps.append((step, node.inputs, node.outputs))
        return Inner(tuple(inputs), tuple(steps), branch.outputs)

    def _folded(self, node: GraphNode) -> bool:
        """Computes a node that reads constants alone; whether it was one."""
        inputs = [i for i in node.inputs if i]
        if not all(i in self.constants for i in inputs) or not inputs:
            return False
        seen, operator = self._operator(node, self.wanted)
        call = Call(seen, [self.constants[i] if i else None for i in node.inputs])
        try:
            results = fold(operator, call)
        except ReparamError:
            raise
        except Exception as error:
            raise seen.broken(first_line(error)) from error
        weights = [i for i in dict.fromkeys(inputs) if not isinstance(self.constants[i], Known)]
        for output, value in zip(node.outputs, results, strict=False):
            if output:
                self.constants[output] = value
                if len(weights) == 1:
                    self.origins[output] = self.origins.get(weights[0], weights[0])
        return True

    # ---- names ---------------------------------------------------------------------------------------------------

    def _name(self, nodes: Sequence[GraphNode]) -> None:
        """Gives the constants that are read and the layers their paths."""
        read = dict.fromkeys(i for n in nodes for i in n.inputs if i in self.constants)
        read |= dict.fromkeys(o for o in self.file.outputs if o in self.constants)
        leaves: set[str] = set()
        taken: set[str] = set()
        weights: dict[str, str] = {}
        for name in read:
            wanted = unused_name(free_path(as_path(self.origins.get(name, name)) or "weight", leaves), taken)
            weights[name] = wanted
            leaves.add(wanted)
            taken |= {wanted, *_above(wanted)}
        layers = []
        for node in nodes:
            of = [self.origins.get(i, i) for i in node.inputs if i in weights]
            layers.append(free_path(layer_path(node, of), leaves))
        safe = attribute_names([*weights.values(), *layers])
        self.weights = {name: safe[path] for name, path in weights.items()}
        self.layers = {id(node): safe[path] for node, path in zip(nodes, layers, strict=True)}
        inner = list(_with_inner(nodes))
        statistics = {i for n in inner for k in _STATISTICS.get(n.op, ()) for i in n.inputs[k : k + 1]}
        weighted = {i for n in inner if n.op in _WEIGHTED for i in n.inputs}
        for name, path in self.weights.items():
            value = self.constants[name]
            tensor = value.tensor() if isinstance(value, Known) else value
            data = not tensor.is_floating_point() or name in statistics
            if not data and name not in weighted:
                data = not bool(torch.isfinite(tensor).all())
            owner, _, leaf = path.rpartition(".")
            self._place(owner).register_buffer(leaf, tensor) if data else self._place(owner).register_parameter(
                leaf, nn.Parameter(tensor)
            )

    def _place(self, path: str) -> nn.Module:
        module = self.root
        for part in path.split(".") if path else ():
            if part not in module._modules:
                module.add_module(part, Layer())
            child = module._modules[part]
            assert child is not None
            module = child
        return module

    # ---- the graph -----------------------------------------------------------------------------------------------

    def _read(self, name: str) -> fx.Node:
        if name not in self.values:
            self.values[name] = self.graph.create_node("get_attr", self.weights[name])
        return self.values[name]

    def _add(self, node: GraphNode) -> None:
        seen, operator = self._operator(node, self.wanted)
        constants = {k: self.constants.get(i) for k, i in enumerate(node.inputs)}
        known = {k: replace(v, held=None) for k, v in constants.items() if isinstance(v, Known)}
        layer = self._place(self.layers[id(node)])
        assert isinstance(layer, Layer)
        layer.steps.append(Step(seen, operator, known))
        inputs = [self._read(i) if i else None for i in node.inputs]
        made = self.graph.call_module(self.layers[id(node)], (len(layer.steps) - 1, *inputs))
        if len(node.outputs) == 1:
            self.values[node.outputs[0]] = made
            return
        for k, output in enumerate(node.outputs):
            if output in self.wanted:
                self.values[output] = self.graph.call_function(result_of, (made, k))


def _refuse(error: InputError, call: Call) -> NoReturn:
    raise error


def _needed(nodes: Sequence[GraphNode], outputs: Iterable[str]) -> tuple[list[GraphNode], set[str]]:
    """The nodes that an output depends on, in their order, and the names of all that is read."""
    wanted = set(outputs)
    found = []
    for node in reversed(nodes):
        if wanted.intersection(o for o in node.outputs if o):
            wanted.update(i for i in node.inputs if i)
            found.append(node)
    return found[::-1], wanted


def _with_inner(nodes: Iterable[GraphNode]) -> Iterator[GraphNode]:
    """Nodes, and those of their branches."""
    for node in nodes:
        yield node
        for branch in node.branches:
            yield from _with_inner(branch.nodes)


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
