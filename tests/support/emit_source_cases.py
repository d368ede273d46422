"""What the tests of `write_source` share: networks, and the round trip through the written files."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.capture import capture
from reparam.emit.source import write_source
from reparam.ir import Program, evaluate
from reparam.passes import fused_phases
from reparam.rewrite import Driver

_SERIAL = itertools.count()


def import_file(path: Path) -> ModuleType:
    """The module at `path`, imported afresh with warnings as errors."""
    compile(path.read_text(), str(path), "exec", dont_inherit=True)
    spec = importlib.util.spec_from_file_location(f"written_{next(_SERIAL)}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def capture_program(model: nn.Module, *args: Any, fuse: bool = False) -> Program:
    program = capture(model.eval(), args).program
    if fuse:
        Driver(program, allow_cost=False).run(fused_phases())
    return program


def statistics(model: nn.Module) -> nn.Module:
    """Batch norms with statistics that are not the trivial ones."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return model


def check_equal(got: Any, want: list[Any]) -> None:
    """Equal to 32 units in the last place of the largest value (kernels may depend on how memory is aligned)."""
    leaves = pytree.tree_leaves(got)
    assert len(leaves) == len(want)
    for a, b in zip(leaves, want, strict=True):
        if not isinstance(b, Tensor):
            assert a == b
            continue
        assert a.shape == b.shape and a.dtype == b.dtype
        if b.is_floating_point():
            bound = 32 * torch.finfo(b.dtype).eps * float(b.abs().max()) if b.numel() else 0.0
            assert torch.equal(a.isnan(), b.isnan())
            assert float((a - b).nan_to_num().abs().max()) <= bound if b.numel() else True
        else:
            assert torch.equal(a, b)


def check_text(path: Path) -> str:
    """The text, after the checks that every written file passes: alone, formatted, lint-free, no long lines."""
    text = path.read_text()
    assert "import reparam" not in text and "from reparam" not in text
    assert all(len(line) <= 120 for line in text.splitlines())
    comment = text[: text.index("\n\n")]
    assert all(line.startswith("# ") for line in comment.splitlines()) and "in evaluation" in comment
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--isolated", "-q"], ["format", "--isolated", "--line-length", "120", "--diff"]):
        done = subprocess.run([*ruff, *command, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return text


def round_trip(
    program: Program, folder: Path, *args: Any, kwargs: dict[str, Any] | None = None, checked: bool = True
) -> tuple[nn.Module, str]:
    """Writes, imports and runs `program`; returns the loaded module and the text."""
    path, _ = write_source(program, folder, note="a test")
    text = check_text(path) if checked else path.read_text()
    module = import_file(path)
    model: nn.Module = module.load()
    assert not model.training
    want = evaluate(program, pytree.tree_leaves((args, kwargs or {})), None)
    trained = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)  # matmul picks another kernel for weights that need gradients
    with torch.no_grad():
        check_equal(model(*args, **(kwargs or {})), want)
    for parameter, needed in zip(model.parameters(), trained, strict=True):
        parameter.requires_grad_(needed)
    return model, text


def check_trains(model: nn.Module, args: tuple[Any, ...]) -> None:
    """One small step along the gradient lowers the loss, and every parameter has a finite gradient."""

    def loss() -> Tensor:
        return sum((o.square().mean() for o in pytree.tree_leaves(model(*args))), torch.zeros(()))

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = loss()
    before.backward()
    gradients = [p.grad for p in model.parameters()]
    assert gradients and all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    optimizer.step()
    assert float(loss().detach()) != float(before.detach())


# ---- networks ----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.layers = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        for layer in self.layers:
            x = self.relu(layer(x) + x)
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
        self.norm = nn.GroupNorm(2, 8, eps=1e-3)
        self.act = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=4, bias=False)
        self.line = nn.Conv1d(4, 4, 3, padding="same", groups=4)
        self.cube = nn.ConvTranspose3d(2, 2, 2, stride=2)
        self.instance = nn.InstanceNorm1d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.act(self.norm(self.down(x))))
        x = self.instance(self.line(x.flatten(2)))
        return self.cube(x.reshape(x.shape[0], 2, 2, 2, -1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.plain = nn.LayerNorm(8, elementwise_affine=False)
        self.rms = nn.RMSNorm(8)
        self.fc = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens) + self.position)
        x = x + F.gelu(self.fc(self.plain(x)), approximate="tanh")
        return self.out(self.rms(x)).softmax(-1)


class TiedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(F.silu(self.shared(x)))


class TiedWeight(nn.Module):
    """A weight that two different calls read, so that neither owns it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.decode = nn.Linear(4, 7, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(x) + F.conv2d(x, self.conv.weight, self.conv.bias, padding=2, dilation=2)
        return self.decode(self.embed(tokens)), x


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        answers: dict[str, Callable[[], Any]] = {
            "dict": lambda: {"a": y, "nested": {"b": (y + 1, None), "n": 3}, "list": [x, [y * 2]]},
            "ordered": lambda: OrderedDict(first=y, second=x),
            "dataclass": lambda: Answer(y, x * 2),
            "input": lambda: x,
            "weight": lambda: (x, self.fc.weight),
            "sizes": lambda: (y, x.shape[0], x.shape[0] * 2 + 1),
        }
        return answers[self.kind]()


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, left: Tensor, right: dict[str, Any], scale: float = 2.0) -> Tensor:
        return self.fc(left) * right["mask"] - self.fc(right["pair"][1]) * scale


class Same(nn.Module):
    """An even kernel with padding="same" pads one side more than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, (4, 2), padding="same", bias=False)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.bn(self.conv(x)))


class Slices(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        c, d, e = x.split([1, 2, 1], dim=1)
        n, h = x.shape[0], x.shape[2]
        y = torch.cat([b, a * 2, F.pad(d, (1, 2), value=1.5)[..., 1:-2], c - e], dim=1)
        y = y[:, ::2, : h // 2 + 1, 1:] + y[:, 1::2, : h // 2 + 1, 1:].flip(2)[:, :1]
        return y.reshape(n, -1)[:, : h * 2].permute(1, 0).roll(1, 0)


class Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(3, 1, 1))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.scales = nn.ParameterList([torch.randn(3, 1, 1), torch.randn(1)])
        self.named = nn.ParameterDict({"odd-name": torch.randn(3, 1, 1)})
        self.conv = nn.Conv2d(3, 3, 1)
        self.conv.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.mean)[:, self.order] * self.scales[0] + self.scales[1]
        return self.conv(y) + self.named["odd-name"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        nn.init.normal_(self.attn.in_proj_bias)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.attn(self.norm(x), self.norm(x), self.norm(x), need_weights=False)
        return x + y


class Branches(nn.Module):
    """Several values alive at once, and the same variable names in two parallel attentions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleList([nn.Linear(4, 12) for _ in range(2)])
        self.branch1 = nn.Linear(4, 4)
        self.branch2 = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q1, k1, v1 = self.attention[0](x).chunk(3, -1)
        q2, k2, v2 = self.attention[1](x).chunk(3, -1)
        a, b = self.branch1(x), self.branch2(x)
        out = (q1 * k2 + v1) * (q2 - k1) + v2 * a + b
        return out * x + a - b


IMAGE = (2, 3, 10, 9)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]]]] = {
    "residual": (Residual, lambda: (torch.randn(IMAGE),)),
    "grouped": (Grouped, lambda: (torch.randn(2, 4, 8, 8),)),
    "tokens": (Tokens, lambda: (torch.randint(0, 11, (2, 6)),)),
    "tied conv": (TiedConv, lambda: (torch.randn(2, 4, 6, 6),)),
    "tied weight": (TiedWeight, lambda: (torch.randint(0, 7, (2, 5)), torch.randn(2, 4, 6, 6))),
    "dict": (lambda: Outputs("dict"), lambda: (torch.randn(2, 4),)),
    "ordered": (lambda: Outputs("ordered"), lambda: (torch.randn(2, 4),)),
    "dataclass": (lambda: Outputs("dataclass"), lambda: (torch.randn(2, 4),)),
    "input": (lambda: Outputs("input"), lambda: (torch.randn(2, 4),)),
    "weight": (lambda: Outputs("weight"), lambda: (torch.randn(2, 4),)),
    "sizes": (lambda: Outputs("sizes"), lambda: (torch.randn(2, 4),)),
    "two inputs": (
        TwoInputs,
        lambda: (torch.randn(2, 4), {"mask": torch.ones(2, 4), "pair": [None, torch.randn(2, 4)]}),
    ),
    "same": (Same, lambda: (torch.randn(IMAGE),)),
    "slices": (Slices, lambda: (torch.randn(2, 4, 6, 6),)),
    "buffers": (Buffers, lambda: (torch.randn(IMAGE),)),
    "attention": (Attention, lambda: (torch.randn(2, 5, 8),)),
    "branches": (Branches, lambda: (torch.randn(2, 4),)),
}
