"""int() of a size and len() of a tensor leave axes free, as far as the model lets them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture import capture
from reparam.errors import CaptureError
from support.helpers import Lambda, healthy

FREE = ("batch", "height", "width")


def reversed_windows(m: Any, x: Tensor) -> Tensor:
    """As in Swin's own code: windows of 4 x 4 to a map of 8 x 8 and back, with the batch found by division."""
    y = m.norm(m.conv(x)).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    windows = y.reshape(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    windows = m.linear(windows)
    n = int(windows.shape[0] / (8 * 8 / 4 / 4))
    back: Tensor = windows.reshape(n, 2, 2, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, 8, 8, -1)
    return back


def masked(m: Any, x: Tensor) -> Tensor:
    lengths = torch.full((x.shape[0],), 0.5)
    mask = torch.arange(8).expand(len(lengths), 8) < (lengths * 8)[:, None]
    y: Tensor = m.norm(m.conv(x)) * mask[:, None, None]
    return y


def padded_to_a_multiple(m: Any, x: Tensor) -> Tensor:
    h = x.shape[2]
    y: Tensor = m.norm(m.conv(F.pad(x, (0, 0, 0, int(math.ceil(h / 8) * 8 - h)))))
    return y[:, :, :h]


def halved(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.norm(m.conv(x))[:, :, : int(x.shape[2] * 0.5)]
    return y


def net(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(4), "linear": nn.Linear(4, 4)}
    return healthy(Lambda(forward, **layers)).float()


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], list[tuple[int, ...]]]] = {
    "windows": (reversed_windows, {"dynamic": ("batch",)}, [(1, 8, 8), (5, 8, 8)]),
    "windows, unasked": (reversed_windows, {}, [(1, 8, 8), (5, 8, 8)]),
    "a mask": (masked, {"dynamic": ("batch",)}, [(1, 8, 8), (5, 8, 8)]),
    "a mask, unasked": (masked, {}, [(1, 8, 8), (5, 8, 8)]),
    "a pad": (padded_to_a_multiple, {"dynamic": FREE}, [(1, 11, 9), (3, 16, 5), (2, 17, 8)]),
    "a half": (halved, {"dynamic": FREE}, [(1, 11, 9), (3, 16, 5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_plain_numbers_stay_free(name: str) -> None:
    forward, options, sizes = CASES[name]
    model = net(forward)
    made = reparam.convert(model, torch.randn(2, 3, 8, 8), **options)
    assert made.report.after.norms == 0
    assert not [r for r in made.report.remarks if "fixed" in r.message]
    for n, h, w in sizes:
        x = torch.randn(n, 3, h, w)
        with torch.no_grad():
            assert torch.allclose(made.module(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_loops_over_the_batch_is_refused_as_before() -> None:
    def looped(m: Any, x: Tensor) -> Tensor:
        return torch.stack([m.conv(x[i : i + 1])[0] * (i + 1) for i in range(len(x))])

    with pytest.raises(CaptureError, match="the batch cannot stay free: the model asks whether batch == 2 at"):
        capture(net(looped), (torch.randn(2, 3, 8, 8),), dynamic=("batch",))
    assert "int" not in vars(sys.modules[__name__]) and "len" not in vars(sys.modules[__name__])


class Kinds(nn.Module):
    """Asks for the kinds of things, by a name that is another one while it is traced anew."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.conv, self.count = nn.Conv2d(3, 4, 3), count

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x).reshape(int(x.shape[0] / 1.0), -1)
        number = isinstance(self.count, int) and issubclass(bool, int) and int("7", base=8) == 7 and len([1, 2]) == 2
        return y * (2 if number else 3)


def test_other_uses_of_the_names_are_as_ever() -> None:
    model = Kinds(3).eval()
    made = reparam.convert(model, torch.randn(2, 3, 5, 5), dynamic=("batch",))
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        assert torch.allclose(made.module(x), model(x), atol=1e-5)
