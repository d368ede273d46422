"""A program as an ONNX graph: exported by torch, cleaned of traces of the machine, named as the network's layers are.

The exporter keeps the names of weights. Nodes get `path.of.the.layer/Operator`, free sizes get `batch`, `height` and
`width`, outputs `output` or the keys of the dict that the network returns, so that a remark of any engine's parser
names the layer. Two exports of one program are the same bytes.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from reparam.emit import export_program
from reparam.engines.format import BuildOptions, Tell
from reparam.engines.ports import names_of_outputs
from reparam.errors import InputError
from reparam.ir import Program, module_of

from .cleanup import all_values, simplified, strip

if TYPE_CHECKING:
    import onnx

OPSET = 20
BFLOAT16_OPSET = 22  # the first in which Conv takes bfloat16


def model_of(program: Program) -> onnx.ModelProto:
    """The ONNX model of a finalized program. Raises InputError naming the operator that ONNX lacks, and its layer."""
    exported = export_program(program)
    opset = BFLOAT16_OPSET if program.dtype == torch.bfloat16 else OPSET
    _note_layers(program, exported)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made: Any = torch.onnx.export(exported, dynamo=True, verbose=False, opset_version=opset)
        except Exception as error:
            raise _explained(error, exported) from error
    model: onnx.ModelProto = made.model_proto
    _name_nodes(model.graph)
    strip(model)
    _name_sizes(model.graph)
    _name_outputs(model.graph, program)
    return simplified(model)


def build_model(program: Program, options: BuildOptions, tell: Tell) -> onnx.ModelProto:
    """The model that an engine is built from: `model_of`, quantised for int8. Raises like `model_of`."""
    tell("build", 0, 1)
    model = model_of(program)
    if options.precision == "int8":
        from .quantise import quantised

        model = quantised(model, options.calibration)
    tell("build", 1, 1)
    return model


# ---- names -------------------------------------------------------------------------------------------------------


def _note_layers(program: Program, exported: torch.export.ExportedProgram) -> None:
    """Gives each call of `exported` the layer that it came from, as its stack of modules, which the exporter keeps.

    The calls of both that give tensors are the same, in order. Where they are not, nothing is claimed.
    """
    mine = [n for n in program.calls() if isinstance(n.meta.get("val"), torch.Tensor)]
    theirs = [n for n in _calls(exported) if isinstance(n.meta.get("val"), torch.Tensor)]
    known = [n.target for n in mine] == [n.target for n in theirs]
    paths = {t: module_of(m) for m, t in zip(mine, theirs, strict=True)} if known else {}
    for node in _calls(exported):
        path = paths.get(node, "")
        node.meta["nn_module_stack"] = {path: (path, "Layer")} if path else {}


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
    first = next((line.strip() for line in texts[0].splitlines() if line.strip()), type(error).__name__)
    return InputError(f"the network cannot be written as ONNX: {first}")


def _name_nodes(graph: onnx.GraphProto) -> None:
    """`layer1.0.conv1/Conv`, with _1, _2 where a layer has several of a kind."""
    taken: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        layers = ast.literal_eval(scopes)[:-1]  # the last is the call itself
        path = layers[-1] if layers else ""
        stem = f"{path}/{node.op_type}" if path else node.op_type
        taken[stem] += 1
        node.name = stem if taken[stem] == 1 else f"{stem}_{taken[stem] - 1}"


def _name_sizes(graph: onnx.GraphProto) -> None:
    """Free sizes are called by their axes; what is computed from them follows."""
    names: dict[str, str] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        axes = {0: "batch"} | ({len(dims) - 2: "height", len(dims) - 1: "width"} if len(dims) >= 4 else {})
        for i, dim in enumerate(dims):
            if dim.dim_param and dim.dim_param not in names:
                names[dim.dim_param] = _unused(axes.get(i, f"size{i}"), names.values())
    for value in all_values(graph):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), dim.dim_param)


def _unused(name: str, taken: Iterable[str]) -> str:
    names = set(taken)
    serial = 1
    unique = name
    while unique in names:
        unique = f"{name}_{serial}"
        serial += 1
    return unique


def _name_outputs(graph: onnx.GraphProto, program: Program) -> None:
    """The outputs get the names that the network's result gives them, where each is a value of its own."""
    old = [o.name for o in graph.output]
    made = {name for node in graph.node for name in node.output}
    nested = any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute)
    if nested or len(set(old)) != len(old) or not made.issuperset(old):
        return
    wanted = names_of_outputs(program, len(old))
    taken = (made | {v.name for v in graph.input} | {t.name for t in graph.initializer}) - set(old)
    names: dict[str, str] = {}
    for before, name in zip(old, wanted, strict=True):
        names[before] = _unused(name, taken | set(names.values()))
    for node in graph.node:
        for names_of in (node.input, node.output):
            for i, name in enumerate(names_of):
                if name in names:
                    names_of[i] = names[name]
    for value in all_values(graph):
        value.name = names.get(value.name, value.name)
