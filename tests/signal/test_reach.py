"""The theoretical receptive field, against fields computed by hand and against what gradients reach."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam import InputError, analyze
from reparam.loading import build_architecture
from reparam.signal.table import Table
from support.choice import mostly_in_sweeps
from support.of import Of


class Function(nn.Module):
    """A convolution of 3 x 3 and what is made of its result."""

    def __init__(self, then: Any, channels: int = 1, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(1, channels, 3, padding=1, bias=False), then
        self.tail = tail or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tail(self.then(self.conv(x)))
        return y


class Two(nn.Module):
    """The sum of two branches."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) + self.b(x)
        return y


def conv(k: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(1, 1, k, bias=False, **options)


def up(k: Any, **options: Any) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(1, 1, k, bias=False, **options)


def windows(x: Tensor) -> Tensor:
    """The mean of each window of 4 x 4, put in its place, as attention inside of windows would."""
    n, c, h, w = x.shape
    y = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    y = y - y.mean(1, keepdim=True).expand_as(y) * 0.5
    return y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def erf(net: nn.Module, *shape: int, **options: Any) -> Table:
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.in_channels * layer.out_channels == 1:
            nn.init.constant_(layer.weight, 0.5)
    return analyze(net, torch.randn(2, *shape), what="erf", batch=1, **options)["erf"]


def extents(table: Table) -> tuple[int, int]:
    """From the first to the last row and column whose gradient is not zero."""
    seen = torch.tensor(table.maps["field"]) > 0
    rows, columns = (seen.any(axis).nonzero().flatten() for axis in (1, 0))
    return int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1


NETS = [
    (nn.Sequential(conv(3), conv(3), conv(3)), 7),
    (nn.Sequential(conv(3, stride=2), conv(3, stride=2), conv(3, stride=2)), 15),  # 1 + 2(1 + 2 + 4)
    (nn.Sequential(conv(3, dilation=2, padding="same"), conv(3, dilation=4, padding="same")), 13),
    (
        nn.Sequential(conv(5, padding=2), nn.AvgPool2d(2), conv(3, padding=1), nn.AvgPool2d(3, 2, 1)),
        14,
    ),  # 5+1+4+4
    (nn.Sequential(conv(3, padding=1), conv(2, stride=2)), 4),
    (Two(conv(1), nn.Sequential(conv(3, padding=1), conv(3, padding=1))), 5),
    (nn.Sequential(conv(3, stride=2, padding=1), nn.Upsample(scale_factor=2), conv(3, padding=1)), 5),
    (nn.Sequential(conv(3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear"), conv(1)), 4),
    (nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), conv(3)), 3),
    (Function(lambda y: y.roll((2, 2), (2, 3)), tail=conv(3, padding=1)), 5),
    (Function(lambda y: y.flip(2)[:, :, 1:].flip(3)[:, :, :, 1:], tail=conv(2)), 4),
    (Function(lambda y: y[:, :, ::2, ::2], tail=conv(3, padding=1)), 7),  # 3 + 2*2
    (Function(windows), 6),  # a window and the two places beside it
    (Function(lambda y: torch.cat([y, y], 1).chunk(2, 1)[1]), 3),
    (Function(lambda y: F.gelu(y).clone().unsqueeze(1).squeeze(1)), 3),
    (Function(lambda y: F.pixel_unshuffle(y, 2).sum(1, keepdim=True), tail=conv(3, padding=1)), 8),  # 3 + 1 + 4
]


@pytest.mark.parametrize(("net", "field"), NETS)
def test_a_field_computed_by_hand_is_found_and_is_what_gradients_reach(net: nn.Module, field: int) -> None:
    table = erf(net, 1, 48, 48)
    facts = table.facts
    assert facts["field"] == field and extents(table) == (field, field)
    assert facts["side/field"] == pytest.approx(facts["side"] / field)


@pytest.mark.parametrize(
    ("net", "shape", "field"),
    [
        (nn.Sequential(conv(3, padding=1), up(4, stride=2, padding=1)), (1, 40, 40), (4, 4)),
        (nn.Sequential(conv(3, padding=1), up(3, stride=2, dilation=3)), (1, 40, 40), (6, 6)),  # taps 0 and 2
        (nn.Sequential(conv(3, padding=1), up(3, stride=2, dilation=3)), (1, 41, 41), (3, 3)),  # tap 1 alone
        (nn.Sequential(up(2, stride=2), conv((3, 5), padding="same")), (1, 40, 40), (2, 3)),
        (conv((1, 7), padding=(0, 3)), (1, 40, 40), (1, 7)),
    ],
)
def test_fields_of_transposed_convolutions_and_of_kernels_that_are_not_square(
    net: nn.Module, shape: tuple[int, ...], field: tuple[int, int]
) -> None:
    table = erf(net, *shape)
    told = table.facts["field"]
    found = (told, told) if isinstance(told, int) else tuple(map(int, str(told).split(" × ")))
    assert found == field == extents(table)


def caffe(model: nn.Module) -> nn.Module:
    """The stride of each bottleneck on its first layer, as in the original."""
    for block in model.modules():
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return model


FIELDS = (("resnet50", lambda m: m, 427), ("resnet50", caffe, 483), ("vgg16", lambda m: m.features, 212))


@pytest.mark.parametrize(("name", "change", "field"), mostly_in_sweeps(FIELDS, FIELDS[0]))
def test_fields_of_known_networks(name: str, change: Any, field: int) -> None:
    model = change(build_architecture(f"torchvision/{name}").module)
    table = analyze(model, torch.randn(1, 3, 64, 64), what="erf", batch=1)["erf"]
    assert table.facts["field"] == field
    assert any("larger than the input" in note for note in table.notes)


def test_what_looks_at_all_places_has_the_whole_image_as_its_field() -> None:
    attention = nn.MultiheadAttention(4, 2, batch_first=True)

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.attention = nn.Conv2d(1, 4, 3), attention

        def forward(self, x: Tensor) -> Tensor:
            t = self.conv(x).flatten(2).transpose(1, 2)
            y: Tensor = self.attention(t, t, t, need_weights=False)[0]
            return y

    gate = Function(lambda y: y * y.mean((2, 3), keepdim=True).sigmoid())
    normed = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3))
    linear = Function(lambda y: nn.functional.linear(y, torch.ones(12, 12)))
    for net, cause in ((Attends(), "attention"), (gate, "mean"), (normed, "group_norm")):
        table = erf(net, 1, 12, 12)
        assert table.facts["field"] == "whole image"
        assert table.facts["side/field"] == pytest.approx(table.facts["side"] / 12)
        assert cause in table.notes[0]
    assert erf(linear, 1, 12, 12).facts["field"] == "3 × all"
    channels = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    assert erf(channels, 1, 12, 12).facts["field"] == 5


def test_a_field_that_is_not_known_is_none_with_the_operator_that_makes_it_so() -> None:
    grid = torch.zeros(1, 6, 6, 2)
    table = erf(Function(lambda y: F.grid_sample(y, grid.expand(len(y), -1, -1, -1), align_corners=False)), 1, 8, 8)
    assert table.facts["field"] is None and table.facts["side/field"] is None
    assert re.search(r"not known: what .*grid_sampler", table.notes[0])


class Pair(nn.Module):
    """Two images and two results: of the first image three numbers, of the second one an image."""

    def __init__(self, both: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.l, self.both = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 5), nn.Linear(4, 3), both

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.a(x), self.b(y)
        return self.l(a.mean((2, 3))), b + a[:, :, 1:-1, 1:-1] if self.both else b


def test_of_several_images_the_one_that_the_unit_depends_on_is_looked_at() -> None:
    x, y = torch.randn(2, 3, 12, 12), torch.randn(2, 2, 12, 12)
    found = analyze(Pair(), x, y, what="all")
    assert "erf" not in found.refused and found["erf"].notes == ("of the inputs x, y the field is that in 'y'",)
    for unit, name, side in (("b", "y", 5), ("a", "x", 3)):
        table = analyze(Pair(), x, y, what="erf", unit=unit)["erf"]
        assert (table.facts["field"], table.facts["reach"]) == (side, side)
        assert table.notes == (f"of the inputs x, y the field is that in '{name}'",)
    assert analyze(Pair(both=True), x, y, what="erf")["erf"].facts["field"] == 3


def test_a_field_in_an_input_that_no_gradient_leads_to_is_told() -> None:
    net = nn.Sequential(Of(lambda x: x.argmax(1).to(x.dtype).unsqueeze(1)), nn.Conv2d(1, 4, 3))
    with pytest.raises(InputError, match="by the input is zero everywhere"):
        analyze(net, torch.randn(2, 3, 8, 8), what="erf")


@pytest.mark.parametrize(
    ("layer", "shape", "field"),
    [
        (nn.AdaptiveMaxPool2d(5), (3, 20, 20), 6),  # 4 places and one at either side
        (nn.AdaptiveMaxPool1d(5), (3, 20), 6),
        (Of(lambda x: F.adaptive_max_pool2d(x, 5, return_indices=True)[0]), (3, 20, 20), 6),
        (nn.AdaptiveMaxPool2d((1, 5)), (3, 20, 20), "all × 6"),
        (Of(lambda x: F.max_pool2d(x, 4, return_indices=True)[0]), (3, 20, 20), 6),
    ],
)
def test_fields_behind_maxima(layer: nn.Module, shape: tuple[int, ...], field: int | str) -> None:
    kind = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    net = nn.Sequential(kind(3, 4, 3, padding=1), layer, kind(4, 4, 1))
    assert analyze(net, torch.randn(2, *shape), what="erf", unit="2")["erf"].facts["field"] == field
    assert analyze(net[:2], torch.randn(2, *shape), what="erf")["erf"].facts["field"] == field


def wide(k: int, before: int, after: int, groups: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, k, padding=k // 2, groups=groups, bias=False)
    nn.init.uniform_(layer.weight, 0.5, 1.5)  # no sum of some is zero
    return layer


def seven(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Four channels that see 7 x 7, and four that see 3 x 3."""
    return torch.cat([a(x), b(x)], 1)


PARTS: dict[str, tuple[Any, list[nn.Module], int]] = {
    "a slice": (lambda t: t[:, 4:], [wide(3, 4, 4)], 5),
    "another slice": (lambda t: t[:, 3:], [wide(3, 5, 4)], 9),
    "groups": (lambda t: t, [wide(3, 8, 4, 2), Of(lambda x: x[:, 2:])], 5),
    "groups that both count": (lambda t: t, [wide(3, 8, 4, 2), Of(lambda x: x[:, 1:])], 9),
    "one for each": (lambda t: t, [wide(3, 8, 8, 8), Of(lambda x: x[:, 4:])], 5),
    "a mean of groups": (lambda t: t, [nn.Conv2d(8, 8, 1, groups=4), Of(lambda x: x[:, 3:5])], 7),
    "pools and norms": (lambda t: F.max_pool2d(F.relu(t), 1), [nn.BatchNorm2d(8).eval(), Of(lambda x: x[:, 4:])], 3),
    "a part": (lambda t: t.chunk(2, 1)[1], [wide(1, 4, 4), wide(3, 4, 2)], 5),
    "one channel": (lambda t: t.unbind(1)[5].unsqueeze(1), [wide(3, 1, 1)], 5),
    "a shuffle": (lambda t: t.view(-1, 2, 4, 40, 40).transpose(1, 2).flatten(1, 2)[:, 1::2], [wide(1, 4, 4)], 7),
    "a part of a shuffle": (lambda t: t.view(-1, 2, 4, 40, 40)[:, 1].flatten(1, 1), [wide(1, 4, 4)], 3),
    "a roll": (lambda t: t.roll(2, 1)[:, 6:], [wide(1, 2, 2)], 3),
    "a roll that turns round": (lambda t: t.roll(2, 1)[:, :2], [wide(1, 2, 2)], 3),
    "a flip": (lambda t: t.flip(1)[:, :4], [wide(1, 4, 4)], 3),
    "padding": (lambda t: F.pad(t, (0, 0, 0, 0, 4, 0))[:, 8:], [wide(1, 4, 4)], 3),
    "a linear layer": (lambda t: t[:, 4:].permute(0, 2, 3, 1), [nn.Linear(4, 4)], 3),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_field_counts_the_channels_that_are_read(name: str) -> None:
    take, tail, field = PARTS[name]
    net = Of(lambda a, b, last, x: last(take(seven(x, a, b))), wide(7, 1, 4), wide(3, 1, 4), nn.Sequential(*tail))
    facts = analyze(net, torch.rand(1, 1, 40, 40), what="erf")["erf"].facts
    told, reach = facts["field"], facts["reach"]
    assert told == field and reach == (3 if name == "a shuffle" else field)  # every other channel is no interval


def test_groups_of_a_group_norm_see_the_whole_image_of_their_own_channels() -> None:
    two = Of(lambda x: torch.cat([x[:, :1].mean((2, 3), keepdim=True).expand(-1, 2, 20, 20), x[:, 1:]], 1))
    normed = nn.Sequential(wide(3, 1, 3), two, nn.GroupNorm(2, 4), Of(lambda x: x[:, 2:]))
    table = analyze(normed, torch.randn(2, 1, 20, 20), what="erf")["erf"]
    assert table.facts["field"] == "whole image" and "group_norm" in table.notes[0]


def test_a_mixer_of_tokens_sees_the_whole_image_beside_its_residual_sum() -> None:
    first = nn.Conv2d(1, 4, 4, 4)
    net = Of(lambda a, b, x: (t := a(x).flatten(2)) + b(t), first, nn.Linear(36, 36))
    table = analyze(net, torch.randn(2, 1, 24, 24), what="erf")["erf"]
    assert table.facts["field"] == "whole image" and "linear" in table.notes[0]


def test_channels_that_become_places_are_all_of_them() -> None:
    mixed = Of(lambda a, b, x: b(a(x).flatten(2).transpose(1, 2)), wide(3, 1, 4), nn.Conv1d(144, 144, 1))
    table = analyze(mixed, torch.randn(2, 1, 12, 12), what="erf")["erf"]
    assert table.facts["field"] == "whole image" and "conv1d" in table.notes[0]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each token looks at itself and three before it."""
    mask = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().triu(-3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return (q @ k.transpose(1, 2)).masked_fill(hidden, -torch.inf).softmax(-1) @ v


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(1, 2) + torch.full((TOKENS, TOKENS), -torch.inf).triu(1)
    return F.dropout(scores.softmax(-1), 0.1, training=False) @ v


def packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries, keys and values are parts of one value."""
    q, k, v = torch.stack([q, k, v]).unbind(0)
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return torch.where(~hidden, q @ k.transpose(1, 2), torch.tensor(-torch.inf)).softmax(-1).to(q.dtype) @ v


TOKENS = 12
MASKED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int, int]] = {
    "causal": (causal, 7, 7),
    "window": (window, 4, 7),
    "masked_fill": (filled, 7, 7),
    "added": (added, 7, 7),
    "where, of one value": (packed, 7, 7),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_bounds_the_field_of_attention(name: str) -> None:
    """The central token of twelve, the seventh, sees those that the mask leaves: of one layer, and of two."""
    attend, one, two = MASKED[name]

    def net(layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(x)
        return attend(y, y, y)

    def twice(layer: nn.Module, x: Tensor) -> Tensor:
        y = net(layer, x)
        return attend(y, y, y)

    for function, field in ((net, one), (twice, two)):
        facts = analyze(Of(function, nn.Linear(4, 4)), torch.randn(2, TOKENS, 4), what="erf")["erf"].facts
        assert facts["field"] == field and facts["reach"] == field


def test_a_fourier_transform_reaches_all_along_its_axes() -> None:
    def mixed(layer: nn.Module, x: Tensor) -> Tensor:
        y = torch.fft.irfft2(torch.fft.rfft2(layer(x)))
        return y + torch.view_as_complex(torch.view_as_real(torch.fft.fft(x)[..., 1:-1])).real[..., 1:-1, :]

    facts = analyze(Of(mixed, nn.Conv2d(1, 1, 3)), torch.randn(2, 1, 8, 8), what="erf")["erf"].facts
    assert facts["field"] == "whole image"
    along = Of(lambda layer, x: torch.fft.fft(layer(x)).real, nn.Conv2d(1, 1, 3))
    assert analyze(along, torch.randn(2, 1, 8, 8), what="erf")["erf"].facts["field"] == "3 × all"


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda layer, x: F.grid_sample(x, layer(F.pad(x, (1, 1, 1, 1))).movedim(1, -1)), "another value tells"),
        (lambda layer, x: layer(F.fold(F.unfold(x, 3), (8, 8), 3)), "windows"),
    ],
)
def test_a_field_that_is_not_known_says_why(function: Callable[..., Tensor], why: str) -> None:
    (note,) = analyze(Of(function, nn.Conv2d(1, 2, 3)), torch.randn(2, 1, 8, 8), what="erf")["erf"].notes
    assert "is not known: " in note and why in note
