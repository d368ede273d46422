"""write_source: the files run alone, compute the program, keep the names, train, and are written whole or not at all."""

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

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam import emit_source
from reparam.capture import capture, from_exported
from reparam.emit_source import write_source
from reparam.emit_source_text import fold, literal, path_text, split_commas
from reparam.emit_torch import finalize
from reparam.errors import InputError, MachineError
from reparam.evaluate import evaluate
from reparam.passes import fused_phases
from reparam.pipeline import Driver
from reparam.program import Program

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
    assert "evaluation mode" in text.splitlines()[0] + text.splitlines()[1]
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
        n, _, h, w = x.shape
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


@pytest.mark.parametrize("fuse", [False, True], ids=["as-is", "fused"])
@pytest.mark.parametrize("name", NETWORKS)
def test_written_network_computes_the_program(name: str, fuse: bool, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = inputs()
    model = statistics(build())
    program = capture_program(model, *args, fuse=fuse)
    written, _ = round_trip(program, tmp_path / "new" / "folder", *args)
    if not fuse:  # every weight that the graph reads has its own name
        kept = {c.origin for c in program.constants.values() if not c.origin.startswith("lifted_tensor")}
        assert kept <= set(written.state_dict()) and kept <= set(model.state_dict())
        for key in kept:
            assert torch.equal(written.state_dict()[key], model.state_dict()[key])
    trainable = {n for n, p in written.named_parameters() if p.requires_grad}
    assert trainable == {n for n in written.state_dict() if n in dict(written.named_parameters())}
    small = pytree.tree_map(lambda v: v[:1] if isinstance(v, Tensor) else v, args)
    model_out = program if name in ("weight",) else None
    if model_out is None and name != "two inputs":
        want = evaluate(program, pytree.tree_leaves(small), None)
        written.requires_grad_(False)
        check_equal(written(*small), want)


@pytest.mark.parametrize("name", ["residual", "tied conv", "attention", "grouped"])
def test_finalized_programs_are_written_alike(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = inputs()
    program = capture_program(statistics(build()), *args, fuse=True)
    _, text = round_trip(program, tmp_path / "raw", *args, checked=False)
    _, final = round_trip(finalize(program), tmp_path / "final", *args, checked=False)
    assert text == final


# ---- what it looks like --------------------------------------------------------------------------------------------


def test_residual_text(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    _, text = round_trip(capture_program(statistics(Residual()), x, fuse=True), tmp_path, x)
    body = text[text.index("class Model") : text.index("def load")].strip()
    assert (
        body
        == '''\
class Model(Block):
    """The layers in forward order. Input: x (N, 3, 10, 9) float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.layers = Block()
        self.layers[0] = Block()
        self.layers[0][0] = nn.Conv2d(8, 8, 3, padding=1)
        self.layers[1] = Block()
        self.layers[1][0] = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.layers[0][0](x))
        x = self.relu(self.layers[1][0](x))
        x = x.mean((2, 3))
        return self.head(x)'''
    )


def test_chain_reads_as_one_list(tmp_path: Path) -> None:
    model = nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            pool=nn.MaxPool2d(3, stride=2, padding=1),
            body=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Hardswish(), nn.Dropout(0.1), nn.AvgPool2d(2)),
            squeeze=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(8, 5),
        )
    )
    x = torch.randn(2, 3, 19, 19)
    written, text = round_trip(capture_program(statistics(model), x, fuse=True), tmp_path, x)
    lines = [line.strip() for line in text.splitlines() if "self.add(" in line]
    assert lines == [
        'self.add("stem.0", nn.Conv2d(3, 8, 3, stride=2))',
        'self.add("stem.2", nn.ReLU())',
        'self.add("pool", nn.MaxPool2d(3, stride=2, padding=1))',
        'self.add("body.0", nn.Conv2d(8, 8, 3, padding=1))',
        'self.add("body.1", nn.Hardswish())',
        'self.add("body.3", nn.AvgPool2d(2))',
        'self.add("squeeze", nn.AdaptiveAvgPool2d(1))',
        'self.add("flat", nn.Flatten())',
        'self.add("head", nn.Linear(8, 5))',
    ]
    assert isinstance(written, nn.Sequential) and "def forward" not in text


def test_uneven_padding_stays_a_chain(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    _, text = round_trip(capture_program(statistics(Same()), x, fuse=True), tmp_path, x)
    assert "def forward" not in text and "nn.ReLU6()" in text


def test_functional_layers_of_a_chain_get_names(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)])

        def forward(self, x: Tensor) -> Tensor:
            for stage in self.stages:
                x = F.relu(stage(x))
            return F.max_pool2d(x, 2, stride=1).flatten(1)

    x = torch.randn(2, 3, 9, 9)
    _, text = round_trip(capture_program(Net(), x), tmp_path, x)
    assert [line.split('"')[1] for line in text.splitlines() if "self.add(" in line] == [
        "stages.0",
        "stages.relu",
        "stages.1",
        "stages.relu_1",
        "stages.maxpool2d",
        "stages.flatten",
    ]


def test_tied_module_is_called_twice_and_stored_once(tmp_path: Path) -> None:
    x = torch.randn(2, 4, 6, 6)
    written, text = round_trip(capture_program(TiedConv(), x), tmp_path, x)
    assert text.count("nn.Conv2d(") == 1 and text.count("self.shared(") == 2
    assert (
        list(load_file(tmp_path / "model.safetensors"))
        == list(written.state_dict())
        == ["shared.weight", "shared.bias"]
    )


def test_tied_weight_of_different_calls_is_one_parameter(tmp_path: Path) -> None:
    build, inputs = NETWORKS["tied weight"]
    args = inputs()
    written, text = round_trip(capture_program(build(), *args), tmp_path, *args)
    assert "F.embedding(" in text and "F.linear(" in text and text.count("F.conv2d(") == 2
    assert set(written.state_dict()) == {"embed.weight", "conv.weight", "conv.bias"}


def test_two_weights_that_want_one_name(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.conv(torch.sigmoid(self.bn1(self.conv(x)))))

    x = torch.randn(IMAGE)
    written, _ = round_trip(capture_program(statistics(Net()), x, fuse=True), tmp_path, x)
    assert set(written.state_dict()) == {"conv.weight", "conv.bias", "conv_1.weight", "conv_1.bias"}


def test_baked_parametrization_takes_the_weights_own_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU())
    x = torch.randn(IMAGE)
    written, _ = round_trip(capture_program(model, x, fuse=True), tmp_path, x)
    assert set(written.state_dict()) == {"0.weight", "0.bias"}
    raw, text = round_trip(capture_program(model, x), tmp_path / "raw", x)
    assert "F.conv2d(" in text and "0.parametrizations.weight.original1" in raw.state_dict()


def test_dataclass_output_becomes_a_tuple_with_a_comment(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    written, text = round_trip(capture_program(Outputs("dataclass"), x), tmp_path, x)
    assert "# the original returns a Answer(logits, hidden) here" in text
    assert isinstance(written(x), tuple)


def test_nested_outputs_keep_their_structure(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    model = Outputs("dict")
    written, _ = round_trip(capture_program(model, x), tmp_path, x)
    assert pytree.tree_structure(written(x)) == pytree.tree_structure(model(x))
    assert written(x)["nested"]["n"] == 3 and written(x)["nested"]["b"][1] is None


def test_keyword_inputs(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return x * 2 - shift

    x, shift = torch.randn(2, 3), torch.randn(2, 3)
    program = from_exported(torch.export.export(Net(), (x,), {"shift": shift}))
    _, text = round_trip(program, tmp_path, x, kwargs={"shift": shift})
    assert "def forward(self, x: Tensor, shift: Tensor) -> Tensor:" in text


def test_long_input_names_are_not_reused(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, pixel_values: Tensor, block: Tensor) -> Tensor:
            return (pixel_values + 1).exp() * block

    args = (torch.randn(2, 3), torch.randn(2, 3))
    _, text = round_trip(capture_program(Net(), *args), tmp_path, *args)
    assert "def forward(self, pixel_values: Tensor, block_2: Tensor)" in text and "pixel_values = " not in text


# ---- operators -----------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sum": (lambda x: x + x.sin() * 2 - 1, "x + y * 2 - 1"),
    "grouping": (lambda x: (x + 1) * (x - (2 - x)) / -x, ""),
    "alpha": (lambda x: torch.add(x, x.sin(), alpha=2), "torch.ops.aten.add.Tensor(x, y, alpha=2)"),
    "compare": (lambda x: torch.where((x > 0) & (x <= 1), x, -x), "(x > 0) & (x <= 1)"),
    "bool compare": (lambda x: (x > 0) == True, ""),  # noqa: E712  # what is tested
    "infinite": (lambda x: x.masked_fill(x > 0, -torch.inf).softmax(-1), '-float("inf")'),
    "reduce": (lambda x: (x.mean((2, 3), keepdim=True), x.sum(1), x.amax(-1), x.var(1), x.argmax(1)), "keepdim=True"),
    "views": (
        lambda x: x.transpose(1, 2).unsqueeze(1).squeeze(1).flatten(1).unflatten(1, (6, -1)),
        ".unflatten(1, (6, -1))",
    ),
    "last axis": (lambda x: x[..., 1:3] + x[..., -2:], "[..., -2:]"),
    "select": (lambda x: x[:, 1] * x[0, 2], "[:, 1]"),
    "gather": (lambda x: x[:, torch.tensor([1, 0])], ""),
    "sizes": (lambda x: x.reshape(x.shape[0] * x.shape[1], -1) * (x.shape[0] // 2), "n * 4"),
    "arithmetic": (lambda x: x.new_zeros(x.shape[0] + 1) + (x.shape[0] * 3 - 1) // 2 % 5, ""),
    "factories": (
        lambda x: x + torch.arange(6, device=x.device) + torch.zeros(6) + torch.full((6,), 2.5),
        "device=x.device",
    ),
    "casts": (lambda x: x.to(torch.float64).to(torch.float32).double() + x.half().float(), ".to(torch.float64)"),
    "maximum": (lambda x: torch.maximum(x, x.cos()).clamp(min=-0.5).clamp(-1, 1).clamp_max(0.7), ".clamp(min=-0.5)"),
    "pools": (
        lambda x: F.max_pool2d(x, 3, 1, 1, ceil_mode=True) + F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        "F.max_pool2d(x, 3, stride=1, padding=1, ceil_mode=True)",
    ),
    "pool stride": (
        lambda x: F.avg_pool2d(x, (2, 1)) + F.max_pool2d(x, (2, 1), stride=(2, 1)),
        "F.avg_pool2d(x, (2, 1))",
    ),
    "resize": (
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest") + F.interpolate(x, size=(12, 12), mode="bilinear"),
        'F.interpolate(x, scale_factor=2.0, mode="nearest")',
    ),
    "resize corners": (
        lambda x: F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=True, antialias=True),
        "align_corners=True, antialias=True",
    ),
    "shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), "F.pixel_shuffle(x, 2)"),
    "reflect": (lambda x: F.pad(F.pad(x, (1, 1, 1, 1), mode="reflect"), (0, 1), value=0.5), 'mode="reflect"'),
    "activations": (
        lambda x: F.leaky_relu(x, 0.2) + F.elu(x, 0.5) + F.selu(x) + F.celu(x) + F.mish(x) + F.hardtanh(x, -2, 2),
        "F.leaky_relu(x, negative_slope=0.2)",
    ),
    "more activations": (
        lambda x: F.gelu(x) + F.softplus(x, beta=2) + F.hardsigmoid(x) + F.hardswish(x) + F.silu(x) + F.glu(x, 1).sum(),
        "F.softplus(x, beta=2)",
    ),
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x * 2, x, is_causal=True, scale=0.3),
        "is_causal=True, scale=0.3",
    ),
    "products": (
        lambda x: (x @ x.transpose(2, 3) @ x, torch.einsum("nchw,nchv->nhwv", x, x), torch.bmm(x[0], x[1])),
        'torch.einsum("nchw,nchv->nhwv", x, x)',
    ),
    "einsum of three": (lambda x: torch.einsum("nchw,nchv,nch->nwv", x, x, x[..., 0]), ""),
    "indices": (lambda x: x.max(1).indices, "[1]"),
    "many pieces": (lambda x: sum(p * i for i, p in enumerate(torch.cat([x, x], 1).unbind(1))), ""),
    "one piece twice": (lambda x: x.topk(2, dim=1)[0] * x.topk(2, dim=1)[0], ""),
    "norm": (lambda x: F.normalize(x, dim=1) + F.layer_norm(x, (6, 6)) + F.group_norm(x, 2), "F.layer_norm(x, (6, 6))"),
    "instance": (lambda x: F.instance_norm(x), ""),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), ""),
    "unusual": (lambda x: torch.special.erfcx(x).cumsum(1).frac(), "torch.ops.aten."),
    "no operation": (lambda x: x.clone().contiguous(), ""),
    "complex": (lambda x: torch.fft.rfft2(x).abs(), "torch.ops.aten.fft_rfft2.default("),
}


class Wrapped(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str, tmp_path: Path) -> None:
    function, expected = SPELLINGS[name]
    x = torch.randn(2, 4, 6, 6)
    _, text = round_trip(capture_program(Wrapped(function), x), tmp_path, x)
    assert expected in text


def test_text_helpers() -> None:
    assert path_text("self", "layer1.0.conv") == "self.layer1[0].conv"
    assert path_text("self", "a.class.01.x-y") == 'self.a["class"]["01"]["x-y"]'
    assert literal(float("-inf")).text == '-float("inf")' and literal("a\n").text == '"a\\n"'
    assert split_commas('a, f(b, c), "x, (", d') == ["a", "f(b, c)", '"x, ("', "d"]
    long = f"x = f({', '.join(['argument'] * 20)})"
    assert all(len(line) <= 120 for line in fold(long, 8)) and fold("x = y", 4) == ["    x = y"]
    with pytest.raises(InputError, match="no spelling"):
        literal(object())


def test_operators_of_other_libraries_are_refused(tmp_path: Path) -> None:
    with torch.library._scoped_library("reparam_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_fake("reparam_test::twice", lambda x: torch.empty_like(x), lib=library)
        program = capture_program(Wrapped(lambda x: torch.ops.reparam_test.twice(x)), torch.randn(2, 3))
        with pytest.raises(InputError, match="torch alone does not have"):
            write_source(program, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- dtypes, loading, training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "buffers", "grouped"])
@pytest.mark.parametrize("fuse", [False, True])
def test_bfloat16(name: str, fuse: bool, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = tuple(a.bfloat16() for a in inputs())
    model = statistics(build()).bfloat16()
    written, text = round_trip(capture_program(model, *args, fuse=fuse), tmp_path, *args)
    assert {p.dtype for p in written.parameters()} == {torch.bfloat16}
    assert "self.to(torch.bfloat16)" in text
    fresh = import_file(tmp_path / "model.py").Model()
    assert {n: v.dtype for n, v in fresh.state_dict().items()} == {n: v.dtype for n, v in written.state_dict().items()}


def test_mixed_dtypes(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.half = nn.Linear(4, 4, dtype=torch.float16)
            self.full = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.full(self.half(x).float()) * self.scale

    x = torch.randn(2, 4, dtype=torch.float16)
    written, text = round_trip(capture_program(Net(), x), tmp_path, x)
    assert "nn.Linear(4, 4, dtype=torch.float16)" in text and "self.to(" not in text
    fresh = import_file(tmp_path / "model.py").Model()
    assert [v.dtype for v in fresh.state_dict().values()] == [v.dtype for v in written.state_dict().values()]


def test_loads_without_the_safetensors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(IMAGE)
    program = capture_program(statistics(Residual()).bfloat16(), x.bfloat16())
    program.constants |= {"empty": program.constants["head.bias"]}
    written, _ = round_trip(program, tmp_path, x.bfloat16())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    module = import_file(tmp_path / "model.py")
    for key, value in module.load(tmp_path).state_dict().items():
        assert value.dtype == written.state_dict()[key].dtype and torch.equal(value, written.state_dict()[key])


@pytest.mark.parametrize("name", ["residual", "tokens", "tied weight", "buffers", "attention", "branches"])
def test_trains(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    args = inputs()
    written, _ = round_trip(capture_program(statistics(build()), *args, fuse=True), tmp_path, *args, checked=False)
    check_trains(written, args)


def check_trains(model: nn.Module, args: tuple[Any, ...]) -> None:
    """One small step along the gradient lowers the loss, and every parameter has a finite gradient."""

    def loss() -> Tensor:
        return sum((o.square().mean() for o in pytree.tree_leaves(model(*args))), torch.zeros(()))

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = loss()
    before.backward()  # type: ignore[no-untyped-call]  # torch leaves it without a type
    gradients = [p.grad for p in model.parameters()]
    assert gradients and all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    optimizer.step()
    assert float(loss().detach()) != float(before.detach())


def test_negative_control_a_changed_weight_changes_the_output(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    program = capture_program(statistics(Residual()), x, fuse=True)
    round_trip(program, tmp_path, x)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["conv1.weight"][0, 0, 0, 0] += 0.5
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad(), pytest.raises(AssertionError):
        check_equal(import_file(tmp_path / "model.py").load()(x), evaluate(program, (x,), None))


def test_missing_weight_is_an_error(tmp_path: Path) -> None:
    x = torch.randn(IMAGE)
    write_source(capture_program(Residual(), x), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["head.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        import_file(tmp_path / "model.py").load()


# ---- real networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fuse", [False, True], ids=["as-is", "fused"])
@pytest.mark.parametrize("source", ["torchvision/resnet18", "timm/test_vit", "timm/test_byobnet"])
def test_real_networks(source: str, fuse: bool, tmp_path: Path) -> None:
    library, name = source.split("/")
    if library == "torchvision":
        model = pytest.importorskip("torchvision").models.get_model(name, weights=None)
    else:
        model = pytest.importorskip("timm").create_model(name, pretrained=False)
    model = statistics(model)
    size = model.pretrained_cfg["input_size"][-1] if library == "timm" else 64
    x = torch.randn(2, 3, size, size)
    program = capture_program(model, x, fuse=fuse)
    written, text = round_trip(program, tmp_path, x)
    assert "torch.ops" not in text
    if not fuse:
        assert set(written.state_dict()) == set(model.state_dict())
    else:
        assert len(set(written.state_dict()) & set(model.state_dict())) > len(written.state_dict()) / 2
    check_trains(written, (x,))


# ---- files ---------------------------------------------------------------------------------------------------------


def small_program() -> Program:
    return capture_program(nn.Linear(3, 2), torch.randn(2, 3))


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    write_source(small_program(), tmp_path)
    before = (tmp_path / "model.py").read_text()
    with pytest.raises(InputError, match="exists already"):
        write_source(small_program(), tmp_path, class_name="Other")
    assert (tmp_path / "model.py").read_text() == before
    write_source(small_program(), tmp_path, class_name="Other", force=True)
    assert "class Other(" in (tmp_path / "model.py").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.py", "model.safetensors"]


@pytest.mark.parametrize("name", ["not a name", "class", "Block", "torch", ""])
def test_bad_class_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be the name"):
        write_source(small_program(), tmp_path, class_name=name)
    assert not list(tmp_path.iterdir())


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_source(small_program(), tmp_path / "out")
    with pytest.raises(MachineError, match="nothing was written"):
        write_source(small_program(), tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("failing", ["model.safetensors", "model.py"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_nothing_behind(
    failing: str, existing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a" / "b"
    if existing:
        write_source(small_program(), folder)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    replace = emit_source.os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name == failing and Path(source).parent.name.startswith(".reparam-"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(emit_source.os, "replace", fail)
    with pytest.raises(MachineError, match="No space left on device; nothing was written"):
        write_source(small_program(), folder, force=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert existing or not (tmp_path / "a").exists()


def test_a_full_disk_while_the_weights_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def fail(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(MachineError, match="No space left"):
        write_source(small_program(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_weight_that_does_not_fit_its_dtype(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)).half()
    nn.init.constant_(model[0].weight, 6e4)
    nn.init.constant_(model[1].weight, 100.0)
    program = capture_program(model, torch.randn(2, 1, 3, 3).half(), fuse=True)
    with pytest.raises(InputError, match="does not fit float16"):
        write_source(program, tmp_path / "out")


def test_the_same_program_gives_the_same_files(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 8)
    model = Attention()
    for name in ("a", "b"):
        write_source(capture_program(model, x, fuse=True), tmp_path / name)
    for file in ("model.py", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_note_stays_inside_its_comment(tmp_path: Path) -> None:
    path, _ = write_source(small_program(), tmp_path, note='line one\nimport os  # """ ' + "word " * 60)
    text = check_text(path)
    assert "\nimport os" not in text and "from line one import os" in text
