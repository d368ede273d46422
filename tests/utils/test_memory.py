"""Memory that runs out is told as that, whatever runs at the time and whoever says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.errors import InputError, MachineError
from reparam.utils import foreign_code, memory_told
from reparam.utils.memory import left_in_container
from support.cli_helpers import refuse

MODULE = """
import torch
from torch import nn

class Greedy(nn.Module):
    input_shapes = ((3, 8, 8),)
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        return self.conv(x) + torch.zeros(2**50, dtype=x.dtype).sum()
"""
SAID = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("Failed to allocate memory for requested buffer of size 9"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", SAID)
def test_memory_that_runs_out_is_an_error_of_the_machine(error: Exception) -> None:
    with pytest.raises(MachineError, match=r"^not enough memory while running it"), memory_told("running it"):
        raise error
    with pytest.raises(MachineError, match="not enough memory while running it"), foreign_code("running it"):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes do not match"), InputError("out of memory of the past"), KeyError()]
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)), memory_told("running it"):
        raise error


@pytest.fixture
def greedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "greedy_net.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("bench", "greedy.pt", "--arch", "greedy_net:Greedy"),
        ("verify", "greedy.pt", "greedy.pt", "--arch-a", "greedy_net:Greedy", "--arch-b", "greedy_net:Greedy"),
        ("convert", "greedy.pt", "--arch", "greedy_net:Greedy"),
        ("run", "greedy.pt", "--arch", "greedy_net:Greedy", "-i", "x.npy", "-o", "y.npy"),
    ],
    ids=lambda words: words[0],
)
def test_a_model_that_asks_for_more_memory_than_there_is(words: tuple[str, ...], greedy: Path) -> None:
    np.save("x.npy", np.zeros((1, 3, 8, 8), np.float32))
    torch.save({"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}, "greedy.pt")
    message = refuse(3, *words)
    assert message.startswith("not enough memory while ") and "allocate memory" in message, message


def test_what_a_container_has_left_counts_pages_of_files(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 150\nfile 750\ninactive_file 600\nactive_file 100\n")
    assert left_in_container(tmp_path) == 800
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        left_in_container(tmp_path)


class Large(nn.Module):
    """Asks for more memory than there is in float64 alone, as which only the judge runs it."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and x.dtype == torch.float64:
            torch.zeros(2**50)
        return x * 2


def test_the_original_that_runs_out_of_memory_is_not_passed_over() -> None:
    with pytest.raises(MachineError, match="not enough memory while running Large"):
        reparam.convert(Large(), torch.ones(2, 3))
