"""Batch norms with measured statistics: in evaluation mode they do nothing, in training mode they normalise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reparam import InputError, NotEquivalentError, convert
from reparam.data import spool
from reparam.data.samples import open_samples
from reparam.ir import BATCH_NORMS, Program, evaluate, is_call
from reparam.training import batch_norms, save_training_source, with_batch_norms
from reparam.training.moments import Moments
from support.emit_source_cases import import_file
from support.helpers import EXACT, Lambda, doubles, graph_text, healthy, max_rel


def fused(model: nn.Module, *inputs: Tensor) -> Program:
    return convert(model, *inputs).program


def separable(width: int = 6) -> nn.Module:
    """A depthwise and a pointwise convolution, a skip, and a linear head."""
    net = Lambda(
        lambda m, x: m.head((F.relu(m.bn(m.point(F.relu(m.depth(m.stem(x)))))) + m.stem(x)).mean((2, 3))),
        stem=nn.Conv2d(3, width, 3, padding=1),
        depth=nn.Conv2d(width, width, 3, padding=1, groups=width),
        point=nn.Conv2d(width, width, 1, bias=False),
        bn=nn.BatchNorm2d(width),
        head=nn.Linear(width, 4),
    )
    return healthy(net)


def test_a_norm_behind_every_layer_but_the_head_and_the_same_function() -> None:
    x = doubles(4, 3, 6, 5)
    program = fused(separable(), x)
    made = with_batch_norms(program, doubles(9, 3, 6, 5))
    norms = [str(n.args[1]).partition(".")[0] for n in made.calls() if is_call(n, BATCH_NORMS)]
    assert len(norms) == len([n for n in program.calls() if "conv" in str(n.target)])
    assert graph_text(made).rpartition("; ")[2].startswith("linear(")
    assert max_rel(program, made, [x]) < EXACT
    assert not any(is_call(n, BATCH_NORMS) for n in program.calls())


def test_the_statistics_are_those_of_the_layer_over_all_samples_and_places() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)).double()
    x = doubles(37, 3, 6, 5) * 3 + 100
    made = with_batch_norms(fused(net, x[:2]), [x[:20], x[20:]])
    y = net[0](x).detach().float().double()  # samples are taken in as float32
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    torch.testing.assert_close(made.constants["bn0.running_mean"].value, mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(made.constants["bn0.running_var"].value, variance, rtol=1e-4, atol=0)
    weight = made.constants["bn0.weight"]
    torch.testing.assert_close(weight.value.square() - 1e-5, made.constants["bn0.running_var"].value)
    assert weight.trainable and not made.constants["bn0.running_var"].trainable


def test_moments_lose_no_digits_where_the_mean_is_large() -> None:
    value, found = 1e8 + doubles(40, 3, 5), Moments()
    for part in value.split([1, 7, 32]):
        found.add(part)
    rows = value.transpose(1, 2).reshape(-1, 3) - 1e8
    torch.testing.assert_close(found.mean - 1e8, rows.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance, rows.var(0, correction=0), rtol=1e-6, atol=0)


def test_channels_that_never_vary_stay_what_they_are_and_finite() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight[:2].zero_()
        net[0].bias[0] = 7.0
    program = fused_as_is(net, doubles(3, 4))
    made = with_batch_norms(program, doubles(16, 4))
    assert float(made.constants["bn0.running_var"].value[0]) == 0
    assert float(made.constants["bn0.weight"].value[0]) == pytest.approx(math.sqrt(1e-5))
    assert max_rel(program, made, [doubles(5, 4)]) < EXACT


def fused_as_is(net: nn.Module, *inputs: Tensor) -> Program:
    """The program without rewrites, which would drop constant channels."""
    return convert(net, *inputs, to="as-is").program


def test_a_layer_that_is_called_twice_gets_a_norm_for_each_call() -> None:
    net = Lambda(lambda m, x: m.out(F.relu(m.conv(F.relu(m.conv(x))))), conv=nn.Conv2d(3, 3, 1), out=nn.Conv2d(3, 1, 1))
    made = with_batch_norms(fused(net.double(), doubles(2, 3, 4, 4)), doubles(8, 3, 4, 4))
    assert {"conv_bn.weight", "conv_bn_1.weight"} <= set(made.constants)


def test_no_norm_before_a_norm_behind_a_head_or_on_sequences() -> None:
    sequences = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4), nn.LayerNorm(4))
    scores = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1))
    for net, x in ((sequences, torch.randn(2, 5, 4)), (scores, torch.randn(2, 4))):
        with pytest.raises(InputError, match="no layer that a batch norm could stand behind"):
            with_batch_norms(fused(net, x), x)


@pytest.mark.parametrize(
    ("layer", "shape", "kind"),
    [
        (nn.Linear(6, 4), (6,), "nn.BatchNorm1d(4)"),
        (nn.Conv1d(6, 4, 3), (6, 7), "nn.BatchNorm1d(4)"),
        (nn.Conv2d(6, 4, 3, groups=2), (6, 5, 4), "nn.BatchNorm2d(4)"),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), (6, 3, 3), "nn.BatchNorm2d(4)"),
        (nn.Conv3d(6, 4, 2), (6, 3, 3, 2), "nn.BatchNorm3d(4)"),
    ],
    ids=["linear", "conv1d", "grouped", "transposed", "conv3d"],
)
def test_every_kind_of_layer_becomes_a_layer_and_a_norm(
    layer: nn.Module, shape: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    x = torch.randn(9, *shape)
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    net(x)
    written = save_training_source(convert(net, x[:2]).program, tmp_path, x)
    assert written.norms == ("bn0",) and kind in written.model.read_text()
    model = import_file(written.model).load()
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
    other = 3 * torch.randn(9, *shape)  # on x itself the batch has the statistics that were measured
    assert not torch.allclose(model.train()(other), net(other), atol=1e-2)


def test_heads_that_are_pooled_resized_or_joined_get_none() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(4))

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = F.relu(self.stem(x))
            pooled = F.adaptive_avg_pool2d(self.a(y), 1).flatten(1).softmax(1)
            large = F.interpolate(self.b(y), scale_factor=2.0, mode="bilinear")
            return pooled, large, torch.cat([self.c(y).flatten(2), y.flatten(2)], 2)

    x = torch.randn(4, 3, 4, 4)
    made = with_batch_norms(fused(Heads(), x[:2]), x)
    assert [str(n.args[1]) for n in made.calls() if is_call(n, BATCH_NORMS)] == ["stem_bn_weight"]


def test_samples_from_a_deck_and_batches_of_a_fixed_size() -> None:
    x = torch.randn(12, 3, 5, 5)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    program = fused(net, x[:2])
    with spool(open_samples(x, program)) as decks:
        made = with_batch_norms(program, decks.fit)
    fixed = convert(net, x[:4], dynamic=()).program
    other = with_batch_norms(fixed, x)
    y = net[0](x)
    torch.testing.assert_close(other.constants["bn0.running_mean"].value.float(), y.mean((0, 2, 3)))
    assert made.constants["bn0.running_mean"].value.shape == (4,)


def test_samples_that_do_not_fit_or_overflow_are_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    program = fused(net, torch.randn(2, 3, 5, 5))
    with pytest.raises(InputError, match="holds float32 samples of shape"):
        with_batch_norms(program, torch.randn(4, 2, 5, 5))
    big = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    with torch.no_grad():
        big[0].weight.mul_(1e300)
    with pytest.raises(InputError, match="the layer '0' gives NaN or infinite values"):
        with_batch_norms(fused_as_is(big, doubles(2, 3, 5, 5)), 1e30 * torch.randn(4, 3, 5, 5))


def test_a_wrong_norm_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    program = fused(net, doubles(2, 3, 5, 5))
    put = batch_norms._put_behind

    def wrong(made: Program, *rest: object) -> str:
        name = put(made, *rest)  # type: ignore[arg-type]
        made.constants[f"{name}.bias"].value[0] += 1e-6
        return name

    monkeypatch.setattr(batch_norms, "_put_behind", wrong)
    with pytest.raises(NotEquivalentError):
        with_batch_norms(program, doubles(8, 3, 5, 5))


# ---- source ------------------------------------------------------------------------------------------------------


def test_the_written_source_is_the_same_function_has_parameters_and_buffers_and_folds_again(tmp_path: Path) -> None:
    net = separable().float()
    x = torch.randn(8, 3, 6, 5)
    program = convert(net, x[:2]).program
    written = save_training_source(program, tmp_path / "net", x)
    assert written.evidence.error <= 2 * written.evidence.original_error + 1e-6
    model = import_file(tmp_path / "net" / "model.py").load().eval()
    torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-5)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == len(written.norms) and all("nn.BatchNorm2d(" in written.model.read_text() for _ in norms)
    names = dict(model.named_parameters()), dict(model.named_buffers())
    assert all(f"{n}.weight" in names[0] and f"{n}.running_var" in names[1] for n in written.norms)
    again = convert(model, x[:2])
    assert (again.report.before.norms, again.report.after.norms) == (len(norms), 0)
    torch.testing.assert_close(again.module(x), evaluate(program, [x])[0].float(), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="exists"):
        save_training_source(program, tmp_path / "net", x)


def test_the_written_source_trains_and_its_statistics_follow(tmp_path: Path) -> None:
    x, labels = torch.randn(32, 3, 6, 5), torch.arange(32) % 4
    save_training_source(convert(separable().float(), x[:2]).program, tmp_path / "net", x)
    model = import_file(tmp_path / "net" / "model.py").load().train()
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    assert all(not torch.equal(b, before[n]) for n, b in model.named_buffers() if n in before)
