"""Small networks of the kinds that people bring as ONNX, and the ways in which their files come to be."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

import reparam
from reparam.engines.onnx.translations import only_what_is_needed

SIZE = 16


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)
    )


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv(inputs, outputs, 3, stride), conv(outputs, outputs)
        self.skip = conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))


class ResNet(nn.Module):
    """Residual blocks, a max-pool, a flatten by a size that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = conv(3, 8, 3, 2), nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = Residual(8, 8, 1), Residual(8, 12, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.pool(torch.relu(self.stem(x)))))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.fc(x.view(x.size(0), -1))


class Inverted(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, 16, 1), nn.ReLU6(), conv(16, 16, 3, groups=16), nn.Hardswish(), conv(16, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class MobileNet(nn.Module):
    """Depthwise convolutions, ReLU6 and hardswish, dropout before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(3, 8, 3, 2), nn.ReLU6(), Inverted(8), Inverted(8))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class Branches(nn.Module):
    """As RepVGG is trained: 3x3, 1x1 and identity, each with its own norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large, self.small, self.norm = (
            conv(channels, channels),
            conv(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.large(x) + self.small(x) + self.norm(x))


def rep_vgg() -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, 2), nn.ReLU(), Branches(8), Branches(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Dense(nn.Module):
    """Concatenations, norms ahead of convolutions, an average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1, bias=False) for i in range(2))
        self.norm, self.transition, self.pool = nn.BatchNorm2d(14), nn.Conv2d(14, 6, 1, bias=False), nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, layer(torch.relu(norm(x)))], 1)
        return self.pool(self.transition(torch.relu(self.norm(x))))


class Detector(nn.Module):
    """Two scales, upsampling, chunks, and boxes decoded on a grid, as heads of detectors do it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Sequential(conv(3, 8, 3, 2), nn.SiLU()), nn.Sequential(conv(8, 8, 3, 2), nn.SiLU())
        self.split, self.merge = conv(8, 8, 1), nn.Sequential(conv(16, 8, 1), nn.SiLU())
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(x)
        coarse = self.down(fine)
        a, b = self.split(coarse).chunk(2, 1)
        coarse = torch.cat([a, torch.relu(b)], 1)
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        found = self.head(self.merge(torch.cat([fine, up], 1)))
        n, c, h, w = found.shape
        flat = found.view(n, c, h * w).permute(0, 2, 1)
        ys, xs = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        centres = (flat[..., :2].sigmoid() * 2 - 0.5 + torch.stack([xs, ys], -1).view(1, -1, 2)) * 2
        return torch.cat([centres, flat[..., 2:4].exp()], -1), flat[..., 4:].softmax(-1)


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": ResNet,
    "mobilenet": MobileNet,
    "repvgg": rep_vgg,
    "dense": Dense,
    "detector": Detector,
}


def network(name: str) -> nn.Module:
    """With statistics and affine numbers that a wrong fold would show."""
    torch.manual_seed(11)
    net = NETS[name]().eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        nn.init.normal_(norm.running_mean, 0.0, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0.0, 0.2)
    return net


def example(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def by_tracing(
    net: nn.Module, path: Path, x: torch.Tensor | None = None, *, opset: int = 17, names: bool = True
) -> None:
    """torch's older exporter, with norms as they are in training. names: whether inputs and outputs get names."""
    file = io.BytesIO()
    more = {"input_names": ["image"], "dynamic_axes": {"image": {0: "n"}}} if names else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example() if x is None else x,),
            file,
            dynamo=False,
            opset_version=opset,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            **more,
        )
    path.write_bytes(file.getvalue())


def by_export(net: nn.Module, path: Path, x: torch.Tensor | None = None) -> None:
    """torch's newer exporter, without its optimiser, which folds norms itself."""
    with warnings.catch_warnings(), only_what_is_needed():
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            net,
            (example() if x is None else x,),
            dynamo=True,
            verbose=False,
            optimize=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )
    assert made is not None
    path.write_bytes(made.model_proto.SerializeToString())


def by_us(net: nn.Module, path: Path, x: torch.Tensor | None = None) -> None:
    """reparam's own export of the network as it is."""
    reparam.export(net, example() if x is None else x, path=path, to="as-is")


class Zoo:
    """Writes models as old zoos have them: opset 11, nodes without names, constants as nodes, identities, weights that
    are listed among the inputs, and sizes that are computed of shapes.
    """

    def __init__(self, seed: int = 3) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random, self.count = np.random.default_rng(seed), 0

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        self.count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{self.count}"], **attributes))
        return f"v{self.count}"

    def number(self, values: object, dtype: type = np.int64) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.asarray(values, dtype)))

    def weight(self, *shape: int, low: float = -0.5, high: float = 0.5) -> str:
        name = f"w{len(self.weights)}"
        values = self.random.uniform(low, high, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 3) -> str:
        x = self.op("Conv", x, self.weight(outputs, inputs, kernel, kernel), auto_pad="SAME_UPPER")
        numbers = [self.weight(outputs, low=a, high=b) for a, b in ((0.5, 1.5), (-1, 1), (-1, 1), (0.5, 1.5))]
        return self.op("BatchNormalization", x, *numbers, epsilon=1e-3)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.number(0.0, np.float32), self.number(6.0, np.float32))

    def save(self, path: Path) -> None:
        x = self.relu6(self.conv("data_0", 3, 8))
        x = self.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        for _ in range(2):
            inner = self.op("Identity", self.conv(self.op("Relu", self.conv(x, 8, 8)), 8, 8))
            x = self.op("Relu", self.op("Add", inner, x))
        x = self.op("Dropout", self.op("GlobalAveragePool", x), ratio=0.3)
        batch = self.op("Gather", self.op("Shape", x), self.number(0), axis=0)
        sizes = self.op("Concat", self.op("Unsqueeze", batch, axes=[0]), self.number([-1]), axis=0)
        x = self.op("MatMul", self.op("Reshape", x, sizes), self.weight(8, 5))
        self.nodes.append(helper.make_node("Add", [x, self.weight(5)], ["prob:0"]))
        ports = [helper.make_tensor_value_info("data_0", 1, ["N", 3, SIZE, SIZE])]
        ports += [helper.make_tensor_value_info(w.name, 1, list(w.dims)) for w in self.weights]
        out = [helper.make_tensor_value_info("prob:0", 1, ["N", 5])]
        graph = helper.make_graph(self.nodes, "zoo", ports, out, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
        path.write_bytes(made.SerializeToString())
