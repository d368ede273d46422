"""MoCapsNet: capsules, both ways to train momentum blocks, and what reparam makes of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.compare import verify_programs
from reparam.models.capsules import PrimaryCapsules, RoutingCapsules, capsule_loss, margin_loss, squash
from reparam.models.mocapsnet import CapsNet, MoCapsNet
from reparam.models.momentum import MomentumResidual, momentum_reversible, momentum_stored, saved_bytes
from support.choice import mostly_in_sweeps

TINY: dict[str, Any] = {"channels": 16, "capsules": 6, "blocks": 2, "decoder": (24,), "std": 0.5}
FORMS = [("momentum", "block"), ("momentum", "stack"), ("published", "block")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**changes: Any) -> MoCapsNet:
    return MoCapsNet(**(TINY | changes))


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 1, 28, 28, dtype=torch.float64)


# ---- capsules --------------------------------------------------------------------------------------------------------


def test_squash_keeps_the_direction_and_maps_the_length() -> None:
    s = torch.randn(5, 8, dtype=torch.float64)
    n = s.norm(dim=1)
    torch.testing.assert_close(squash(s).norm(dim=1), n**2 / (1 + n**2))
    torch.testing.assert_close(squash(s) / squash(s).norm(dim=1, keepdim=True), s / n.unsqueeze(1))


def test_squash_of_a_zero_capsule_has_a_zero_gradient() -> None:
    s = torch.zeros(2, 8, requires_grad=True)
    squash(s).sum().backward()
    assert s.grad is not None
    assert bool((s.grad == 0).all())


def test_primary_capsules_group_neighbouring_channels_at_one_place() -> None:
    layer = PrimaryCapsules(2, 6, dim=3, kernel=1, stride=1)
    x = torch.randn(1, 2, 4, 5)
    y = layer(x)
    assert y.shape == (1, 2 * 4 * 5, 3)
    torch.testing.assert_close(y[0, 20 + 7], squash(layer.conv(x)[0, 3:6, 1, 2]))


def by_the_book(layer: RoutingCapsules, u: Tensor) -> Tensor:
    """Dynamic routing, one capsule at a time."""
    weight = layer.weight.unflatten(2, (layer.capsules, layer.dim))
    out = []
    for sample in u:
        votes = torch.einsum("ik,ikjd->ijd", sample, weight)
        b = torch.zeros(votes.shape[:2], dtype=u.dtype)
        for _ in range(layer.routing):
            c = b.softmax(dim=1)
            v = torch.stack([squash(sum(c[i, j] * votes[i, j] for i in range(len(c)))) for j in range(layer.capsules)])
            b = b + (votes * v).sum(-1)
        out.append(v)
    return torch.stack(out)


@pytest.mark.parametrize("routing", [1, 2, 3])
def test_routing_is_that_of_the_paper(routing: int) -> None:
    layer = RoutingCapsules(7, 4, 3, 5, routing, std=1.0).double()
    u = torch.randn(2, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(u), by_the_book(layer, u), rtol=1e-12, atol=1e-12)


def test_only_the_last_iteration_has_a_gradient() -> None:
    layer = RoutingCapsules(7, 4, 3, 5, 3, std=1.0).double()
    u = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(u).sum(), u)
    votes = torch.einsum("nik,ikjd->nijd", u, layer.weight.unflatten(2, (3, 5)))
    b = torch.zeros(2, 7, 3, dtype=torch.float64)
    for _ in range(2):
        v = squash((b.softmax(2).unsqueeze(3) * votes.detach()).sum(1))
        b = b + (votes.detach() * v.unsqueeze(1)).sum(-1)
    (expected,) = torch.autograd.grad(squash((b.softmax(2).unsqueeze(3) * votes).sum(1)).sum(), u)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_margin_loss() -> None:
    lengths = torch.tensor([[0.95, 0.3], [0.5, 0.05]])
    loss = margin_loss(lengths, torch.tensor([0, 0]))
    assert loss.item() == pytest.approx((0.5 * 0.2**2 + 0.4**2) / 2)


def test_the_reconstruction_counts_pixels_of_each_sample() -> None:
    lengths, labels = torch.tensor([[0.95, 0.05]]), torch.tensor([0])
    loss = capsule_loss(lengths, labels, torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.5))
    assert loss.item() == pytest.approx(5e-4 * 16 * 0.25)


def test_the_decoder_sees_one_capsule() -> None:
    model = CapsNet(channels=8, decoder=(16,), std=0.5)
    capsules = torch.randn(2, 10, 16)
    other = capsules.clone()
    other[:, 3] += 1
    labels = torch.tensor([4, 4])
    torch.testing.assert_close(model.draw(capsules, labels), model.draw(other, labels), rtol=0, atol=0)
    assert not torch.equal(model.draw(capsules, labels - 1), model.draw(other, labels - 1))


# ---- momentum --------------------------------------------------------------------------------------------------------


def test_the_velocity_unrolls() -> None:
    functions = [nn.Linear(4, 4).double() for _ in range(5)]
    x = start = torch.randn(2, 4, dtype=torch.float64)
    outputs: list[Tensor] = []
    for n, f in enumerate(functions):
        outputs.append(f(x))
        x = start + sum((1 - 0.9 ** (n + 1 - j)) * y for j, y in enumerate(outputs))
    torch.testing.assert_close(momentum_stored(functions, start, 0.9), x, rtol=1e-15, atol=1e-15)


def test_the_published_block_adds_its_input_again() -> None:
    block = tiny(blocks=1, form="published").double().hidden[1]
    f0, f1 = block.momentum[0].functions
    x = torch.rand(2, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        y0 = f0(x)
        torch.testing.assert_close(block(x), 2 * x + 0.19 * y0 + 0.1 * f1(x + 0.1 * y0), rtol=1e-14, atol=1e-14)


def test_the_residual_form_adds_each_layer() -> None:
    block = tiny(blocks=1, form="residual").double().hidden[1]
    f0, f1 = block.functions
    x = torch.rand(2, 6, 8, dtype=torch.float64)
    y = x + f0(x)
    torch.testing.assert_close(block(x), y + f1(y), rtol=0, atol=0)


def gradients(model: MoCapsNet, reversible: bool) -> list[Tensor]:
    """Of a training step by the image and all parameters, and the loss."""
    model = copy.deepcopy(model)
    for m in model.modules():
        if isinstance(m, MomentumResidual):
            m.reversible = reversible
    torch.manual_seed(1)
    x, labels = images().requires_grad_(), torch.tensor([1, 2, 3])
    capsules = model.encode(x)
    loss = capsule_loss(capsules.norm(dim=-1), labels, x, model.draw(capsules, labels))
    return [*torch.autograd.grad(loss, [x, *model.parameters()]), loss.detach()]


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("form", "velocity"), FORMS)
@pytest.mark.parametrize("blocks", [1, 4])
def test_reversible_gradients_are_those_of_the_stored_version(form: str, velocity: str, blocks: int) -> None:
    model = tiny(blocks=blocks, form=form, velocity=velocity).double()
    assert difference(gradients(model, True), gradients(model, False)) <= 1e-10


def test_another_weight_has_other_gradients() -> None:
    """The negative control: the comparison sees a change of 1e-8 in one weight."""
    model = tiny().double()
    stored = gradients(model, False)
    with torch.no_grad():
        model.hidden[1].momentum[0].functions[0].weight[0, 0, 0] += 1e-8
    assert difference(gradients(model, True), stored) > 1e-10


def test_a_wrong_reversal_has_other_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of reversal itself: a bit of the reconstructed stream makes it fail, not drift."""
    from reparam.models import momentum

    right = momentum._Plan.over_gamma
    monkeypatch.setattr(momentum._Plan, "over_gamma", lambda *a: (right(*a)[0] + 1, right(*a)[1]))
    with pytest.raises(RuntimeError, match="did not return to where it began"):
        gradients(tiny().double(), True)


class Mlp(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, 2 * width, dtype=dtype), nn.Linear(2 * width, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.tanh(self.a(x)))
        return y


Build = Callable[[list[nn.Module], Tensor], Tensor]


def compare(functions: list[nn.Module], build: Build, wanted: list[Tensor], x: Tensor) -> float:
    """The relative difference of gradients of a larger graph about `build`, reversible against stored."""
    found = []
    for reversible in (True, False):
        module = MomentumResidual(functions, 0.9, restart=3, reversible=reversible)
        y = build([module], x.exp()) * x
        found.append(list(torch.autograd.grad(y.square().sum(), [x, *wanted])))
    return difference(*found)


def test_shared_and_frozen_parameters_in_a_larger_graph() -> None:
    shared, other = Mlp(5, torch.float64), Mlp(5, torch.float64)
    other.a.requires_grad_(False)
    functions = [shared, other, shared, other, shared, other, shared]
    wanted = [*shared.parameters(), *other.b.parameters()]
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert compare(functions, lambda m, h: m[0](torch.sin(h)), wanted, x) <= 1e-10
    assert compare(functions, lambda m, h: m[0](m[0](torch.sin(h)).tanh()), wanted, x) <= 1e-10  # called twice
    assert other.a.weight.grad is None


def test_without_any_parameter_the_input_gets_its_gradient() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert compare([nn.Tanh(), nn.Tanh(), nn.Sigmoid(), nn.Tanh()], lambda m, h: m[0](h), [], x) <= 1e-10


def test_an_input_without_gradient_leaves_those_of_the_parameters() -> None:
    f = Mlp(5, torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    found = [
        torch.autograd.grad(run([f, f], x, 0.9).sum(), list(f.parameters()))
        for run in (momentum_reversible, momentum_stored)
    ]
    assert difference(list(found[0]), list(found[1])) <= 1e-10


def test_more_steps_than_an_integer_has_room_for_are_reversed_exactly() -> None:
    """More than one integer of lost bits: 0.152 bits a step fill 63 after some 370."""
    f = Mlp(3, torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        f.b.weight *= 0.02
    found = [
        torch.autograd.grad(run([f] * 450, x, 0.9).sum(), [x, *f.parameters()])
        for run in (momentum_reversible, momentum_stored)
    ]
    assert difference(list(found[0]), list(found[1])) <= 1e-10


def test_the_plain_inverse_would_drift_where_fixed_point_does_not() -> None:
    """Why integers: in float32, v = (v - (1 - g) f)/g multiplies rounding errors by 1/g a step."""
    f = Mlp(3, torch.float32)
    x = start = torch.randn(2, 3)
    v = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(200):
            v = 0.9 * v + 0.1 * f(x)
            x = x + v
        for _ in range(200):
            x = x - v
            v = (v - 0.1 * f(x)) / 0.9
    assert float((x - start).abs().max()) > 1e-2
    leaf = start.clone().requires_grad_()
    momentum_reversible([f] * 200, leaf, 0.9).sum().backward()  # raises when it does not return to its start


def test_functions_that_do_not_repeat_their_result_are_refused() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    y = momentum_reversible([nn.Dropout(0.5), nn.Tanh()], x, 0.9)
    with pytest.raises(RuntimeError, match="no dropout"):
        y.sum().backward()


def test_weights_that_change_before_the_backward_pass_are_refused() -> None:
    f = nn.Linear(4, 4)
    y = momentum_reversible([f, f], torch.randn(2, 4), 0.9)
    with torch.no_grad():
        f.weight += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_does_not_fit_is_refused() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"shape \(2, 4\) into \(2, 3\)"):
        momentum_reversible([nn.Linear(4, 3)], x, 0.9)
    with pytest.raises(ValueError, match="exceeds 8192"):
        momentum_reversible([nn.Tanh()], 1e4 * x, 0.9)
    with pytest.raises(ValueError, match="not finite"):
        momentum_reversible([nn.Tanh()], x / 0, 0.9)
    for gamma in (0.0, 1.0, 0.12345):
        with pytest.raises(ValueError, match="hundredths"):
            MomentumResidual([nn.Tanh()], gamma)
    with pytest.raises(ValueError, match="unknown form"):
        tiny(form="other")
    with pytest.raises(ValueError, match="unknown velocity"):
        tiny(velocity="other")
    with pytest.raises(ValueError, match="too small"):
        CapsNet(image=(1, 12, 12))
    with pytest.raises(ValueError, match="at least one"):
        RoutingCapsules(2, 2, 2, 2, routing=0)
    with pytest.raises(ValueError, match="capsules of 3"):
        PrimaryCapsules(2, 8, dim=3)


def test_there_are_no_second_derivatives() -> None:
    x = torch.randn(2, 4, requires_grad=True)
    (first,) = torch.autograd.grad(momentum_reversible([nn.Tanh()], x, 0.9).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_reversible_memory_does_not_grow_with_depth() -> None:
    """Nothing a layer with one velocity; with a velocity for each block, that velocity."""
    x = torch.rand(8, 6, 8, dtype=torch.float32)
    sizes = {}
    for form, velocity, reversible in [("momentum", v, r) for v in ("block", "stack") for r in (True, False)]:
        blocks = [tiny(blocks=b, form=form, velocity=velocity, reversible=reversible).hidden[1] for b in (1, 4, 16)]
        sizes[velocity, reversible] = [saved_bytes(lambda b=b: b(x), b.parameters()) for b in blocks]
    one = x.numel()
    assert sizes["stack", True] == [24 * one] * 3  # x, v and the lost bits, 64 each
    assert sizes["block", True] == [24 * one, (24 + 3 * 8) * one, (24 + 15 * 8) * one]  # and a velocity at each restart
    for velocity in ("block", "stack"):
        first, second, third = sizes[velocity, False]
        assert third - second == pytest.approx(4 * (second - first), rel=0.02)  # 12 blocks more against 3
        assert third - first > 3 * (sizes["block", True][2] - sizes["block", True][0])


# ---- through the compiler --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "velocity"), mostly_in_sweeps([*FORMS, ("residual", "block")], FORMS[0], FORMS[2]))
def test_it_converts_with_a_free_batch(form: str, velocity: str) -> None:
    model = tiny(blocks=1, form=form, velocity=velocity).eval()
    fused = reparam.convert(model, images(2).float(), to="fused")
    assert fused.report.equivalent
    assert not any("fixed sizes" in r.message for r in fused.report.remarks)
    x = images(5).float()
    torch.testing.assert_close(fused.module(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_decoder_converts_with_it() -> None:
    model = CapsNet(channels=16, decoder=(24,), std=0.5, decode=True).eval()
    fused = reparam.convert(model, images(2).float(), to="fused")
    lengths, drawn = fused.module(images(5).float())
    assert (lengths.shape, drawn.shape) == ((5, 10), (5, 1, 28, 28))


def test_the_coupling_of_the_first_iteration_is_a_constant() -> None:
    report = reparam.convert(CapsNet(channels=16, decoder=(24,), std=0.5).eval(), images(2).float()).report
    folded = [r for r in report.remarks if r.rule == "fold-constants" and r.kind == "passed"]
    assert any(r.module == "classes" for r in folded)


def test_one_iteration_is_a_linear_layer_and_a_squash() -> None:
    fused = reparam.convert(tiny(blocks=0, routing=1).eval(), images(2).float(), to="fused")
    targets = [n.target for n in fused.program.calls()]
    assert targets.count(torch.ops.aten.linear.default) == 2
    assert torch.ops.aten.matmul.default not in targets and torch.ops.aten.softmax.int not in targets
    assert fused.report.after.macs < fused.report.before.macs


def test_the_velocity_of_a_block_goes() -> None:
    """v1, x1, v2, x2 take six sums and products; x1 = x0 + 0.1 f0 and x2 = x0 + 0.19 f0 + 0.1 f1 take three sums."""
    fused = reparam.convert(tiny(blocks=1).eval(), images(2).float(), to="fused")
    sums = [n for n in fused.program.calls() if n.meta["module"] == "hidden.1.momentum.0"]
    assert [n.target for n in sums] == [torch.ops.aten.add.Tensor] * 3
    factors = [float(n.kwargs["alpha"]) for n in sums]
    assert sorted(factors) == pytest.approx([0.1, 0.1, 0.19]) or sorted(factors) == pytest.approx([0.09, 0.1, 0.1])


def test_another_weight_is_another_function() -> None:
    """The negative control: verification sees one weight of a block that is twice what it was."""
    fused = reparam.convert(tiny(blocks=1).eval(), images(2).float(), to="fused")
    assert verify_programs(fused.original, fused.program, adversarial=False).equivalent
    changed, name = fused.original.copy(), "hidden.1.momentum.0.functions.1.weight"
    value = changed.constants[name].value.detach().clone()
    value[0, 0, 0] *= 2
    changed.constants[name] = replace(changed.constants[name], value=value)
    assert not verify_programs(changed, fused.program, adversarial=False).equivalent
