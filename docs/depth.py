"""Makes the pictures of docs/depth.md: plain and residual perceptrons of ReLU, 50 layers of 128 features, and twelve
layers of attention, seed 0."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from reparam.models.transformer import Attention, Block
from reparam.signal import line_picture

WIDTH, DEPTH = 128, 50
TOKENS, ATTENTIONS = 8, 12
FOLDER = Path(__file__).parent / "pictures"


class Residual(nn.Module):
    """x + second(relu(first(relu(x)))), 25 blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH // 2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(torch.relu(x))))
        return x


def plain(norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        layers += [nn.Linear(WIDTH, WIDTH), *([nn.BatchNorm1d(WIDTH)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers)


def made(net: Callable[[], nn.Module], method: str = "", **options: Any) -> nn.Module:
    """A network with weights of a method; torch's own without one."""
    torch.manual_seed(0)
    model = net()
    return reparam.init(model, torch.randn(2, WIDTH), method=method, **options).module if method else model


def seen(model: nn.Module, what: str, column: str, call: str, training: bool = False) -> list[float]:
    """A column of an analysis, at every call of a kind."""
    table = reparam.analyze(model, torch.randn(2, WIDTH), what=what, batch=64, training=training)[what]
    at = table.columns.index(column)
    return [float(row[at]) for row in table.rows if call in (row[1], "")]  # type: ignore[arg-type]


def variance(model: nn.Module, call: str = "linear") -> list[float]:
    return seen(model, "moments", "variance", call)


def gain(model: nn.Module, call: str = "linear", training: bool = False) -> list[float]:
    return seen(model, "gradients", "backward gain", call, training)


def alike(model: nn.Module, training: bool = False) -> list[float]:
    return seen(model, "rank", "cosine", "", training)


def attentions(scale: float | None) -> list[float]:
    """The cosine of tokens behind each block, or behind attention alone."""
    torch.manual_seed(0)
    parts = [
        Attention(WIDTH, 1) if scale is None else Block(WIDTH, 1, WIDTH, scale, "none", "relu")
        for _ in range(ATTENTIONS)
    ]
    net = nn.Sequential(*parts)
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    table = reparam.analyze(net, torch.randn(2, TOKENS, WIDTH), what="rank", batch=16)["rank"]
    ends = [row for row in table.rows if scale is not None or str(row[0]).endswith("out")]
    return [float(row[2]) for row in ends]  # type: ignore[arg-type]


def pictures() -> Mapping[str, tuple[str, Mapping[str, Sequence[float]], bool]]:
    torchs, he, zero = made(plain), made(plain, "he"), made(plain, "zero")
    double, kept = made(Residual, "he"), made(Residual, "residual-scale")
    small = made(Residual, "depth-scale")
    normed = made(lambda: plain(norm=True), "he")
    odd = made(plain, "gaussian")
    wide = made(plain, "lsuv", data=[torch.randn(256, WIDTH)], batch=256)
    return {
        "variance": ("variance of each layer, plain", {"torch's own": variance(torchs), "he": variance(he)}, True),
        "gradient": ("gradient by each layer, plain", {"torch's own": gain(torchs), "he": gain(he)}, True),
        "alike": (
            "cosine of two inputs, plain",
            {"he": alike(he), "batch norm": alike(normed, True), "zero": alike(zero)},
            False,
        ),
        "residual": (
            "variance of the stream",
            {
                "no factor": variance(double, "add"),
                "residual-scale": variance(kept, "mul") or variance(kept, "add"),
                "depth-scale": variance(small, "add"),
            },
            True,
        ),
        "residual-alike": (
            "cosine of two inputs, residual",
            {"no factor": alike(double), "depth-scale": alike(small), "plain, he": alike(he)},
            False,
        ),
        "norm": ("gradient by each layer, plain", {"he": gain(he), "batch norm": gain(normed, training=True)}, True),
        "residual-gradient": (
            "gradient by the stream, residual",
            {n: gain(m, "add") for n, m in (("no factor", double), ("residual-scale", kept), ("depth-scale", small))},
            True,
        ),
        "gaussian": (
            "cosine of two inputs, plain",
            {"he": alike(he), "zero": alike(zero), "gaussian": alike(odd)},
            False,
        ),
        "tokens": (
            "cosine of two tokens, twelve layers of attention",
            {
                "attention alone": attentions(None),
                "with skips": attentions(1.0),
                "skips, branches times L^-1/2": attentions(ATTENTIONS**-0.5),
            },
            False,
        ),
        "zero": (
            "variance of each layer, plain",
            {"zero": variance(zero), "lsuv": variance(wide), "he": variance(he)},
            True,
        ),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name, (title, lines, log) in pictures().items():
        ends = ", ".join(f"{n} {v[0]:.3g} .. {v[-1]:.3g}" for n, v in lines.items())
        print(f"{name}: {ends}")
        assert all(math.isfinite(v) for values in lines.values() for v in values)
        (FOLDER / f"{name}.svg").write_text(line_picture(title, lines, log=log))


if __name__ == "__main__":
    main()
