"""The example of fine-tuning: two processes give what one gives, and a run that was interrupted what it would have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from reparam import convert
from reparam.training import save_training_source
from support.emit_source_cases import import_file
from support.warm_process import WarmProcess

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "examples" / "finetune.py"
WORDS = ("net", "--data", "digits.npz", "--input-shape", "1,8,8", "--epochs", "2")
SAME = 1e-4  # of the largest entry of each tensor, for float32 sums in another order over 24 steps of SGD


class Net(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.block(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with digits, their labels, a network and the source of its plain form."""
    datasets = pytest.importorskip("sklearn.datasets")
    folder = tmp_path_factory.mktemp("finetune")
    x, labels = datasets.load_digits(return_X_y=True)
    x = (x[:960] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    np.savez(folder / "digits.npz", x=x, labels=labels[:960])
    torch.manual_seed(0)
    conversion = convert(Net(), torch.zeros(2, 1, 8, 8), to="plain")
    conversion.save(folder / "original.pt2")
    save_training_source(conversion.program, folder / "net", torch.from_numpy(x[:128]))
    return folder


@pytest.fixture(autouse=True)
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of every test here."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return made


def weights(folder: str) -> dict[str, Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_two_processes_give_what_one_gives_with_a_batch_twice_as_large(warm: WarmProcess) -> None:
    words = (*WORDS, "--labels", "--optimizer", "sgd", "--lr", "0.2", "--clip", "1")
    done = warm.script(SCRIPT, *words, "--batch", "64", "-o", "one")
    assert done.returncode == 0, done.stderr
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    two = subprocess.run(
        [*launch, *words, "--batch", "32", "-o", "two"],
        env=os.environ.copy(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    first, other, start = weights("one"), weights("two"), weights("net")
    for name, value in first.items():
        largest = float(value.double().abs().max())
        torch.testing.assert_close(other[name], value, rtol=0, atol=SAME * largest)
    moved = max(float((first[n] - start[n]).abs().max() / start[n].abs().max()) for n in first if n.endswith("weight"))
    assert moved > 100 * SAME
    for shown in (done.stdout, two.stdout):
        assert [json.loads(line)["epoch"] for line in shown.splitlines()] == [1, 2]


def test_a_run_that_was_interrupted_gives_the_same_bits_and_its_result_is_converted_again(warm: WarmProcess) -> None:
    words = (*WORDS, "--teacher", "original.pt2", "--temperature", "2", "--ema", "0.9", "--lr", "0.01")
    assert warm.script(SCRIPT, *words, "-o", "whole").returncode == 0
    assert warm.script(SCRIPT, *words, "-o", "parts", "--stop-after", "31").returncode == 0  # within the second epoch
    assert not Path("parts/model.safetensors").exists()
    assert "go on from it with --resume" in warm.script(SCRIPT, *words, "-o", "parts").stderr
    assert "another --lr" in warm.script(SCRIPT, *words[:-1], "0.02", "-o", "parts", "--resume").stderr
    done = warm.script(SCRIPT, *words, "-o", "parts", "--resume")
    assert done.returncode == 0, done.stderr
    first, other = weights("whole"), weights("parts")
    assert first.keys() == other.keys() == weights("net").keys()
    assert all(torch.equal(value, other[name]) for name, value in first.items())
    assert any(not torch.equal(value, weights("net")[name]) for name, value in first.items())
    again = convert(import_file(Path("parts/model.py")).load(), torch.zeros(2, 1, 8, 8))
    assert again.report.equivalent and again.report.after.norms == 0


def test_averages_of_what_is_infinite_or_counts_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    update = import_file(SCRIPT).averaging(0.75)
    bound, count, weight = torch.tensor([-torch.inf, 0.0]), torch.tensor(3), torch.tensor([1.0, 2.0])
    update([bound, count, weight], [bound.clone(), torch.tensor(4), torch.tensor([5.0, 2.0])], None)
    assert (bound.tolist(), int(count), weight.tolist()) == ([-torch.inf, 0.0], 4, [2.0, 2.0])


def test_what_cannot_be_trained_on_is_told_in_one_sentence(warm: WarmProcess) -> None:
    np.save("x.npy", np.zeros((9, 1, 8, 8), np.float32))
    words = ("net", "--data", "x.npy", "--input-shape", "1,8,8", "-o", "none")
    for more, reason in ((["--labels"], "holds no labels"), ([], "fill no batch of 32"), (["--resume"], "fill no")):
        done = warm.script(SCRIPT, *words, *more)
        assert done.returncode == 2 and done.stderr.startswith("finetune: ") and reason in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not Path("none").exists()
