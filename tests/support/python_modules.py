"""Random models as Python source: branches on sizes, state that a forward keeps, bool and integer values, factories.

The graph fuzz draws graphs; what a trace leaves out of a graph cannot be drawn that way. Here a model is a class whose
`forward` is written out on one value `x` of shape (N, 4, H, W). A failure prints the class.
"""

from __future__ import annotations

import itertools
import linecache
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam.utils import DEFAULT_AXES

CHANNELS = 4
SIZES = st.integers(0, 24)
_FILES = itertools.count()

# ---- what a size, a condition and a number can be ----------------------------------------------------------------

AXES = st.sampled_from(("x.shape[0]", "x.shape[2]", "x.shape[3]", "x.size(-1)", "x.size(0)", "len(x)"))
CONDITIONS = st.one_of(
    st.builds("{} % {} == {}".format, AXES, st.integers(2, 4), st.integers(0, 2)),
    st.builds("{} {} {}".format, AXES, st.sampled_from(("<", ">", "==", "!=", ">=")), SIZES),
    st.just("x.shape[2] == x.shape[3]"),
    st.just("x.shape[-2:] == (8, 8)"),
    st.just("x.numel() > 600"),
    st.just("self.training"),
    st.just("torch.is_grad_enabled() and x.requires_grad"),
    st.builds("int(self.number) {} {}".format, st.sampled_from(("<", ">")), SIZES),
    st.builds("self.calls % {} == 0".format, st.integers(2, 3)),
    st.just("self.seen is not None"),
    st.just("x.dtype == torch.float32"),
)
FACTORS = st.sampled_from(
    (
        "0.5",
        "-1.25",
        "1.0",
        "2",
        "self.scale",
        "self.number.item()",
        "(x.shape[2] / 4)",
        "(x.shape[0] // 2 + 1)",
        "x.shape[-1] ** -0.5",
        "float(self.table[1])",
        "(self.table // 2).sum()",
        "self.flags.sum()",
        "self.table.float().mean()",
        "torch.tensor(0.75)",
        "torch.arange(1, x.shape[3] + 1, device=x.device)",
        "torch.linspace(0, 1, x.shape[2]).view(-1, 1)",
        "torch.ones(x.shape[2:], dtype=x.dtype)",
        "x.new_full((x.shape[0], 1, 1, 1), 0.3)",
        "(torch.arange(x.shape[3]) % 3).type_as(x)",
        "torch.zeros(4).softmax(0).view(1, 4, 1, 1)",
        "(torch.arange(4) / 3).view(4, 1, 1)",
        "torch.eye(4)[1].view(1, 4, 1, 1)",
        "torch.full((1, 4, 1, 1), 2)",
    )
)
MASKS = st.sampled_from(
    (
        "(x > 0)",
        "(x.abs() < 0.5)",
        "((x > 0) & (x < 1))",
        "(~(x > 0.25))",
        "(x >= x.mean())",
        "torch.isfinite(x)",
        "self.flags.view(1, 4, 1, 1).expand_as(x)",
        "(x > 0).logical_xor(x > 1)",
        "torch.ones_like(x, dtype=torch.bool)",
        "(torch.arange(x.shape[2]) > 2).view(1, 1, -1, 1).expand_as(x)",
    )
)

# ---- expressions: from x to a new x of the same rank ----------------------------------------------------------------

ACTIVATIONS = ("relu", "nn.functional.silu", "torch.tanh", "nn.functional.hardtanh", "nn.functional.leaky_relu")
EXPRESSIONS = st.one_of(
    st.builds("torch.{}(x)".format, st.sampled_from(("relu", "tanh", "sigmoid", "abs"))),
    st.builds("x * {}".format, FACTORS),
    st.builds("x + {}".format, FACTORS),
    st.builds("x / (1.5 + {})".format, st.sampled_from(("x.shape[0]", "self.table[0]", "x.abs().mean()"))),
    st.builds("torch.where({}, x, x * 0.1)".format, MASKS),
    st.builds("x * {}".format, MASKS),
    st.builds("x.masked_fill({}, 0.2)".format, MASKS),
    st.builds("x + ({}).to(x.dtype)".format, MASKS),
    st.builds("x - ({}).float().mean()".format, MASKS),
    st.builds("x + ({}).sum(1, keepdim=True) // 2".format, MASKS),
    st.sampled_from(
        (
            "self.conv(x)",
            "self.norm(self.conv(x))",
            "self.norm(x)",
            "x + self.conv(x)",
            "torch.relu(x + self.norm(self.conv(x)))",
            "self.point(x) + self.conv(x)",
            "self.point(x) + x + self.norm(x)",
            "self.squeeze(x)",
            "x * torch.sigmoid(self.point(x.mean((2, 3), keepdim=True)))",
            "(x * 4).round() / 4",
            "torch.floor(x * 3)",
            "(x * 10).long().remainder(7).to(x.dtype)",
            "(x * 10).to(torch.int32) // 3 + x",
            "x.abs().mul(40).to(torch.uint8) * 2 / 9 + x",
            "x + x.argmax(1, keepdim=True)",
            "x[:, self.order]",
            "x.index_select(1, self.order)",
            "x[..., : x.shape[-1] // 2 * 2]",
            "x[:, :, 1:] if x.shape[2] > 4 else x",
            "nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))",
            "nn.functional.pad(x, (0, -x.shape[3] % 4))",
            "nn.functional.max_pool2d(x, 3, 1, 1)",
            "nn.functional.avg_pool2d(x, 2, ceil_mode=True)",
            "nn.functional.adaptive_avg_pool2d(x, 3)",
            "nn.functional.adaptive_avg_pool2d(x, (x.shape[2], 1)) + x",
            "nn.functional.interpolate(x, size=x.shape[-2:])",
            "nn.functional.interpolate(x, scale_factor=2.0, mode='nearest')",
            "x.flatten(2).softmax(-1).view(x.shape)",
            "x.roll(x.shape[2] // 2, 2)",
            "torch.cat((x, x), 1)[:, ::2]",
            "torch.cat([x.new_zeros(x.shape[0], 1, *x.shape[2:]), x[:, 1:]], 1)",
            "torch.stack((x, self.conv(x))).sum(0)",
            "sum((x, self.conv(x), x))",
            "x.transpose(2, 3).contiguous().transpose(2, 3)",
            "x.reshape(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)",
            "x.double().mul(0.5).to(x.dtype)",
            "x.half().to(x.dtype)",
            "nn.functional.dropout(x, 0.5, self.training)",
            "x.cumsum(0) if x.shape[0] == 1 else x",
            "torch.zeros_like(x) + x",
            "x.clone().mul_(2)",
            "x.clone().index_fill_(1, self.order[:1], 0.0)",
            "torch.einsum('nchw,kc->nkhw', x, self.point.weight[:, :, 0, 0])",
            "(x.sin() + 1j * x.cos()).real",
            "x.view(x.shape[0], -1).view_as(x)",
            "x * torch.finfo(x.dtype).eps ** 0.1",
            "x.clamp_min(torch.finfo(x.dtype).tiny)",
            "x & (x > 0)",
            "x.sub(x.mean(0, keepdim=True))",
        )
    ),
)

# ---- statements -----------------------------------------------------------------------------------------------------

STATE = st.sampled_from(
    (
        ["if self.seen is None:", "    self.seen = x.shape[2]", "x = x + self.seen * 0.1"],
        ["self.seen = x.shape[0]", "x = x * self.seen"],
        [
            "if self.seen is None or self.seen.shape != x.shape[2:]:",
            "    self.seen = torch.arange(x.shape[2] * x.shape[3]).view(x.shape[2:]) * 0.01",
            "x = x + self.seen",
        ],
        [
            "if self.seen is None:",
            "    self.seen = torch.linspace(-1, 1, x.shape[3])",
            "x = x + nn.functional.pad(self.seen, (0, x.shape[3] - self.seen.shape[0]))",
        ],
        ["self.calls += 1"],
        ["self.calls += 1", "x = x + self.calls"],
        [
            "key = tuple(x.shape[2:])",
            "if key not in self.cache:",
            "    self.cache[key] = sum(key) / 16",
            "x = x * self.cache[key]",
        ],
        ["self.cache['last'] = x", "x = x + self.cache.get('first', 0)"],
        ["if self.calls == 0:", "    self.calls = x.shape[0]", "x = x * self.calls"],
        ["self.held.add_(1)", "x = x + self.held"],
        ["self.held = x.detach().mean((0, 2, 3))", "x = x - self.held.view(1, 4, 1, 1)"],
    )
)


def _indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _branch(condition: str, yes: list[str], no: list[str] | None) -> list[str]:
    return [f"if {condition}:", *_indented(yes), *([] if no is None else ["else:", *_indented(no)])]


_SIMPLE = st.builds(lambda text: [f"x = {text}"], EXPRESSIONS)
_LOOP = st.builds(
    lambda count, body: [f"for i in range({count}):", *_indented(body)],
    st.sampled_from(("2", "x.shape[0]", "x.shape[2] // 8", "int(self.number)")),
    _SIMPLE,
)
_TRY = st.builds(
    lambda body: ["try:", *_indented(body), "except (RuntimeError, IndexError):", "    x = x * 3"], _SIMPLE
)
STATEMENTS = st.one_of(
    _SIMPLE,
    _SIMPLE,
    st.builds(_branch, CONDITIONS, _SIMPLE, st.one_of(st.none(), _SIMPLE)),
    st.builds(_branch, CONDITIONS, _SIMPLE, st.one_of(st.none(), _SIMPLE)),
    STATE,
    _LOOP,
    _TRY,
)
RETURNS = st.sampled_from(
    ("x", "x", "x", "(x, x.mean())", "{'x': x, 'mask': x > 0}", "(x, x.argmax(1))", "[x, x.shape[2]]", "x.mean((2, 3))")
)

_CLASS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.point = nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.squeeze = nn.Sequential(nn.Conv2d(4, 2, 1), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 1))
        self.scale = nn.Parameter(torch.tensor([1.5, -0.5, 1.0, 0.0]).view(4, 1, 1))
        self.register_buffer("number", torch.tensor(2.5))
        self.register_buffer("table", torch.tensor([3, 5, 7, 8]))
        self.register_buffer("flags", torch.tensor([True, False, True, True]))
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))
        self.register_buffer("held", torch.zeros(()))
        self.seen, self.calls, self.cache = None, 0, {}

    def forward(self, x):
"""


@dataclass(frozen=True)
class Drawn:
    """One model: the body of its `forward`, what it returns, and how it is converted."""

    body: tuple[str, ...]
    returned: str
    dynamic: tuple[str, ...]
    shape: tuple[int, int, int, int]
    seed: int

    @property
    def source(self) -> str:
        """The class `Net`."""
        return _CLASS + "\n".join(f"        {line}" for line in (*self.body, f"return {self.returned}")) + "\n"

    def module(self) -> nn.Module:
        """A fresh model, in evaluation mode, with random weights and statistics that its seed fixes."""
        name = f"<model {next(_FILES)}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        scope: dict[str, Any] = {"torch": torch, "nn": nn}
        exec(compile(self.source, name, "exec"), scope)
        del linecache.cache[name]
        torch.manual_seed(self.seed)
        net: nn.Module = scope["Net"]()
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.5, 0.5)
                part.running_mean = torch.randn(part.num_features) * 0.3
                part.running_var = torch.rand(part.num_features) + 0.5
        return net.eval()

    def inputs(self, sizes: tuple[int, int, int]) -> Tensor:
        """Of a batch, height and width."""
        generator = torch.Generator().manual_seed(self.seed + sum(sizes))
        return torch.randn(sizes[0], CHANNELS, *sizes[1:], generator=generator)

    def sizes(self) -> list[tuple[int, int, int]]:
        """Five batches, heights and widths: the traced one, and four at which the free axes differ."""
        n, _, h, w = self.shape
        free = set(self.dynamic)
        found = [(n, h, w)]
        for batch, height, width in ((1, 9, 12), (2, 16, 16), (5, 7, 7), (3, 24, 11)):
            found.append(
                (batch if "batch" in free else n, height if "height" in free else h, width if "width" in free else w)
            )
        return found


@st.composite
def modules(draw: Any) -> Drawn:
    """Random models of one to four statements."""
    body = [line for lines in draw(st.lists(STATEMENTS, min_size=1, max_size=4)) for line in lines]
    dynamic = draw(st.sampled_from(((), DEFAULT_AXES, ("batch",), ("batch", "height", "width"), ("height", "width"))))
    shape = (
        draw(st.sampled_from((1, 2, 3))),
        CHANNELS,
        draw(st.sampled_from((8, 9, 10))),
        draw(st.sampled_from((8, 11))),
    )
    return Drawn(tuple(body), draw(RETURNS), dynamic, shape, draw(st.integers(0, 999)))
