"""Emits a program as a torch module and as a `.pt2` archive."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import fx, nn
from torch._export.serde.serialize import SerializeError

from reparam.errors import InputError
from reparam.ir import CPU, Constant, Program, attribute_names, move_graph, on_device, shape_of
from reparam.utils import SYMBOLIC_SHAPES, first_line, quiet, refuse_existing, unused_name, write_atomically

from .input_check import InputCheck
from .plain_containers import plain_containers
from .whole_sizes import spell_whole_sizes

_log = logging.getLogger(__name__)


def to_module(program: Program, device: torch.device = CPU) -> nn.Module:
    """A torch module that computes the program, with the original's call signature and nested outputs.

    Weights that were trainable are nn.Parameters. The weights are shared with the program, not copied. They keep their
    names, but for a name that a torch module has for itself (`graph`, `to`), which gets an underscore behind it.

    device: where it lies; the weights are copied to another than the CPU.
    """
    root, names = nn.Module(), attribute_names(program.constants, {*dir(_Converted), "input_check"})
    for name, constant in program.constants.items():
        _attach(root, names[name], replace(constant, value=on_device(constant.value, device)))
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    out = graph.graph_copy(program.graph, mapping)
    graph.output(out)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    if device != CPU:
        move_graph(graph, device)
    if program.in_spec is not None and program.out_spec is not None:
        info = fx.graph._PyTreeInfo(_parameter_names(program), program.in_spec, program.out_spec)
        graph.set_codegen(fx.graph._PyTreeCodeGen(info))
    module = _Converted(root, graph, class_name="Converted")
    module.eval()
    module.refuse_other_inputs(InputCheck(program, _parameter_names(program)))
    return module


class _Converted(fx.GraphModule):
    """A graph module whose copies refuse other inputs too; fx drops such hooks from a copy and from a pickle."""

    def refuse_other_inputs(self, check: InputCheck) -> None:
        self.input_check = check
        self.register_forward_pre_hook(check, with_kwargs=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Converted:
        made: _Converted = super().__deepcopy__(memo)  # type: ignore[assignment]
        made.refuse_other_inputs(self.input_check)
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        build, arguments = super().__reduce__()
        state = {k: v for k, v in arguments[0].items() if not k.startswith("_forward_pre_hooks")}
        return _unpickled, (build, (state, *arguments[1:]), self.input_check)


def _unpickled(build: Any, arguments: tuple[Any, ...], check: InputCheck) -> nn.Module:
    module: fx.GraphModule = build(*arguments)
    made = _Converted(module, module.graph, class_name="Converted")
    made.train(module.training)
    made.refuse_other_inputs(check)
    return made


def _attach(root: nn.Module, name: str, constant: Constant) -> None:
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        child = owner._modules[part]
        assert child is not None
        owner = child
    value = constant.value.detach()
    if constant.trainable:
        owner.register_parameter(leaf, nn.Parameter(value))
    else:
        owner.register_buffer(leaf, value)


def export_program(program: Program) -> torch.export.ExportedProgram:
    """The program as an ExportedProgram with the same dynamic axes, in containers that torch alone knows."""
    program = replace(program, in_spec=plain_containers(program.in_spec), out_spec=plain_containers(program.out_spec))
    module = to_module(program)
    assert isinstance(module, fx.GraphModule)
    spell_whole_sizes(module.graph)
    module.recompile()
    env = {s: 2 for spec in program.inputs for s in spec.shape[:1] if isinstance(s, str)}
    args: list[Any] = []
    shapes: list[Any] = []
    specs = {s.name: s for s in program.inputs}
    for node in program.placeholders:
        spec = specs.get(str(node.target))
        if spec is None:
            args.append(node.meta["val"])
            shapes.append(None)
            continue
        args.append(torch.zeros(shape_of(node, env), dtype=spec.dtype))
        shapes.append({i: torch.export.Dim.AUTO for i, s in enumerate(spec.shape) if isinstance(s, str)} or None)
    positional, keywords = _nest(program, args)
    spec_tree, kw_shapes = _nest(program, shapes)
    with warnings.catch_warnings(), torch.no_grad(), _without_lines(), quiet(SYMBOLIC_SHAPES):
        warnings.simplefilter("ignore")
        dynamic: Any = (
            {**dict(zip(_parameter_names(program), spec_tree, strict=False)), **kw_shapes} if kw_shapes else spec_tree
        )
        return torch.export.export(module, positional, keywords, dynamic_shapes=dynamic, strict=False)


@contextmanager
def _without_lines() -> Iterator[None]:
    """torch does not look up which line made a node: that would be one of the code that it has generated itself."""
    kept = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = kept


def _parameter_names(program: Program) -> list[str]:
    """One name for each argument of the original, nested ones included; keyword arguments keep their own."""
    targets = iter([str(n.target) for n in program.placeholders])
    if program.in_spec is None:
        return list(targets)
    args, kwargs = program.in_spec.children()
    names: list[str] = []
    for i, spec in enumerate(args.children()):
        leaves = [next(targets) for _ in range(spec.num_leaves)]
        name = leaves[0] if spec.is_leaf() else f"arg{i}"
        names.append(unused_name(name, {*names, *kwargs.context}))
    return [*names, *kwargs.context]


def _nest(program: Program, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Flat placeholder entries in the shape of the original's (args, kwargs)."""
    if program.in_spec is None:
        return tuple(leaves), {}
    args, kwargs = torch.utils._pytree.tree_unflatten(leaves, program.in_spec)
    return tuple(args), dict(kwargs)


def save_pt2(program: Program, path: Path, *, force: bool = False) -> None:
    """Writes the program as a `.pt2` archive, whole or not at all.

    Raises InputError when `path` exists and `force` is false, MachineError when it cannot be written.
    """
    refuse_existing(path, force=force)  # before the work
    exported = export_program(program)
    exported.example_inputs = None

    def write(file: IO[bytes]) -> None:
        sink = _Sink(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                torch.export.save(exported, cast(IO[bytes], sink))
            except SerializeError as error:
                raise InputError(f"torch cannot write this network to a .pt2: {first_line(error)}") from error
        if sink.error is not None:
            raise sink.error

    write_atomically(path, write, force=force)
    _log.info("written %s", path)


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
