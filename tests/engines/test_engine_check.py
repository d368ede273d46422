"""An engine beside the network that it was built from: complex numbers, and outputs of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.check import sizes_of_one
from reparam.engines import Port, Runnable, check_engine, engine_check
from reparam.engines.far_check import check_far
from reparam.errors import InputError, NotEquivalentError
from reparam.ir import Program
from support.helpers import Lambda, program_of


class Fake(Runnable):
    """An engine that is a torch module, with its outputs changed."""

    runtime, precision = "a fake", "float32"

    def __init__(self, net: nn.Module, change: Callable[[list[Tensor]], list[Tensor]], *outputs: str) -> None:
        self.net, self.change = net, change
        self.inputs = (Port("x", ("batch", 6), "complex64"),)
        self.outputs = tuple(Port(f"y{i}", ("batch", 6), kind) for i, kind in enumerate(outputs))

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            found: Any = self.net(values[0])
        return self.change([v.resolve_conj() for v in found])


def waves(m: Any, x: Tensor) -> Any:
    return x.real.argmax(1), torch.fft.fft(x) * 2, m.layer(x.imag)


def network() -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = Lambda(waves, layer=nn.Linear(6, 3)).eval()
    return model, program_of(model, torch.randn(2, 6, dtype=torch.complex64))


def test_complex_outputs_are_measured_by_both_parts() -> None:
    model, program = network()
    check = check_engine(program, program, Fake(model, list, "int64", "complex64", "float32"))
    assert check.ran and check.error is not None and check.error < 1e-5


@pytest.mark.parametrize(
    ("change", "name"),
    [(lambda v: [v[0], v[1].conj(), v[2]], "y1"), (lambda v: [v[0], v[1], v[2] + 0.01], "y2")],
    ids=["conjugated", "moved"],
)
def test_what_differs_is_told_by_its_own_name(change: Callable[[list[Tensor]], list[Tensor]], name: str) -> None:
    model, program = network()
    with pytest.raises(NotEquivalentError, match=rf"the engine is not the network: .* \(output '{name}'\)"):
        check_engine(program, program, Fake(model, change, "int64", "complex64", "float32"))


def test_an_engine_may_be_off_by_what_roundings_of_the_numbers_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single run of the network may be nearer to the truth by chance. They are looked at only where it is needed."""
    model, program = network()

    def off(by: float) -> Callable[..., tuple[Program, Any]]:
        def moved(part: Program, values: Any, dtype: Any, generator: Any) -> tuple[Program, Any]:
            constants = {n: replace(c, value=c.value + by) for n, c in part.constants.items()}
            return replace(part, constants=constants), values

        return moved

    monkeypatch.setattr(engine_check, "disturbed", off(0.01))
    engine = Fake(model, lambda v: [v[0], v[1], v[2] + 0.01], "int64", "complex64", "float32")
    assert check_engine(program, program, engine).ran
    monkeypatch.setattr(engine_check, "disturbed", off(1e-4))
    with pytest.raises(NotEquivalentError, match="is allowed"):
        check_engine(program, program, engine)
    monkeypatch.setattr(engine_check, "disturbed", lambda *_: pytest.fail("the engine is near enough"))
    assert check_engine(program, program, Fake(model, list, "int64", "complex64", "float32")).ran


class Rows(Runnable):
    """An engine that computes x * 2, and at a height of one what it is told to."""

    runtime, precision = "a fake", "float32"
    inputs = (Port("x", ("batch", 1, "height", "width"), "float32"),)
    outputs = (Port("y", ("batch", 1, "height", "width"), "float32"),)

    def __init__(self, at_one: Callable[[Tensor], Tensor], height: int = 1) -> None:
        self.at_one, self.height = at_one, height

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [self.at_one(values[0]) if values[0].shape[2] == self.height else values[0] * 2]


def rows(forward: Callable[[Any, Tensor], Tensor] = lambda m, x: x * 2, height: int = 6) -> Program:
    return program_of(Lambda(forward), torch.randn(2, 1, height, 7), dynamic=("batch", "height", "width"))


def test_an_engine_is_run_where_free_axes_are_short() -> None:
    program = rows(height=40)
    check = check_engine(program, program, Rows(lambda x: x * 2))
    assert (2, 1, 10, 20) in check.shapes and (2, 1, 1, 7) in check.shapes
    with pytest.raises(NotEquivalentError, match="the engine is not the network"):
        check_engine(program, program, Rows(lambda x: x, height=10))

    def stops(x: Tensor) -> Tensor:
        raise InputError("it does not run")

    assert check_engine(program, program, Rows(stops, height=10)).samples == check.samples - 2


def test_an_engine_is_run_where_a_free_axis_is_one() -> None:
    program = rows()
    check = check_engine(program, program, Rows(lambda x: x * 2))
    assert sorted(s for s in check.shapes if 1 in s[2:]) == [(2, 1, 1, 1), (2, 1, 1, 7), (2, 1, 6, 1)]
    assert len(sizes_of_one(program)) == 3
    with pytest.raises(NotEquivalentError, match="the engine gives other outputs: 2x1x2x7 for 2x1x1x7"):
        check_engine(program, program, Rows(lambda x: torch.cat([x, x], 2)))
    with pytest.raises(NotEquivalentError, match="the engine is not the network"):
        check_engine(program, program, Rows(lambda x: x * 2.01))


def test_an_engine_may_stop_where_a_free_axis_is_one() -> None:
    def stops(x: Tensor) -> Tensor:
        raise InputError("it does not run on these inputs")

    program = rows()
    assert not any(s[2] == 1 for s in check_engine(program, program, Rows(stops)).shapes)
    spread = rows(lambda m, x: x * 2 + x.var(2, keepdim=True) * 0)  # no number for one row
    assert not any(s[2] == 1 for s in check_engine(spread, spread, Rows(lambda x: x * 3)).shapes)


def test_of_one_free_axis_beside_the_batch_there_is_one_size_of_one() -> None:
    program = program_of(Lambda(lambda m, x: x * 2), torch.randn(2, 1, 6, 7), dynamic=("batch", "width"))
    [sizes] = sizes_of_one(program)
    assert sorted(sizes.values()) == [1, 2]
    assert sizes_of_one(program_of(Lambda(lambda m, x: x * 2), torch.randn(2, 3))) == []


def test_an_engine_gives_the_dtypes_of_the_network() -> None:
    program = program_of(Lambda(lambda m, x: (x * 2, (x > 0).to(torch.uint8))), torch.randn(2, 6))

    class Kinds(Rows):
        inputs = (Port("x", ("batch", 6), "float32"),)
        outputs = (Port("y", ("batch", 6), "float32"), Port("z", ("batch", 6), "uint8"))

        def __init__(self, real: torch.dtype, whole: torch.dtype) -> None:
            self.kinds = real, whole

        def run(self, values: Sequence[Tensor]) -> list[Tensor]:
            return [(values[0] * 2).to(self.kinds[0]), (values[0] > 0).to(self.kinds[1])]

    assert check_engine(program, program, Kinds(torch.float32, torch.uint8)).ran
    with pytest.raises(NotEquivalentError, match=r"^the engine gives 'z' in int8, and the network in uint8$"):
        check_engine(program, program, Kinds(torch.float32, torch.int8))
    with pytest.raises(NotEquivalentError, match=r"^the engine gives 'y' in float64, and the network in float32$"):
        check_engine(program, program, Kinds(torch.float64, torch.uint8))


class Near(Rows):
    """An engine that computes x * 2 of numbers that are not large."""

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        x = values[0]
        return [torch.where(x.abs() < 20, x * 2, self.at_one(x))]


def test_an_engine_is_run_on_larger_numbers() -> None:
    program = rows()
    for at_large, told in (
        (lambda x: x / 0, "the engine's outputs are not finite .*, on inputs of 30 times the size"),
        (lambda x: x * 2.2, "the engine is not the network on inputs of 30 times the size: its error is .* of "),
    ):
        engine = Near(at_large)
        assert check_engine(program, program, engine).ran
        with pytest.raises(NotEquivalentError, match=told):
            check_far(program, program, engine)
    check_far(program, program, Near(lambda x: x * 2.0001))
    bounded = replace(program, inputs=tuple(replace(s, low=0.0, high=1.0) for s in program.inputs))
    powers = rows(lambda m, x: (x.square() * 1e3).exp())
    for part in (bounded, powers, replace(program, inputs=())):
        check_far(part, part, Near(lambda x: x / 0))


def test_an_engine_that_does_not_run_on_larger_numbers_is_not_judged_by_them() -> None:
    def stops(x: Tensor) -> Tensor:
        raise InputError("it does not run")

    check_far(rows(), rows(), Near(stops))
