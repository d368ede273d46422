"""Small networks that the tests of formats export, and a program of one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (2, 3, 16, 16)


class Every(nn.Module):
    """What fused and plain networks are made of: folded norms, PReLU, a clamp for each channel, a gate, activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8, init=-0.5)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.low, self.high = nn.Parameter(torch.rand(8, 1, 1) - 1.0), nn.Parameter(torch.rand(8, 1, 1))
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.swish, self.head = nn.Hardswish(), nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.normal_(0.0, 0.2)
            self.norm.running_var.uniform_(0.5, 1.5)
            self.act.weight.uniform_(-0.5, 0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.norm(self.stem(x)))
        x = torch.clamp(self.body(x), min=self.low, max=self.high)
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = self.swish(x * gate) + nn.functional.gelu(x) + nn.functional.silu(x)
        return {"logits": self.head(x.mean((2, 3))), "map": x}


def every() -> Every:
    """The network in evaluation mode."""
    torch.manual_seed(3)
    return Every().eval()


def small(classes: int = 5) -> nn.Sequential:
    """A network of two convolutions with folded norms, and a linear head."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, classes),
    )
    for norm in (m for m in net if isinstance(m, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0.0, 0.2)
        norm.running_var.uniform_(0.5, 1.5)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return net.eval()


class Determinant(nn.Module):
    """Uses an operator that ONNX has and engines lack."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.mean((2, 3))
        return torch.linalg.det(rows.unsqueeze(-1) @ rows.unsqueeze(-2) + torch.eye(rows.shape[1]))


def unusual() -> nn.Sequential:
    """A network whose layer `volume` takes a determinant."""
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 4, 1))
    net.add_module("volume", Determinant())
    return net.eval()


class Several(nn.Module):
    """Takes a row, indices and an image, each with free sizes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.image = nn.Linear(4, 3), nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.row(x) + ids.float().unsqueeze(-1), self.image(image).relu()


SEVERAL = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 9, 12))
