"""Axes that the model does not leave free are refused with the line that asks; a batch is fixed, unless asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import convert, explain
from reparam.capture import capture
from reparam.capture.guards import probes, size_guards
from reparam.errors import CaptureError, InputError
from reparam.utils import DEFAULT_AXES
from support.choice import crossed
from support.helpers import Lambda, healthy

ALL = ("batch", "height", "width")


class PadsOdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % 2 == 1 or width % 2 == 1:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        return self.conv(x).mean((2, 3))


class LoopsOverTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(row) for row in x])


class CountsTheBatch(LoopsOverTheBatch):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * sum(1 for _ in range(len(x)))


class AsksForFew(LoopsOverTheBatch):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.shape[0] <= 3 else x


class SqueezesOne(LoopsOverTheBatch):
    """Another path for a batch of one alone, which torch.export takes for granted not to happen."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * 2 if x.shape[0] == 1 else self.fc(x)


def test_a_branch_on_a_size_that_was_asked_for_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError) as error:
        convert(PadsOdd(), torch.randn(2, 3, 16, 16), dynamic=ALL)
    text = str(error.value)
    assert "the height cannot stay free: the model asks whether height % 2 != 1 at " in text
    assert "test_guards.py:" in text and "`if height % 2 == 1 or width % 2 == 1:`" in text


def test_with_fixed_sizes_the_same_model_converts() -> None:
    assert convert(PadsOdd(), torch.randn(2, 3, 16, 16)).report.equivalent


@pytest.mark.parametrize("model, batch", crossed([LoopsOverTheBatch, CountsTheBatch, AsksForFew], [1, 2, 3]))
def test_a_batch_that_is_not_free_is_that_of_the_users_own_example(model: type[nn.Module], batch: int) -> None:
    net, x = model().eval(), torch.randn(batch, 3)
    result = convert(net, x)
    [note] = [r.message for r in result.report.remarks if "the batch is fixed" in r.message]
    assert note.startswith(f"the batch is fixed at {batch}, that of the example: ")
    assert result.program.inputs[0].shape == (batch, 3)
    torch.testing.assert_close(result.module(x), net(x))
    with pytest.raises(InputError, match=rf"verified for inputs of shape \[{batch}, 3\], not \[5, 3\]"):
        result.module(torch.randn(5, 3))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_path_of_its_own_for_a_batch_of_one_is_found_by_running_the_model(batch: int) -> None:
    net, x = SqueezesOne().eval(), torch.randn(batch, 3)
    result = convert(net, x)
    assert any(r.message.startswith(f"the batch is fixed at {batch}, that of the") for r in result.report.remarks)
    torch.testing.assert_close(result.module(x), net(x))


def test_multiply_accumulates_are_those_of_one_sample_where_the_batch_is_fixed() -> None:
    free, fixed = convert(nn.Linear(3, 3), torch.randn(2, 3)), convert(CountsTheBatch(), torch.randn(4, 3))
    assert free.report.before.macs == fixed.report.before.macs == 9


RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "higher": lambda h, w: h >= w,
    "wider": lambda h, w: w >= h,
    "sum": lambda h, w: (h + w) % 2 == 0,
    "twice": lambda h, w: h < 2 * w,
    "remainder": lambda h, w: h % w == 0,
    "far": lambda h, w: h <= w + 100,
}


@given(
    relation=st.sampled_from(sorted(RELATIONS)),
    size=st.integers(8, 20),
    factor=st.floats(1e-7, 2.0),
    swapped=st.booleans(),
)
@settings(deadline=None)
def test_a_question_about_two_sizes_is_refused_although_all_squares_answer_alike(
    relation: str, size: int, factor: float, swapped: bool
) -> None:
    """However little the other path would change: it is the guard that tells."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        asked = RELATIONS[relation](w, h) if swapped else RELATIONS[relation](h, w)
        return m.conv(x) * (1.0 if asked else 1 + factor)

    net = healthy(Lambda(forward, conv=nn.Conv2d(3, 4, 3, padding=1))).float()
    with pytest.raises(CaptureError, match=r"cannot stay free: the model asks whether .* at .*test_guards\.py:\d+"):
        convert(net, torch.randn(2, 3, size, size), dynamic=ALL)


@pytest.mark.parametrize("line", ["assert_sizes", "comment"])
def test_a_line_that_only_speaks_of_an_assertion_is_a_branch(line: str) -> None:
    class Speaks(PadsOdd):
        def forward(self, x: Tensor) -> Tensor:
            height = x.shape[-2]
            if line == "comment":
                return self.conv(x) * (1 if height > 12 else 2)  # which assert does not hold
            assert_sizes = 1 if height > 12 else 2
            return self.conv(x) * assert_sizes

    with pytest.raises(CaptureError, match="the height cannot stay free: the model asks whether height > 12 at "):
        convert(Speaks(), torch.randn(2, 3, 16, 16), dynamic=ALL)


def test_where_the_captured_graph_stops_its_line_is_told() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = F.max_pool2d(m.conv(x), 2, 2, 1, ceil_mode=True).shape
        y = F.max_pool2d(m.conv(x), 2, 2, 1, ceil_mode=True)
        return y.reshape(n, 2, c // 2, h, w).flatten(1, 2)

    net = Lambda(forward, conv=nn.Conv2d(1, 4, 1))
    with pytest.raises(
        CaptureError, match=r"does not run there, and stops at .*test_guards\.py:\d+ `return y\.reshape"
    ):
        convert(net, torch.randn(2, 1, 7, 11), dynamic=ALL)


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (lambda h: 7 - (h + 7) % 8, "7 - ((height + 7) % 8) == 4"),
        (lambda h: (h + 1) % 8 * 2, "2*((height + 1) % 8) == 10"),
        (lambda h: h % 8 + 1, "(height % 8) + 1 == 5"),
    ],
)
def test_a_remainder_is_told_with_its_brackets(size: Callable[[int], int], told: str) -> None:
    net = Lambda(lambda m, x: m.c(x) * (2 if size(x.shape[2]) == size(20) else 1), c=nn.Conv2d(3, 3, 3)).eval()
    with pytest.raises(CaptureError, match=re.escape(f"the model asks whether {told} at")):
        capture(net, (torch.randn(1, 3, 20, 20),), dynamic=("height",))


def test_an_assertion_of_the_model_only_says_for_which_sizes_there_is_one() -> None:
    class Asserts(PadsOdd):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[-1] % 4 == 0
            return self.conv(x).mean((2, 3))

    result = convert(Asserts(), torch.randn(2, 3, 16, 16), dynamic=ALL)
    assert isinstance(result.program.inputs[0].shape[3], str)


@given(st.integers(5, 12), st.integers(5, 12), st.booleans())
def test_what_torch_took_for_granted_of_a_pool_is_found_at_sizes_that_break_it(h: int, w: int, ceil: bool) -> None:
    """Behind a pool that rounds up, a reshape with the traced sizes holds for one parity alone."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = F.max_pool2d(m.conv(x), 2, 2, 1, ceil_mode=ceil)
        n, c, height, width = y.shape
        return y.reshape(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)

    net = healthy(Lambda(forward, conv=nn.Conv2d(1, 4, 1))).float()
    try:
        result = convert(net, torch.randn(2, 1, h, w), dynamic=ALL)
    except CaptureError as error:
        assert "the model takes another path" in str(error) or "cannot" in str(error)
        return
    for size in ((h, w), (h + 1, w), (h, w + 1), (13, 14)):
        x = torch.randn(1, 1, *size)
        torch.testing.assert_close(result.module(x), net(x), rtol=1e-4, atol=1e-5)


def test_guards_are_read_with_their_axes_and_places() -> None:
    free = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    exported = torch.export.export(PadsOdd(), (torch.randn(2, 3, 16, 16),), dynamic_shapes=free)
    found = {g.text: g for g in size_guards(exported)}
    guard = found["width % 2 != 1"]
    assert guard.of_model and guard.binds and not guard.asserted
    assert [str(a) for a in guard.axes] == ["the width of 'x'"]
    assert guard.holds([4]) and not guard.holds([5])
    assert any(17 in p.values() or 15 in p.values() for p in probes(exported))


@pytest.mark.parametrize(
    ("forward", "wanted"),
    [
        (lambda m, x: x[:, :, :20] * 2, [20, 21]),
        (lambda m, x: x[:, :, :400] * 2, [400, 401]),
        (lambda m, x: x * 2 if x.shape[2] > 10 else x, [10, 9]),
        (lambda m, x: x * 2 if x.shape[2] != 17 else x, [17]),
        (lambda m, x: x * 2 if x.shape[2] % 2 == 0 else x, [15]),
    ],
    ids=["a limit", "a far one", "another limit", "one size", "odd sizes"],
)
def test_both_sides_of_a_limit_are_tried(forward: Callable[..., Tensor], wanted: list[int]) -> None:
    x = torch.randn(2, 3, 16, 16)
    exported = torch.export.export(Lambda(forward), (x,), dynamic_shapes=(({2: torch.export.Dim.AUTO},),))
    found = [n for probe in probes(exported) for n in probe.values()]
    assert [n for n in found if n in wanted or abs(n - wanted[0]) < 2] == wanted


@pytest.mark.parametrize("free", [(), ("batch",)])
def test_a_grid_that_is_kept_in_an_empty_buffer_is_no_state(free: tuple[str, ...]) -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
            self.register_buffer("grid", None)

        def forward(self, x: Tensor) -> Tensor:
            if self.grid is None:
                self.grid = torch.linspace(0, 1, x.shape[1])
            return self.norm(self.fc(x)) + self.grid

    net, x = Keeps().eval(), torch.randn(2, 3)
    result = convert(net, x, dynamic=free)
    assert net.grid is None and "grid" in net._buffers
    torch.testing.assert_close(result.module(x), net(x))


def test_memory_of_the_last_size_is_neither_seen_nor_left_behind() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.seen = nn.Linear(3, 3), {}

        def forward(self, x: Tensor) -> Tensor:
            key = tuple(x.shape[1:])
            if key not in self.seen:
                self.seen[key] = torch.linspace(0, 1, x.shape[1]).to(x)
            return self.fc(x) + self.seen[key]

    net = Remembers().eval()
    for batch in (1, 4):
        net(torch.randn(batch, 3))
    before = {k: v.clone() for k, v in net.seen.items()}
    result = convert(net, torch.randn(2, 3))
    assert result.report.equivalent and net.seen.keys() == before.keys()
    assert all(torch.equal(net.seen[k], before[k]) and net.seen[k].dtype == torch.float32 for k in before)
    assert not capture(net, (torch.randn(2, 3),)).notes


def on_maps(compute: Any) -> nn.Module:
    return Lambda(lambda net, x: compute(net.conv(x), x), conv=nn.Conv2d(3, 3, 3, padding=1)).eval()


GROUPED = {
    "rest": lambda y, x: y.view(-1, 2, 3, *x.shape[2:]).sum(1),
    "counted": lambda y, x: y.view(x.shape[0] // 2, 2, 3, *x.shape[2:]).sum(1),
    "fours": lambda y, x: y.view(x.shape[0] // 4, 4, 3, *x.shape[2:]).sum(1),
    "chunks": lambda y, x: torch.cat(y.chunk(2), 1),
}


@pytest.mark.parametrize(
    "way, dynamic", crossed(GROUPED, [("batch",), ALL, "batch,height,width", {"inputs_0": {0: "batch"}}])
)
def test_a_batch_that_was_asked_for_and_comes_in_groups_is_refused(way: str, dynamic: Any) -> None:
    net, x = on_maps(GROUPED[way]), torch.randn(4, 3, 8, 8)
    with pytest.raises(CaptureError, match=r"inputs of shape 1x3x8x8.*; leave batch out of the free axes"):
        convert(net, x, dynamic=dynamic)
    free = [axis for axis in ("height", "width") if axis in dynamic]
    assert convert(net, x, dynamic=free).program.inputs[0].shape[0] == 4


ASKS = {
    "a branch": (lambda y, x: y * 2 if x.shape[0] == 3 else y, r"asks whether batch != 3 at .*`"),
    "a branch far from the example": (
        lambda y, x: y * 2 if x.shape[0] > 9000 else y,
        r"asks whether batch <= 9000 at .*`",
    ),
    "a number": (lambda y, x: y * [1, 1, 1, 2, 3][x.shape[0]], r"asks whether batch == 4 at .*`"),
    "a loop": (lambda y, x: torch.stack([row * 2 for row in y]), "works with one size of it alone"),
}


@pytest.mark.parametrize("way", ASKS)
def test_a_batch_that_the_model_asks_for_is_fixed_unless_it_was_asked_to_stay_free(way: str) -> None:
    compute, why = ASKS[way]
    net, x = on_maps(compute), torch.randn(4, 3, 8, 8)
    notes = [r.message for r in convert(net, x).report.remarks if r.rule == "capture"]
    assert any(re.search(f"the batch is fixed at 4, that of the example: the model {why}", n) for n in notes), notes
    for work in (convert, explain):
        with pytest.raises(CaptureError, match=f"the batch cannot stay free: the model {why}"):
            work(net, x, dynamic=("batch",))


@pytest.mark.parametrize("way, free", crossed(GROUPED, [(), ("height", "width")]))
def test_a_batch_that_comes_in_groups_is_fixed_at_that_of_the_example(way: str, free: Any) -> None:
    """As networks for video do it, which take so many frames of each film: no single frame runs."""
    net, x = on_maps(GROUPED[way]), torch.randn(4, 3, 8, 8)
    result = convert(net, x, dynamic=(*DEFAULT_AXES, *free)) if free else convert(net, x)
    assert result.program.inputs[0].shape[0] == 4
    (note,) = [r.message for r in result.report.remarks if "the batch is fixed at 4" in r.message]
    assert "for inputs of shape 1x3x8x8" in note or "on inputs of shape 1x3x8x8" in note
    assert torch.allclose(result.module(x), net(x), atol=1e-5)
    assert result.report.before.macs == 3 * 3 * 9 * 64  # of one sample
    if free:
        x = torch.randn(4, 3, 10, 6)
        assert torch.allclose(result.module(x), net(x), atol=1e-5)


def test_conditions_that_divide_by_a_size_are_followed() -> None:
    """At small sizes such a condition divides by zero, where the model cannot run either."""
    net = on_maps(lambda y, x: y * (2 if x.shape[2] % (x.shape[3] // 4) == 0 else 3))
    with pytest.raises(CaptureError, match="the width cannot stay free: the model asks whether"):
        convert(net, torch.randn(2, 3, 8, 8), dynamic=ALL)
    net = on_maps(lambda y, x: y.view(-1, x.shape[2] // 4, 4).sum(1))
    result = convert(net, torch.randn(2, 3, 8, 8), dynamic=ALL)
    x = torch.randn(3, 3, 16, 4)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)


def test_what_an_operator_of_torch_asks_is_no_line_of_the_model() -> None:
    """A row is taken out of a map: smaller maps do not have it, and the model raises there."""
    net = on_maps(lambda y, x: y[:, :, 5])
    result = convert(net, torch.randn(2, 3, 8, 8), dynamic=ALL)
    x = torch.randn(1, 3, 6, 9)
    assert torch.allclose(result.module(x), net(x), atol=1e-5)
    small = torch.randn(1, 3, 4, 9)
    for module in (net, result.module):
        with pytest.raises(IndexError):
            module(small)


@pytest.mark.parametrize(
    "compute",
    [lambda y, x: y @ x, lambda y, x: y + x.mT, lambda y, x: torch.cat([y, x.mT], 1), lambda y, x: y * x.mT.float()],
)
def test_an_axis_that_has_to_equal_another_is_told_so(compute: Any) -> None:
    with pytest.raises(CaptureError) as error:
        convert(on_maps(compute), torch.randn(2, 3, 8, 8), dynamic=ALL)
    assert "the width cannot stay free: what is captured holds where it is equal to the height of" in str(error.value)
