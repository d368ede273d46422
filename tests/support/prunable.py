"""Small networks of every structure whose channels can be switched off, with weights that mean something."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.ir import Program, evaluate
from reparam.pruning.gated import Gated


class Residual(nn.Module):
    """A stem, two residual blocks with a change of stride between, and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, width)
        self.one, self.two = conv_bn(width, width), conv_bn(width, width)
        self.three, self.four = conv_bn(width, width, stride=2), conv_bn(width, width)
        self.short = conv_bn(width, width, kernel=1, stride=2)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.two(F.relu(self.one(x))) + x)
        x = F.relu(self.four(F.relu(self.three(x))) + self.short(x))
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """An inverted bottleneck with squeeze-excite around a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand = conv_bn(3, 6), conv_bn(6, 12, kernel=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project, self.head = conv_bn(12, 6, kernel=1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head((self.project(y) + x).mean((2, 3)))


class Dense(nn.Module):
    """Two layers that add channels to what they read, and a transition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = conv_bn(3, 8), conv_bn(8, 6), conv_bn(14, 6)
        self.norm, self.transition, self.head = nn.BatchNorm2d(20), conv_bn(20, 8, kernel=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.first(F.relu(x))], 1)
        x = torch.cat([x, self.second(F.relu(x))], 1)
        return self.head(F.relu(self.transition(F.relu(self.norm(x)))).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv_bn(3, 12), conv_bn(12, 12, groups=3), conv_bn(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Attention(nn.Module):
    """One block of attention with two heads, and an MLP, on a stream without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(3, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2))
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, 16)
        x = x + self.out(y)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


def conv_bn(i: int, o: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and a batch norm with statistics of its own."""
    norm = nn.BatchNorm2d(o)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0.0, 0.2)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_(0.0, 0.2)
    norm.running_var.uniform_(0.5, 1.5)
    return nn.Sequential(nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), norm)


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "inverted": Inverted,
    "dense": Dense,
    "grouped": Grouped,
    "attention": Attention,
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A network by its name, in evaluation mode; the same for a seed."""
    torch.manual_seed(seed)
    return NETS[name]().eval()


def images(count: int, seed: int = 1, side: int = 8) -> Tensor:
    """(count, 3, side, side)"""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def fused(name: str, seed: int = 0) -> Program:
    """A network in its fused form."""
    return convert(make(name, seed), images(2)).program


class Twice(nn.Module):
    """One layer that is called twice, so that its calls share weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y: Tensor = self.head(torch.relu(self.same(torch.relu(self.same(x)))))
        return y


def error(gated: Gated, x: Tensor) -> float:
    """How far the outputs are from those of the original, relative to these."""
    own, wanted = (evaluate(p, (x,), torch.float64)[0] for p in (gated.program, gated.reference))
    return float((own - wanted).norm() / wanted.norm())


def half_off(gated: Gated) -> None:
    """Switches off every other channel of each gate."""
    for gate in gated.gates:
        mask = torch.ones(gate.parts, gate.count // gate.parts)
        mask[:, ::2] = 0.0
        gated.set_mask(gate, mask.flatten())
