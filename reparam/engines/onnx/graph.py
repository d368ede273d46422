"""A program as an ONNX graph: exported by torch, cleaned of traces of the machine, named as the network's layers are.

The exporter's model is edited as it is; it becomes a message on the way for onnxsim, then without large weights, which
are the program's own until they are written. Two exports of one program are the same bytes.
"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

import torch

from reparam.emit import export_program, with_whole_sizes
from reparam.engines.format import BuildOptions, Tell
from reparam.engines.ports import names_of_outputs, ports_of
from reparam.errors import InputError
from reparam.ir import ADDS, DIVS, MULS, SUBS, Program, arguments, is_all_so_far, is_call, unnoted
from reparam.utils import one_line

from .translations import only_what_is_needed

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

OPSET = 20
NEAR = {0.0: 1e-7, 1.0: 1e-4}  # ten times as far as what the exporter's optimiser takes for zero, and for one
_COLOURS = "\x1b\\[[0-9;]*m"  # of the exporter's messages
BFLOAT16_OPSET = 22  # the first in which Conv takes bfloat16


def model_of(program: Program) -> onnx.ModelProto:
    """`graph_of` as a message, with its weights."""
    import onnx_ir as ir

    from .values import untyped

    return ir.to_proto(untyped(graph_of(program)))


def graph_of(program: Program) -> ir.Model:
    """The ONNX model of a finalized program, whose weights it shares.

    Raises InputError naming the operator that ONNX lacks, and its layer.
    """
    from .attention import with_settled_attention
    from .cleanup import simplified, strip
    from .exact_words import in_exact_words
    from .free_sizes import for_free_sizes
    from .naming import name_by_weights, name_inputs, name_nodes, name_outputs, name_sizes
    from .other_words import in_other_words
    from .size_floats import refuse_uneven_sizes
    from .values import without_names_of_sizes

    program = in_other_words(for_free_sizes(with_whole_sizes(program)))
    program = with_settled_attention(in_exact_words(program))
    _refuse_constants(program)
    _refuse_complex(program)
    refuse_uneven_sizes(program)
    opset = BFLOAT16_OPSET if program.dtype == torch.bfloat16 else OPSET
    taken_for_nothing = any(_is_nearly_nothing(program, n) or is_all_so_far(n) for n in program.calls())
    model = _written(program, opset, optimize=not taken_for_nothing)
    name_nodes(model.graph)
    strip(model)
    name_sizes(model.graph)
    name_outputs(model.graph, program)
    name_inputs(model.graph, program)
    simple = simplified(model)
    name_by_weights(simple.graph)
    without_names_of_sizes(simple)
    return simple


def _is_nearly_nothing(program: Program, node: torch.fx.Node) -> bool:
    """Whether it adds nearly zero, or multiplies by nearly one: to the exporter's optimiser that is nothing."""
    neutral = 0.0 if is_call(node, ADDS | SUBS) else 1.0
    if not is_call(node, ADDS | SUBS | MULS | DIVS):
        return False
    numbers = (_number(program, arguments(node)[k]) for k in ("self", "other"))
    return any(v is not None and v != neutral and abs(v - neutral) <= NEAR[neutral] for v in numbers)


def _number(program: Program, operand: Any) -> float | None:
    """The number that an operand is, also as a weight of one; None for any other."""
    constant = program.constant(operand)
    if constant is None:
        return operand if isinstance(operand, int | float) else None
    alone = constant.value.numel() == 1 and not constant.value.is_complex()
    return float(constant.value.item()) if alone else None


def _written(program: Program, opset: int, *, optimize: bool) -> ir.Model:
    """What torch's exporter makes of it. Its optimiser fails on some graphs, and loses values of others: not of these.

    Raises InputError.
    """
    exported = export_program(program)

    def write(optimize: bool) -> ir.Model:
        with only_what_is_needed(), unnoted(program.fake_mode):
            made: Any = torch.onnx.export(exported, dynamo=True, verbose=False, opset_version=opset, optimize=optimize)
        model: ir.Model = made.model
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = write(optimize)
        except Exception as error:
            if not optimize or not _is_optimisers(error):
                raise _explained(error, exported) from error
        else:
            if not optimize or _is_whole(model.graph):
                return model
        try:
            return write(optimize=False)
        except Exception as error:
            raise _explained(error, exported) from error


def _is_optimisers(error: BaseException) -> bool:
    from onnx_ir.passes import PassError

    return isinstance(error, PassError)


def _is_whole(graph: ir.Graph) -> bool:
    """Whether every value that a node reads is an input, a weight, or made by a node."""
    given = {*graph.inputs, *graph.initializers.values()}
    return all(v is None or v in given or v.producer() is not None for node in graph for v in node.inputs)


def _refuse_constants(program: Program) -> None:
    """Raises InputError for an output that is a number or a text; None is left out."""
    (outputs,) = program.graph.output_node().args
    found = outputs if isinstance(outputs, tuple | list) else (outputs,)
    for name, value in zip(names_of_outputs(program, len(found)), found, strict=True):
        if value is not None and not isinstance(value, torch.fx.Node):
            raise InputError(
                f"{name} is {one_line(repr(value))[:60]} whatever the inputs, and ONNX files give tensors that are "
                "computed; leave it out with --outputs"
            )


def _refuse_complex(program: Program) -> None:
    """Raises InputError for an input or output of complex numbers, which runtimes take and give in other shapes."""
    inputs, outputs = ports_of(program)
    for port in (*inputs, *outputs):
        if port.dtype.startswith("complex"):
            raise InputError(
                f"{port.name} is {port.dtype}, and ONNX files take and give real numbers; let the model turn it into "
                "these with torch.view_as_real or torch.view_as_complex"
            )


def build_model(program: Program, options: BuildOptions, tell: Tell) -> onnx.ModelProto | ir.Model:
    """The model that an engine is built from: `graph_of`, for int8 the quantised message. Raises like `graph_of`."""
    tell("build", 0, 1)
    model: onnx.ModelProto | ir.Model
    if options.precision == "int8":
        from .quantise import quantised

        model = quantised(model_of(program), options.calibration, floats=options.floats)
    else:
        model = graph_of(program)
    tell("build", 1, 1)
    return model


def _calls(exported: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [n for n in exported.graph.nodes if n.op == "call_function"]


def _explained(error: BaseException, exported: torch.export.ExportedProgram) -> InputError:
    """The exporter's error with the operator and the layer that it names, or its first line."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    places = {n.name: next(iter(n.meta["nn_module_stack"]), n.name) for n in _calls(exported)}
    for text in texts:
        found = re.search(r"%(\w+) : .*?target=(?:torch\.ops\.)?([\w.]+)", text)
        if found:
            return InputError(f"ONNX has no form of {found[2]}, which '{places.get(found[1], found[1])}' uses")
    outer = ("An error occurred", "Failed to ")  # in one of its passes, or in one of its steps
    told = next((t for t in texts if not t.startswith(outer)), texts[-1])
    first = next((line.strip() for line in told.splitlines() if line.strip()), type(error).__name__)
    return InputError(f"the network cannot be written as ONNX: {re.sub(_COLOURS, '', first)}")
