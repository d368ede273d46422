"""Models of any kind on samples: batches that they take, labels that folders are, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.data import open_samples
from reparam.engines import Port, Runnable, Runner, Task, input_specs, judge_on_samples
from reparam.engines.on_samples import BATCH, fixed_batch
from reparam.errors import InputError
from reparam.ir import InputSpec
from reparam.loading import LoadedModel

SPECS = (InputSpec("x", ("batch", 3), torch.float32),)
ROWS = torch.randn(70, 3, generator=torch.Generator().manual_seed(0))


class Fake(Runnable):
    """Gives its input back. batch: of its port. taken: batches that it takes. log: of those that it got."""

    runtime, precision = "a fake", "float32"

    def __init__(self, batch: int | str = "batch", taken: Sequence[int] | None = None, dtype: str = "float32") -> None:
        self.inputs = self.outputs = (Port("x", (batch, 3), dtype),)
        self.taken, self.log = taken, list[int]()

    def takes(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        return self.taken is None or shapes[0][0] in self.taken

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        assert str(values[0].dtype) == f"torch.{self.inputs[0].dtype}"
        self.log.append(values[0].shape[0])
        return list(values)


@pytest.mark.parametrize(
    ("engine", "batches"),
    [
        (Fake(), [32, 32, 6]),
        (Fake(5), [5] * 16),
        (Fake(40), [40] * 3),
        (Fake(taken=(4, 8)), [8] * 8 + [4] * 2),
        (Fake(taken=(64,)), [64] * 3),
    ],
)
def test_an_engine_gets_batches_that_it_takes_and_every_sample_its_own_output(engine: Fake, batches: list[int]) -> None:
    runner = Runner("fake", engine)
    found = torch.cat([runner.outputs([ROWS[i : i + BATCH]])[0] for i in range(0, len(ROWS), BATCH)])
    assert torch.equal(found, ROWS)
    assert engine.log == batches


class Small(Fake):
    """Takes up to 15 samples, and does not say so."""

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        if len(values[0]) > 15:
            raise InputError("too many")
        return super().run(values)


def test_an_engine_that_refuses_a_batch_gets_halves_of_it() -> None:
    engine = Small()
    runner = Runner("small", engine)
    found = torch.cat([runner.outputs([ROWS[i : i + BATCH]])[0] for i in range(0, len(ROWS), BATCH)])
    assert torch.equal(found, ROWS) and engine.log == [8] * 8 + [6]


def test_values_go_in_as_the_model_takes_them_and_come_out_in_float32() -> None:
    assert Runner("half", Fake(dtype="float16")).outputs([ROWS])[0].dtype is torch.float32
    net = LoadedModel(nn.Linear(3, 2).bfloat16())
    assert Runner("net", net).outputs([ROWS])[0].shape == (70, 2)


def test_a_program_whose_batch_is_fixed_is_run_in_that_batch() -> None:
    net = nn.Linear(3, 2)
    fixed = torch.export.export(net, (ROWS[:8],))
    free = torch.export.export(net, (ROWS[:8],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    loaded = LoadedModel(fixed.module(), exported=fixed)
    assert (fixed_batch(loaded), fixed_batch(LoadedModel(net, exported=free)), fixed_batch(LoadedModel(net))) == (
        8, None, None,
    )  # fmt: skip
    torch.testing.assert_close(Runner("net", loaded).outputs([ROWS])[0], net(ROWS).detach())


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        return {"complex": torch.complex(x, x), "number": x.mean(), "sum": x.sum(0, keepdim=True)}[self.kind]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LoadedModel(Odd("complex")), "net gives neither real numbers nor decisions"),
        (LoadedModel(Odd("number")), r"net gives an output of shape \[\] for 4 samples"),
        (LoadedModel(Odd("sum")), r"net gives an output of shape \[1, 3\] for 4 samples"),
        (LoadedModel(nn.Linear(4, 2)), "net does not run on samples of shape 4x3: "),
        (Fake(taken=(100,)), "net takes samples of 4x3 in no batch of up to 64"),
        (Fake(dtype="int64"), r"net takes x int64 \(batch, 3\), not float32 \(4, 3\)"),
    ],
)
def test_models_that_give_nothing_to_compare(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Runner("net", model).outputs([ROWS[:4]])


def judged(labels: Any = None, task: Task | None = None, **models: Any) -> Any:
    return judge_on_samples(models, open_samples([ROWS], SPECS, labels=labels), task)


def test_every_model_is_scored_and_compared_with_the_first() -> None:
    labels = ROWS.argmax(1)
    found = judged(labels, a=Fake(), b=LoadedModel(nn.Identity()), c=Fake(7))
    assert found.samples == 70
    assert {n: (m.score.value, m.agreement.share, m.agreement.error) for n, m in found.models.items()} == dict.fromkeys(
        "abc", (1.0, 1.0, 0.0)
    )
    turned = LoadedModel(nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        turned.module.weight.copy_(torch.eye(3).roll(1, 0))
    worse = judged(labels, a=Fake(), b=turned).models["b"]
    assert worse.score.value == 0.0 and worse.agreement.share == 0.0 and worse.agreement.changed == 70
    assert judged(a=Fake()).models["a"].score is None


def test_folders_are_labels_only_where_they_are_as_many_as_the_classes() -> None:
    labels = ROWS.argmax(1)
    assert judged(labels, Task(folders=3), a=Fake()).note == ""
    found = judged(labels, Task(folders=4), a=Fake())
    assert found.models["a"].score is None
    assert found.note == "the 4 folders of the samples are not taken for labels, since the first model has 3 classes"
    assert judged(labels, a=Fake()).models["a"].score.value == 1.0, "labels that were named are taken as they are"
    found = judged(labels, Task(folders=3), a=LoadedModel(Decided()))
    assert found.note == "the 3 folders of the samples are not taken for labels, since the first model has decisions"


class Decided(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(1)


def test_models_that_give_decisions_are_scored_and_compared_as_such() -> None:
    labels = ROWS.argmax(1)
    labels[0] = (labels[0] + 1) % 3
    found = judged(labels, a=LoadedModel(Decided()), b=LoadedModel(Decided())).models["b"]
    assert found.score.value == 69 / 70 and (found.agreement.share, found.agreement.error) == (1.0, 0.0)


class Pair(nn.Module):
    """Two inputs, which its forward names."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left.sum() + right.sum()


def test_inputs_are_those_of_the_first_model_that_tells_them() -> None:
    net = LoadedModel(nn.Linear(3, 2), input_shapes=((3,),))
    assert input_specs([LoadedModel(nn.Linear(3, 2)), Fake(4)])[0] == SPECS[0]
    assert input_specs([net, Fake()])[0] == InputSpec("input", ("batch", 3), torch.float32)
    assert input_specs([net], [(5,), (2, 2)])[1] == InputSpec("input_1", ("batch", 2, 2), torch.float32)
    assert [s.name for s in input_specs([LoadedModel(Pair())], [(5,), (2, 2)])] == ["left", "right"]
    assert [s.name for s in input_specs([LoadedModel(Pair(), input_shapes=((5,),)), net])] == ["left"]
    with pytest.raises(InputError, match="the input's shape is not known"):
        input_specs([LoadedModel(nn.Linear(3, 2))])
