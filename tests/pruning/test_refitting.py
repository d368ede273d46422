"""Refitting: exact where channels are combinations of others, better where they are not, whatever the memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.errors import MachineError
from reparam.pruning.frontier import Frontier
from reparam.pruning.gated import with_gates
from reparam.pruning.refitting import refit_layers
from support.prunable import NETS, Twice, error, fused, half_off, images


def batches() -> Iterator[tuple[Tensor, ...]]:
    return ((part,) for part in images(96, seed=4).split(32))


@pytest.mark.parametrize("name", NETS)
def test_outputs_come_closer_to_the_original(name: str) -> None:
    gated = with_gates(fused(name), coupled=True)
    half_off(gated)
    x = images(64, seed=9)
    before = error(gated, x)
    fitted = refit_layers(gated, batches)
    assert error(gated, x) < 0.6 * before
    assert all(f.rows >= f.columns for f in fitted) and len(fitted) >= 4


READERS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(8, 5, 3),
    "transposed": nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1, output_padding=1),
}


@pytest.mark.parametrize("name", READERS)
def test_channels_that_are_multiples_of_others_are_not_missed_at_all(name: str) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), READERS[name]
    with torch.no_grad():
        factors = torch.tensor([0.5, 2.0, 3.0, 0.25])
        first.weight[4:] = factors[:, None, None, None] * first.weight[:4]
        first.bias[4:] = factors * first.bias[:4]  # type: ignore[index]
    gated = with_gates(convert(nn.Sequential(first, nn.ReLU(), second).eval(), images(2)).program)
    gated.set_mask(gated.gates[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    x = images(8, seed=9)
    before = error(gated, x)
    refit_layers(gated, batches, ridge=1e-9)
    assert before > 0.1 and error(gated, x) < 1e-4


def test_a_layer_beside_a_skip_makes_good_what_the_skip_lost() -> None:
    """y = A x + B relu(C x): with half of C's channels gone and A changed, B alone can answer for both."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.short, self.up, self.down = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 32, 1), nn.Conv2d(32, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            short = self.short(x)
            return (short + self.down(torch.relu(self.up(x)))).relu().mean((2, 3))

    torch.manual_seed(0)
    gated = with_gates(convert(Skip().eval(), images(2)).program)
    name = next(n for n in gated.program.constants if "short" in n and n.endswith("bias"))
    shifted = gated.program.constants[name].value + 1.0
    gated.set_weight(name, shifted)
    before = error(gated, images(16, seed=9))
    refit_layers(gated, batches, ridge=1e-6)
    assert before > 0.05 and error(gated, images(16, seed=9)) < 1e-3


def test_the_flat_part_of_an_activation_is_made_use_of() -> None:
    gated, plain = (with_gates(fused("residual"), coupled=True) for _ in range(2))
    for g in (gated, plain):
        half_off(g)
    refit_layers(plain, batches, gate=0)
    refit_layers(gated, batches, gate=3)
    x = images(96, seed=4)  # the samples that were fitted: there it must be better
    assert error(gated, x) < error(plain, x)


def test_values_that_do_not_fit_into_memory_lie_in_files_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for memory in (1 << 28, 10_000):
        gated = with_gates(fused("residual"), coupled=True)
        half_off(gated)
        monkeypatch.setattr("reparam.pruning.refitting.Frontier", lambda m=memory: Frontier(m))
        refit_layers(gated, batches)
        found.append({n: c.value for n, c in gated.program.constants.items()})
    assert all(torch.equal(v, found[1][n]) for n, v in found[0].items())


def test_weights_that_two_calls_share_are_left_alone() -> None:
    gated = with_gates(convert(Twice().eval(), images(2)).program)
    gated.set_mask(gated.gates[0], torch.tensor([1.0, 0, 1, 1, 1, 1]))
    shared = [n for n in gated.program.constants if n in ("same.weight", "same.bias")]
    before = {n: gated.program.constants[n].value.clone() for n in shared}
    fitted = refit_layers(gated, batches)
    assert len(fitted) == 2 and len(shared) == 2
    assert all(torch.equal(gated.program.constants[n].value, before[n]) for n in shared)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Frontier(memory=0) as frontier:
        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(MachineError, match="No space left"):
            frontier.put("large", torch.zeros(10))


def test_a_frontier_gives_back_what_was_put_and_leaves_no_files() -> None:
    with Frontier(memory=1000) as frontier:
        small, large = torch.randn(4, 5), torch.arange(1000).reshape(10, 100)
        frontier.put("small", small)
        frontier.put("large", large.t())
        frontier.put("size", 7)
        folder = Path(frontier._folder.name)
        assert len(list(folder.iterdir())) == 1
        assert torch.equal(frontier.get("small"), small) and torch.equal(frontier.get("large"), large.t())
        assert frontier.get("size") == 7
        frontier.drop("size")
        frontier.drop("small")
        frontier.put("again", torch.zeros(250))
        assert len(list(folder.iterdir())) == 1  # there is room in memory again
    assert not folder.exists()


def test_files_are_written_over_only_when_nobody_looks_at_them_any_more() -> None:
    with Frontier(memory=50) as frontier:
        first, second = torch.randn(10, 10), torch.randn(100)
        folder = Path(frontier._folder.name)
        frontier.put("first", first)
        looked_at = frontier.get("first").t()
        frontier.put("part", looked_at[0])  # small enough for memory, and a view of the file
        frontier.drop("first")
        frontier.put("second", second)
        assert torch.equal(looked_at, first.t()) and len(list(folder.iterdir())) == 2
        frontier.recycle()
        frontier.put("third", -second)
        assert len(list(folder.iterdir())) == 2
        assert torch.equal(frontier.get("part"), first[:, 0])
        assert torch.equal(frontier.get("second"), second) and torch.equal(frontier.get("third"), -second)
