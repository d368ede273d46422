"""Makes the pictures of docs/how-it-works.md: the values of two residual blocks, and their chain.

The network has four channels, and seed 0. Nothing is drawn that was not read from its graphs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, fx, nn

import reparam
from reparam.ir import Program

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 4
ROW, LEFT, TOP, UNIT = 34, 150, 40, 7  # pixels: a row, the column of names, the head, a channel
INK, FAINT, NEW, KEPT = "#1b1f24", "#d5dae0", "#1f5fa8", "#d9822b"


class Block(nn.Module):
    """relu(x + b(relu(a(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.b(torch.relu(self.a(x))))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.ReLU(), Block(), Block()).eval()


def lives(program: Program) -> list[tuple[fx.Node, int, int, int]]:
    """Each value: its call, the step that makes it, the last that reads it, and its channels. The input is step 0."""
    steps = [program.placeholders[0], *program.calls()]
    at = {node: i for i, node in enumerate(steps)}
    last = len(steps)  # the step that hands the result over
    return [(n, at[n], max(at.get(u, last) for u in n.users), int(n.meta["val"].shape[1])) for n in steps]


def text(x: float, y: float, words: str, **more: str) -> str:
    extra = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in more.items())
    return f'<text x="{x:.0f}" y="{y:.0f}"{extra}>{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, **more: str) -> str:
    extra = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in more.items())
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{extra}/>'


def picture(width: float, height: float, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif" '
    return "\n".join([f'{head}font-size="12">', box(0, 0, width, height, "white"), *parts, "</svg>\n"])


def timeline(program: Program, title: str) -> str:
    """Steps from top to bottom; a bar is a value, as wide as its channels, from its making to its last use."""
    values = lives(program)
    free: list[int] = []  # the column of each bar: the first that is free again
    parts = [text(16, 24, title, font_size="14")]
    for i, (node, *_) in enumerate(values):
        name = "input" if node.op == "placeholder" else str(node.target).split(".")[-2].replace("conv2d", "conv 3x3")
        parts.append(text(LEFT - 20, TOP + i * ROW + 16, name, text_anchor="end", fill=INK))
        parts.append(
            f'<line x1="{LEFT}" x2="620" y1="{TOP + i * ROW + 12}" y2="{TOP + i * ROW + 12}" stroke="{FAINT}"/>'
        )
    for _, made, read, channels in values:
        column = next((c for c, until in enumerate(free) if until <= made), len(free))
        free[column : column + 1] = [read]
        long = read - made > 1
        x, y = LEFT + 24 + column * 100, TOP + made * ROW + 12
        height = (read - made) * ROW - 4
        parts.append(box(x, y, channels * UNIT, height, KEPT if long else NEW, rx="3", fill_opacity="0.8"))
        parts.append(text(x + channels * UNIT + 6, y + 16, f"{channels}", fill=INK))
    most = max(sum(c for _, m, r, c in values if m <= i < r) for i in range(len(values)))
    at_once = max(sum(1 for _, m, r, _ in values if m <= i < r) for i in range(len(values)))
    bottom = TOP + len(values) * ROW + 20
    told = f"at most {at_once} value{'s' * (at_once > 1)} alive between two steps, {most} channels"
    return picture(640, bottom + 16, [*parts, text(LEFT, bottom, told, fill=INK)])


def weights(program: Program) -> str:
    """The layers of the first block as matrices: the largest weight of each kernel, rows are results."""
    convs = [n for n in program.calls() if "conv" in str(n.target)][1:3]
    cell, parts, x = 26, [text(16, 24, "weights of the two layers that the first block became", font_size="14")], 60.0
    for node in convs:
        value = program.tensor(node.args[1])
        assert value is not None
        sizes = value.abs().amax((2, 3))
        identity = (value.abs().sum((2, 3)) == 1) & (value[:, :, 1, 1] == 1)
        rows, columns = sizes.shape
        for i in range(rows):
            for j in range(columns):
                shade = float(sizes[i, j] / sizes.max()) ** 0.5
                fill = KEPT if identity[i, j] else NEW
                opacity = f"{0.9 if identity[i, j] else shade:.2f}"
                parts.append(box(x + j * cell, 70 + i * cell, cell - 2, cell - 2, fill, fill_opacity=opacity))
                parts.append(box(x + j * cell, 70 + i * cell, cell - 2, cell - 2, "none", stroke=FAINT))
        parts.append(text(x, 58, f"{rows} results, {columns} operands", fill=INK))
        x += columns * cell + 90
    note = "orange: a kernel that is 1 in the middle and 0 elsewhere, which hands a channel on; white: zero"
    return picture(640, 310, [*parts, text(60, 296, note, fill=INK)])


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    made = reparam.convert(network(), torch.rand(2, 1, 8, 8), to="plain")
    FOLDER.mkdir(exist_ok=True)
    for name, svg in (
        ("live-residual", timeline(made.original, "the original: values side by side")),
        ("live-plain", timeline(made.program, "the chain: one value, which is wider")),
        ("live-weights", weights(made.program)),
    ):
        (FOLDER / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
