"""Arguments, scores, paths and dates beside the weights: read without trust, and nothing of them runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reparam.errors import InputError, ReparamError, UnsafeFileError
from reparam.loading import load
from reparam.loading.checkpoint import load_checkpoint
from reparam.loading.stand_ins import INERT, stand_ins
from support.checkpoint_nets import SPEC, small_state

STATE = small_state()
INNOCENT: dict[str, Any] = {
    "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/1"), betas=(0.9, 0.99), inner=argparse.Namespace(a=[1])),
    "simple": types.SimpleNamespace(a=1),
    "best": np.float64(0.5),
    "counts": [np.int64(3), np.float32(2.5), np.bool_(True)],
    "history": np.arange(6.0).reshape(2, 3),
    "when": datetime.datetime(2020, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    "took": datetime.timedelta(seconds=9),
    "day": datetime.date(2020, 1, 2),
    "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a\\b")],
    "meters": collections.defaultdict(list, {"loss": [1.0]}),
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
}


def saved(value: Any, path: Path, *, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_inert_values_beside_the_weights_need_no_trust(zipped: bool, protocol: int, tmp_path: Path) -> None:
    value = {"state_dict": STATE, "epoch": 3, **INNOCENT}
    path = saved(value, tmp_path / "net.pt", zipped=zipped, protocol=protocol)
    before = set(torch.serialization.get_safe_globals())
    loaded = load(path, arch=SPEC)
    assert all(torch.equal(v, STATE[k]) for k, v in loaded.module.state_dict().items())
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("name", INNOCENT)
def test_each_kind_by_itself(name: str, tmp_path: Path) -> None:
    assert (
        load_checkpoint(saved({"model": STATE, name: INNOCENT[name]}, tmp_path / "net.pt")).state.keys() == STATE.keys()
    )


def test_nothing_of_the_libraries_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"model": STATE, **INNOCENT}, tmp_path / "net.pt")

    def bomb(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was called")

    for module, name in ((argparse, "Namespace"), (types, "SimpleNamespace"), (datetime, "datetime")):
        monkeypatch.setattr(module, name, bomb)
    for name in ("scalar", "_reconstruct"):
        monkeypatch.setattr(np._core.multiarray, name, bomb)
    assert load_checkpoint(path).state.keys() == STATE.keys()


class Runs:
    """Unpickling it calls `function`; with `state`, that is then given to what was made."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "in an argument": lambda m: argparse.Namespace(a=Runs(os.system, f"touch {m}")),
    "in a call of one": lambda m: Runs(argparse.Namespace, Runs(os.system, f"touch {m}")),
    "in the state of one": lambda m: Runs(argparse.Namespace, state={"a": Runs(os.system, f"touch {m}")}),
    "in a path": lambda m: Runs(pathlib.PurePosixPath, Runs(os.system, f"touch {m}")),
    "a method of a path": lambda m: Runs(pathlib.Path.touch, m),
    "a method of a namespace": lambda m: Runs(argparse.Namespace.__init__, Runs(os.system, f"touch {m}")),
    "the factory of a mapping": lambda m: collections.defaultdict(subprocess.getoutput, {"a": 1}),
    "in a date": lambda m: Runs(datetime.timedelta, Runs(subprocess.getoutput, f"touch {m}")),
    "a file of numpy's": lambda m: Runs(np.load, str(m), None, True),
    "a file mapped by numpy": lambda m: Runs(np.memmap, str(m), "uint8", "w+", 0, (4,)),
    "in a scalar": lambda m: Runs(np._core.multiarray.scalar, Runs(os.system, f"touch {m}")),
    "an evaluation": lambda m: argparse.Namespace(a=Runs(eval, f"open({str(m)!r}, 'w')")),
    "a pickle in a pickle": lambda m: argparse.Namespace(a=Runs(pickle.loads, pickle.dumps(Runs(os.system, "x")))),
    "a method out of an attribute": lambda m: argparse.Namespace(a=Runs(getattr, pathlib.Path, "touch")),
}


@pytest.mark.parametrize("zipped, protocol", [(True, 2), (False, 2), (True, 4), (False, 5)])
@pytest.mark.parametrize("case", HOSTILE)
def test_code_in_or_beside_inert_values_is_refused_and_named(
    case: str, zipped: bool, protocol: int, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    value = {"model": STATE, **INNOCENT, "x": HOSTILE[case](marker)}
    path = saved(value, tmp_path / "net.pt", zipped=zipped, protocol=protocol)
    with pytest.raises(UnsafeFileError, match=r"would run .* or pass --trust") as error:
        load_checkpoint(path)
    assert str(error.value).isprintable() and not marker.exists()


def test_the_control_would_have_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    value = {"model": STATE, "x": HOSTILE["in an argument"](marker)}
    load_checkpoint(saved(value, tmp_path / "net.pt"), trust=True)
    assert marker.exists()


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02cargparse\nNamespace.__init__\n(tR.",
        b"\x80\x02cargparse\nsys\n.",
        b"\x80\x04" + text("argparse") + text("Namespace.__init__.__globals__") + b"\x93.",
        b"\x80\x04" + text("pathlib") + text("os.system") + b"\x93" + text("true") + b"\x85R.",
        b"\x80\x02cnumpy\ncore.multiarray.scalar.__self__\n.",
        b"\x80\x02cpathlib\nPath.cwd\n)R.",
    ],
)
def test_names_within_a_listed_one_are_not_listed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(UnsafeFileError, match="would run"):
        load_checkpoint(tmp_path / "net.pt")


@pytest.mark.parametrize("step", [b"s", b"u", b"e", b"a", b"b", b"R", b"\x81", b"o", b"i"])
def test_odd_steps_on_a_stand_in_end_in_a_sentence(step: bytes, tmp_path: Path) -> None:
    made = b"\x80\x02cargparse\nNamespace\n)\x81(K\x01K\x02" + step + b"."
    (tmp_path / "net.pt").write_bytes(made)
    with pytest.raises(ReparamError) as error:
        load_checkpoint(tmp_path / "net.pt")
    assert str(error.value).isprintable() and "\n" not in str(error.value)


def test_stand_ins_are_put_for_the_time_of_a_block_alone(tmp_path: Path) -> None:
    path = saved({"a": argparse.Namespace(b=1), "c": np.float64(2)}, tmp_path / "net.pt")
    with stand_ins():
        found = torch.load(path, weights_only=True)
    assert type(found["a"]) is not argparse.Namespace and not hasattr(found["a"], "b")
    assert not isinstance(found["c"], float)
    with pytest.raises(pickle.UnpicklingError), stand_ins():
        torch.load(saved(Runs(os.getcwd), tmp_path / "other.pt"), weights_only=True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_the_list_names_what_exists_and_nothing_that_acts() -> None:
    assert not {
        n for n in INERT if n.partition(".")[0] in ("os", "sys", "posix", "subprocess", "io", "shutil", "torch")
    }
    for name in ("builtins.getattr", "builtins.eval", "builtins.open", "builtins.__import__", "builtins.type"):
        assert name not in INERT
    here = {n for n in INERT if n.partition(".")[0] in sys.stdlib_module_names and "_local" not in n}
    for name in here:
        module, _, attribute = name.rpartition(".")
        assert isinstance(getattr(sys.modules[module], attribute), type), name


def test_weights_in_a_value_that_is_dropped_are_no_weights(tmp_path: Path) -> None:
    path = saved({"args": argparse.Namespace(state_dict=STATE), "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="holds no state dict; its entries are args, epoch"):
        load_checkpoint(path)
