"""shrink: channels that are zero, constant, equal or unread go, in every structure that holds channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from reparam.ir import text_of
from reparam.passes.shrink import Shrink
from support.choice import crossed
from support.helpers import EXACT, doubles, fuse, max_rel, module_rel, program_of, run_rules
from support.shrinking import Wired, shrunk, widths, zero


class Chain(nn.Module):
    """conv -> norm -> activation -> conv."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.relu, padding: int = 1, norm: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=padding)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        if norm:
            nn.init.normal_(self.norm.bias)
            nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.act(self.norm(self.a(x))))


ACTIVATIONS = [torch.relu, F.silu, F.gelu, torch.tanh, torch.sigmoid, F.hardswish, F.relu6, F.elu, F.softplus, F.mish]


@pytest.mark.parametrize("act, padding", crossed(ACTIVATIONS, [0, 1]))
def test_constants_through_norms_and_activations(act: Callable[[Tensor], Tensor], padding: int) -> None:
    """Without a border of zeros every constant becomes bias; before one, all of them become one channel."""
    torch.manual_seed(0)
    model = Chain(act, padding)
    zero(model.a, rows=[0, 3, 4, 7])
    done = shrunk(model, doubles(2, 3, 6, 6))
    constants = done.program.constants["a.weight__1"].value.flatten(1).abs().sum(1).eq(0).sum()
    assert widths(done.program) in ([(4, 3), (5, 4)], [(5, 3), (5, 5)])
    assert int(constants) == (0 if widths(done.program)[0][0] == 4 else 1)
    if padding == 0:
        assert widths(done.program) == [(4, 3), (5, 4)]


def test_before_and_after() -> None:
    torch.manual_seed(0)
    model = Chain(padding=0, norm=False)
    zero(model.a, rows=[1, 2, 5], bias=True)
    done = shrunk(model, doubles(2, 3, 6, 6))
    assert text_of(done.program).replace("__1[", "[").splitlines() == [
        "x: float64[N, 3, 6, 6]",
        "%0 = conv2d(x, a.weight[5x3x3x3], a.bias[5], padding=1) : Nx5x6x6  # a",
        "%1 = relu(%0) : Nx5x6x6",
        "%2 = conv2d(%1, b.weight[5x5x3x3], b.bias[5]) : Nx5x4x4  # b",
        "return [%2]",
    ]
    told = [r for r in done.outcome.remarks if r.kind == "analysis"]
    assert [(r.module, r.message) for r in told] == [("a", "8 channels became 5 (3 constant)")]
    (passed,) = (r for r in done.outcome.remarks if r.kind == "passed")
    assert passed.message == "removed 3 of 8 channels of 1 layers"
    assert passed.evidence == "sampled"
    assert passed.macs < 0


def test_nothing_to_say_of_an_ordinary_network() -> None:
    done = shrunk(Chain(), doubles(2, 3, 6, 6))
    assert not done.outcome.remarks
    assert text_of(done.program) == text_of(done.original)


def test_equal_channels_become_one() -> None:
    model = Chain(norm=False)
    with torch.no_grad():
        for twin in (3, 6):
            model.a.weight[twin], model.a.bias[twin] = model.a.weight[1], model.a.bias[1]
    assert widths(shrunk(model, doubles(2, 3, 6, 6)).program) == [(6, 3), (5, 6)]


def test_what_nobody_reads_goes_all_the_way_up() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1))
    zero(model[4], columns=range(2, 8))
    zero(model[2], columns=[0, 1, 2])
    assert widths(shrunk(model, doubles(2, 3, 5, 5)).program) == [(5, 3), (2, 5), (4, 2)]


def test_a_network_that_is_a_constant() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    zero(model[0], rows=range(4))
    assert widths(shrunk(model, doubles(2, 3, 5, 5)).program) == [(1, 3), (2, 1)]


def test_an_input_that_nobody_needs() -> None:
    one, two = nn.Conv2d(3, 4, 1).double(), nn.Conv2d(3, 4, 1).double()
    last = nn.Conv2d(4, 2, 1).double()
    zero(two, rows=range(4), bias=True)
    model = Wired(lambda x, y: last(one(x) + two(y)), one, two, last)
    done = shrunk(model, doubles(2, 3, 4, 4), doubles(2, 3, 4, 4, seed=1))
    assert widths(done.program) == [(4, 3), (2, 4)]
    assert len(done.program.placeholders) == len(done.original.placeholders)


class Residual(nn.Module):
    """Blocks on one stream, whose branches end in masked layers."""

    def __init__(self, dead: list[list[int]]) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.first = nn.ModuleList(nn.Conv2d(8, 6, 3, padding=1) for _ in dead)
        self.last = nn.ModuleList(nn.Conv2d(6, 8, 3, padding=1) for _ in dead)
        for layer, rows in zip(self.last, dead, strict=True):
            zero(layer, rows=rows, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, last in zip(self.first, self.last, strict=True):
            x = x + last(torch.relu(first(torch.relu(x))))
        return self.head(x.mean((2, 3)))


def test_a_stream_has_channels_of_its_own_at_every_depth() -> None:
    """A branch that is zero in some channels passes the stream's on; what no later block reads is not carried."""
    torch.manual_seed(0)
    model = Residual([[0, 1, 2, 3], [2, 3, 4, 5, 6, 7]])
    zero(model.head, columns=[7])
    zero(model.first[1], columns=[7, 6])
    done = shrunk(model, doubles(2, 3, 6, 6))
    assert widths(done.program) == [(8, 3), (6, 8), (3, 6), (6, 7), (2, 6), (4, 7)]
    assert "cat" in text_of(done.program)


@pytest.mark.parametrize(("pays", "parts"), [(26, True), (28, False)])
def test_a_sum_is_made_in_parts_where_that_pays(pays: float, parts: bool) -> None:
    """Half of the rows of a layer with a fan-in of 54 are 27 multiply-accumulates for each element of the sum."""
    torch.manual_seed(0)
    done = shrunk(Residual([[0, 1, 2, 3]]), doubles(2, 3, 6, 6), pays=pays)
    assert ("cat" in text_of(done.program)) == parts
    assert widths(done.program) == ([(8, 3), (6, 8), (4, 6), (4, 8)] if parts else [(8, 3), (6, 8), (8, 6), (4, 8)])


def test_a_sum_passes_constants_on() -> None:
    """Both sides have constants of their own that are not zero, before an activation."""
    torch.manual_seed(0)
    a, b = (nn.Conv2d(3, 8, 1).double() for _ in range(2))
    last = nn.Conv2d(8, 4, 1).double()
    zero(a, rows=[0, 1, 2])
    zero(b, rows=[2, 3, 4])

    def forward(x: Tensor) -> Tensor:
        return last(torch.relu(a(x) - b(x)))

    done = shrunk(Wired(forward, a, b, last), doubles(2, 3, 4, 4))
    assert widths(done.program) == [(5, 3), (5, 3), (4, 7)]


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(multiplier: int) -> None:
    torch.manual_seed(0)
    width = 6 * multiplier
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, width, 3, padding=1, groups=6), nn.ReLU6(), nn.Conv2d(width, 4, 1)
    )
    zero(model[0], rows=[1, 4], bias=True)
    done = shrunk(model, doubles(2, 3, 6, 6))
    assert widths(done.program) == [(4, 3), (4 * multiplier, 1), (4, 4 * multiplier)]


def test_groups_keep_the_same_number_of_rows_and_columns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3), nn.ReLU(), nn.Conv2d(12, 4, 1)
    )
    zero(model[0], rows=[0, 1, 4], bias=True)  # two columns of the first group, one of the second
    zero(model[4], columns=[0, 1, 6, 8, 9, 10, 11])  # two rows of the first group, one of the second, all of the third
    done = shrunk(model, doubles(2, 3, 6, 6))
    assert widths(done.program) == [(6, 3), (4 + 2, 3), (4, 6)]


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed(groups: int) -> None:
    """A constant before a transposed convolution shows its gaps: only zeros go."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2, groups=groups),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1),
    )
    zero(model[0], rows=[0, 1, 4, 5], bias=True)
    zero(model[4], columns=[2, 5])
    done = shrunk(model, doubles(2, 3, 4, 4))
    assert widths(done.program) == [(4, 3), (4, 4 // groups), (4, 4)]


def test_linear_layers_on_tokens() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    zero(model[0], rows=[0, 2, 4, 6, 8])
    zero(model[4], columns=[1])
    done = shrunk(model, doubles(2, 5, 6))
    assert widths(done.program) == [(7, 6), (8, 7), (3, 8)]  # a layer norm reads all channels


def test_what_is_read_together_stays_and_is_told() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    zero(model[0], rows=[0, 2, 4])
    done = shrunk(model, doubles(2, 5, 6))
    (missed,) = done.outcome.remarks
    assert (missed.kind, missed.module) == ("missed", "0")
    assert missed.message == "3 of its channels are constant, and stay: '2' (layer_norm) reads all of them together"
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    zero(model[0], rows=[0, 2, 4])
    zero(model[2], rows=[1, 3])
    told = {r.module: r.message for r in shrunk(model, doubles(2, 6)).outcome.remarks if r.kind == "analysis"}
    assert told == {
        "0": "8 channels became 5 (3 constant)",
        "2": "2 of its channels are constant, and stay: an output reads all of them together",
    }


def test_from_maps_to_vectors() -> None:
    """A linear layer behind a flattened map loses the columns of whole channels."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 5))
    zero(model[0], rows=[1, 4])
    assert widths(shrunk(model, doubles(2, 3, 6, 6)).program) == [(4, 3), (5, 16)]


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_places_that_nobody_reads_do_not_change_the_order_of_those_that_stay(last: bool) -> None:
    """Of the first channel one place is read, of the second all, of the third none: what was flattened stays so."""
    conv, norm, linear = nn.Conv2d(3, 3, 1), nn.BatchNorm1d(12), nn.Linear(12, 5)
    nn.init.normal_(norm.running_mean)
    read = [4, 5, 6, 7, 3]
    with torch.no_grad():
        norm.weight[[i for i in range(12) if i not in read]] = 0

    def forward(x: Tensor) -> Tensor:
        maps = torch.tanh(conv(x))
        flat = maps.permute(0, 2, 3, 1).flatten(1).unflatten(1, (4, 3)).transpose(1, 2) if last else maps
        return linear(norm(flat.flatten(1)))

    done = shrunk(Wired(forward, conv, norm, linear), doubles(2, 3, 2, 2))
    assert widths(done.program) == [(2, 3), (5, 5)]


def test_concatenated_and_split() -> None:
    torch.manual_seed(0)
    a, b, last, other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(7, 2, 1), nn.Conv2d(3, 2, 1)
    zero(a, rows=[0, 1], bias=True)
    zero(last, columns=[6])
    zero(other, columns=[2])

    def forward(x: Tensor) -> Tensor:
        one, two = torch.relu(torch.cat([a(x), b(x)], 1)).split([7, 3], 1)
        return last(one) + other(two)

    done = shrunk(Wired(forward, a, b, last, other).double(), doubles(2, 3, 4, 4))
    assert widths(done.program) == [(2, 3), (4, 3), (2, 4), (2, 2)]


def test_the_same_movement_of_values_of_which_other_things_are_known() -> None:
    """Zeros of one value, of another, and channels that repeat others: none is taken for the one of before."""
    torch.manual_seed(0)
    one, two, three, four = (nn.Conv2d(3, 6, 1) for _ in range(4))
    readers = [nn.Conv2d(6, 2, 1) for _ in range(4)]
    zero(one, rows=[0, 1], bias=True)
    zero(two, rows=[4], bias=True)
    with torch.no_grad():
        three.weight[5], three.bias[5] = three.weight[0], three.bias[0]  # type: ignore[index]

    def forward(x: Tensor) -> Tensor:
        flat = [layer(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2) for layer in (one, two, three, four)]
        return torch.stack([r(torch.relu(y)) for r, y in zip(readers, flat, strict=True)])

    done = shrunk(Wired(forward, one, two, three, four, *readers).double(), doubles(2, 3, 4, 4))
    assert widths(done.program) == [(4, 3), (5, 3), (5, 3), (6, 3), (2, 4), (2, 5), (2, 5), (2, 6)]


def test_squeeze_and_excite() -> None:
    """A gate on a channel that is zero is not computed; a gate that is zero closes its channel."""
    torch.manual_seed(0)
    body, down, up, last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)
    zero(body, rows=[0, 1, 2], bias=True)
    zero(down, rows=[3], bias=True)

    def forward(x: Tensor) -> Tensor:
        x = torch.relu(body(x))
        gate = torch.sigmoid(up(torch.relu(down(x.mean((2, 3), keepdim=True)))))
        return last(x * gate)

    done = shrunk(Wired(forward, body, down, up, last).double(), doubles(2, 3, 6, 6))
    assert widths(done.program) == [(5, 3), (3, 5), (5, 3), (2, 5)]


def test_a_gate_stays_a_gate() -> None:
    """What the squeeze reads is multiplied as well, although nobody reads it afterwards."""
    torch.manual_seed(0)
    body, layer, last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
    zero(body, rows=[0], bias=True)
    zero(last, columns=[1, 2, 3, 4])

    def forward(x: Tensor) -> Tensor:
        x = torch.relu(body(x))
        return last(x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True))))

    text = text_of(shrunk(Wired(forward, body, layer, last), doubles(2, 3, 6, 6)).program)
    assert "mul(%1, %4)" in text
    assert text.count("slice") + text.count("index_select") == 1  # of what the last layer reads


def test_what_keeps_all_its_channels_keeps_their_order() -> None:
    torch.manual_seed(0)
    first, dead, one, two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(1, 2, 1)
    zero(dead, rows=[1, 2], bias=True)

    def forward(x: Tensor) -> Tensor:
        left, right = torch.relu(first(x)).sigmoid().split([1, 3], 1)
        return two(left) + one(right) + torch.relu(dead(x)).sum(1, keepdim=True)

    model = Wired(forward, first, dead, one, two)
    assert "index_select" not in text_of(shrunk(model, doubles(2, 3, 4, 4)).program)


@pytest.mark.parametrize("dim", [0, 1])
def test_masked_by_torch(dim: int) -> None:
    """ln_structured takes rows (dim 0) or columns (dim 1) away; with norms, activations and a stream."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 10, 1),
    )  # fmt: skip
    for layer in (model[0], model[3]):
        nn.init.normal_(layer.weight)
        prune.ln_structured(layer, "weight", 0.5, 2, dim if layer is model[3] else 0)
        prune.remove(layer, "weight")
    done = fuse(model.eval(), torch.randn(2, 3, 8, 8))
    assert max_rel(done.original, done.program, [torch.randn(3, 3, 8, 8)]) <= EXACT
    first, second, third = widths(done.program)
    assert first[0] in ((8, 9) if dim == 0 else range(1, 9))
    assert second[1] == first[0]
    assert third[1] == second[0]


@pytest.mark.parametrize("running", [False, True])
def test_an_instance_norm_takes_constants_away_if_it_measures_them(running: bool) -> None:
    """With statistics that are weights, what is known of its input is not known of its result."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True, track_running_stats=running), nn.Conv2d(6, 2, 1)
    )
    zero(model[0], rows=[1, 4])
    assert widths(shrunk(model, doubles(2, 3, 6, 6)).program) == ([(6, 3), (2, 6)] if running else [(4, 3), (2, 4)])


def test_a_second_run_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Residual([[0, 1, 2, 3], [4, 5]])
    done = shrunk(model, doubles(2, 3, 6, 6))
    again = run_rules(done.program, Shrink())
    assert not again.outcome.remarks
    assert text_of(again.program) == text_of(done.program)


def test_free_height_and_width() -> None:
    torch.manual_seed(0)
    model = Chain().double().eval()
    zero(model.a, rows=[0, 3, 4, 7])
    program = program_of(model, doubles(2, 3, 8, 8), dynamic=("batch", "height", "width"))
    done = run_rules(program, Shrink())
    assert widths(done.program)[0][0] < 8
    assert module_rel(model, done.program, [doubles(1, 3, 7, 11)]) <= EXACT
