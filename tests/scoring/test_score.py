"""Outputs against labels: shares of classes, intersections over unions, and metrics of the user's own."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.scoring import Score, scorer_for


def score(batches: list[tuple[Tensor, Tensor | None]], metric: Any = None) -> Score:
    scorer = scorer_for([batches[0][0]], batches[0][1], metric, "mine:m")
    assert scorer is not None
    for outputs, labels in batches:
        scorer.add([outputs], labels)
    return scorer.result()


def test_top_1_and_top_5_are_shares_over_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(50, 9, generator=generator), torch.randint(9, (50,), generator=generator)
    found = score([(outputs[:32], labels[:32]), (outputs[32:], labels[32:])])
    order = outputs.argsort(1, descending=True)
    assert found.name == "top-1" and found.value == float((order[:, 0] == labels).double().mean())
    assert found.more == {"top-5": float((order[:, :5] == labels[:, None]).any(1).double().mean())}
    assert found.points == 100 * found.value
    assert not score([(outputs[:, :5], labels % 5)]).more, "of five classes all are among the first five"


def test_the_mean_intersection_over_union_is_over_all_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    outputs, labels = torch.randn(6, 4, 5, 7, generator=generator), torch.randint(3, (6, 5, 7), generator=generator)
    labels[0], labels[1, 0] = 255, -1
    found = score([(outputs[:4], labels[:4]), (outputs[4:], labels[4:])])
    known, guess = (labels >= 0) & (labels != 255), outputs.argmax(1)
    shares = []
    for c in range(4):  # class 3 is in no label, and still in outputs
        both = ((guess == c) & (labels == c) & known).sum()
        shares.append(float(both) / float((((guess == c) | (labels == c)) & known).sum()))
    assert found.name == "mIoU" and found.value == pytest.approx(sum(shares) / 4, abs=1e-12)
    assert found.more["pixel accuracy"] == pytest.approx(float((guess == labels)[known].double().mean()), abs=1e-12)


def test_a_class_that_is_nowhere_counts_for_nothing() -> None:
    outputs = torch.zeros(1, 5, 2, 2)
    outputs[:, 1] = 1.0
    assert score([(outputs, torch.ones(1, 2, 2, dtype=torch.int64))]).value == 1.0


def test_outputs_that_are_decisions_score_as_the_scores_that_they_come_from() -> None:
    generator = torch.Generator().manual_seed(2)
    outputs, labels = torch.randn(50, 9, generator=generator), torch.randint(9, (50,), generator=generator)
    found = score([(outputs.argmax(1), labels)])
    assert (found.name, found.value, found.more) == ("top-1", score([(outputs, labels)]).value, {})
    maps, pixels = torch.randn(6, 4, 5, 7, generator=generator), torch.randint(3, (6, 5, 7), generator=generator)
    pixels[0], pixels[1, 0] = 255, -1
    assert score([(maps.argmax(1).int(), pixels)]) == score([(maps, pixels)])


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (torch.full((1, 2, 2), 300), torch.zeros(1, 2, 2, dtype=torch.int64), "gives pixels the numbers 300 to 300"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "a label is 3, but the network has 3 classes"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 8, dtype=torch.int64), r"label maps are \[8, 8\], but the outputs"),
        (torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3), "a label is 3, but"),
        (torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255), "no pixel of any class"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "neither classes nor label maps for outputs of"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64), "a --metric of your own"),
    ],
)
def test_labels_that_are_not_for_the_outputs(outputs: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score([(outputs, labels)])


# ---- of the user's own -----------------------------------------------------------------------------------------------


class Sum:
    """Adds up what it is given, as torchmetrics does."""

    def __init__(self) -> None:
        self.total = 0.0

    def update(self, outputs: Tensor, labels: Tensor) -> None:
        self.total += float((outputs[:, 0] * labels).sum())

    def compute(self) -> Tensor:
        return torch.tensor(self.total)


ROWS, LABELS = torch.arange(6.0).reshape(6, 1), torch.arange(6)
BATCHES: list[tuple[Tensor, Tensor | None]] = [(ROWS[:4], LABELS[:4]), (ROWS[4:], LABELS[4:])]


@pytest.mark.parametrize(
    "metric",
    [
        lambda o, y: o[:, 0],
        lambda o, y: o[:, 0].numpy(),
        lambda o, y: [float(v) for v in o[:, 0]],
        lambda o, y: o.mean(),
        lambda o, y: float(o.mean()),
        lambda o, y: np.float32(o.mean()),
    ],
)
def test_a_function_gives_a_number_for_each_sample_or_their_mean(metric: Any) -> None:
    found = score(BATCHES, metric)
    assert (found.value, found.name, found.own, found.points) == (2.5, "mine:m", True, 2.5)


def test_a_class_sees_all_batches() -> None:
    assert score(BATCHES, Sum).value == 55.0


def test_a_metric_needs_no_labels_and_takes_all_outputs() -> None:
    scorer = scorer_for([ROWS, -ROWS], None, lambda o, y: (o[0] + o[1] + (y is None))[:, 0])
    assert scorer is not None
    scorer.add([ROWS, -ROWS], None)
    assert scorer.result().value == 1.0
    assert scorer_for([ROWS], None) is None


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda o, y: torch.zeros(3), r"gave \[3\] values for 4 samples"),
        (lambda o, y: "good", "gave a str, not a number"),
        (lambda o, y: ["good"] * 4, "that holds no numbers"),
        (lambda o, y: float("nan"), "is nan, which compares with nothing"),
        (lambda o, y: o / "x", "failed"),
        (lambda o, y: sys.exit(), "was ended by SystemExit"),
        (int, "is a class without update and compute"),
    ],
)
def test_metrics_that_fail_say_so(metric: Any, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        score(BATCHES, metric)
    assert getattr(caught.value, "exit_code", None) == 2
