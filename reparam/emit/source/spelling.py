"""Ways to write an ATen call as ordinary Python: operators, methods, functions, subscripts.

Each function here makes a speller or is one; the table in `spelling_table` says which operator has which. A speller
returns None for arguments that its spelling cannot express.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reparam.ir import CPU

from .expressions import PRODUCT, SUM, UNARY, Expr, Ref, call_text, infix, literal, tuple_text
from .modules import flattens_batch, numbers

# What written source calls on values, and by names of torch. The makers of spellers add theirs; `gate` reads both.
METHODS = {"to", "reshape", "flatten", "clone", "contiguous"}
FUNCTIONS = {"torch.einsum", "F.interpolate", "F.batch_norm", "F.instance_norm", "F.relu6", "F.embedding"}
_LAST = 2**62  # a slice's end beyond this means "to the end"


@dataclass(frozen=True)
class Context:
    """What spelling needs: `ref` gives a graph value's expression; `device` stands for the CPU, where programs lie."""

    ref: Ref
    device: str


Speller = Callable[[Context, fx.Node, Mapping[str, Any]], Expr | None]


def value(context: Context, argument: Any) -> Expr:
    """Any argument: a graph value, a literal, or a list of them."""
    if isinstance(argument, fx.Node):
        return context.ref(argument)
    if isinstance(argument, (list, tuple)):
        parts = [value(context, a).text for a in argument]
        return Expr(tuple_text(parts) if isinstance(argument, tuple) else f"[{', '.join(parts)}]")
    if isinstance(argument, torch.device) and argument == CPU:
        return Expr(context.device)
    return literal(argument)


def _flat(argument: Any) -> list[Any]:
    return list(argument) if isinstance(argument, (list, tuple)) else [argument]


def _items(context: Context, argument: Any) -> list[str]:
    """The parts of a list argument; a single value counts as a list of one."""
    return [value(context, a).text for a in _flat(argument)]


# ---- makers of spellers ------------------------------------------------------------------------------------------


def _rest(context: Context, node: fx.Node, args: Mapping[str, Any], skip: Iterable[str]) -> dict[str, str]:
    """The arguments that differ from the schema's default, by name. A list of sizes reads as a tuple."""
    assert isinstance(node.target, torch._ops.OpOverload)
    result = {}
    for argument in node.target._schema.arguments:
        given = args[argument.name]
        default = argument.default_value if argument.has_default_value() else None
        if argument.name in skip or given == default or (given is None and default is None):
            continue
        if argument.name in ("layout", "pin_memory") and given in (None, False, torch.strided):
            continue
        if argument.name.startswith("cudnn_enable"):  # a hint that the functions of torch give by themselves
            continue
        result[argument.name] = _tidy(context, given)
    return result


def _tidy(context: Context, given: Any) -> str:
    if isinstance(given, (list, tuple)) and given:
        return tuple_text(_items(context, given))
    return value(context, given).text


def infix_speller(symbol: str, *, swapped: bool = False) -> Speller:
    """`a symbol b`."""

    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
        sides = list(args.values())[:2]
        if args.get("alpha", 1) != 1 or any(isinstance(s, bool) for s in sides):
            return None
        left, right = (value(context, s) for s in (reversed(sides) if swapped else sides))
        return infix(symbol, left, right)

    return spelling


def method(name: str, *positional: str, spread: bool = False) -> Speller:
    """`x.name(a, key=b)`. spread: the one positional list is written as separate arguments."""
    METHODS.add(name)

    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
        (first, x), *_ = args.items()
        if not isinstance(x, fx.Node):
            return None
        texts = []
        for key in positional:
            texts += _items(context, args[key]) if spread else [_tidy(context, args[key])]
        keywords = _rest(context, node, args, (first, *positional))
        return Expr(call_text(f"{context.ref(x).atom}.{name}", texts, keywords))

    return spelling


def function(name: str, *positional: str) -> Speller:
    """`name(a, key=b)`, with the arguments `positional` first."""
    FUNCTIONS.add(name)

    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
        texts = [value(context, args[key]).text for key in positional]
        if texts and args[positional[-1]] is None:
            texts.pop()
        return Expr(call_text(name, texts, _rest(context, node, args, positional)))

    return spelling


def windowed(name: str, *positional: str) -> Speller:
    """A function whose remaining arguments are geometry: [2, 2] reads as 2."""
    FUNCTIONS.add(name)

    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
        keywords = _rest(context, node, args, positional)
        geometry = [k for k in args if k not in _OPERANDS]
        if any(isinstance(v, fx.Node) for k in geometry for v in _flat(args[k])):
            return None
        keywords |= {k: numbers(args[k]) for k in keywords if k in geometry}
        if "stride" in args and "kernel_size" in args and keywords.get("stride") == numbers(args["kernel_size"]):
            del keywords["stride"]
        given = [k for k in positional if args[k] is not None]
        texts = [numbers(args[k]) if k in geometry else value(context, args[k]).text for k in given]
        pool = "kernel_size" in args  # whose stride is its kernel by default, and not 1
        keywords = {k: v for k, v in keywords.items() if (k, v) not in _DEFAULTS or (pool and k == "stride")}
        return Expr(call_text(name, texts, keywords))

    return spelling


_OPERANDS = frozenset({"input", "self", "weight", "bias"})
_DEFAULTS = {
    ("stride", "1"),
    ("padding", "0"),
    ("dilation", "1"),
    ("output_padding", "0"),
    ("padding", '"valid"'),
}


def sized(name: str, *positional: str) -> Speller:
    """A function whose lists read as tuples: F.layer_norm(x, (192,), eps=1e-06)."""
    FUNCTIONS.add(name)

    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
        texts = [_tidy(context, args[key]) for key in positional]
        return Expr(call_text(name, texts, _rest(context, node, args, positional)))

    return spelling


# ---- single spellings --------------------------------------------------------------------------------------------


def spell_size(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
    return Expr(f"{context.ref(args['self']).atom}.shape[{value(context, args['dim']).text}]")


def _axis(context: Context, x: fx.Node, dim: int, index: str) -> Expr:
    """`x[:, :, index]`, or `x[..., index]` on the last axis of a value with many."""
    rank = len(x.meta["val"].shape)
    dim %= rank
    lead = ["..."] if dim == rank - 1 and dim > 1 else [":"] * dim
    return Expr(f"{context.ref(x).atom}[{', '.join([*lead, index])}]")


def _bound(context: Context, bound: Any) -> Expr | None:
    if bound is None or (isinstance(bound, int) and bound >= _LAST):
        return None
    return value(context, bound)


def spell_slice(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    if not isinstance(args["dim"], int):
        return None
    start, end = _bound(context, args["start"] or None), _bound(context, args["end"])
    wide = any(b is not None and b.rank in (SUM, PRODUCT) for b in (start, end))
    text = (start.text if start else "") + (" " if wide and start else "") + ":"
    text += (" " if wide and end else "") + (end.text if end else "")
    if args["step"] != 1:
        text += f":{value(context, args['step']).text}"
    return _axis(context, args["self"], args["dim"], text)


def spell_select(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    if not isinstance(args["dim"], int):
        return None
    return _axis(context, args["self"], args["dim"], value(context, args["index"]).text)


def spell_index(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
    texts = [":" if i is None else value(context, i).text for i in args["indices"]]
    return Expr(f"{context.ref(args['self']).atom}[{', '.join(texts)}]")


def spell_cast(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    """A cast to a dtype. Where the program lives already, the device is left out."""
    if args.get("non_blocking") or args.get("copy") or args.get("memory_format") is not None or args["dtype"] is None:
        return None
    if args.get("device") not in (None, CPU) or args.get("layout") not in (None, torch.strided):
        return None
    return Expr(f"{context.ref(args['self']).atom}.to({value(context, args['dtype']).text})")


def spell_reshape(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
    x = context.ref(args["self"]).atom
    if flattens_batch(node):
        return Expr(f"{x}.flatten(1)")
    return Expr(call_text(f"{x}.reshape", _items(context, args["shape"]) or ["()"]))


def spell_flatten(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
    texts = [str(args["start_dim"]), *([] if args["end_dim"] == -1 else [str(args["end_dim"])])]
    return Expr(call_text(f"{context.ref(args['self']).atom}.flatten", [] if texts == ["0"] else texts))


def spell_clone(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    """A clone for its layout alone is contiguous(): nothing writes in place, so nobody can tell the difference."""
    if args["memory_format"] not in (None, torch.contiguous_format):
        return None
    name = "clone" if args["memory_format"] is None else "contiguous"
    return Expr(f"{context.ref(args['self']).atom}.{name}()")


def spell_neg(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
    return Expr(f"-{context.ref(args['self']).inside(UNARY)}", UNARY)


def spell_einsum(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    operands = args["tensors"]
    if len(operands) > 2 or args["path"] is not None:  # torch.einsum would choose an order of its own
        return None
    return Expr(call_text("torch.einsum", [literal(args["equation"]).text, *_items(context, list(operands))]))


def dropout(name: str) -> Speller:
    """A dropout that is off in evaluation mode."""
    FUNCTIONS.add(name)

    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
        if args["train"]:
            return None
        return Expr(call_text(name, [context.ref(args["input"]).text, literal(args["p"]).text, "self.training"]))

    return spelling


def interpolate(mode: str, **fixed: str) -> Speller:
    def spelling(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
        keywords = {}
        if args["output_size"] is not None:
            keywords["size"] = tuple_text(_items(context, args["output_size"]))
        if args["scale_factors"] is not None:
            keywords["scale_factor"] = numbers(args["scale_factors"])
        keywords["mode"] = f'"{mode}"'
        if args.get("align_corners"):
            keywords["align_corners"] = "True"
        return Expr(call_text("F.interpolate", [context.ref(args["input"]).text], keywords | fixed))

    return spelling


def spell_batch_norm(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr:
    names = ("running_mean", "running_var", "weight", "bias")
    texts = [value(context, args[k]).text for k in ("input", *names)]
    keywords = {"training": "True"} if args.get("training") else {}
    if args.get("use_input_stats") is False:
        keywords["use_input_stats"] = "False"
    if args["momentum"] != 0.1:
        keywords["momentum"] = literal(args["momentum"]).text
    if args["eps"] != 1e-5:
        keywords["eps"] = literal(args["eps"]).text
    return Expr(call_text("F.instance_norm" if "use_input_stats" in args else "F.batch_norm", texts, keywords))


def spell_elu(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    if args["scale"] != 1 or args["input_scale"] != 1:
        return None
    return function("F.elu", "self")(context, node, args)


def spell_hardtanh(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    if (args["min_val"], args["max_val"]) == (0, 6):
        return Expr(call_text("F.relu6", [context.ref(args["self"]).text]))
    return function("F.hardtanh", "self")(context, node, args)


def spell_embedding(context: Context, node: fx.Node, args: Mapping[str, Any]) -> Expr | None:
    if args["padding_idx"] != -1 or args["scale_grad_by_freq"] or args["sparse"]:
        return None
    return Expr(call_text("F.embedding", [value(context, args[k]).text for k in ("indices", "weight")]))
