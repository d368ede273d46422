"""Networks of whole numbers beside engines of theirs: captured with the inputs that were given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError


class Pixels(nn.Module):
    """Takes images of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float() / 255)


def pixels() -> Pixels:
    torch.manual_seed(0)
    return Pixels().eval()


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
