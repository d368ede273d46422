"""What write_source writes: the text of whole networks, names, structures, and the spelling of operators."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.capture import from_exported
from reparam.emit.source import write_source
from reparam.emit.source.expressions import fold, literal, path_text, split_commas
from reparam.errors import InputError
from support.applied import Applied
from support.emit_source_cases import (
    IMAGE,
    NETWORKS,
    Outputs,
    Residual,
    Same,
    TiedConv,
    capture_program,
    round_trip,
    statistics,
)

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
    names = {"shared.weight", "shared.bias"}
    assert set(load_file(tmp_path / "model.safetensors")) == set(written.state_dict()) == names


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


def test_a_layer_named_like_a_method_of_the_chain(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    chain = nn.Sequential(OrderedDict(add=nn.Linear(3, 3), act=nn.ReLU()))
    written, text = round_trip(capture_program(chain, x), tmp_path, x)
    assert set(written.state_dict()) == {"add.weight", "add.bias"} and "self.act(self.add(input))" in text


def test_layers_on_weights(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(5, 3))
            self.mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.mlp(self.table)

    x = torch.randn(2, 5)
    written, text = round_trip(capture_program(Net(), x), tmp_path, x)
    assert "table" in written.state_dict() and "block[0](self.table)" in text


def test_dataclass_output_becomes_a_dict_with_the_same_keys_and_a_comment(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    written, text = round_trip(capture_program(Outputs("dataclass"), x), tmp_path, x)
    assert "# here the original returns Answer(logits, hidden)" in text
    assert list(written(x)) == ["logits", "hidden"]


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
    program = from_exported(torch.export.export(Net(), (x,), {"shift": shift})).program
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
    "compare": (lambda x: torch.where((x > 0) & (x <= 1), x, -x), "x <= 1"),
    "bool compare": (lambda x: (x > 0) == True, ""),  # noqa: E712  # what is tested
    "infinite": (lambda x: x.masked_fill(x > 0, -torch.inf).softmax(-1), '-float("inf")'),
    "reduce": (lambda x: (x.mean((2, 3), keepdim=True), x.sum(1), x.amax(-1), x.var(1), x.argmax(1)), "keepdim=True"),
    "views": (
        lambda x: x.transpose(1, 2).unsqueeze(1).squeeze(1).flatten(1).unflatten(1, (6, -1)),
        ".unflatten(1, (6, -1))",
    ),
    "last axis": (lambda x: x[..., 1:3] + x[..., -2:], "[..., -2:]"),
    "select": (lambda x: x[:, 1] * x[0, 2], "[:, 1]"),
    "gather": (lambda x: x.gather(1, x.argsort(1)), ""),
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
    "shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), "nn.PixelShuffle(2)"),
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
    "instance": (F.instance_norm, ""),
    "batch statistics": (lambda x: F.batch_norm(x, None, None, training=True), ""),
    "unusual": (lambda x: torch.special.erfcx(x).cumsum(1).frac(), "torch.ops.aten."),
    "no operation": (lambda x: x.clone().contiguous(), ""),
    "complex": (lambda x: torch.fft.rfft2(x).abs(), "torch.ops.aten.fft_rfft2.default("),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str, tmp_path: Path) -> None:
    function, expected = SPELLINGS[name]
    x = torch.randn(2, 4, 6, 6)
    _, text = round_trip(capture_program(Applied(function), x), tmp_path, x)
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
        torch.library.register_fake("reparam_test::twice", torch.empty_like, lib=library)
        program = capture_program(Applied(torch.ops.reparam_test.twice), torch.randn(2, 3))
        with pytest.raises(InputError, match="torch alone does not have"):
            write_source(program, tmp_path / "out")
    assert not (tmp_path / "out").exists()
