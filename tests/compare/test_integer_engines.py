"""Networks of whole numbers, beside others and engines: compared on all bytes, and on the inputs that were given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.compare import open_engine
from reparam.errors import InputError, NotEquivalentError


class Pixels(nn.Module):
    """Takes images of bytes."""

    def __init__(self, most: int = 255) -> None:
        super().__init__()
        self.conv, self.most = nn.Conv2d(3, 4, 3), most

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float().clamp(max=self.most) / 255)


class Steps(Pixels):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv((x // 32).float() / 8)


class Table(nn.Module):
    """Looks numbers up where no embedding tells how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 30))

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.table
        return table[x.long()]


def pixels(most: int = 255) -> Pixels:
    torch.manual_seed(0)
    return Pixels(most).eval()


IMAGE = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
def test_a_network_and_its_engine_are_compared_on_the_example_that_was_given(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino" if name.endswith("xml") else "onnxruntime")
    net, path = pixels(), tmp_path / name
    options = reparam.ExportOptions(format="openvino" if name.endswith("xml") else "onnx")
    reparam.export(net, IMAGE, path=path, options=options)
    for pair in ((net, path), (path, net)):
        assert reparam.verify(*pair, IMAGE).equivalent
        assert reparam.verify(*pair, input_shapes=[(3, 8, 8)]).equivalent
        with pytest.raises(InputError) as refused:
            reparam.verify(*pair, IMAGE.float())
        shown = ("['batch', 3, 8, 8] (float32)", "['batch', 3, 8, 8] (uint8)")
        assert all(s in str(refused.value) for s in shown)
    net.conv.weight.data[0, 0, 0, 0] += 0.01
    for pair in ((net, path), (path, net)):
        assert not reparam.verify(*pair, IMAGE).equivalent


def exported(net: nn.Module, x: Tensor, path: Path) -> Path:
    pytest.importorskip("openvino" if path.suffix == ".xml" else "onnxruntime")
    options = reparam.ExportOptions(format="openvino" if path.suffix == ".xml" else "onnx")
    return reparam.export(net, x, path=path, options=options).path


def test_a_clamp_at_2_is_another_network(tmp_path: Path) -> None:
    assert reparam.verify(pixels(), pixels(), IMAGE).equivalent
    assert not reparam.verify(pixels(), pixels(2), IMAGE).equivalent
    right, wrong = exported(pixels(), IMAGE, tmp_path / "a.onnx"), exported(pixels(2), IMAGE, tmp_path / "b.onnx")
    assert reparam.verify(right, right).equivalent and not reparam.verify(right, wrong).equivalent
    assert not reparam.verify(pixels(), wrong, IMAGE).equivalent


def test_images_that_are_divided_by_their_deviation_are_all_bytes() -> None:
    class Standardised(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            y = x.float().clamp(max=self.most)
            return (y - y.mean((1, 2, 3), keepdim=True)) / y.std((1, 2, 3), keepdim=True)

    assert reparam.verify(Standardised(), Standardised(), IMAGE).equivalent
    assert not reparam.verify(Standardised(), Standardised(100), IMAGE).equivalent


def test_the_search_goes_to_the_ends_of_bytes() -> None:
    """Of random bytes no image is all white."""

    class Whites(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x > 254).float().mean().gt(0.9).float()

    torch.manual_seed(0)
    whites = Whites().eval()
    verdict = reparam.verify(pixels(), whites, IMAGE)
    assert not verdict.equivalent and verdict.reason.startswith("an input was found")
    assert reparam.verify(pixels(), whites, IMAGE, adversarial=False).equivalent


def test_a_file_of_whole_quotients_is_right_or_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Steps().eval()
    assert reparam.verify(net, exported(net, IMAGE, tmp_path / "net.onnx"), IMAGE).equivalent
    try:
        path = exported(net, IMAGE, tmp_path / "net.xml")
    except NotEquivalentError:
        return
    engine = open_engine(path)
    assert engine is not None
    torch.testing.assert_close(engine.run([IMAGE])[0], net(IMAGE))


class Tabled(Pixels):
    """The same with a table, which may be a short one."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(float(rows)) / 255)

    def forward(self, x: Tensor) -> Tensor:
        table: Tensor = self.table
        return self.conv(table[x.long()])


@pytest.mark.parametrize("rows", [256, 9])
def test_bytes_that_one_of_two_networks_looks_up_are_those_that_both_take(rows: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Tabled(rows).eval(), IMAGE.clamp(max=8)
    path = exported(net, x, tmp_path / "net.onnx")
    for pair in ((pixels(), net), (net, pixels()), (pixels(), path), (path, pixels())):
        assert reparam.verify(*pair, x).equivalent
    assert reparam.verify(pixels(2), net, x).equivalent == (rows == 9)
    assert reparam.verify(pixels(2), path, x).equivalent == (rows == 9)


def test_numbers_that_overflow_at_the_ends_are_0_and_1() -> None:
    class Powers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x.float())

    x = torch.ones(2, 5, dtype=torch.int16)
    assert reparam.verify(Powers(), Powers(), x).equivalent


def test_bytes_that_are_indices_stay_0_and_1_between_engines(tmp_path: Path) -> None:
    x = torch.randint(0, 30, (2, 7), dtype=torch.uint8)
    path = exported(Table().eval(), x, tmp_path / "net.onnx")
    assert reparam.verify(path, path, input_shapes=[(7,)]).equivalent
