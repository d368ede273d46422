"""What `init` gives can be saved, as the command line does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import InputError, init

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_is_loaded_by_the_class_of_the_model(tmp_path: Path, suffix: str) -> None:
    made = init(net(), X, method="he")
    path = tmp_path / f"he{suffix}"
    made.save(path)
    if suffix == ".pt":
        state = torch.load(path)
    else:
        from safetensors.torch import load_file

        state = load_file(path)
    other = net()
    other.load_state_dict(state)
    assert torch.equal(other(X), made.module(X))
    with pytest.raises(InputError, match="exists"):
        made.save(str(path))
    made.save(str(path), force=True)


def test_a_network_with_parts_of_its_own_is_a_program_or_source(tmp_path: Path) -> None:
    made = init(net(), X, method="normalised-act")
    with pytest.raises(InputError, match=r"puts parts in .*; name the output act\.pt2"):
        made.save(tmp_path / "act.pt")
    made.save(tmp_path / "act.pt2")
    made.save_source(tmp_path / "source")
    y: Tensor = reparam.convert(tmp_path / "act.pt2", X, to="fused").module(X)
    assert torch.allclose(y, made.module(X), atol=1e-5)
    assert (tmp_path / "source" / "model.py").exists()


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    made = init(net(), X, method="he")
    with pytest.raises(InputError, match=r"is a checkpoint; name it he\.pt"):
        made.save(tmp_path / "he.onnx")
    with pytest.raises(InputError, match="he puts no parts in"):
        made.save_source(tmp_path / "source")
    assert not list(tmp_path.iterdir())
