"""Outputs against those of another model: shares, errors, and the samples that are named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.scoring import Agreement, Comparison
from reparam.scoring.agreement import NAMED


def compare(first: Tensor, second: Tensor, size: int = 3) -> Agreement:
    found = Comparison("b")
    names = [f"s{i}" for i in range(len(first))]
    for i in range(0, len(first), size):
        found.add(names[i : i + size], [first[i : i + size]], [second[i : i + size]])
    return found.result()


def test_shares_and_errors_are_over_all_samples_and_the_worst_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 4, generator=generator)
    b = a + 0.01 * torch.randn(8, 4, generator=generator)
    b[5] = b[5].roll(1)
    found = compare(a, b)
    assert found.samples == 8 and found.changed == 1 and found.share == 7 / 8
    assert found.error == pytest.approx(float((a - b).double().norm() / a.double().norm()), rel=1e-6)
    assert found.worst is not None and found.worst.input == "s5" and found.differing[0] == found.worst
    assert (found.worst.first, found.worst.second) == (int(a[5].argmax()), int(b[5].argmax()))
    own = (a[5] - b[5]).double().square().mean().sqrt() / a.double().square().mean().sqrt()
    assert found.worst.error == pytest.approx(float(own), rel=1e-6)
    assert [d.error for d in found.differing[1:]] == sorted((d.error for d in found.differing[1:]), reverse=True)


def test_a_changed_class_comes_before_a_larger_error() -> None:
    a = torch.tensor([[1.0, 0.99], [5.0, 1.0], [3.0, 1.0]])
    b = torch.tensor([[0.99, 1.0], [9.0, 1.0], [3.0, 1.0]])
    found = compare(a, b)
    assert [d.input for d in found.differing] == ["s0", "s1"], "what does not differ is not named"
    assert found.worst is not None and found.worst.input == "s1" and not found.worst.changed


def test_no_more_are_kept_than_are_named() -> None:
    a = torch.zeros(100, 1)
    found = compare(a + 1.0, a + 1.0 + torch.arange(100.0)[:, None], size=7)
    assert found.share is None and len(found.differing) == NAMED
    assert [d.input for d in found.differing] == [f"s{i}" for i in range(99, 99 - NAMED, -1)]


def test_equal_outputs_have_no_worst_sample_and_infinities_are_equal_to_themselves() -> None:
    a = torch.tensor([[1.0, 2.0], [-math.inf, 0.0]])
    found = compare(a[:1], a[:1])
    assert found.worst is None and found.error == 0.0 and found.share == 1.0 and found.differing == ()
    other = Comparison("b")
    other.add(["x"], [a[1:]], [a[1:]])
    assert other.wrong == 0.0


def test_what_is_not_finite_is_the_worst_of_all() -> None:
    a = torch.ones(4, 2)
    b = a.clone()
    b[2, 0] = math.nan
    found = compare(a, b)
    assert found.error == math.inf and found.worst is not None and found.worst.input == "s2"


def test_decisions_of_pixels_are_counted_and_samples_get_no_class() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    a[:, 0], b[:, 0], b[1, 1, 0] = 1.0, 1.0, 2.0
    found = compare(a, b)
    assert found.share == 28 / 32 and found.changed == 0 and found.worst is not None
    assert found.worst.input == "s1" and found.worst.first is None


def test_outputs_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="b gives floating outputs of 2x3, where the first model gives 2x4"):
        compare(torch.zeros(2, 4), torch.zeros(2, 3))


def test_outputs_that_are_decisions_are_compared_as_such() -> None:
    found = compare(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 7], dtype=torch.int32))
    assert (found.share, found.error, found.changed, found.whole) == (0.75, 0.25, 1, True)
    assert found.worst is not None and (found.worst.input, found.worst.first, found.worst.second) == ("s3", 3, 7)
    assert found.worst.error == 1.0
    maps = compare(torch.zeros(2, 4, 4, dtype=torch.int64), torch.eye(4).long().expand(2, 4, 4))
    assert (maps.share, maps.error, maps.changed) == (0.75, 0.25, 0)


def test_decisions_beside_scores_are_compared_with_what_the_scores_decide() -> None:
    scores, classes = torch.eye(4), torch.tensor([0, 1, 2, 0], dtype=torch.int32)
    for a, b in ((scores, classes), (classes, scores)):
        found = compare(a, b)
        assert (found.share, found.error, found.changed, found.whole) == (0.75, 0.25, 1, True)


def test_decisions_that_scores_do_not_give_are_not_compared_with_them() -> None:
    with pytest.raises(InputError, match="b gives decisions of 2x4, where the first model gives floating outputs"):
        compare(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int64))
