"""Results in containers of the user's own: the class in process, a dict or tuple in what torch alone opens."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam import convert
from reparam.emit.plain_containers import plain_containers
from support.choice import mostly_in_sweeps

Pair = namedtuple("Pair", "mean spread")


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: list[Any]
    extra: Tensor | None = None


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """A mapping that a library registers with torch, with its keys as context."""


pytree.register_pytree_node(
    ModelOutput,
    lambda value: (list(value.values()), list(value)),
    lambda values, keys: ModelOutput(zip(keys, values, strict=True)),
    serialized_type_name="tests.ModelOutput",
)


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.norm = kind, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        if self.kind == "dataclass":
            return Answer(y, [y.relu(), {"deep": Pair(y.mean(), y.std())}])
        return ModelOutput(logits=y, hidden=(y.relu(),)) if self.kind == "mapping" else Pair(y.mean(), y.std())


ALONE = (
    ("dataclass", Answer, "['logits', 'hidden'] tuple"),
    ("mapping", ModelOutput, "['logits', 'hidden']"),
    ("named tuple", Pair, "tuple"),
)


@pytest.mark.parametrize(("kind", "own", "alone"), mostly_in_sweeps(ALONE, ALONE[0]))
def test_archive_opens_with_torch_alone(kind: str, own: type, alone: str, tmp_path: Path) -> None:
    x = torch.rand(2, 3, 6, 6)
    done = convert(Net(kind).eval(), x)
    assert type(done.module(x)) is own
    done.save(tmp_path / "net.pt2")
    code = (
        "import sys, torch; y = torch.export.load(sys.argv[1]).module()(torch.rand(3, 3, 6, 6)); "
        "print(list(y) if isinstance(y, dict) else type(y).__name__, "
        "type(y['hidden'][1]['deep']).__name__ if isinstance(y, dict) and len(y['hidden']) > 1 else '')"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "net.pt2")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert run.stdout.strip() == alone
    again = convert(torch.export.load(tmp_path / "net.pt2"))
    for a, b in zip(pytree.tree_leaves(again.module(x)), pytree.tree_leaves(done.module(x)), strict=True):
        torch.testing.assert_close(a, b)


def test_containers_of_torch_and_python_stay() -> None:
    value = OrderedDict(a=[1, (2, {"b": 3})])
    spec = pytree.tree_structure(value)
    assert plain_containers(spec) == spec


def test_what_torch_and_python_have_beside_plain_containers_becomes_plain() -> None:
    spec = plain_containers(pytree.tree_structure((defaultdict(list, {"a": 1, 2: [3]}), torch.zeros(2, 2).max(1))))
    assert spec == pytree.tree_structure(({"a": 1, 2: [3]}, (1, 2)))


def test_dataclass_of_absent_parts_keeps_the_names_of_those_that_are_there() -> None:
    torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")
    spec = plain_containers(pytree.tree_structure(Answer(torch.zeros(1), [1, 2])))
    assert spec is not None and spec.type is dict and spec.context == ["logits", "hidden"]
