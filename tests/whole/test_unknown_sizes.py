"""Networks that pick positions by their values: how many there are is not known before the network runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.capture import capture
from reparam.errors import UnknownSizeError
from reparam.ir import census, shape_of


class Keypoints(nn.Module):
    """A map of scores, the positions whose scores are high, and a head that describes each of these."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores = torch.relu(self.norm(self.conv(x)))
        rows = scores.flatten(2).transpose(1, 2).reshape(-1, 4)
        at = torch.nonzero(scores[0, 0].flatten() > 0.3)[:, 0]
        return scores, at, self.head(2 * torch.relu(self.hidden(rows[at])) + 1)


@pytest.mark.parametrize("to", ["fused", "plain"])
def test_what_comes_before_the_choice_is_rewritten_and_what_comes_after_is_left(to: str) -> None:
    model, x = Keypoints().eval(), torch.randn(2, 3, 8, 8)
    result = reparam.convert(model, x, to=to)
    assert (result.report.before.norms, result.report.after.norms) == (1, 0)
    told = [r.message for r in result.report.remarks if r.kind == "missed"]
    assert "the size of 'relu_1' depends on the values of the inputs" in told
    for sample in (x, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8) - 3):
        for new, old in zip(result.module(sample), model(sample), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_work_on_what_was_chosen_is_not_counted() -> None:
    program = capture(Keypoints().eval(), (torch.randn(2, 3, 8, 8),)).program
    assert census(program).macs == 3 * 3 * 3 * 4 * 6 * 6
    chosen = next(n for n in program.calls() if n.name == "index")
    with pytest.raises(UnknownSizeError, match="the size of 'index' depends on the values of the inputs"):
        shape_of(chosen)


def test_it_is_written_as_onnx(tmp_path: Path) -> None:
    reparam.export(Keypoints().eval(), torch.randn(2, 3, 8, 8), path=tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").is_file()
