"""Batches from Python: what one may be, and what is told of one that does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from reparam.data import open_samples
from reparam.errors import InputError
from reparam.ir import InputSpec
from support.sample_files import indices, labels_of, numbered, pairs, rows_of, vectors

ROWS = torch.from_numpy(numbered(5))


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        ([ROWS[:2], ROWS[2:]], None),
        ([(ROWS[:2],), [ROWS[2:]]], None),
        ([ROWS.numpy()], None),
        (ROWS, None),
        ({"input": ROWS, "label": torch.arange(5)}, range(5)),
        ([(ROWS[:2], torch.tensor([4, 3])), (ROWS[2:], torch.tensor([[2], [1], [0]]))], (4, 3, 2, 1, 0)),
        ([{"input": ROWS, "labels": torch.arange(5), "mask": "unread"}], range(5)),
        (DataLoader(TensorDataset(ROWS, torch.arange(5)), batch_size=2), range(5)),
        ([ROWS.double().requires_grad_()], None),
    ],
)
def test_what_a_batch_may_be(source: Any, labels: Any) -> None:
    for _ in range(2):  # what can be iterated over again can be read again
        samples = list(open_samples(source, vectors()))
        assert rows_of(samples) == [0, 1, 2, 3, 4]
        assert not any(sample.inputs[0].requires_grad for sample in samples)
        assert labels_of(samples) == ([None] * 5 if labels is None else list(labels))


def test_inputs_are_by_position_or_by_name() -> None:
    for batch in ((ROWS, ROWS + 10), {"b": ROWS + 10, "a": ROWS}, (ROWS, ROWS + 10, torch.arange(5))):
        samples = list(open_samples([batch], pairs()))
        assert [[float(v[0, 0]) for v in s.inputs] for s in samples] == [[i, i + 10] for i in range(5)]
        assert labels_of(samples) == (list(range(5)) if len(batch) == 3 else [None] * 5)


def nested(*names: str) -> list[InputSpec]:
    return [InputSpec(name, ("N", 3), torch.float32) for name in names]


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        (((ROWS, ROWS + 10), torch.arange(5)), True),
        (([ROWS, ROWS + 10], list(range(5))), True),
        (((ROWS, ROWS + 10),), False),
        (({"a": ROWS, "b": ROWS + 10}, torch.arange(5)), True),
        (({"data_b": ROWS + 10, "data_a": ROWS},), False),
        ({"a": ROWS, "b": ROWS + 10, "y": torch.arange(5)}, True),
        ({"data_a": ROWS, "data_b": ROWS + 10, "labels": torch.arange(5)}, True),
    ],
)
def test_inputs_may_lie_in_a_container_of_their_own(batch: Any, labelled: bool) -> None:
    """As of a dataset of ((a, b), label), or of a network that takes one mapping."""
    samples = list(open_samples([batch], nested("data_a", "data_b")))
    assert [[float(v[0, 0]) for v in s.inputs] for s in samples] == [[i, i + 10] for i in range(5)]
    assert labels_of(samples) == (list(range(5)) if labelled else [None] * 5)


def test_a_key_that_is_an_input_is_no_label() -> None:
    samples = list(open_samples([{"x": ROWS, "y": ROWS + 10}], nested("data_x", "data_y")))
    assert labels_of(samples) == [None] * 5 and float(samples[0].inputs[1][0, 0]) == 10
    with pytest.raises(InputError, match=r"has no 'b_x'; it holds a_x, x"):
        list(open_samples([{"a_x": ROWS, "x": ROWS}], nested("a_x", "b_x")))
    with pytest.raises(InputError, match="holds 4 values, where the network takes 2"):
        list(open_samples([((ROWS, ROWS, ROWS), torch.arange(5))], nested("a", "b")))


def test_a_generator_is_only_what_is_needed() -> None:
    samples = open_samples((batch for batch in [ROWS]), vectors())
    assert len(list(samples)) == 5
    with pytest.raises(InputError, match="a generator holds 0 samples; it is empty, or was read to its end before"):
        list(samples)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "a list holds 0 samples"),
        (3, "the samples are an int, neither a path nor an iterable of batches$"),
        (TensorDataset(ROWS), "neither a path nor an iterable of batches; give a DataLoader of it"),
        ((ROWS, torch.arange(5)), r"a pair of samples and labels is no list of batches; give \[\(x, y\)\]"),
        ((ROWS.numpy(), np.arange(5)), "a pair of samples and labels"),
        ((ROWS, ROWS.sum(1)), r"batch 1 of the samples .* of shape \[5\]"),
        ([3], "batch 0 of the samples holds an int, not an ordinary tensor"),
        ([None], "batch 0 of the samples holds None"),
        ([ROWS, "x"], "batch 1 of the samples holds a str"),
        ([(ROWS, ROWS, ROWS)], "holds 3 values, where the network takes 1, and one more may be labels"),
        ([(ROWS, ROWS)], r"the labels of batch 0 of the samples are float32 of shape \[5, 3\]"),
        ([(ROWS, torch.arange(4))], "batch 0 of the samples holds 4 labels for 5 samples"),
        ([(ROWS, torch.arange(5) - 1)], "hold -1; classes are counted from 0"),
        ([(ROWS, torch.zeros(5, 2, dtype=torch.int64))], "not one whole number for each sample"),
        ([(ROWS, torch.zeros(5, dtype=torch.bool))], "the labels of batch 0 of the samples are bool"),
        ([ROWS[0]], r"of shape \[3\], where the input 'input' is float32 of shape \(N, 3\)"),
        ([torch.tensor(1.0)], r"of shape \[\]"),
        ([ROWS.to_sparse()], "a sparse tensor"),
        ([ROWS.to("meta")], "a tensor without values"),
        ([np.array(["a"])], "an array of <U1"),
        ([{"x": ROWS}], "has no 'input'; it holds x"),
        ([ROWS, (ROWS, torch.arange(5))], "batch 1 of the samples has a label, where the samples before it have none"),
        ([torch.full((1, 3), torch.inf)], "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_said(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(open_samples(source, vectors()))


def test_the_network_has_several_inputs() -> None:
    with pytest.raises(InputError, match=r"is a torch\.Tensor, but the network takes 2 inputs"):
        list(open_samples([ROWS], pairs()))
    with pytest.raises(InputError, match=r"unequal numbers of samples for the inputs: \[5, 4\]"):
        list(open_samples([(ROWS, ROWS[:4])], pairs()))
    (sample,) = open_samples([torch.tensor([[True, False, True]])], indices())
    assert sample.inputs[0].tolist() == [[1, 0, 1]]
