"""What ONNX has no operator for (distances, bags of embeddings, norms of two dtypes), by onnxruntime and by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError
from support.choice import crossed
from support.helpers import Lambda

onnxruntime = pytest.importorskip("onnxruntime")


class Distances(nn.Module):
    """How far each row is from some centres."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.linear, self.centres, self.p = nn.Linear(6, 5), nn.Parameter(torch.randn(7, 5)), p

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(self.linear(x), self.centres, self.p)


class Bags(nn.Module):
    def __init__(self, mode: str, padding: int | None = None) -> None:
        super().__init__()
        self.bags, self.head = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=padding), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bags(x))


class Weighted(Bags):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.bags(x, per_sample_weights=w))


def assert_same(model: nn.Module, path: Path, *inputs: Tensor) -> None:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {p.name: v.numpy() for p, v in zip(session.get_inputs(), inputs, strict=True)}
    (got,) = session.run(None, feed)
    with torch.no_grad():
        np.testing.assert_allclose(got, model(*inputs).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, float("inf"), 0.0])
def test_distances(p: float, tmp_path: Path) -> None:
    model, path = Distances(p).eval(), tmp_path / "net.onnx"
    reparam.export(model, torch.randn(3, 6), path=path)
    for batch in (3, 1, 40):
        assert_same(model, path, torch.randn(batch, 6))
    reparam.export(model, torch.randn(2, 4, 6), path=tmp_path / "rows.onnx")
    assert_same(model, tmp_path / "rows.onnx", torch.randn(5, 4, 6))


class Picked(nn.Module):
    """images (N, 3, H, W): places by indices of 32 and of 64 bits, and the places of a crop written."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.arange(2, dtype=torch.int32)[:, None], torch.tensor([0, 2, 3])
        y = x.clone()
        y[:, :, rows, columns] = 2 * x[:, :, rows + 1, columns]
        return y


def test_indices_of_two_widths(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    reparam.export(Picked().eval(), torch.randn(2, 3, 5, 6), path=path)
    for batch in (2, 1, 5):
        assert_same(Picked(), path, torch.randn(batch, 3, 5, 6))


class Ranked(nn.Module):
    """Of features (N, 5, 6), along both axes: running products, medians and kth values with their places."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        median, place = x.median(1, keepdim=True)
        third, where = x.kthvalue(3, dim=-1)
        return x.cumprod(1), x.cumprod(-1), median, place, x.median(2).values, third, where


@pytest.mark.parametrize("dynamic", [("batch",), ()])
def test_running_products_and_ranks(dynamic: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    reparam.export(Ranked(), torch.randn(2, 5, 6), path=path, dynamic=dynamic)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch in (2, 7) if dynamic else (2,):
        x = torch.randn(batch, 5, 6)
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        for one, other in zip(got, Ranked()(x), strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode, padding, free", crossed(["sum", "mean", "max"], [None, 2], [True, False]))
def test_bags_of_one_length(mode: str, padding: int | None, free: bool, tmp_path: Path) -> None:
    model, path = Bags(mode, padding).eval(), tmp_path / "net.onnx"
    reparam.export(model, torch.randint(10, (3, 4)), path=path, dynamic=("batch",) if free else ())
    for batch in (3, 1, 6) if free else (3,):
        x = torch.randint(10, (batch, 4))
        x[0] = 2  # a bag of padding alone
        assert_same(model, path, x)


def test_bags_with_weights(tmp_path: Path) -> None:
    model, path = Weighted("sum", 2).eval(), tmp_path / "net.onnx"
    reparam.export(model, torch.randint(10, (3, 4)), torch.rand(3, 4), path=path)
    assert_same(model, path, torch.randint(10, (5, 4)), torch.rand(5, 4))


def test_bags_of_other_lengths_are_refused_at_their_layer(tmp_path: Path) -> None:
    class Uneven(Bags):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bags(x, torch.tensor([0, 1, 4])))

    with pytest.raises(InputError, match="embedding_bag of 'bags', whose bags are not known to be of one length"):
        reparam.export(Uneven("sum").eval(), torch.randint(10, (8,)), path=tmp_path / "net.onnx", dynamic=())
    assert not list(tmp_path.iterdir())


def test_what_lies_at_a_mask(tmp_path: Path) -> None:
    class Selected(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 2).masked_select(x > 0)

    reparam.export(Selected(), torch.randn(3, 6), path=tmp_path / "net.onnx")
    for batch in (3, 7):
        assert_same(Selected(), tmp_path / "net.onnx", torch.randn(batch, 6))


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2, "bias": False}], ids=str)
def test_an_lstm_that_projects_its_state_is_refused_by_its_name(options: dict[str, Any], tmp_path: Path) -> None:
    """torch's exporter leaves the projection out."""
    model = Lambda(lambda m, x: m.memory(x)[0], memory=nn.LSTM(4, 4, **options, proj_size=2))
    with pytest.raises(InputError, match=r"projects its state \(proj_size\), which 'memory' is; a \.pt2 of convert"):
        reparam.export(model.eval(), torch.randn(3, 2, 4), path=tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


class HalfInside(nn.Module):
    """Autocast leaves norms alone: half precision goes in, and their weights are of single precision."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), norm
        nn.init.normal_(norm.weight, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            y = self.norm(self.first(x))
            assert y.dtype is torch.float16
            return y.float() * 2


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.InstanceNorm1d(5, affine=True), nn.GroupNorm(5, 5)], ids=repr)
def test_norms_of_half_precision_with_weights_of_single_precision(norm: nn.Module, tmp_path: Path) -> None:
    model, x = HalfInside(norm).eval(), torch.randn(3, 5, 6)
    reparam.export(model, x, path=tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], model(x).numpy(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("extreme", [Tensor.amax, Tensor.amin])
def test_extremes_of_all_values(extreme: Any, keep: bool, tmp_path: Path) -> None:
    model, path = Lambda(lambda _, x: x - extreme(x, (), keep)), tmp_path / "net.onnx"
    reparam.export(model, torch.randn(3, 6), path=path)
    assert_same(model, path, torch.randn(5, 6))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool])
def test_a_number_less_whole_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    model, path = Lambda(lambda _, x, m: x * (1.0 - m.long())), tmp_path / "net.onnx"
    inputs = torch.randn(3, 6), torch.randint(0, 2, (3, 6)).to(dtype)
    reparam.export(model, *inputs, path=path)
    assert_same(model, path, *inputs)
