"""Parallel linear branches of one value become one layer, exactly on the border, where that costs no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from reparam.passes.merge_branches import MergeBranches
from support.helpers import (
    CONVS_BY_RANK,
    EXACT,
    NORMS_BY_RANK,
    Lambda,
    apply_exactly,
    assert_evidence_bites,
    assert_no_wrong_entry_is_accepted,
    assert_verification_bites,
    conv_bn,
    doubles,
    fuse_exactly,
    graph_text,
    healthy,
    program_of,
    run_rules,
    vector,
)

RULES = [MergeBranches()]


_WINDOWS = [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (2, 3), (4, 1)]  # kernel, dilation


@st.composite
def branches(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """Two or three convolutions of one value whose outputs have the same size, and some norms.

    Each axis has its own 2 * padding - dilation * (kernel - 1); a branch may be one short of it where the stride rounds
    that away. Then the kernels do not have one centre.
    """
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    conv, norm = CONVS_BY_RANK[rank], NORMS_BY_RANK[rank]
    c_in, c_out = 4, 4 * draw(st.integers(1, 2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    size = tuple(draw(st.integers(5, 9)) for _ in range(rank))
    excess = tuple(draw(st.sampled_from([0, -1, -2])) for _ in range(rank))
    modules: list[nn.Module] = []
    for _ in range(draw(st.integers(2, 3))):
        kernel, dilation, padding = [], [], []
        for common, step in zip(excess, stride, strict=True):
            own = common - (draw(st.sampled_from([0, 0, 0, 1])) if step > 1 else 0)
            spans = {w: w[1] * (w[0] - 1) for w in _WINDOWS}
            k, d = draw(st.sampled_from([w for w, span in spans.items() if (span + own) % 2 == 0 and span >= -own]))
            kernel.append(k)
            dilation.append(d)
            padding.append((d * (k - 1) + own) // 2)
        groups = draw(st.sampled_from([1, 2, 4]))
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        layer = conv(c_in, c_out, kernel, bias=draw(st.booleans()), **options)
        modules.append(nn.Sequential(layer, norm(c_out)) if draw(st.booleans()) else layer)
    signs = [draw(st.sampled_from([1, 1, -1, 3])) for _ in modules]

    def forward(m: Any, x: Any) -> Any:
        total = m.branches[0](x)
        for branch, sign in zip(list(m.branches)[1:], signs[1:], strict=True):
            total = torch.add(total, branch(x), alpha=sign) if sign > 0 else total - branch(x)
        return total

    model = healthy(Lambda(forward, branches=nn.ModuleList(modules)))
    shapes = {tuple(b(doubles(1, c_in, *size)).shape) for b in modules}
    assume(len(shapes) == 1)
    return model, (2, c_in, *size)


def test_any_two_convolutions_of_one_geometry_merge_or_say_why_not() -> None:
    merged: list[bool] = []

    @given(case=branches())
    def run(case: tuple[nn.Module, tuple[int, ...]]) -> None:
        model, shape = case
        fused = apply_exactly(model, doubles(*shape), rules=RULES, bound=EXACT)
        reasons = ("would cost", "before it: ", "zero padding")
        merged.append(fused.text.count("conv") < graph_text(fused.original).count("conv"))
        assert merged[-1] or any(r in m for m in fused.missed("merge-branches") for r in reasons)

    run()
    assert 5 < sum(merged) < len(merged)


def test_any_single_entry_of_a_merged_kernel_is_checked() -> None:
    tried: list[bool] = []

    @given(case=branches(), entry=st.integers(0, 10**6))
    def run(case: tuple[nn.Module, tuple[int, ...]], entry: int) -> None:
        model, shape = case
        x = doubles(*shape)
        tried.append(assert_no_wrong_entry_is_accepted(program_of(model, x), MergeBranches(), entry, [x]))

    run()
    assert sum(tried) > 5


@st.composite
def odd_kernels(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...], str]:
    """A k x k convolution beside smaller odd ones of its own centre, as re-parameterised blocks have them."""
    k = draw(st.sampled_from([3, 5, 7]))
    stride, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    inner = draw(st.lists(st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1), (3, 3)]), min_size=1, max_size=3))
    fitting = [(s, d) for s, d in inner if d * (s - 1) + 1 <= k] or [(1, 1)]
    options: dict[str, Any] = {"stride": stride, "groups": groups}
    parts = [conv_bn(4, 8, k, padding=k // 2, **options)]
    parts += [conv_bn(4, 8, s, padding=d * (s - 1) // 2, dilation=d, **options) for s, d in fitting]
    model = healthy(Lambda(lambda m, x: sum(p(x) for p in m.parts[1:]) + m.parts[0](x), parts=nn.ModuleList(parts)))
    marks = (f"s{stride}" if stride > 1 else "") + (f"g{groups}" if groups > 1 else "")
    return model, (2, 4, draw(st.integers(1, 9)), draw(st.integers(1, 9))), f"conv{k}x{k}{marks}(x)"


@given(case=odd_kernels())
def test_centred_kernels_inside_a_larger_one_always_merge(case: tuple[nn.Module, tuple[int, ...], str]) -> None:
    model, shape, expected = case
    assert apply_exactly(model, doubles(*shape), rules=RULES, bound=EXACT).text == expected


@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 3, 5])),
    coefficient=st.sampled_from([1.0, -1.0, 0.5]),
    norm=st.booleans(),
)
def test_a_skip_connection_is_a_dirac_kernel(
    groups: int, kernel: tuple[int, int], coefficient: float, norm: bool
) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    skip = nn.BatchNorm2d(4) if norm else nn.Identity()
    model = healthy(
        Lambda(
            lambda m, x: m.conv(x) + coefficient * m.skip(x),
            conv=nn.Conv2d(4, 4, kernel, padding=padding, groups=groups),
            skip=skip,
        )
    )
    x = doubles(2, 4, 5, 6)
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert fused.text == f"conv{kernel[0]}x{kernel[1]}" + (f"g{groups}" if groups > 1 else "") + "(x)"
    assert_verification_bites(fused, [x], bound=EXACT)


@given(
    pool=st.tuples(st.integers(1, 3), st.integers(1, 2), st.booleans(), st.booleans()),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_an_average_pool_is_a_depthwise_kernel_where_its_divisor_is_constant(
    pool: tuple[int, int, bool, bool], size: tuple[int, int]
) -> None:
    k, stride, include, ceil = pool
    layer = nn.AvgPool2d(k, stride, k // 2, ceil_mode=ceil, count_include_pad=include)
    beside = nn.Conv2d(4, 4, 5, stride=stride, padding=2)
    x = doubles(2, 4, *size)
    assume(layer(x).shape == beside.double()(x).shape)
    model = healthy(Lambda(lambda m, x: m.beside(x) - m.pool(x), pool=layer, beside=beside))
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert ("avg_pool" not in fused.text) == (include or k == 1)


@given(
    width=st.integers(1, 5),
    out=st.integers(1, 5),
    biases=st.tuples(st.booleans(), st.booleans()),
    lead=st.lists(st.integers(1, 3), max_size=2),
)
def test_linear_layers_of_one_value_merge(width: int, out: int, biases: tuple[bool, bool], lead: list[int]) -> None:
    model = Lambda(
        lambda m, x: m.a(x) - 2 * m.b(x),
        a=nn.Linear(width, out, bias=biases[0]),
        b=nn.Linear(width, out, bias=biases[1]),
    ).double()
    assert apply_exactly(model, doubles(2, *lead, width), rules=RULES, bound=EXACT).text == "linear(x)"


def test_the_graph_before_and_after() -> None:
    model = healthy(
        Lambda(lambda m, x: F.relu(m.a(x) + m.b(x) + m.n(x)), a=conv_bn(padding=1), b=conv_bn(k=1), n=nn.BatchNorm2d(4))
    )
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert graph_text(fused.original) == (
        "relu(add(add(batch_norm(conv3x3(x)), batch_norm(conv1x1(x))), batch_norm(x)))"
    )
    assert fused.text == "relu(conv3x3(x))"
    [remark] = fused.outcome.remarks
    assert remark.message == "3 branches of 'inputs_0' became 1 layer(s)"
    assert remark.macs == -5 * 6 * 16 and remark.evidence == "basis"


def test_two_affines_of_one_value_are_one() -> None:
    """No layer is among them: the sum is a scale and a shift."""
    model = Lambda(lambda m, x: torch.tanh(m.g * x + x - 0.5 * x + m.t), g=vector(4, 1, 1), t=vector(4, 1, 1))
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text.count("x") == 1 and fused.text.count("mul") == 1


def test_three_branches_of_two_sources_keep_one_layer_for_each() -> None:
    model = Lambda(
        lambda m, x, z: m.a(x) + m.b(z) + m.c(x) - m.d(z),
        a=nn.Conv2d(4, 4, 3, padding=1),
        b=nn.Conv2d(4, 4, 3, padding=1),
        c=nn.Conv2d(4, 4, 1),
        d=nn.Conv2d(4, 4, 1),
    ).double()
    x, z = doubles(2, 4, 5, 6), doubles(2, 4, 5, 6, seed=9)
    fused = apply_exactly(model, x, z, rules=RULES, bound=EXACT)
    assert fused.text in ("add(conv3x3(x0), conv3x3(x1))", "add(conv3x3(x1), conv3x3(x0))")


def test_a_branch_that_something_else_reads_stays() -> None:
    model = Lambda(
        lambda m, x: ((y := m.a(x)) + m.b(x), torch.tanh(y)),
        a=nn.Conv2d(4, 4, 3, padding=1),
        b=nn.Conv2d(4, 4, 1),
    ).double()
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)


# ---- refusals ----------------------------------------------------------------------------------------------------


def _refusal(model: nn.Module, *inputs: Any) -> str:
    fused = apply_exactly(model.double(), *inputs, rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original)
    [message] = fused.missed("merge-branches")
    return message


def test_refused_when_it_would_cost_more_with_the_numbers() -> None:
    """A dense 1x1 beside a depthwise 3x3 would become a dense 3x3."""
    model = Lambda(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 3, padding=1, groups=4), b=nn.Conv2d(4, 4, 1))
    now, then = 30 * 4 * (9 + 4), 30 * 4 * 4 * 9
    assert _refusal(model, doubles(2, 4, 5, 6)) == (
        f"merging branches of one source would cost {then:,} multiply-accumulates instead of {now:,}"
    )


def test_refused_for_unequal_strides() -> None:
    model = Lambda(
        lambda m, x: m.a(x) + m.b(x),
        a=nn.Conv2d(4, 4, 1, stride=(2, 1)),
        b=nn.Conv2d(4, 4, 1, stride=(3, 1), padding=(1, 0)),
    )
    assert "strides (2, 1) and (3, 1) differ" in _refusal(model, doubles(2, 4, 3, 5))


def test_refused_when_the_outputs_agree_in_size_only_for_some_inputs() -> None:
    """floor(H/2) and floor((H - 1)/2) + 1 agree for even H alone: fine for a fixed size, not for a free one."""
    model = Lambda(
        lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 2, stride=2), b=nn.Conv2d(4, 4, 1, stride=2)
    ).double()
    x = doubles(2, 4, 6, 8)
    assert apply_exactly(model, x, rules=RULES, bound=EXACT).text == "conv2x2s2(x)"
    free = program_of(model, x, dynamic=("batch", "height", "width"))
    fused = run_rules(free, *RULES)
    assert not any(isinstance(s, int) for s in free.inputs[0].shape[2:]), "its sizes are free"
    assert fused.text == graph_text(free)
    assert any("agree in size only for some inputs" in m for m in fused.missed("merge-branches"))


def test_refused_where_a_bias_meets_the_border() -> None:
    chain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
    model = Lambda(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 3, padding=1), b=chain)
    assert "its bias would meet the zero padding that follows" in _refusal(model, doubles(2, 4, 5, 6))


def test_refused_where_a_second_window_sees_the_border_of_the_first() -> None:
    chain = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1))
    model = Lambda(lambda m, x: m.a(x) + m.b(x), a=nn.Conv2d(4, 4, 5, padding=2), b=chain)
    assert "a padded window after another window sees the wrong border" in _refusal(model, doubles(2, 4, 9, 9))


def test_refused_for_a_constant_that_varies_over_space() -> None:
    model = Lambda(
        lambda m, x: m.a(x) + m.b(x) * m.c, a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1), c=vector(6)
    )
    assert "does not lie along the channel axis" in _refusal(model, doubles(2, 4, 5, 6))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.a(x) + m.b(torch.tanh(x)),
        lambda m, x: m.a(x) + torch.tanh(m.b(x)),
        lambda m, x: m.a(x) * m.b(x),
        lambda m, x: torch.tanh(x) + torch.sigmoid(x),
        lambda m, x: m.a(x) + F.adaptive_avg_pool2d(m.b(x), 1),
        lambda m, x: m.a(x) + m.b(x).flip(2),
    ],
    ids=["two sources", "not linear", "a product", "no layers", "broadcast", "moved"],
)
def test_silent_where_no_branches_share_a_source(forward: Any) -> None:
    model = Lambda(forward, a=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1)).double()
    fused = apply_exactly(model, doubles(2, 4, 5, 6), rules=RULES, bound=EXACT)
    assert fused.text == graph_text(fused.original) and not fused.outcome.remarks


# ---- negative control --------------------------------------------------------------------------------------------


def test_a_weight_that_is_off_by_a_millionth_is_noticed() -> None:
    x = doubles(2, 4, 5, 6)
    model = healthy(Lambda(lambda m, x: m.a(x) + m.b(x) + x, a=conv_bn(padding=1), b=conv_bn(k=1)))
    fused = apply_exactly(model, x, rules=RULES, bound=EXACT)
    assert_verification_bites(fused, [x], bound=EXACT)
    assert_evidence_bites(fused.original, MergeBranches())


# ---- parts of the source: some of its channels, a crop of its map, its border filled otherwise ----------------------


PARTS = {
    "slice": lambda x: x[:, 2:],
    "steps": lambda x: x[:, ::2][:, :3],
    "index": lambda x: x[:, [4, 0, 2]],
    "split": lambda x: torch.split(x, [2, 3], 1)[1],
}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_identity_on_some_channels_is_part_of_the_kernel(part: Any, norm: bool) -> None:
    model = Lambda(
        lambda m, x: (m.c(x) + (m.n(part(x)) if norm else part(x))).sin(),
        c=nn.Conv2d(5, 3, 3, padding=1),
        n=nn.BatchNorm2d(3),
    )
    done = fuse_exactly(healthy(model), doubles(2, 5, 6, 6), bound=1e-13)
    assert done.text == "sin(conv3x3(x))"


CROPS = {
    "slices": (lambda m, x: m.ver(x[:, :, :, 1:-1]) + m.hor(x[:, :, 1:-1])),
    "slices behind": (lambda m, x: m.ver(x)[:, :, :, 1:-1] + m.hor(x)[:, :, 1:-1]),
    "negative pads": (lambda m, x: m.ver(F.pad(x, (-1, -1))) + m.hor(F.pad(x, (0, 0, -1, -1)))),
}


@pytest.mark.parametrize("dynamic", [("batch",), ("batch", "height", "width")], ids=["fixed", "free"])
@pytest.mark.parametrize("rest", CROPS.values(), ids=CROPS)
def test_cropped_branches_become_one_kernel(rest: Any, dynamic: tuple[str, ...]) -> None:
    model = Lambda(
        lambda m, x: (m.square(x) + rest(m, x)).relu(),
        square=nn.Conv2d(3, 4, 3),
        ver=nn.Conv2d(3, 4, (3, 1)),
        hor=nn.Conv2d(3, 4, (1, 3)),
    )
    done = fuse_exactly(model.double(), doubles(2, 3, 8, 9), bound=1e-13, dynamic=dynamic)
    assert done.text == "relu(conv3x3(x))"


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_branches_that_fill_the_border_alike_share_the_widest_pad(mode: str) -> None:
    model = Lambda(
        lambda m, x: (m.square(x) + m.ver(x) + m.hor(x) + m.point(x) + x).relu(),
        square=nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode),
        ver=nn.Conv2d(4, 4, (3, 1), padding=(1, 0), padding_mode=mode),
        hor=nn.Conv2d(4, 4, (1, 3), padding=(0, 1), padding_mode=mode),
        point=nn.Conv2d(4, 4, 1),
    )
    done = fuse_exactly(model.double(), doubles(2, 4, 7, 6), bound=1e-13)
    assert done.text.startswith("relu(conv3x3(pad(x, [1, 1, 1, 1]")


def test_different_fillings_do_not_share() -> None:
    model = Lambda(
        lambda m, x: m.a(x) + m.b(x),
        a=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        b=nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
    )
    assert fuse_exactly(model.double(), doubles(2, 4, 7, 6), bound=1e-13).text.count("conv3x3") == 2


def test_parts_that_are_only_added_say_nothing() -> None:
    done = fuse_exactly(Lambda(lambda m, x: x[:, :2] + x[:, 2:4]), doubles(2, 4, 5, 5), bound=0.0)
    assert done.missed("merge-branches") == []
