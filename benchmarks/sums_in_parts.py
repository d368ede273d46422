"""When a residual sum is worth making in parts: the time in onnxruntime by what the parts spare for each element.

A block y = relu(x + conv(inner(x))) has a share of zero rows in its last convolution. Made in parts, the convolution
lacks them, and the sum is a concatenation of what both sides have and of what only the stream has. This is where
`PAYS` of reparam/channels comes from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import onnxruntime as ort
import torch
from common import interleaved, options, quiet, ratios, table
from torch import Tensor, nn

from reparam.capture import capture
from reparam.emit import finalize
from reparam.engines.onnx import model_of
from reparam.passes.shrink import Shrink
from reparam.rewrite import Driver, Phase

SHAPES = ((64, 64, 3, 56), (128, 128, 3, 28), (256, 256, 3, 14), (64, 256, 1, 56), (128, 512, 1, 28), (32, 32, 3, 16))
SHARES = (0.125, 0.25, 0.5, 0.75)
ROUNDS, QUICK_ROUNDS = 15, 3

TEXT = """\
## Sums in parts

What `shrink` makes of a residual block whose last convolution has a share of zero rows: the time of the block with
its sum made in parts over the time with the zero rows computed, in onnxruntime on one thread, batch 1 (median of
{rounds} interleaved rounds, interquartile range). "spared" is how many multiply-accumulates the parts spare for each
element of the sum: channels in, times taps, times the share. Below 1 the parts are faster.
"""


class Block(nn.Module):
    """y = relu(x + conv(inner(x))) with zero rows in `conv`, between layers that make x and read y."""

    def __init__(self, inner: int, width: int, kernel: int, share: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 1)
        self.inner = nn.Conv2d(width, inner, 1)
        self.conv = nn.Conv2d(inner, width, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(width, 8, 1)
        with torch.no_grad():
            self.conv.weight[int(width * (1 - share)) :] = 0
            assert self.conv.bias is not None
            self.conv.bias[int(width * (1 - share)) :] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.relu(x + self.conv(self.inner(x))))


def _session(block: Block, x: Tensor, pays: float) -> Callable[[], object]:
    program = capture(block.eval(), (x,)).program
    Driver(program, allow_cost=False).run((Phase("shrink", (Shrink(pays),)),))
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    model = model_of(finalize(program)).SerializeToString()
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def main() -> int:
    args = options(__doc__, worker=False)
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    rows = []
    for inner, width, kernel, size in SHAPES[:2] if args.quick else SHAPES:
        for share in SHARES:
            torch.manual_seed(0)
            block, x = Block(inner, width, kernel, share), torch.randn(1, 3, size, size)
            with quiet():
                runs = {"parts": _session(block, x, 0), "whole": _session(block, x, math.inf)}
            timings = interleaved(runs, rounds)
            spared = inner * kernel**2 * share
            name = f"{inner} to {width}, {kernel}x{kernel}, at {size}x{size}"
            rows.append((name, share, f"{spared:.0f}", ratios(timings["parts"].cpu, timings["whole"].cpu)))
    print(TEXT.format(rounds=rounds))
    print(table(("convolution", "share of zero rows", "spared", "time in parts / time"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
