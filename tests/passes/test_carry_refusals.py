"""What no register can hold is left as it is, with the reason and the module's own name; the rest is converted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.conversion import convert
from reparam.ir import is_chain
from reparam.passes import fused_phases
from reparam.passes.carry_residual import CarryResidual
from reparam.rewrite import Driver, Phase
from support.helpers import EXACT, Fused, Lambda, doubles, healthy, max_rel, module_rel, vector
from support.plain_blocks import basic, net, perceptron, squeezed
from support.plain_helpers import counts, plain, refusal

X = (2, 3, 8, 6)


def between(forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> nn.Module:
    """A block around `forward` between two blocks that can be carried."""
    layers = {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 1)} | layers
    return net(basic(), Lambda(forward, **layers), basic())


def refused(model: nn.Module, *inputs: Tensor, merges: int = 1, **options: Any) -> tuple[str, str]:
    """The module and the reason of the only merge that stays; the two blocks around it are carried."""
    model = model.double().eval()
    fused = plain(model, *inputs, **options)
    before, after = counts(fused)
    assert (before.merges, after.merges) == (merges + 2, merges)
    assert not is_chain(fused.program)
    passed = [r.module for r in fused.outcome.remarks if r.rule == "carry-residual" and r.kind == "passed"]
    assert passed == ["1", "3"]
    assert module_rel(model, fused.program, inputs) <= EXACT
    return refusal(fused)


def skip(layer: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """relu(b(layer(a(x))) + x)"""
    return lambda m, x: F.relu(m.b(layer(m, m.a(x))) + x)


def channels_last_norm(m: Any, y: Tensor) -> Tensor:
    return m.n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


STATISTICS = "divides by statistics of all channels or positions, so that nothing can be carried past it"
AT_ONCE = "acts on all channels or positions of a value at once, so that nothing can be carried past it"
MOVES = "changes the shape or the order of the axes, and a register keeps its channels on one axis"


@pytest.mark.parametrize(
    ("forward", "layers", "reason"),
    [
        (skip(lambda m, y: F.relu(m.n(y))), {"n": nn.GroupNorm(1, 4)}, f"group_norm at '2.n' {STATISTICS}"),
        (skip(channels_last_norm), {"n": nn.LayerNorm(4)}, f"layer_norm at '2.n' {STATISTICS}"),
        (
            skip(lambda m, y: F.relu(m.n(y))),
            {"n": nn.InstanceNorm2d(4)},
            f"instance_norm at '2.n' {STATISTICS}",
        ),
        (skip(lambda m, y: torch.softmax(y, 1)), {}, f"softmax at '2' {AT_ONCE}"),
        (skip(lambda m, y: F.relu(y).max(1, True)[0].expand(-1, 4, -1, -1)), {}, f"max at '2' {AT_ONCE}"),
        (skip(lambda m, y: torch.sort(F.relu(y), 1)[0]), {}, f"sort at '2' {AT_ONCE}"),
        (skip(lambda m, y: F.relu(y) * (y > 0)), {}, "gt at '2' gives no floating numbers"),
        (skip(lambda m, y: y.flip(2)), {}, f"flip at '2' {MOVES}"),
        (
            skip(lambda m, y: F.relu(y).unflatten(1, (2, 2)).flip(1).flatten(1, 2)),
            {},
            f"unflatten at '2' {MOVES}",
        ),
        (
            skip(lambda m, y: F.max_pool2d(F.relu(y), 3, 1, 1)),
            {},
            "max_pool2d takes the largest of several positions, so that nothing can be carried past it",
        ),
        (
            skip(lambda m, y: F.avg_pool2d(F.relu(y), 3, 1, 1, count_include_pad=False)),
            {},
            "its average pool divides by fewer elements at the border",
        ),
        (
            skip(lambda m, y: F.relu(m.r(y))),
            {"r": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")},
            "it pads with something else than zeros around the map (pad at '2.r')",
        ),
        (skip(lambda m, y: F.relu(y) + m.t), {"t": vector(6)}, "its constant varies along other axes"),
        (
            lambda m, x: F.relu(m.up(F.relu(m.down(x))) + x),
            {"down": nn.Conv2d(4, 4, 3, 2, 1), "up": nn.ConvTranspose2d(4, 4, 2, 2)},
            "a transposed convolution enlarges the map, and nothing can be carried past it",
        ),
        (
            lambda m, x: F.relu(m.b(F.interpolate(F.relu(m.down(x)), scale_factor=2.0)) + x),
            {"down": nn.Conv2d(4, 4, 3, 2, 1)},
            f"upsample_nearest2d at '2' {MOVES}",
        ),
        (lambda m, x: F.relu(m.b(F.relu(m.a(x))) + x.mean((2, 3), keepdim=True)), {}, f"mean at '2' {AT_ONCE}"),
        (
            lambda m, x: torch.cat([m.b(F.relu(m.a(x))), x], 2),
            {},
            "it concatenates along another axis than the channels",
        ),
        (
            lambda m, x: F.relu(m.a(x)) * m.b(x),
            {},
            "mul combines 2 values that depend on the input, and is not linear in them",
        ),
        (
            lambda m, x: torch.maximum(m.b(F.relu(m.a(x))), x),
            {},
            "maximum combines 2 values that depend on the input, and is not linear in them",
        ),
    ],
    ids=[
        "group norm",
        "layer norm",
        "instance norm",
        "softmax",
        "largest",
        "sorted",
        "compared",
        "flip",
        "flip of halves",
        "max-pool",
        "padded average",
        "reflection",
        "a constant over space",
        "transposed",
        "upsampled",
        "broadcast",
        "another axis",
        "product",
        "maximum",
    ],
)
def test_refused_between_blocks_that_are_carried(
    forward: Callable[[Any, Tensor], Tensor], layers: dict[str, nn.Module], reason: str
) -> None:
    module, message = refused(between(forward, **layers), doubles(*X))
    assert module == "2" and reason in message


def test_a_product_inside_a_block_is_named_for_both_merges() -> None:
    model = between(lambda m, x: F.relu(m.a(x) * m.b(x) + x))
    fused = plain(model, doubles(*X))
    reasons = fused.missed("carry-residual")
    assert len(reasons) == 2 and all("combines 2 values that depend on the input" in m for m in reasons)
    assert counts(fused)[1].merges == 2


def test_a_max_pool_beside_a_skip_is_spelled_with_relus_on_request() -> None:
    model = between(skip(lambda m, y: F.max_pool2d(F.relu(y), 3, 1, 1)))
    fused = plain(model, doubles(*X), max_pool="relu")
    assert is_chain(fused.program) and "max_pool" not in fused.text
    assert module_rel(model, fused.program, [doubles(*X)]) <= EXACT


def test_a_max_pool_of_the_whole_register_needs_no_relus() -> None:
    model = net(
        Lambda(
            lambda m, x: F.relu(m.c(torch.cat([m.a(F.max_pool2d(x, 3, 1, 1)), F.max_pool2d(x, 3, 1, 1)], 1))),
            a=nn.Conv2d(4, 4, 3, padding=1),
            c=nn.Conv2d(8, 4, 1),
        )
    )
    fused = plain(model, doubles(*X))
    assert is_chain(fused.program) and fused.text.count("max_pool2d") == 1
    assert module_rel(model, fused.program, [doubles(*X)]) <= EXACT


# ---- resolutions -----------------------------------------------------------------------------------------------------


def test_a_skip_at_another_resolution_than_an_activation_on_the_way() -> None:
    """Two branches, each with an activation at the full and at half the size: their layers pair up."""
    model = net(
        Lambda(
            lambda m, x: F.relu(m.b(F.relu(m.a(x))) + m.d(F.relu(m.c(x)))),
            a=nn.Conv2d(4, 4, 3, stride=2, padding=1),
            b=nn.Conv2d(4, 4, 3, padding=1),
            c=nn.Conv2d(4, 4, 3, padding=1),
            d=nn.Conv2d(4, 4, 3, stride=2, padding=1),
        )
    )
    fused = plain(model, doubles(*X))
    assert is_chain(fused.program)
    assert module_rel(model, fused.program, [doubles(*X)]) <= EXACT


def test_refused_when_resolutions_never_meet() -> None:
    """One branch pools by 2 and 3, the other by 3 and 2, with an activation in between: no register fits both."""
    model = net(
        Lambda(
            lambda m, x: m.b(F.relu(m.a(x))) + m.d(F.relu(m.c(x))),
            a=nn.Conv2d(4, 4, 2, stride=2),
            b=nn.Conv2d(4, 4, 3, stride=3),
            c=nn.Conv2d(4, 4, 3, stride=3),
            d=nn.Conv2d(4, 4, 2, stride=2),
        )
    )
    x = doubles(2, 3, 12, 12)
    fused = plain(model, x)
    module, message = refusal(fused)
    assert module == "1" and counts(fused)[1].merges == 1
    assert message == "values of different resolutions would have to share a register"
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_refused_where_sizes_agree_only_for_some_inputs() -> None:
    model = net(basic(4, 4, 2, nn.AvgPool2d(2, 2)))
    fused = plain(model, doubles(*X), dynamic=("batch", "height", "width"))
    assert refusal(fused) == ("1", "the outputs agree in size only for some inputs")
    assert max_rel(fused.original, fused.program, [doubles(*X)]) <= EXACT


# ---- other values alive ----------------------------------------------------------------------------------------------


class Alive(nn.Module):
    """A network in which something else than one register is needed behind a block."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, z: Tensor) -> Any:
        y = F.relu(self.stem(x))
        a = F.relu(self.inner(y))
        if self.how == "output":
            return a, self.last(a) + y
        return self.last(a) + y + (z if self.how == "input" else 0.0)


@pytest.mark.parametrize("how", ["output", "input"])
def test_refused_when_other_values_are_alive(how: str) -> None:
    x, z = doubles(2, 3, 5, 6), doubles(2, 4, 5, 6, seed=3)
    model = healthy(Alive(how))
    fused = plain(model, x, z)
    reasons = fused.missed("carry-residual")
    named = {"output": "'relu_1'", "input": "the input 'z'"}[how]
    assert len(reasons) == 1 and f"other values stay alive beside it ({named}), so" in reasons[0]
    assert module_rel(model, fused.program, [x, z]) <= EXACT


def test_a_block_that_is_read_from_the_side_is_not_rewritten() -> None:
    """Its first activation is an output too: a chain that recomputes it would be no chain."""

    def forward(m: Any, x: Tensor) -> Any:
        y = F.relu(m.a(x))
        return F.relu(m.b(y) + x), y

    model = healthy(Lambda(forward, a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 3, padding=1)))
    x = doubles(2, 4, 5, 6)
    fused = plain(model, x)
    assert counts(fused)[1].merges == 1
    assert module_rel(model, fused.program, [x]) <= EXACT


def test_signed_tokens_need_slopes_along_their_last_axis() -> None:
    """PReLU has its slopes along axis 1; pairs x = relu(x) - relu(-x) need none."""
    model = healthy(nn.Sequential(perceptron(), nn.Linear(5, 5)))
    x = doubles(2, 7, 5)
    fused = plain(model, x)
    assert "PReLU has slopes along axis 1 only" in refusal(fused)[1]
    paired = plain(model, x, signed="relu")
    assert is_chain(paired.program)
    assert module_rel(model, paired.program, [x]) <= EXACT


# ---- targets and gates -----------------------------------------------------------------------------------------------


def test_the_price_is_refused_where_costs_are_not_accepted() -> None:
    fused = plain(net(basic()), doubles(*X))
    base = fused.original.copy()
    outcome = Driver(base, allow_cost=False).run((*fused_phases(), Phase("plain", (CarryResidual(),))))
    [remark] = [r for r in outcome.remarks if r.rule == "carry-residual" and r.kind == "missed"]
    assert "it would add 13,824 multiply-accumulates" in remark.message


def test_a_gate_that_cannot_be_widened_is_a_product() -> None:
    """Its second layer is grouped, so that a carried channel could not be opened by its bias alone."""
    block = squeezed()
    block.up = nn.Conv2d(2, 4, 1, groups=2)
    fused: Fused = plain(net(block), doubles(*X))
    reasons = fused.missed("carry-residual")
    assert (counts(fused)[1].merges, counts(fused)[1].gates) == (1, 1)
    assert reasons[0] == "mul combines 2 values that depend on the input, and is not linear in them"
    assert f"adaptive_avg_pool2d at '1' {AT_ONCE}" in reasons[1]
    assert max_rel(fused.original, fused.program, [doubles(*X)]) <= EXACT


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x[:, 1:] - x[:, :-1],
        lambda m, x: x + torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1),
    ],
    ids=["differences", "shift"],
)
def test_an_axis_of_free_size_holds_no_channels(forward: Callable[[Any, Tensor], Tensor]) -> None:
    """Steps of a sequence stand where images have their channels."""
    model = Lambda(forward).eval()
    result = convert(model, torch.randn(2, 12, 8), to="plain", dynamic=("batch", "inputs_0:1=length"))
    told = {r.message for r in result.report.remarks if r.rule == "carry-residual"}
    assert "the size of axis 1, which would be its channels, is free" in told
    for length in (2, 7, 40):
        x = torch.randn(3, length, 8)
        torch.testing.assert_close(result.module(x), model(x))
