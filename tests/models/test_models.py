"""Every registered architecture: it builds by name, trains, and converts to both targets with the counts written here.

The small configurations run by default, the published ones in `make sweep`. Statistics of norms are random, never the
ones that a new layer has.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from reparam.conversion import Conversion, convert
from reparam.errors import InputError
from reparam.ir import Census, draw_examples
from reparam.loading import Architecture, build_architecture, load, randomize_statistics
from reparam.loading.zoo import available
from reparam.models.registry import entries, register
from support.helpers import max_rel, perturb

SMALL = "_small"
FLOAT64 = 1e-10
Counts = tuple[int, int, int, int]  # convolutions, norms, merges, gates


@dataclass(frozen=True)
class Case:
    """What a small configuration counts before, and in the two targets; whether `plain` is a chain.

    published: the shape of an input that the published configuration is tried on, where its own would take too long.
    """

    name: str
    before: Counts
    fused: Counts
    plain: Counts
    chain: bool = True
    published: tuple[int, ...] | None = None


CASES = (
    Case("resnet", (11, 11, 4, 0), (11, 0, 4, 0), (9, 0, 0, 0)),
    Case("preact_resnet", (22, 19, 6, 0), (22, 5, 6, 0), (22, 0, 0, 0)),
    Case("stochastic_depth_resnet", (19, 19, 9, 0), (19, 0, 9, 0), (19, 0, 0, 0)),
    Case("repvgg", (8, 10, 6, 0), (4, 0, 0, 0), (4, 0, 0, 0)),
    Case("acnet", (12, 12, 8, 0), (4, 0, 0, 0), (4, 0, 0, 0)),
    Case("dbbnet", (20, 24, 12, 0), (4, 0, 0, 0), (4, 0, 0, 0)),
    Case("mobileone", (18, 22, 15, 0), (7, 0, 0, 0), (7, 0, 0, 0)),
    Case("mobilenet_v2", (16, 16, 3, 0), (16, 0, 3, 0), (16, 0, 0, 0)),
    Case("robust_residual", (8, 0, 3, 0), (8, 0, 3, 0), (10, 0, 0, 0)),
    Case("scaled_resnet", (0, 0, 10, 0), (0, 0, 10, 0), (0, 0, 0, 0)),
    Case("zero_net", (6, 6, 2, 0), (6, 0, 2, 0), (5, 0, 0, 0)),
    Case("zero_mlp", (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)),
    Case("normalised_activation_net", (6, 6, 2, 0), (6, 0, 2, 0), (5, 0, 0, 0)),
    Case("input_bn_resnet", (6, 7, 2, 0), (6, 0, 2, 0), (5, 0, 0, 0)),
    Case("proxy_norm_resnet", (12, 10, 3, 0), (12, 10, 3, 0), (12, 10, 3, 0), chain=False),
    Case("wrn_groupnorm_ws", (9, 9, 3, 0), (9, 9, 3, 0), (9, 9, 3, 0), chain=False),
    Case("nfnet", (21, 0, 3, 3), (21, 0, 3, 3), (24, 0, 0, 3), chain=False, published=(3, 64, 64)),
    Case("nf_resnet", (15, 0, 4, 0), (15, 0, 4, 0), (15, 0, 0, 0)),
    Case("prelu_net", (5, 0, 0, 0), (5, 0, 0, 0), (5, 0, 0, 0)),
    Case("revnet", (9, 9, 6, 0), (9, 4, 6, 0), (13, 0, 0, 0)),
    Case("momentum_resnet", (21, 19, 8, 0), (21, 6, 8, 0), (25, 0, 0, 0)),
    Case("transformer", (0, 5, 8, 0), (0, 5, 8, 0), (0, 5, 8, 0), chain=False),
    Case("deep_sets_pp", (0, 4, 2, 0), (0, 4, 2, 0), (0, 4, 2, 0), chain=False),
    Case("set_transformer_pp", (0, 9, 8, 0), (0, 9, 8, 0), (0, 9, 8, 0), chain=False),
    Case("point_conv", (0, 2, 8, 0), (0, 0, 7, 0), (0, 0, 7, 0), chain=False),
    Case("gaussian_preact", (0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 0)),
    Case("gradinit_net", (4, 0, 0, 0), (4, 0, 0, 0), (4, 0, 0, 0)),
    Case("autoinit_net", (4, 0, 0, 0), (4, 0, 0, 0), (4, 0, 0, 0)),
)
ELSEWHERE = {"capsnet", "mocapsnet"}  # have a test file of their own
DROPS = {"stochastic_depth_resnet"}  # leaves branches out while it trains
named = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def network(name: str, shape: tuple[int, ...] | None = None) -> tuple[Architecture, tuple[Tensor, ...]]:
    """The architecture with random statistics, and a batch of two for it. No weight is left at zero."""
    built = build_architecture(f"reparam/{name}")
    torch.manual_seed(0)
    with torch.no_grad():
        for p in built.module.parameters():
            if p.dim() > 1 and bool((p == 0).any()):
                p.add_(torch.randn_like(p) / p[0].numel() ** 0.5)
    shapes = built.input_shapes if shape is None else (shape,)
    randomize_statistics(built.module, draw_examples(built.module, shapes, batch=8))
    return built, draw_examples(built.module, shapes, batch=2, seed=1)


def counts(census: Census) -> Counts:
    return census.convs, census.norms, census.merges, census.gates


def assert_equivalent(conversion: Conversion) -> None:
    evidence = conversion.report.evidence
    assert evidence is not None
    deep = max(conversion.report.before.convs, conversion.report.before.nodes // 4) >= 500
    assert evidence.float64_max_rel <= (1e-9 if deep else FLOAT64)
    assert not [r for r in conversion.report.remarks if "rejected by its own check" in r.message]


def test_every_architecture_has_a_case() -> None:
    names = {n for n in available("reparam") if n.removesuffix(SMALL) not in ELSEWHERE}
    assert {c.name for c in CASES} | {c.name + SMALL for c in CASES} == names


# Of a kind that another one shows as well, or whose blocks have tests of their own.
ALIKE = {"acnet", "dbbnet", "mobileone", "nfnet", "repvgg", "scaled_resnet", "stochastic_depth_resnet"}
ALIKE |= {"autoinit_net", "gradinit_net", "input_bn_resnet", "momentum_resnet", "nf_resnet", "preact_resnet"}
ALIKE |= {"set_transformer_pp", "zero_mlp"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=pytest.mark.sweep if c.name in ALIKE else ()) for c in CASES]
)
def test_a_small_architecture_converts_to_both_targets(case: Case) -> None:
    built, x = network(case.name + SMALL)
    fused = convert(built.module, *x, to="fused")
    plain = convert(built.module, *x, to="plain")
    for conversion in (fused, plain):
        assert_equivalent(conversion)
        assert counts(conversion.report.before) == case.before
        with torch.no_grad():
            torch.testing.assert_close(conversion.module(*x), built.module(*x), rtol=1e-3, atol=1e-4)
    assert (counts(fused.report.after), counts(plain.report.after)) == (case.fused, case.plain)
    assert plain.report.plain == case.chain
    assert fused.report.after.macs <= fused.report.before.macs
    doubles = [v.double() for v in x]
    assert max_rel(plain.original, perturb(plain.program), doubles) > FLOAT64  # the comparison tells a wrong weight


@named
def test_a_step_of_descent_lowers_the_loss(case: Case) -> None:
    torch.manual_seed(0)
    built = build_architecture(f"reparam/{case.name}{SMALL}")
    module = built.module.train()
    x = draw_examples(module, built.input_shapes, batch=16)
    labels = torch.arange(16) % 2

    def loss() -> Tensor:
        torch.manual_seed(0)  # the same branches are dropped every time
        return nn.functional.cross_entropy(module(*x), labels)

    before = loss()
    before.backward()
    assert {p.grad is None for p in module.parameters() if p.requires_grad} == (
        {True, False} if case.name in DROPS else {False}
    )
    learned = [p for p in module.parameters() if p.grad is not None]
    squared = sum(float(p.grad.square().sum()) for p in learned if p.grad is not None)
    step = min(0.01, 0.02 * float(before.detach()) / squared)  # a fiftieth of the loss, were it linear
    torch.optim.SGD(learned, step).step()
    assert float(loss().detach()) < float(before.detach())


@pytest.mark.sweep
@named
def test_a_published_architecture_converts_to_both_targets(case: Case) -> None:
    built, x = network(case.name, case.published)
    for target in ("fused", "plain"):
        conversion = convert(built.module, *x, to=target)
        assert_equivalent(conversion)
        expected = case.fused if target == "fused" else case.plain
        assert (conversion.report.after.merges == 0) == (expected[2] == 0)
        assert (conversion.report.after.gates == 0) == (expected[3] == 0)
        assert (conversion.report.after.norms == 0) == (expected[1] == 0)
        if target == "plain":
            assert conversion.report.plain == case.chain


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_a_name_is_registered_once() -> None:
    record = register("resnet", small={}, published={}, small_input=(1,), published_input=(1,))
    with pytest.raises(ValueError, match="'resnet' is registered twice"):
        record(nn.Identity)


def test_several_inputs_are_told_from_one() -> None:
    assert all(entry.inputs for entry in entries().values())
    assert entries()["resnet"].inputs == ((3, 224, 224),)


def test_arguments_replace_those_of_the_configuration() -> None:
    built = build_architecture("reparam/resnet_small", {"num_classes": 3})
    assert built.input_shapes == ((3, 32, 32),)
    assert built.module(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(InputError, match=r"it takes \(block=.*num_classes="):
        build_architecture("reparam/resnet_small", {"classes": 3})


def test_depths_that_do_not_fit_are_refused() -> None:
    for spec in ("reparam/preact_resnet", "reparam/stochastic_depth_resnet"):
        with pytest.raises(InputError, match="the depth is 21; it must be"):
            build_architecture(spec, {"depth": 21})


def test_random_weights_that_explode_get_the_statistics_of_a_batch() -> None:
    deep = load(None, arch="reparam/preact_resnet_small", arch_args={"depth": 200})
    assert ["explodes with the statistics of a new network" in n for n in deep.notes] == [True]
    x = torch.randn(2, 3, 16, 16)
    fresh = build_architecture("reparam/preact_resnet_small", {"depth": 200}).module
    with torch.no_grad():
        assert float(fresh(x).abs().max()) > 1e6
        assert float(deep.module(x).abs().max()) < 1e3
    assert load(None, arch="reparam/preact_resnet_small").notes == ()
