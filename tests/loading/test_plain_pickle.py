"""Files of every protocol, and with values that no network takes beside the weights, are read without trust."""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, _weights_only_unpickler, nn

from reparam.errors import InputError, UnsafeFileError
from reparam.loading import load
from reparam.loading.checkpoint import load_checkpoint
from reparam.loading.pickle_machine import follow
from reparam.loading.plain_pickle import DEEPEST, rewritten
from reparam.loading.stand_ins import LeftOut
from support.checkpoint_nets import SPEC, small_state

STATE = small_state()


class Runs:
    """Unpickling it calls `function`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.parts = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def again(content: bytes) -> Any:
    """What torch's restricted reader makes of a pickle that is written anew."""
    return _weights_only_unpickler.load(io.BytesIO(rewritten(follow(io.BytesIO(content)), {})), encoding="utf-8")


def under(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


# ---- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_is_written_anew_gives_the_same(protocol: int) -> None:
    text, shared = "é\u2603" * 300, ("a", (1, 2))
    value = {
        "numbers": [0, -1, 255, 1 << 31, -(1 << 70), 1.5, float("-inf"), True, False, None, 2j],
        "texts": [text, "", text, b"\xff" * 700, b"" if protocol > 2 else ""],
        "containers": [(), [], {}, {1, 2}, (1,), (1, (2, [3])), shared, shared, {("a", 1): "b"}],
        "ordered": collections.OrderedDict(a=1, b=collections.OrderedDict()),
        "many": {str(i): [i] for i in range(700)},
        "counter": collections.Counter("aab"),
    }
    found = again(pickle.dumps(value, protocol))
    assert found == value and repr(found) == repr(value)
    assert found["containers"][6] is found["containers"][7]


def test_values_that_hold_themselves() -> None:
    value: list[Any] = [{}]
    value[0]["again"] = value
    found = again(pickle.dumps(value, 4))
    assert found[0]["again"] is found
    inner: list[Any] = []
    inner.append((inner,))
    with pytest.raises(ValueError, match="holds itself"):
        again(pickle.dumps(inner[0], 4))


def test_what_is_nested_without_end_is_refused_and_what_is_shared_stays_short() -> None:
    deep = b"\x80\x04" + b"](" * (DEEPEST + 5) + b"e" * (DEEPEST + 5) + b"."
    with pytest.raises(ValueError, match="deep"):
        again(deep)
    doubled = (
        b"\x80\x04)"
        + b"\x940h\x00h\x00\x86"
        + b"".join(b"\x940h" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(1, 60))
    )
    assert len(rewritten(follow(io.BytesIO(doubled + b".")), {})) < 2000
    shared = [{*range(500)}, b"x" * 500, "y" * 500]
    content = pickle.dumps([shared] + [[*shared] for _ in range(99)], 4)
    assert len(rewritten(follow(io.BytesIO(content)), {})) < 5 * len(content)


# ---- protocols -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_files_of_every_protocol_are_read(protocol: int, zipped: bool, tmp_path: Path) -> None:
    net = nn.Module()
    net.model = nn.ParameterDict({"a": nn.Parameter(torch.ones(2)), "b": nn.Parameter(torch.ones(3))})
    value = {
        "state_dict": collections.OrderedDict(STATE),
        "epoch": {"a", "b"},
        "half": torch.ones(3).half().t(),
        "own": net.state_dict(),
        "frozen": frozenset([1]) if protocol > 3 else 1,
        "views": [torch.arange(9)[2:5], torch.arange(9.0).view(3, 3).t()],
    }
    how: dict[str, Any] = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save(value, tmp_path / "net.pt", **how)
    loaded = load(tmp_path / "net.pt", arch=SPEC)
    assert all(torch.equal(v, STATE[k]) for k, v in loaded.module.state_dict().items())
    own = load_checkpoint(tmp_path / "net.pt").ignored
    assert own == ("epoch", "half", "own", "frozen", "views")
    torch.save({"a": torch.arange(9.0).view(3, 3).t(), "b": torch.arange(9)[2:5]}, tmp_path / "views.pt", **how)
    state = load_checkpoint(tmp_path / "views.pt").state
    assert torch.equal(state["a"], torch.arange(9.0).view(3, 3).t()) and state["b"].tolist() == [2, 3, 4]


@pytest.mark.parametrize("zipped", [True, False])
def test_cut_files_of_other_protocols_are_refused(zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "net.pt", pickle_protocol=4, _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "net.pt").read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError):
            load_checkpoint(tmp_path / "cut.pt")


def test_no_file_can_name_the_word_that_stands_for_others(tmp_path: Path) -> None:
    for protocol in (2, 4):
        torch.save({"model": STATE, "x": Runs(LeftOut, "a")}, tmp_path / "net.pt", pickle_protocol=protocol)
        with pytest.raises(UnsafeFileError, match="LeftOut"):
            load_checkpoint(tmp_path / "net.pt")


# ---- values that no network takes ----------------------------------------------------------------------------------

STRANGE: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "a sparse tensor"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), "a sparse tensor"),
    "sparse parameter": (lambda: nn.Parameter(torch.eye(3).to_sparse()), "a sparse tensor"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantised tensor"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
    "bytes": (lambda: Runs(bytearray, 1 << 40), "something that builtins.bytearray makes"),
    "storage": (lambda: Runs(torch.FloatTensor, 1 << 40), "something that torch.FloatTensor makes"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", STRANGE)
def test_what_no_network_takes_may_lie_beside_the_weights(
    kind: str, protocol: int, zipped: bool, tmp_path: Path
) -> None:
    make, what = STRANGE[kind]
    path = tmp_path / "net.pt"

    def saved(value: Any) -> Path:
        torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        return path

    for which in ({}, {"key": "state_dict"}):
        loaded = load(saved({"adj": make(), "more": [{"x": make()}], "state_dict": STATE}), arch=SPEC, **which)
        assert all(torch.equal(v, STATE[k]) for k, v in loaded.module.state_dict().items()) and not loaded.notes
    loaded = load(saved({**under("net."), "adj.x": make()}), arch=SPEC, prefix="net.")
    assert all(torch.equal(v, STATE[k]) for k, v in loaded.module.state_dict().items())
    for value, where, inside in (
        ({"state_dict": {**STATE, "adj": make()}}, "state_dict.adj", {}),
        ({**under("net."), "net.adj": make()}, "net.adj", {"prefix": "net"}),
        ({**under("module.net."), "module.net.adj": make()}, "module.net.adj", {"prefix": "module.net"}),
        ({"adj": make()}, "adj", {}),
    ):
        with pytest.raises(InputError, match=f"net.pt has {what} in '{where}', which no network takes"):
            load(saved(value), arch=SPEC, **inside)
    with pytest.raises(InputError, match=f"has {what} under 'adj', not weights"):
        load(saved({"state_dict": STATE, "adj": make()}), arch=SPEC, key="adj")
    with pytest.raises(InputError, match=f"holds {what}, not weights"):
        load(saved(make()), arch=SPEC)


def test_bytes_beside_the_weights_are_only_data(tmp_path: Path) -> None:
    for protocol in (2, 3, 4, 5):
        torch.save({"state_dict": STATE, "blob": bytearray(b"abc")}, tmp_path / "net.pt", pickle_protocol=protocol)
        assert load_checkpoint(tmp_path / "net.pt").state.keys() == STATE.keys()
