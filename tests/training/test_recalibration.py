"""Statistics of batch norms measured again: as torch does it, in one process and in two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from reparam import InputError, recalibrate
from reparam.data import spool
from reparam.data.samples import open_samples
from support.sample_files import pictures
from support.two_processes import run_two


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4, 1e-3)
    )


def by_torch(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """What one pass in training mode gives, dropout off, with momentum=None."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None
        part.training = isinstance(part, nn.BatchNorm2d)
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.state_dict()


def test_the_statistics_are_torchs_own() -> None:
    model, x = network(), 2 + torch.randn(48, 3, 8, 7)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    found = recalibrate(model, x[:1], data=x, batch=16)
    truth = network()
    truth.load_state_dict(state)
    for name, value in by_torch(truth, list(x.split(16))).items():
        assert torch.equal(found.module.state_dict()[name], value), name
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and model.training
    assert not any(m.training for m in found.module.modules())
    assert [m.momentum for m in found.module.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]
    assert (found.batches, found.samples, found.unused) == (3, 48, ())


def test_it_says_how_far_the_means_moved() -> None:
    norm = nn.BatchNorm2d(2).eval()
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_var.fill_(4.0)
    x = torch.randn(64, 2, 9, 9) + torch.tensor([6.0, 0.0]).reshape(1, 2, 1, 1)
    (shift,) = recalibrate(norm, x[:2], data=x).norms
    assert (shift.name, shift.channels) == ("", 2)
    assert shift.largest == pytest.approx(3, abs=0.05) and shift.mean == pytest.approx(1.5, abs=0.05)
    assert shift.deviation == pytest.approx(0.5, abs=0.02)


def test_batches_weigh_as_many_samples_as_they_hold_and_a_small_rest_joins_the_last() -> None:
    norm, x = nn.BatchNorm2d(2), torch.randn(26, 2, 4, 4) + torch.arange(26).reshape(-1, 1, 1, 1)
    rest = recalibrate(norm, x[:2], data=x, batch=16)
    assert rest.batches == 2
    torch.testing.assert_close(rest.module.running_mean, x.mean((0, 2, 3)))
    joined = recalibrate(norm, x[:2], data=x[:23], batch=16)
    assert (joined.batches, joined.samples) == (1, 23)
    torch.testing.assert_close(joined.module.running_var, x[:23].transpose(0, 1).reshape(2, -1).var(1))


def test_a_norm_that_is_called_twice_or_not_at_all() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.never = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.twice(self.twice(x) + 4)

    x = torch.randn(20, 3)
    found = recalibrate(Net(), x[:2], data=x)
    assert found.unused == ("never",) and [n.name for n in found.norms] == ["twice"]
    mean = (x.mean(0) + 4) / 2  # of the first call, and of the second, whose input is normalised
    torch.testing.assert_close(found.module.twice.running_mean, mean)
    assert torch.equal(found.module.never.running_var, torch.ones(3))


def test_samples_of_a_deck() -> None:
    x = torch.randn(20, 3, 4, 4)
    with spool(open_samples(x, pictures())) as decks:
        found = recalibrate(nn.BatchNorm2d(3), x[:1], data=decks.fit)
        assert found.samples == len(decks.fit)


def test_what_cannot_be_measured_is_refused() -> None:
    x = torch.randn(4, 3, 4, 4)
    for model in (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3)):
        with pytest.raises(InputError, match="no batch norm that keeps running statistics"):
            recalibrate(model, x, data=x)
    with pytest.raises(InputError, match=r"the model is a torch\.ExportedProgram; statistics are"):
        recalibrate(torch.export.export(nn.BatchNorm2d(3).eval(), (x,)), x, data=x)
    with pytest.raises(InputError, match=r"there is no file net\.pt"):
        recalibrate("net.pt", x, data=x)
    with pytest.raises(InputError, match="on 1 samples: Expected more than 1 value per channel"):
        recalibrate(nn.BatchNorm1d(3), torch.randn(2, 3), data=torch.randn(1, 3))
    with pytest.raises(InputError, match="positive whole number"):
        recalibrate(nn.BatchNorm2d(3), x, data=x, batch=0)
    with pytest.raises(InputError, match="'1' meets NaN or infinite values"):
        recalibrate(nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)), x, data=1e30 * x.sign() * 3e8)


WORKER = """
saved = torch.load(f"{folder}/saved.pt")
model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
model.load_state_dict(saved["state"])
share = saved["x"][:32] if rank == 0 else saved["x"][32:]
found = reparam.recalibrate(model, share[:2], data=share, batch=16)
torch.save((found.module.state_dict(), found.as_dict()), f"{folder}/{rank}.pt")
"""


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4))
    x = torch.randn(48, 3, 8, 7) + torch.arange(48).reshape(-1, 1, 1, 1) / 8
    torch.save({"state": model.state_dict(), "x": x}, tmp_path / "saved.pt")
    run_two(WORKER, tmp_path)
    one = recalibrate(model, x[:2], data=x, batch=16)
    for rank in (0, 1):
        state, report = torch.load(tmp_path / f"{rank}.pt")
        for name, value in one.module.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-6)
        assert (report["batches"], report["samples"]) == (3, 48)
        assert report["moved"] == pytest.approx(one.moved, rel=1e-5)
