"""A program as torch's own ExportedProgram, and as a `.pt2` archive.

It is put together from what the program knows: nothing is traced again.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, cast

import torch
from torch import fx, nn
from torch._export.serde.serialize import SerializeError
from torch._export.verifier import TrainingIRVerifier
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymBoolArgument,
    SymFloatArgument,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from reparam.errors import InputError
from reparam.ir import Constant, Program, attribute_names, module_of, parts_of, shape_of
from reparam.utils import first_line, one_line, refuse_existing, write_atomically

from .fresh_values import FreshValues
from .names import parameter_names
from .plain_containers import plain_containers
from .whole_sizes import spell_whole_sizes

_log = logging.getLogger(__name__)
_SYMBOLS = ((torch.SymInt, SymIntArgument), (torch.SymFloat, SymFloatArgument), (torch.SymBool, SymBoolArgument))


def export_program(program: Program, traced: Mapping[str, int] = MappingProxyType({})) -> torch.export.ExportedProgram:
    """The program as an ExportedProgram with the same dynamic axes, in containers that torch alone knows.

    It shares its weights with the program. It is in the form in which torch.export leaves a network: weights are inputs
    of the graph, no operator is taken apart, and each call knows the layer that it came from. Its example inputs are
    zeros of the traced sizes.

    traced: other sizes for some free axes in their place, by their symbols.
    """
    graph, values = fx.Graph(), FreshValues(program, traced)
    made: dict[fx.Node, fx.Node] = {}
    for node in program.placeholders:
        made[node] = graph.placeholder(str(node.target))
        made[node].name = str(node.target)  # also where it is one of Python's own, as `input`
        made[node].meta = {"val": values.of(node.meta["val"])}
    given = list(made.values())
    names = attribute_names(program.constants)
    weights: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            if name not in weights:
                weights[name] = _lifted(graph, names[name], program.constants[name], before=given[0])
                weights[name].meta = {"val": values.of(node.meta["val"])}
            made[node] = weights[name]
        elif node.op == "call_function":
            made[node] = graph.node_copy(node, made.__getitem__)
            path = module_of(node)
            layers = {path: (path, "Layer")} if path else {}
            made[node].meta = {**values.meta(node.meta["val"]), "nn_module_stack": layers}
    returned: Any = fx.node.map_arg(program.output.args[0], made.__getitem__)
    results = list(returned)
    graph.output(tuple(results))
    spell_whole_sizes(graph)
    signature = _signature(program, len(results))
    state = {names[name]: _stored(program.constants[name]) for name in weights}
    inputs = [_weight_spec(weights[name], names[name], state[names[name]]) for name in weights]
    inputs += [InputSpec(InputKind.USER_INPUT, _argument(n), None) for n in given]
    outputs = [OutputSpec(OutputKind.USER_OUTPUT, _argument(r), None) for r in results]
    return torch.export.ExportedProgram(
        root=nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(inputs, outputs),
        state_dict=state,
        range_constraints=values.ranges(),
        module_call_graph=[ModuleCallEntry("", signature)],
        example_inputs=pytree.tree_unflatten(_examples(program, traced), signature.in_spec),
        verifiers=[TrainingIRVerifier],
    )


def _lifted(graph: fx.Graph, name: str, constant: Constant, *, before: fx.Node) -> fx.Node:
    """A weight as an input of the graph, under the name that torch.export would give it."""
    with graph.inserting_before(before):
        made = graph.placeholder(f"{'p' if constant.trainable else 'b'}_{name.replace('.', '_')}")
    made.target = made.name
    return made


def _stored(constant: Constant) -> torch.Tensor:
    value = constant.value.detach()
    return nn.Parameter(value) if constant.trainable else value


def _weight_spec(node: fx.Node, name: str, value: torch.Tensor) -> InputSpec:
    if isinstance(value, nn.Parameter):
        return InputSpec(InputKind.PARAMETER, TensorArgument(node.name), name)
    return InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)


def _argument(result: Any) -> Any:
    """What the signature of the program says of an input or a result: a tensor, a size, or a constant."""
    if not isinstance(result, fx.Node):
        return ConstantArgument("", result)
    value = result.meta["val"]
    if isinstance(value, torch.Tensor):
        return TensorArgument(result.name)
    kind = next((made for known, made in _SYMBOLS if isinstance(value, known)), None)
    return ConstantArgument(result.name, value) if kind is None else kind(result.name)


def _examples(program: Program, traced: Mapping[str, int]) -> list[Any]:
    """A value for each argument."""
    specs = {s.name: s for s in program.inputs}
    found: list[Any] = []
    for node in program.placeholders:
        spec = specs.get(str(node.target))
        found.append(node.meta["val"] if spec is None else torch.zeros(shape_of(node, dict(traced)), dtype=spec.dtype))
    return found


def _signature(program: Program, results: int) -> ModuleCallSignature:
    """How the program is called, and what it returns."""
    inputs, outputs = plain_containers(program.in_spec), plain_containers(program.out_spec)
    leaf = pytree.treespec_leaf()
    if inputs is None:
        arguments = pytree.TreeSpec(tuple, None, [leaf] * len(program.placeholders))
        inputs = pytree.TreeSpec(tuple, None, [arguments, pytree.TreeSpec(dict, [], [])])
    if outputs is None:
        outputs = pytree.TreeSpec(tuple, None, [leaf] * results)
    return ModuleCallSignature([], [], inputs, outputs, forward_arg_names=parameter_names(program))


def save_pt2(program: Program, path: Path, *, force: bool = False) -> None:
    """Writes the program as a `.pt2` archive, whole or not at all.

    Raises InputError when `path` exists and `force` is false, and for what an archive cannot hold; MachineError when it
    cannot be written.
    """
    refuse_existing(path, force=force)  # before the work
    _refuse_results(program)
    exported = export_program(program)
    exported.example_inputs = None

    def write(file: IO[bytes]) -> None:
        sink = _Sink(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.export.save(exported, cast(IO[bytes], sink))
            except (SerializeError, AssertionError) as error:  # an assertion: of what is not done yet
                raise InputError(f"torch cannot write this network to a .pt2: {first_line(error)}") from error
        if sink.error is not None:
            raise sink.error

    write_atomically(path, write, force=force)
    _log.info("written %s", path)


def _refuse_results(program: Program) -> None:
    """Raises InputError for a result that torch cannot write, or that it writes and cannot read again."""
    results: Any = program.output.args[0]
    for number, result in enumerate(results):
        value = result.meta["val"] if isinstance(result, fx.Node) else result
        if isinstance(value, str | torch.SymBool):
            what = f"the text {one_line(value)[:60]!r}" if isinstance(value, str) else "a comparison of sizes"
            path = _path_of(program, number)
            raise InputError(f"the result '{path}' is {what}, which a .pt2 cannot hold; leave it out with --outputs")


def _path_of(program: Program, number: int) -> str:
    """Where a result lies among all: `hidden.1`, or its number."""
    parts = parts_of(program.out_spec) if program.out_spec is not None else ()
    return next((path for path, leaves, spec in parts if spec.is_leaf() and leaves.start == number), str(number))


class _Sink(io.RawIOBase):
    """Writes to `file`, and keeps the first error for later: torch's archive writer aborts the process on one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """torch rewinds what it has written; there is nothing to rewind."""
        return 0

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except BaseException as error:  # an interruption too: it is raised again outside of the writer
                self.error = error
        return len(data)
