"""`init` under torchrun: one checkpoint, of all the processes' samples."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reparam.cli.processes import process_group
from reparam.errors import MachineError
from support.two_processes import run_two

MODEL = """
from torch import nn

def Net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
"""
REFERENCE = """
import numpy as np
from net import Net

net = Net()
net.load_state_dict(torch.load("net.pt"))
x, y = torch.from_numpy(np.load("x.npy")), torch.from_numpy(np.load("y.npy"))
made = reparam.init(net, x[:2], method="gradinit", data=[(x[rank::2], y[rank::2])], steps=6, batch=16)
torch.save(made.module.state_dict(), f"reference-{rank}.pt")
"""
INIT = ("-m", "reparam", "init", "net.pt", "--arch", "net:Net", "--input-shape", "8", "--seed", "3")
GRADINIT = ("--method", "gradinit", "--calibrate", "x.npy", "--labels", "y.npy")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((64, 8)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", x[:, :4].argmax(1))
    (tmp_path / "net.py").write_text(MODEL)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    return tmp_path


def test_torchrun_shares_the_samples_out_and_the_first_process_writes(folder: Path) -> None:
    words = (*INIT, *GRADINIT, "--options", '{"steps": 6, "batch": 16}')
    result = run(folder, *TORCHRUN, *words, "-o", "two.pt", "--json", "two.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("weights set") == 1
    run_two(REFERENCE, folder)
    made = torch.load(folder / "two.pt")
    made = made.get("state_dict", made)
    for rank in range(2):
        expected = torch.load(folder / f"reference-{rank}.pt")
        assert all(torch.equal(made[name], value) for name, value in expected.items())
    assert len(json.loads((folder / "two.json").read_text())["figures"]["kinds"]) == 6


@pytest.mark.sweep
def test_other_methods_are_the_work_of_one_process(folder: Path) -> None:
    result = run(folder, *TORCHRUN, *INIT, "--method", "he", "-o", "he.pt")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("weights set") == 1 and (folder / "he.pt").exists()


@pytest.mark.sweep
def test_fewer_samples_than_processes_are_refused(folder: Path) -> None:
    np.save(folder / "x.npy", np.zeros((1, 8), "float32"))
    np.save(folder / "y.npy", np.zeros(1, "int64"))
    result = run(folder, *TORCHRUN, *INIT, *GRADINIT, "-o", "none.pt")
    assert result.returncode != 0 and not (folder / "none.pt").exists()
    assert "there are fewer samples than the 2 processes that share them" in result.stderr


def test_numbers_of_processes_that_are_none_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(folder, *INIT, "--method", "he", "-o", "he.pt")
    assert result.returncode == 2 and "RANK is '2' and WORLD_SIZE '2'" in result.stderr


@pytest.mark.sweep
def test_a_command_on_a_machine_of_a_cluster_is_alone_without_torchrun(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    result = run(folder, *INIT, "--method", "he", "-o", "he.pt")
    assert result.returncode == 0, result.stderr
    assert (folder / "he.pt").exists()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), MachineError),
        (torch.distributed.DistNetworkError("the store is gone"), MachineError),
        (RuntimeError("of something else"), RuntimeError),
    ],
)
def test_the_end_of_another_process_is_none_of_our_errors(
    raised: RuntimeError, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append(True))
    with pytest.raises(Exception) as found, process_group(2):
        raise raised
    assert type(found.value) is expected and ended == [True]


def test_no_thread_of_a_group_is_left_behind_it(tmp_path: Path) -> None:
    code = (
        "import weakref\nfrom torch import distributed as dist\nfrom reparam.cli.processes import process_group\n"
        "with process_group(2):\n    group = weakref.ref(dist.group.WORLD)\n    import torch._dynamo\n"
        "assert group() is None\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RANK": "0", "WORLD_SIZE": "1"}
    with socket.socket() as port:
        port.bind(("localhost", 0))
        env |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port.getsockname()[1])}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
