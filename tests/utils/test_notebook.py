"""Progress in a notebook, and nothing of it anywhere else."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.utils import notebook


class Handle:
    """What IPython's `display` gives: every picture that was shown in its place."""

    def __init__(self, first: Any) -> None:
        self.shown = [first]

    def update(self, picture: Any) -> None:
        self.shown.append(picture)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """The outputs of a cell in what looks like a notebook; work shows at once."""
    handles: list[Handle] = []

    def display(picture: Any, display_id: bool) -> Handle:
        assert display_id
        handles.append(Handle(picture))
        return handles[-1]

    shell: Any = types.SimpleNamespace(kernel=object())
    python: Any = types.ModuleType("IPython")
    python.get_ipython = lambda: shell
    python.display = types.ModuleType("IPython.display")
    python.display.display, python.display.HTML = display, lambda text: text
    for name, module in (("IPython", python), ("IPython.display", python.display), ("ipykernel", python)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(notebook, "PATIENCE", 0.0)
    monkeypatch.setattr(notebook, "EVERY", 0.0)
    return handles


def net() -> tuple[nn.Module, torch.Tensor]:
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    return made.eval(), torch.rand(16, 3, 8, 8)


def stages(handle: Handle) -> set[str]:
    """The names of the bars in the last picture before it was taken away."""
    return set(handle.shown[-2].columns[0]._cells and [str(c) for c in handle.shown[-2].columns[0]._cells])


@pytest.mark.parametrize(
    ("work", "wanted"),
    [
        (reparam.convert, {"capture", "fold", "verify"}),
        (lambda m, x: reparam.verify(m, m, x), {"verify"}),
        (lambda m, x: reparam.prune(m, x, x, macs=0.6, form="residual"), {"capture", "prune", "refit"}),
        (lambda m, x: reparam.bench([m], data=x, options=reparam.BenchOptions(rounds=3, memory=False)), {"samples"}),
    ],
)
def test_work_in_a_notebook_shows_bars_below_its_cell_and_takes_them_away(
    work: Callable[[nn.Module, torch.Tensor], Any], wanted: set[str], kernel: list[Handle], capfd: Any
) -> None:
    work(*net())
    (handle,) = kernel
    assert wanted <= stages(handle) and handle.shown[-1] == ""
    assert "text/html" in handle.shown[-2]._repr_mimebundle_([], []) and capfd.readouterr() == ("", "")


def test_a_progress_of_ones_own_comes_first(kernel: list[Handle]) -> None:
    seen: list[str] = []
    reparam.convert(*net(), progress=lambda stage, done, total: seen.append(stage))
    assert "capture" in seen and not kernel


def test_bars_go_when_the_work_fails(kernel: list[Handle]) -> None:
    with pytest.raises(reparam.ReparamError):
        reparam.prune(*net(), torch.zeros(0, 3, 8, 8), macs=0.5)
    assert all(h.shown[-1] == "" for h in kernel) and kernel


def test_short_work_shows_nothing(kernel: list[Handle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "PATIENCE", 1e6)
    reparam.convert(*net())
    assert not kernel


def test_a_script_and_a_console_show_nothing(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    assert not notebook.in_notebook()
    python: Any = types.ModuleType("IPython")
    python.get_ipython = object
    monkeypatch.setitem(sys.modules, "IPython", python)
    monkeypatch.setitem(sys.modules, "ipykernel", python)
    assert not notebook.in_notebook()  # a console of IPython has no kernel
    reparam.convert(*net())
    assert capfd.readouterr() == ("", "")
