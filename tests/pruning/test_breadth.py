"""Networks of other kinds: samples along other axes, attention, arguments that are no tensors, odd outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.errors import InputError
from reparam.ir import evaluate
from reparam.pruning import prune, refit
from support.prunable import Residual, images

SEQUENCES = torch.randn(140, 6, 12, generator=torch.Generator().manual_seed(2))
WORDS = torch.randint(0, 20, (140, 6), generator=torch.Generator().manual_seed(3))


class Mixed(nn.Module):
    """A head on what `body` makes of a sequence."""

    def __init__(self, body: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class Flattened(nn.Module):
    """An MLP on all places of all samples at once."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 32), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x.reshape(-1, 12)))).reshape(x.shape)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(12, 2, batch_first=True)
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.inner(x, x, x, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(x)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.up, self.down = nn.Embedding(20, 12), nn.Linear(12, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.embedding(x))).mean(1))


NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "flattened": (lambda: Mixed(Flattened()), SEQUENCES),
    "attention": (lambda: Mixed(SelfAttention()), SEQUENCES),
    "words": (Words, WORDS),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.sweep) if n == "attention" else n for n in NETS])
def test_samples_may_lie_along_any_axis(name: str) -> None:
    torch.manual_seed(0)
    build, data = NETS[name]
    result = prune(build().eval(), data[:2], data, macs=0.7, form="residual", joint=2)
    assert result.report.after.macs <= 0.7 * result.report.before.macs
    assert result.report.final.error < 0.6 and not result.report.scarce
    x = data[:3]
    masked = evaluate(result.masked, (x,), torch.float64)[0]
    assert torch.allclose(result.module(x).double(), masked, atol=1e-4)


@pytest.mark.parametrize("streams", ["coupled", "per-depth"])
@pytest.mark.parametrize(("keep", "shares"), [(None, (0.6, 0.35)), ("^three", (0.8,))])
@pytest.mark.sweep
def test_what_is_written_costs_what_was_promised(streams: str, keep: str | None, shares: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    for share in shares:
        result = prune(
            Residual(12).eval(), images(2), images(80), macs=share, streams=streams, keep=keep, form="residual"
        )
        real = result.report.after.macs / result.report.before.macs
        assert real <= share and abs(real - result.report.steps[-1].cost) < 0.02


@pytest.mark.sweep
def test_arguments_that_are_no_tensors_are_constants() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Residual()

        def forward(self, x: Tensor, scale: float = 1.0, other: Tensor | None = None) -> Tensor:
            return self.net(x) * scale

    model = Scaled().eval()
    result = prune(model, (images(2), 2.0, None), images(60), macs=0.6, form="residual", joint=2)
    assert result.report.final.error < 0.5
    again = refit(result, model, images(60, seed=2))
    assert again.report.after.macs == result.report.after.macs


class Ending(nn.Module):
    """A small network with an ending of one's own."""

    def __init__(self, ending: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.ending = Residual(), ending

    def forward(self, x: Tensor) -> Any:
        return self.ending(self.net(x))


def test_outputs_of_other_kinds_are_compared_or_refused() -> None:
    def run(ending: Callable[[Tensor], Any], data: Tensor | None = None, **options: Any) -> Any:
        data = images(60) if data is None else data
        return prune(Ending(ending).eval(), data[:2], data, **({"macs": 0.7, "form": "residual", "joint": 2} | options))

    assert run(lambda y: y.mean()).report.final.agreement is None
    assert run(lambda y: {"a": y, "b": (y * 2).tanh()}).report.final.error < 0.5
    with pytest.raises(InputError, match="gives no floating numbers"):
        run(lambda y: y.argmax(1))
    with pytest.raises(InputError, match="have no gradients"):
        run(lambda y: (y > 0).float())
    with pytest.raises(InputError, match="not finite on these samples"):
        run(lambda y: y.exp().exp(), 1e4 * images(60))
    with pytest.raises(InputError, match="a label is 5, but the network has 5 classes"):
        run(lambda y: y, labels=torch.full((60,), 5))


def test_samples_that_the_network_does_not_take_are_told() -> None:
    with pytest.raises(InputError, match="does not run on these samples"):
        prune(Words().eval(), WORDS[:2], WORDS + 100, macs=0.7, form="residual")
    with pytest.raises(InputError, match="example_inputs is"):
        prune(Words().eval(), None, WORDS, macs=0.7)  # type: ignore[arg-type]
