"""scikit-learn's digits as folders of images, and a small network that was trained on them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

NETS = """
from torch import nn

def net(width=8):
    made = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10))
    made.input_shapes = ((1, 8, 8),)
    return made
"""
IMAGES = ("--mean", "0", "--std", "1", "--size", "8")
TRAINED = 1400  # the first of the digits; the others are for figures


def prepare_digits(folder: Path, monkeypatch: pytest.MonkeyPatch, *, count: int = 397) -> None:
    """`digits/`, one folder a class, `calibrate.npy`, and the checkpoint `base.pt` of `digit_nets:net`."""
    from sklearn.datasets import load_digits

    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "digit_nets", raising=False)
    (folder / "digit_nets.py").write_text(NETS)
    found = load_digits()
    pixels, classes = (found.images * 15).astype(np.uint8), found.target
    for i in range(TRAINED, TRAINED + count):
        path = folder / "digits" / str(classes[i]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path)
    x = torch.from_numpy(pixels[:TRAINED, None].astype(np.float32) / 255)
    np.save(folder / "calibrate.npy", x[:100].numpy())
    torch.save(trained(x, torch.from_numpy(classes[:TRAINED])).state_dict(), folder / "base.pt")


def trained(x: torch.Tensor, y: torch.Tensor, epochs: int = 6) -> nn.Module:
    """The network after a few epochs, in evaluation mode."""
    names: dict[str, object] = {}
    exec(NETS, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = names["net"]()  # type: ignore[operator]
        assert isinstance(net, nn.Module)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    return net.eval()
