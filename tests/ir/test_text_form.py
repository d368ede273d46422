"""Programs as text: stable, complete, and harmless whatever the names are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.capture import capture
from reparam.ir import text_of
from support.helpers import Lambda, program_of


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=(1, 0))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: float = 0.5) -> dict[str, Tensor]:
        y = torch.relu(self.bn(self.conv(x)))
        first, second = y.chunk(2, 1)
        return {"sum": torch.cat([first, second], 1) + scale * y, "index": y.argmax(1)}


def test_every_call_is_a_line_with_its_operands_settings_shape_and_module() -> None:
    text = text_of(program_of(Branches(), torch.randn(2, 3, 8, 9)))
    assert text.splitlines() == [
        "x: float32[N, 3, 8, 9]",
        "%0 = conv2d(x, conv.weight[4x3x3x3], conv.bias[4], stride=2, padding=[1,0]) : Nx4x4x4  # conv",
        "%1 = batch_norm(%0, bn.weight[4], bn.bias[4], bn.running_mean[4], bn.running_var[4], eps=1e-05)"
        " : Nx4x4x4  # bn",
        "%2 = relu(%1) : Nx4x4x4",
        "%3 = chunk(%2, chunks=2, dim=1) : (Nx2x4x4, Nx2x4x4)",
        "%4 = getitem(%3, 0) : Nx2x4x4",
        "%5 = getitem(%3, 1) : Nx2x4x4",
        "%6 = cat([%4, %5], dim=1) : Nx4x4x4",
        "%7 = mul(%2, other=0.5) : Nx4x4x4",
        "%8 = add(%6, %7) : Nx4x4x4",
        "%9 = argmax(%2, dim=1) : Nx4x4 int64",
        "return [%8, %9]",
    ]


def test_the_text_does_not_depend_on_the_names_of_nodes() -> None:
    program = program_of(Branches(), torch.randn(2, 3, 8, 9))
    copy = program.copy()
    for i, node in enumerate(copy.graph.nodes):
        if node.op == "call_function":
            node.name = f"renamed_{i}"
    assert text_of(copy) == text_of(program)


def test_free_sizes_are_named() -> None:
    net = Lambda(lambda m, x: m.conv(x), conv=nn.Conv2d(1, 1, 3))
    program = program_of(net, torch.randn(2, 1, 8, 8), dynamic=("batch", "height", "width"))
    height, width = program.inputs[0].shape[2:]
    text = text_of(program)
    assert f": float32[N, 1, {height}, {width}]" in text
    assert f": Nx1x({height}-2)x({width}-2)" in text


def test_a_size_that_is_made_of_the_batch_is_written_with_its_name() -> None:
    windows = Lambda(lambda m, x: torch.relu(x.reshape(-1, 3, 4, 4)))
    assert "relu(%0) : (4*N)x3x4x4" in text_of(program_of(windows, torch.randn(2, 3, 8, 8)))


def test_operands_behind_one_that_is_left_out_are_named() -> None:
    bound = torch.zeros(3, 1, 1)
    lower, upper = (
        text_of(program_of(Lambda(lambda m, x, side=side: torch.clamp(x, **{side: bound})), torch.randn(2, 3, 4, 4)))
        for side in ("min", "max")
    )
    assert "clamp(inputs_0, max=" in upper
    assert lower == upper.replace("max=", "")


def test_calls_that_lie_in_no_module_have_none() -> None:
    halves = Lambda(lambda m, x: m.conv(x)[:, :, : x.shape[0] // 2], conv=nn.Conv2d(3, 4, 1))
    text = text_of(program_of(halves, torch.randn(4, 3, 8, 8)))
    assert "= sym_size(inputs_0, dim=0) : SymInt\n" in text
    assert "slice(%1, end=%2, dim=2)" in text


def test_a_name_cannot_steer_the_terminal() -> None:
    program = capture(nn.Linear(2, 2), (torch.randn(2, 2),)).program
    for node in program.calls():
        node.meta["module"] = "a\x1b[31m\nb"
    text = text_of(program)
    assert "\x1b" not in text and "a\\x1b[31m b" in text
