"""What a model remembers, in itself and outside, is what it was before it was captured and checked."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict, defaultdict, deque
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import CaptureError, convert
from reparam.capture import Outside, fresh_copy
from support.helpers import Lambda

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
TABLE: dict[Any, Any] = {}
NESTED: dict[str, dict[Any, Any]] = {"grids": {}}
LIST: list[Any] = []
SET: set[Any] = set()
QUEUE: deque[Any] = deque(maxlen=3)
ORDERED: OrderedDict[Any, Any] = OrderedDict()
COUNTS: defaultdict[Any, int] = defaultdict(int)
grid: Tensor | None = None
calls = 0


@functools.lru_cache
def cached_ramp(width: int) -> Tensor:
    return torch.linspace(0, 1, width)


class Ramped(nn.Module):
    """A convolution times a ramp."""

    made: ClassVar[dict[int, Tensor]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def ramp(self, width: int) -> Tensor:
        return torch.linspace(0, 1, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.ramp(x.shape[3])


class ByFunction(Ramped):
    def ramp(self, width: int) -> Tensor:
        return cached_ramp(width)


class ByTable(Ramped):
    def ramp(self, width: int) -> Tensor:
        if width not in TABLE:
            TABLE[width] = super().ramp(width)
        return TABLE[width]


class ByNestedTable(Ramped):
    def ramp(self, width: int) -> Tensor:
        return NESTED["grids"].setdefault(width, super().ramp(width))


class ByClass(Ramped):
    def ramp(self, width: int) -> Tensor:
        return self.made.setdefault(width, super().ramp(width))


class ByName(Ramped):
    def ramp(self, width: int) -> Tensor:
        global grid  # noqa: PLW0603  # as such models do
        if grid is None or len(grid) != width:
            grid = super().ramp(width)
        return grid


WAYS = [ByFunction, ByTable, ByNestedTable, ByClass, ByName]


def outside() -> tuple[Any, ...]:
    return (dict(TABLE), dict(NESTED["grids"]), dict(Ramped.made), grid, cached_ramp.cache_info().currsize)


@pytest.mark.parametrize("way", WAYS)
def test_caches_outside_of_a_model_are_left_as_they_are(way: type[Ramped]) -> None:
    """Else they would hold tensors of the trace, and float64 ones, which the model would then compute with."""
    cached_ramp.cache_clear()
    net, before = way().eval(), outside()
    result = reparam.convert(net, X)
    assert outside() == before
    truth = net.conv(X) * torch.linspace(0, 1, 8)
    for module in (result.module, net):
        torch.testing.assert_close(module(X), truth)
    wide = torch.randn(2, 3, 65, 65)
    assert net(wide).dtype == torch.float32
    TABLE.clear(), NESTED["grids"].clear(), Ramped.made.clear()


@pytest.mark.parametrize("way", WAYS)
def test_caches_that_are_filled_are_used_and_kept(way: type[Ramped]) -> None:
    net = way().eval()
    truth = net(X)
    before = outside()
    torch.testing.assert_close(reparam.convert(net, X).module(X), truth)
    assert [v for v in outside() if not isinstance(v, int)] == [v for v in before if not isinstance(v, int)]
    TABLE.clear(), NESTED["grids"].clear(), Ramped.made.clear()


class Counts(Ramped):
    """What it gives depends on how often it has run, here or as another object."""

    def ramp(self, width: int) -> Tensor:
        global calls  # noqa: PLW0603  # as such models do
        calls += 1
        LIST.append(calls)
        SET.add(calls)
        QUEUE.append(calls)
        ORDERED[calls] = calls
        COUNTS["runs"] += 1
        return torch.linspace(0, 1, width) * (len(LIST) + COUNTS["runs"])


def test_what_a_model_counts_outside_is_left_as_it_is_when_it_is_refused_for_that() -> None:
    with pytest.raises(CaptureError, match="writes to something outside of it"):
        reparam.convert(Counts().eval(), X)
    assert (calls, LIST, SET, list(QUEUE), dict(ORDERED), dict(COUNTS)) == (0, [], set(), [], {}, {})


def test_each_run_is_the_first_one() -> None:
    net, outside = Counts().eval(), Outside(Counts())
    for _ in range(2):
        with outside.kept():
            torch.testing.assert_close(net(X), net.conv(X) * torch.linspace(0, 1, 8) * 2)
    assert (calls, LIST, SET, list(QUEUE), dict(ORDERED), dict(COUNTS)) == (0, [], set(), [], {}, {})


def test_every_block_ends_with_what_was_there_before_the_first() -> None:
    outside = Outside(Counts())
    for _ in range(2):
        with outside.kept():
            LIST.append("in the block")
            COUNTS["runs"] += 1
        assert (LIST, dict(COUNTS)) == ([], {})


def test_what_changes_stays_where_an_import_came_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is loaded while a model runs may have written itself into a list."""
    import sys
    import types

    root = __name__.partition(".")[0]
    with Outside(Counts()).kept():
        LIST.append("registered")
        monkeypatch.setitem(sys.modules, f"{root}.loaded_later", types.ModuleType("loaded_later"))
    assert LIST == ["registered"]
    LIST.clear()


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_fixes_its_batch_is_traced_twice_from_the_same_start(way: type[Ramped]) -> None:
    """The second trace would find tensors of the first one in the caches."""
    net = way().eval()
    net.forward = lambda x: torch.cat([net.conv(x[i : i + 1]) for i in range(2)]) * net.ramp(x.shape[3])
    torch.testing.assert_close(reparam.convert(net, X).module(X), net(X))
    TABLE.clear(), NESTED["grids"].clear(), Ramped.made.clear()


def test_a_class_that_no_module_names_keeps_what_it_has() -> None:
    class Local(Ramped):
        kept: ClassVar[dict[int, Tensor]] = {}

        def ramp(self, width: int) -> Tensor:
            return self.kept.setdefault(width, super().ramp(width))

    net = Local().eval()
    torch.testing.assert_close(reparam.convert(net, X).module(X), net(X))
    assert Local.kept.keys() == {8} and Local.kept[8].dtype == torch.float32


class Missing:
    """What stands for a package that is not installed: it can be called, and asking it for anything fails."""

    def __getattribute__(self, name: str) -> Any:
        raise ImportError(f"no {name}: it is not installed")

    def __call__(self) -> None:
        raise ImportError("it is not installed")


def test_what_stands_for_a_missing_package_beside_a_model_is_not_asked_for_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(globals(), "missing", Missing())
    assert convert(ByTable(), X).report.equivalent
    held = Ramped()
    held.__dict__["missing"] = functools.partial(print, Missing())
    assert convert(held, X).report.equivalent


def test_a_hook_of_a_network_of_torchs_own_layers_keeps_what_it_has() -> None:
    shapes: list[tuple[int, ...]] = []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    net[0].register_forward_hook(lambda module, args, result: shapes.append(tuple(result.shape)))
    result = reparam.convert(net, X)
    assert shapes == []
    torch.testing.assert_close(result.module(X), net(X))


def test_a_hook_that_takes_itself_away_is_still_there() -> None:
    """It reaches the model that was given, not the copy that runs."""
    net = Ramped().eval()

    def once(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        handle.remove()
        return result * 2

    handle = net.conv.register_forward_hook(once)
    result = reparam.convert(net, X)
    assert len(net.conv._forward_hooks) == 1
    torch.testing.assert_close(result.module(X), net(X))
    torch.testing.assert_close(net(X) * 2, result.module(X))


class Listed(Ramped):
    """Keeps a tensor in a list of its own, and counts in it where it may."""

    counts: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.kept = [torch.zeros(1)]
        self.pairs = {"a": (torch.ones(1),)}

    def ramp(self, width: int) -> Tensor:
        self.kept[0] = self.kept[0] * self.counts + 1
        return torch.linspace(0, 1, width) * self.kept[0]


def test_tensors_in_containers_of_a_model_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were shared between the runs in float64, which a tensor cannot be copied in."""
    net = Listed().eval()
    with pytest.raises(CaptureError, match="writes to its own 'kept' while"):
        reparam.convert(net, X)
    assert net.kept[0].item() == 0
    monkeypatch.setattr(Listed, "counts", False)
    result = reparam.convert(net, X)
    assert net.kept[0].item() == 0
    torch.testing.assert_close(result.module(X), net.conv(X) * torch.linspace(0, 1, 8))


def test_a_copy_shares_weights_and_nothing_that_can_be_copied() -> None:
    net = Listed()
    net.lock = threading.Lock()
    copied = fresh_copy(net)
    assert isinstance(copied, Listed) and copied.conv.weight is net.conv.weight and copied.lock is net.lock
    assert copied.kept is not net.kept and copied.kept[0] is not net.kept[0]
    assert copied.pairs["a"][0] is not net.pairs["a"][0]


class Counted(nn.Conv1d):
    """Says by itself how it is copied."""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "copies": self.__dict__.get("copies", 0) + 1}


class Tangled(nn.Module):
    """Its parts are known under several names, and to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Sequential(nn.Linear(2, 2), Counted(2, 2, 1))
        self.table = self.same_table = {"part": self.first, ("a", 1): [self.first[0].weight]}
        self.named = OrderedDict(b=1, a=(self.table,))
        self.spare, self.marks = [OrderedDict()] * 2, [set()] * 2
        self.hooks, self.names = self.spare[0], self.marks[0]
        object.__setattr__(self, "itself", self)
        self.first.register_forward_hook(self.seen)
        self.count = 0

    def seen(self, *_: Any) -> None:
        self.count += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)


def test_a_copy_is_tangled_as_the_model_is() -> None:
    net = Tangled()
    copied: Any = fresh_copy(net)
    first = copied.first
    assert copied.second is first is not net.first and copied.itself is copied
    assert copied.same_table is copied.table is not net.table and copied.table["part"] is first
    assert copied.table["a", 1][0] is first[0].weight is net.first[0].weight
    assert list(copied.named) == ["b", "a"] and copied.named["a"][0] is copied.table
    assert isinstance(first[1], Counted) and first[1].copies == 1 and not hasattr(net.first[1], "copies")
    assert copied.spare[1] is copied.hooks is not net.hooks and copied.marks[1] is copied.names is not net.names
    copied(torch.zeros(2, 2))
    assert (copied.count, net.count) == (1, 0)


class AsksForItsBatch(Ramped):
    """By a text, of which no guard tells."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * (2 if f"{x.shape[0]}" == "4" else 3)


def test_the_batch_of_the_example_is_tried() -> None:
    net, x = AsksForItsBatch().eval(), torch.randn(4, 3, 8, 8)
    result = reparam.convert(net, x)
    assert any("the batch is fixed at 4" in r.message for r in result.report.remarks)
    torch.testing.assert_close(result.module(x), net(x))


def test_the_graph_of_a_model_that_is_refused_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Branches(Ramped):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * float(x.sum())

    with pytest.raises(reparam.CaptureError):
        reparam.convert(Branches(), X)
    assert "def forward" not in "".join(capsys.readouterr())


WRITES = {
    "a buffer": lambda net, x: net.count.add_(1) * net.layer(x),
    "a norm": lambda net, x: net.layer(net.norm.train()(x)),
    "a weight": lambda net, x: net.layer.weight.data.mul_(1.5) + x[:, :, None],
    "a weight, and fails": lambda net, x: net.layer.weight.data.mul_(1.5) + x[9, 9, 9],
    "a buffer, and a loop": lambda net, x: [net.count.add_(1) for _ in range(int(x.sum().item()) % 3)] and net.layer(x),
}


@pytest.mark.parametrize("way", WRITES)
def test_a_model_that_is_refused_for_what_it_writes_has_what_it_had(way: str) -> None:
    net = Lambda(WRITES[way], layer=nn.Linear(4, 4), norm=nn.BatchNorm1d(4))
    net.register_buffer("count", torch.ones(1))
    before = {name: value.clone() for name, value in net.eval().state_dict().items()}
    with pytest.raises(CaptureError):
        convert(net, torch.randn(3, 4))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
