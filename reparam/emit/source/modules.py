"""Which `torch.nn` module computes an ATen call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from reparam.ir import CONVS, TRANSPOSED_CONVS, arguments, aten, is_call, is_tensor, shape_of

from .expressions import literal, tuple_text


@dataclass(frozen=True)
class ModuleForm:
    """A module for one call.

    name, args: `nn.Conv2d` and the texts of its arguments. operand: what it is called on.
    slots: its parameters and buffers by their attribute names -> the get_attr nodes that hold them.
    extra: integer buffers that the module has and the graph does not read.
    """

    name: str
    args: tuple[str, ...]
    operand: fx.Node
    slots: Mapping[str, fx.Node] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    def text(self, dtype: str = "") -> str:
        """The constructor call; `dtype` is added when it is given and the module holds weights."""
        args = [*self.args, f"dtype={dtype}"] if dtype and self.slots else self.args
        return f"{self.name}({', '.join(args)})"


def numbers(value: Any) -> str:
    """`3` for [3, 3] and for 3, `(3, 1)` for [3, 1]."""
    if not isinstance(value, (list, tuple)):
        return literal(value).text
    if len(set(value)) == 1:
        return literal(value[0]).text
    return tuple_text([literal(v).text for v in value])


def _keywords(args: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """`key=value` for every argument that differs from the module's default."""
    result = []
    for key, default in defaults.items():
        value = args[key]
        flat = list(value) if isinstance(value, (list, tuple)) else [value]
        if any(v != default or isinstance(v, bool) != isinstance(default, bool) for v in flat):
            result.append(f"{key}={numbers(value)}")
    return result


def _slots(args: Mapping[str, Any], names: Sequence[str]) -> dict[str, fx.Node] | None:
    """The weights of a call; None when one of them is computed."""
    found = {n: args[n] for n in names if args[n] is not None}
    return found if all(isinstance(v, fx.Node) and v.op == "get_attr" for v in found.values()) else None


def _static(value: Any) -> bool:
    """True when no graph value is inside an argument."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return not any(isinstance(v, fx.Node) for v in items)


# ---- modules with weights ----------------------------------------------------------------------------------------


def _conv(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight", "bias"))
    if slots is None:
        return None
    shape = shape_of(args["weight"])
    n, groups = len(shape) - 2, int(args["groups"])
    transposed = is_call(node, TRANSPOSED_CONVS)
    wide, narrow = shape[1] * groups, shape[0]
    channels = (narrow, wide) if transposed else (wide, narrow)
    defaults: dict[str, Any] = {"stride": 1, "padding": 0}
    if transposed:
        defaults["output_padding"] = 0
    defaults |= {"dilation": 1, "groups": 1}
    values = dict(args)
    if args["padding"] == "valid":
        values["padding"] = 0
    texts = [*map(str, channels), numbers(shape[2:]), *_keywords(values, defaults)]
    if args["bias"] is None:
        texts.append("bias=False")
    return ModuleForm(f"nn.Conv{'Transpose' if transposed else ''}{n}d", tuple(texts), args["input"], slots)


def _linear(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight", "bias"))
    if slots is None or len(shape_of(args["weight"])) != 2:
        return None
    wide, narrow = shape_of(args["weight"])
    texts = (str(narrow), str(wide), *(("bias=False",) if args["bias"] is None else ()))
    return ModuleForm("nn.Linear", texts, args["input"], slots)


def _batch_norm(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight", "bias", "running_mean", "running_var"))
    tracked = args["running_mean"] is not None
    affine = args["weight"] is not None
    if slots is None or tracked == bool(args["training"]):
        return None
    if (args["running_var"] is not None) != tracked or (args["bias"] is not None) != affine:
        return None
    shape = shape_of(args["input"])
    texts = [str(shape[1]), *_keywords(args, {"eps": 1e-5})]
    if args["momentum"] == 0:  # what momentum=None passes on in evaluation mode
        texts.append("momentum=None")
    else:
        texts += _keywords(args, {"momentum": 0.1})
    texts += [] if affine else ["affine=False"]
    texts += [] if tracked else ["track_running_stats=False"]
    rank = max(1, len(shape) - 2)
    return ModuleForm(
        f"nn.BatchNorm{rank}d", tuple(texts), args["input"], slots, ("num_batches_tracked",) if tracked else ()
    )


def _layer_norm(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight", "bias"))
    shape = args["normalized_shape"]
    if slots is None or not _static(shape) or (args["weight"] is None and args["bias"] is not None):
        return None
    texts = [
        numbers(shape) if len(shape) == 1 else tuple_text([str(s) for s in shape]),
        *_keywords(args, {"eps": 1e-5}),
    ]
    if args["weight"] is None:
        texts.append("elementwise_affine=False")
    elif args["bias"] is None:
        texts.append("bias=False")
    return ModuleForm("nn.LayerNorm", tuple(texts), args["input"], slots)


def _rms_norm(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight",))
    shape = args["normalized_shape"]
    if slots is None or not _static(shape):
        return None
    texts = [
        numbers(shape) if len(shape) == 1 else tuple_text([str(s) for s in shape]),
        *_keywords(args, {"eps": None}),
    ]
    texts += [] if args["weight"] is not None else ["elementwise_affine=False"]
    return ModuleForm("nn.RMSNorm", tuple(texts), args["input"], slots)


def _group_norm(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight", "bias"))
    if slots is None or (args["weight"] is None) != (args["bias"] is None):
        return None
    texts = [str(args["num_groups"]), str(shape_of(args["input"])[1]), *_keywords(args, {"eps": 1e-5})]
    texts += [] if args["weight"] is not None else ["affine=False"]
    return ModuleForm("nn.GroupNorm", tuple(texts), args["input"], slots)


def _instance_norm(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight", "bias"))
    rank = len(shape_of(args["input"])) - 2
    if slots is None or args["running_mean"] is not None or not args["use_input_stats"] or rank < 1:
        return None
    if (args["weight"] is None) != (args["bias"] is None):
        return None
    texts = [str(shape_of(args["input"])[1]), *_keywords(args, {"eps": 1e-5})]
    texts += ["affine=True"] if args["weight"] is not None else []
    return ModuleForm(f"nn.InstanceNorm{rank}d", tuple(texts), args["input"], slots)


def _embedding(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight",))
    if slots is None or args["scale_grad_by_freq"] or args["sparse"]:
        return None
    texts = [*map(str, shape_of(args["weight"]))]
    texts += [] if args["padding_idx"] == -1 else [f"padding_idx={args['padding_idx']}"]
    return ModuleForm("nn.Embedding", tuple(texts), args["indices"], slots)


def _prelu(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    slots = _slots(args, ("weight",))
    if slots is None or len(shape_of(args["weight"])) != 1:
        return None
    count = shape_of(args["weight"])[0]
    return ModuleForm("nn.PReLU", (str(count),) if count > 1 else (), args["self"], slots)


# ---- modules without weights -------------------------------------------------------------------------------------

Maker = Callable[[fx.Node, Mapping[str, Any]], ModuleForm | None]


def _simple(name: str, first: Sequence[str] = (), **defaults: Any) -> Maker:
    """A module whose arguments have the schema's names: `first` by position, the others unless at their default."""

    def make(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
        if not all(_static(args[k]) for k in (*first, *defaults)):
            return None
        texts = (*(numbers(args[k]) for k in first), *_keywords(args, defaults))
        operand = args["input"] if "input" in args else args["self"]
        return ModuleForm(name, texts, operand)

    return make


def _hardtanh(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    if (args["min_val"], args["max_val"]) == (0, 6):
        return ModuleForm("nn.ReLU6", (), args["self"])
    return ModuleForm("nn.Hardtanh", (*_keywords(args, {"min_val": -1.0, "max_val": 1.0}),), args["self"])


def _elu(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    if args["scale"] != 1 or args["input_scale"] != 1:
        return None
    return ModuleForm("nn.ELU", (*_keywords(args, {"alpha": 1.0}),), args["self"])


def _softmax(name: str) -> Maker:
    def make(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
        return ModuleForm(name, (f"dim={args['dim']}",), args["self"]) if args["dtype"] is None else None

    return make


def _pool(name: str, **defaults: Any) -> Maker:
    def make(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
        values = dict(args)
        stride = args["stride"]
        same = not stride or numbers(stride) == numbers(args["kernel_size"])
        kernel = numbers(args["kernel_size"])
        texts = [kernel, *([] if same else [f"stride={numbers(stride)}"]), *_keywords(values, defaults)]
        return ModuleForm(name, tuple(texts), args.get("self", args.get("input")))

    return make


def _flatten(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    span = (args["start_dim"], args["end_dim"])
    texts = () if span == (1, -1) else (str(span[0]),) if span[1] == -1 else tuple(map(str, span))
    return ModuleForm("nn.Flatten", texts, args["self"])


def flattens_batch(node: fx.Node) -> bool:
    """True for reshape(x, (x.shape[0], -1)): all but the batch axis become one."""
    if node.target is not aten.reshape.default:
        return False
    x, shape = node.args[0], node.args[1]
    if not isinstance(x, fx.Node) or not isinstance(shape, (list, tuple)) or len(shape) != 2:
        return False
    batch = shape[0]
    size = isinstance(batch, fx.Node) and batch.target is aten.sym_size.int and batch.args[1] == 0
    if not size or len(x.meta["val"].shape) < 2:
        return False
    source = batch.args[0]  # type: ignore[union-attr]  # `size` says that it is a node
    assert isinstance(source, fx.Node)
    return source is x or str(source.meta["val"].shape[0]) == str(x.meta["val"].shape[0])


def _reshape(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    return ModuleForm("nn.Flatten", (), args["self"]) if flattens_batch(node) else None


def _dropout(name: str) -> Maker:
    def make(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
        return ModuleForm(name, (numbers(args["p"]),), args["input"]) if not args["train"] else None

    return make


def _pad(node: fx.Node, args: Mapping[str, Any]) -> ModuleForm | None:
    pad = args["pad"]
    if not _static(pad) or args.get("mode", "constant") != "constant" or args["value"] not in (None, 0):
        return None
    if len(pad) not in (2, 4, 6):
        return None
    return ModuleForm(f"nn.ZeroPad{len(pad) // 2}d", (tuple_text([str(p) for p in pad]),), args["self"])


_MAX = {"padding": 0, "dilation": 1, "ceil_mode": False}
_AVG = {"padding": 0, "ceil_mode": False, "count_include_pad": True}
_MAKERS: Mapping[Any, Maker] = {
    **dict.fromkeys(CONVS | TRANSPOSED_CONVS, _conv),
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.instance_norm.default: _instance_norm,
    aten.embedding.default: _embedding,
    aten.prelu.default: _prelu,
    aten.relu.default: _simple("nn.ReLU"),
    aten.relu6.default: _simple("nn.ReLU6"),
    aten.leaky_relu.default: _simple("nn.LeakyReLU", negative_slope=0.01),
    aten.selu.default: _simple("nn.SELU"),
    aten.celu.default: _simple("nn.CELU", alpha=1.0),
    aten.gelu.default: _simple("nn.GELU", approximate="none"),
    aten.silu.default: _simple("nn.SiLU"),
    aten.mish.default: _simple("nn.Mish"),
    aten.hardswish.default: _simple("nn.Hardswish"),
    aten.hardsigmoid.default: _simple("nn.Hardsigmoid"),
    aten.sigmoid.default: _simple("nn.Sigmoid"),
    aten.tanh.default: _simple("nn.Tanh"),
    aten.softplus.default: _simple("nn.Softplus", beta=1.0, threshold=20.0),
    aten.glu.default: _simple("nn.GLU", dim=-1),
    aten.hardtanh.default: _hardtanh,
    aten.elu.default: _elu,
    aten.softmax.int: _softmax("nn.Softmax"),
    aten.log_softmax.int: _softmax("nn.LogSoftmax"),
    aten.max_pool1d.default: _pool("nn.MaxPool1d", **_MAX),
    aten.max_pool2d.default: _pool("nn.MaxPool2d", **_MAX),
    aten.max_pool3d.default: _pool("nn.MaxPool3d", **_MAX),
    aten.avg_pool1d.default: _pool("nn.AvgPool1d", **_AVG),
    aten.avg_pool2d.default: _pool("nn.AvgPool2d", **_AVG, divisor_override=None),
    aten.avg_pool3d.default: _pool("nn.AvgPool3d", **_AVG, divisor_override=None),
    aten.adaptive_avg_pool1d.default: _simple("nn.AdaptiveAvgPool1d", ("output_size",)),
    aten.adaptive_avg_pool2d.default: _simple("nn.AdaptiveAvgPool2d", ("output_size",)),
    aten.adaptive_avg_pool3d.default: _simple("nn.AdaptiveAvgPool3d", ("output_size",)),
    aten.pixel_shuffle.default: _simple("nn.PixelShuffle", ("upscale_factor",)),
    aten.pixel_unshuffle.default: _simple("nn.PixelUnshuffle", ("downscale_factor",)),
    aten.flatten.using_ints: _flatten,
    aten.reshape.default: _reshape,
    aten.dropout.default: _dropout("nn.Dropout"),
    aten.alpha_dropout.default: _dropout("nn.AlphaDropout"),
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _pad,
}
POSITIONLESS = frozenset(
    {aten.pad.default, aten.constant_pad_nd.default, aten.reshape.default, aten.flatten.using_ints}
)


def module_form(node: fx.Node) -> ModuleForm | None:
    """The module that computes the call `node`, or None."""
    maker = _MAKERS.get(node.target) if node.op == "call_function" else None
    if maker is None:
        return None
    args = arguments(node)
    nested = any(isinstance(v, (list, tuple)) and not _static(v) for v in args.values())
    scalars = any(isinstance(v, fx.Node) and not is_tensor(v) for v in args.values())
    if scalars or (nested and node.target is not aten.reshape.default):
        return None
    form = maker(node, args)
    return form if form is not None and isinstance(form.operand, fx.Node) else None
