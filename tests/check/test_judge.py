"""The original as the judge: run as it is, in float64, whatever dtypes it asks for."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reparam import convert
from reparam.capture import capture
from reparam.check import Judge, check_float64
from reparam.errors import CaptureError, InputError
from reparam.ir import evaluate
from support.helpers import Lambda


def judged(model: nn.Module, *inputs: Tensor) -> tuple[Judge, list[Tensor]]:
    captured = capture(model, inputs).program
    feed = [x.double() if x.is_floating_point() else x for x in inputs]
    judge = Judge(model, captured)
    truth = judge.truth(feed)
    for a, b in zip(truth, evaluate(captured, feed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    return judge, truth


# Ways in which a forward makes or asks for a narrower dtype.
NARROW = {
    "a cast to float": lambda m, x: m.fc(x.float()),
    "a cast to the dtype of a weight": lambda m, x: m.fc(x.to(m.fc.weight.dtype)),
    "type_as": lambda m, x: m.fc(x) + torch.ones(3).type_as(x) / 3,
    "zeros without a dtype": lambda m, x: F.softmax(torch.zeros(x.shape[0], 3), 1) * m.fc(x),
    "zeros brought to the device": lambda m, x: F.softmax(torch.zeros(1, 3).to(x.device), 1) * m.fc(x),
    "an integer divided": lambda m, x: m.fc(x).sigmoid().mul(255).round().byte() / 255.0 + m.fc(x),
    "a range": lambda m, x: m.fc(x) * torch.arange(3) / 3,
    "half in between": lambda m, x: m.fc(x.half().to(x.dtype)),
    "in place": lambda m, x: m.fc(x).mul_(0.1).add_(torch.full((3,), 0.1)),
    "autocast": lambda m, x: m.fc(x),
}


def test_weights_are_given_back_as_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the model's own dtypes too, where nothing is widened: each would stay in memory with its mapped file."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 3)
    judge = Judge(model, capture(model, (x,)).program)
    given: list[int] = []
    monkeypatch.setattr("reparam.check.judge.give_back", lambda value: given.append(value.data_ptr()))
    assert judge.own_where_it_runs([x.double()]) is not None
    assert given == [p.data_ptr() for layer in (model[0], model[2]) for p in (layer.weight, layer.bias)]


def test_what_a_model_writes_to_its_inputs_is_not_seen_by_the_next_run() -> None:
    """The converted network would be run on what the model has left there, and be compared in narrower dtypes alone."""
    model = Lambda(lambda m, x: m.fc(x.mul_(2)) + x, fc=nn.Linear(3, 3)).eval()
    given = torch.ones(2, 3)
    judge, truth = judged(model, given.clone())
    feed = [given.double()]
    torch.testing.assert_close(judge.truth(feed)[0], truth[0])
    torch.testing.assert_close(feed[0], given.double())
    example = given.clone()
    assert convert(model, example).report.evidence.float64_max_rel < 1e-12
    torch.testing.assert_close(example, given)


@pytest.mark.parametrize("way", NARROW)
def test_every_number_is_float64(way: str) -> None:
    model = Lambda(NARROW[way], fc=nn.Linear(3, 3)).eval()
    _, [truth] = judged(model, torch.randn(2, 3))
    assert truth.dtype == torch.float64


@given(st.sampled_from(sorted(NARROW)), st.integers(1, 5))
def test_what_is_folded_agrees_with_the_model(way: str, batch: int) -> None:
    model = Lambda(lambda m, x: m.bn(NARROW[way](m, x)), fc=nn.Linear(3, 3), bn=nn.BatchNorm1d(3)).eval()
    result = convert(model, torch.randn(2, 3))
    x = torch.randn(batch, 3)
    torch.testing.assert_close(result.module(x), model(x), rtol=1e-4, atol=1e-3)


def test_weights_are_left_as_they_are_and_not_copied() -> None:
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    judged(model, torch.randn(2, 3))
    assert model.weight.dtype == torch.float32 and torch.equal(model.weight, before) and model.training


def test_complex_numbers_are_compared_by_their_parts() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(m.bn(m.conv(x))) * torch.view_as_complex(m.w), s=x.shape[-2:])

    parts = {"conv": nn.Conv2d(3, 4, 3, padding=1), "bn": nn.BatchNorm2d(4), "w": nn.Parameter(torch.randn(4, 8, 5, 2))}
    result = convert(Lambda(forward, **parts).eval(), torch.randn(2, 3, 8, 8))
    assert result.report.after.norms == 0
    spectrum = convert(Lambda(lambda m, x: torch.fft.rfft(m.fc(x)), fc=nn.Linear(4, 4)), torch.randn(2, 4))
    assert spectrum.module(torch.randn(3, 4)).is_complex()


def test_booleans_and_integers_are_compared_by_equality() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        i = torch.arange(y.shape[-1])
        mask = (i[:, None] >= i[None]) & (y > 0).expand(y.shape[0], 4, -1, -1)
        return torch.where(mask, y, torch.zeros(()))

    assert convert(Lambda(forward, conv=nn.Conv2d(3, 4, 3)).eval(), torch.randn(2, 3, 5, 5)).report.equivalent


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64])
def test_a_graph_with_other_integers_is_no_equal(kind: torch.dtype) -> None:
    def made(limit: float) -> nn.Module:
        return Lambda(lambda m, x: (m.fc(x) > limit).to(kind), fc=nn.Linear(3, 3))

    one = made(0.0)
    other = made(0.3)
    other.load_state_dict(one.state_dict())
    a, b = (capture(m, (torch.randn(2, 3),)).program for m in (one, other))
    with pytest.raises(Exception, match="differs from the original"):
        check_float64(a, b)


def test_an_operator_without_float64_leaves_the_captured_graph_as_the_truth() -> None:
    """The model then has to agree with it in its own dtype."""

    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.dtype == torch.float64:
                raise RuntimeError("not implemented for 'Double'")
            return torch.relu(x) * 2

    assert convert(Picky(), torch.randn(2, 3)).report.equivalent


def test_a_graph_that_is_not_the_model_is_refused_without_blaming_a_rewrite() -> None:
    class Liar(nn.Module):
        """Computes something else whenever it is not traced."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if torch.compiler.is_compiling() else self.fc(x) + 1

    with pytest.raises(CaptureError, match="the captured graph computes something else there"):
        convert(Liar(), torch.randn(2, 3), dynamic=())


def test_outputs_that_are_not_finite_are_the_models_own_fault() -> None:
    with pytest.raises(InputError, match="the original's own outputs are not finite"):
        convert(Lambda(lambda m, x: m.fc(x) / 0.0, fc=nn.Linear(3, 3)), torch.randn(2, 3))


# ---- random numbers of Python and NumPy ------------------------------------------------------------------------------

DRAWS = {
    "a branch": lambda m, x: m.fc(x) if random.random() < 0.5 else m.fc(x) * 2,
    "a factor": lambda m, x: m.fc(x) * random.uniform(1, 2),
    "a choice": lambda m, x: m.fc(x) * random.choice([1, 2]),
    "numpy": lambda m, x: m.fc(x) * float(np.random.rand()),  # as models do
}


@pytest.mark.parametrize("name", DRAWS)
def test_random_numbers_of_python_and_numpy_are_told(name: str) -> None:
    with pytest.raises(CaptureError, match=r"draws random numbers while it runs, by Python's random or numpy\.random"):
        convert(Lambda(DRAWS[name], fc=nn.Linear(5, 3)), torch.randn(2, 5))


def test_random_numbers_that_change_nothing_are_none_of_our_business() -> None:
    """As those for layers that are left out in training alone."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(x) * 0 if random.random() < 0.5 and m.training else m.fc(x)

    assert convert(Lambda(forward, fc=nn.Linear(5, 3)), torch.randn(2, 5)).report.equivalent


# Models that ask for the dtype of what they compute with: in float64 they are other functions.
BY_DTYPE = {
    "a branch": lambda m, x: F.relu(m.fc(x)) if x.dtype == torch.float32 else m.fc(x) * 3,
    "the smallest number": lambda m, x: m.fc(x) * torch.finfo(x.dtype).eps ** 0.1,
    "the dtype of a layer": lambda m, x: m.fc(x) + (1 if m.fc(x).dtype is torch.float32 else 2),
}


@pytest.mark.parametrize("way", BY_DTYPE)
@pytest.mark.parametrize("to", ["fused", "plain"])
def test_a_model_that_asks_for_its_dtype_is_judged_in_its_own(way: str, to: str) -> None:
    model = Lambda(lambda m, x: m.bn(BY_DTYPE[way](m, x)), fc=nn.Linear(3, 3), bn=nn.BatchNorm1d(3)).eval()
    result = convert(model, torch.randn(2, 3), to=to)
    x = torch.randn(5, 3)
    torch.testing.assert_close(result.module(x), model(x))


@pytest.mark.parametrize("way", BY_DTYPE)
def test_so_is_its_path_at_other_batches(way: str) -> None:
    model = Lambda(lambda m, x: BY_DTYPE[way](m, x) * (2 if x.shape[0] % 2 else 1), fc=nn.Linear(3, 3)).eval()
    result = convert(model, torch.randn(2, 3))
    torch.testing.assert_close(result.module(x := torch.randn(2, 3)), model(x))
    with pytest.raises(InputError, match="verified for inputs of shape"):
        result.module(torch.randn(3, 3))


def test_a_path_that_differs_seldom_is_found() -> None:
    """At batch 1 the model leaves out a step that changes one number in fifty of the inputs."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.fc(x)
        return F.relu(torch.where(y.mean(1, keepdim=True) > 0.7, y * 2, y) if x.numel() > 4 else y)

    for seed in range(4):
        torch.manual_seed(seed)
        result = convert(Lambda(forward, fc=nn.Linear(3, 3)).eval(), torch.randn(2, 3), seed=seed)
        assert any("batch is fixed" in r.message for r in result.report.remarks)
