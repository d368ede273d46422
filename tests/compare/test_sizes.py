"""`verify` of modules at sizes that neither was captured at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reparam
from reparam.compare import sizes
from reparam.errors import InputError
from support.helpers import Lambda

Forward = Callable[[Any, Tensor], Tensor]


def plain(m: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(m.conv(x), 1).flatten(1)


def padded(m: Any, x: Tensor) -> Tensor:
    return plain(m, F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)))


def pooled(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) if x.shape[-1] <= 20 else m.conv(x).amax((2, 3))


def counted(m: Any, x: Tensor) -> Tensor:
    return plain(m, x) if x.shape[0] <= 2 else -plain(m, x)


@pytest.mark.parametrize(
    ("traced", "found"),
    [(1, (2, 1, 1, 1)), (2, (4, 1, 3, 3)), (8, (22, 15, 13, 3)), (32, (48, 69, 53, 3)), (224, (48, 81, 53, 3))],
)
def test_sides_are_even_odd_prime_and_small_and_the_batch_is_not_too_large(traced: int, found: tuple[int, ...]) -> None:
    assert list(sizes._no_longer_than(sizes.TIMES * traced)) == list(zip(found, (2, 3, 5, 7), strict=True))


def refusing(m: Any, x: Tensor) -> Tensor:
    if x.shape[-1] != 16:
        raise ValueError("only 16")
    return plain(m, x)


def model(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    return Lambda(forward, conv=nn.Conv2d(3, 4, 3)).eval()


@pytest.mark.parametrize("other", [padded, pooled, counted])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_branch_on_a_size_is_found(other: Forward, swapped: bool) -> None:
    pair = [model(plain), model(other)]
    verdict = reparam.verify(*(reversed(pair) if swapped else pair), torch.randn(1, 3, 16, 16))
    assert not verdict.equivalent
    assert verdict.reason.startswith("on inputs of [") and "differs by" in verdict.reason


@pytest.mark.parametrize("other", [plain, refusing])
def test_the_same_function_where_both_run_is_equivalent(other: Forward) -> None:
    assert reparam.verify(model(plain), model(other), torch.randn(2, 3, 16, 16)).equivalent


def thin(axis: int, factor: float) -> Forward:
    return lambda m, x: x * 2 if x.shape[axis] > 1 else x * factor


@pytest.mark.parametrize("axis, shape, told", [(2, (8, 9), "3, 1, 9"), (3, (8, 9), "3, 8, 1"), (2, (8,), "3, 1")])
def test_a_branch_at_a_side_of_one_is_found(axis: int, shape: tuple[int, ...], told: str) -> None:
    pair = [Lambda(thin(axis, factor)).eval() for factor in (2, 3)]
    found = reparam.verify(*pair, torch.zeros(2, 3, *shape))
    assert not found.equivalent and f"on inputs of [2, {told}]" in found.reason
    assert reparam.verify(pair[0], Lambda(thin(axis, 2)).eval(), torch.zeros(2, 3, *shape)).equivalent


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_branch_at_one_sample_of_a_sequence_is_found(batch: int) -> None:
    """A layer of the last axis takes no other size there."""
    layer = nn.Linear(4, 4)
    one, two = (Lambda(lambda m, x, by=by: layer(x) * (by if len(x) == 1 else 1)).eval() for by in (1, 1.5))
    found = reparam.verify(one, two, torch.zeros(batch, 9, 4))
    assert not found.equivalent
    assert batch == 1 or "on inputs of [1, 9, 4]" in found.reason  # one sample is drawn as it was captured, too


def test_a_sequence_of_one_is_tried() -> None:
    pair = [Lambda(thin(1, factor)).eval() for factor in (2, 3)]
    found = reparam.verify(*pair, torch.zeros(2, 5, 4))
    assert not found.equivalent and "on inputs of [2, 1, 4]" in found.reason


def test_a_statistic_of_one_number_says_nothing(recwarn: pytest.WarningsRecorder) -> None:
    one, two = (Lambda(lambda m, x: x / x.std(2, keepdim=True)).eval() for _ in range(2))
    assert reparam.verify(one, two, torch.zeros(2, 3, 8, 9)).equivalent and not list(recwarn)


def scaled(factor: float) -> torch.export.ExportedProgram:
    net = Lambda(lambda m, x: F.interpolate(x, scale_factor=factor)).eval()
    free = {0: torch.export.Dim("b"), **{i: torch.export.Dim(f"side{i}", min=4, max=99) for i in (2, 3)}}
    return torch.export.export(net, (torch.randn(2, 3, 12, 12),), dynamic_shapes=((free,),))


def test_programs_with_free_sizes_are_compared_at_those_that_are_asked_for() -> None:
    """0.69999 of 20 is 13, and 0.7 of it 14; both are 8 of 12."""
    one, two = scaled(0.7), scaled(0.69999)
    assert reparam.verify(one, one, input_shapes=[(3, 10, 20)]).shapes[0] == (1, 3, 10, 20)
    assert "shape [1, 3, 7, 14] in one and" in reparam.verify(one, two, input_shapes=[(3, 10, 20)]).reason
    assert "shape [1, 3, 7, 14] in one and" in reparam.verify(one, two, torch.zeros(2, 3, 10, 20)).reason
    for shape in ((4, 10, 20), (3, 10)):
        text = f"has the shape 3,any,any without its batch, not {','.join(map(str, shape))}"
        with pytest.raises(InputError, match=text):
            reparam.verify(one, two, input_shapes=[shape])


def test_examples_in_containers_are_sizes_as_well() -> None:
    """The shape of each tensor stands beside its own input."""
    one, two = (Lambda(lambda m, pair, z: pair["a"] * 2 + z.sum() + pair["b"].sum()).eval() for _ in range(2))
    given = ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 5)}, torch.zeros(2, 7))
    assert reparam.verify(one, two, *given).equivalent
    captured = reparam.convert(one, *given)
    assert reparam.verify(one, captured.module, *given).equivalent


def test_programs_with_free_sizes_are_run_at_others_too() -> None:
    """0.68 of 48 is 32, and 0.69 of it 33; of 12, as they were captured, both are 8, and of 9 both are 6."""
    found = reparam.verify(scaled(0.68), scaled(0.69))
    assert not found.equivalent and "on inputs of [" in found.reason


def test_another_shape_of_the_result_is_named() -> None:
    def longer(m: Any, x: Tensor) -> Tensor:
        return torch.cat([plain(m, x)] * (1 + (x.shape[-1] > 40)), 1)

    verdict = reparam.verify(model(plain), model(longer), torch.randn(2, 3, 16, 16))
    assert "has shape [2, 4] in one and [2, 8] in the other" in verdict.reason


def test_what_is_left_fixed_by_a_conversion_is_no_difference() -> None:
    original = model(padded)
    made = reparam.convert(original, torch.randn(2, 3, 16, 16)).module
    assert reparam.verify(original, made, torch.randn(2, 3, 16, 16)).equivalent


ASKS: dict[str, Callable[[int], bool]] = {
    "long": lambda n: n > 20,
    "odd": lambda n: n % 2 == 1,
    "short": lambda n: n < 6,
    "prime": lambda n: n == 53,
}


@given(asks=st.sampled_from(sorted(ASKS)), tokens=st.booleans(), factor=st.floats(0.1, 3.0))
@settings(deadline=None, max_examples=10)
def test_a_branch_on_the_length_of_a_sequence_is_found(asks: str, tokens: bool, factor: float) -> None:
    def asking(m: Any, x: Tensor) -> Tensor:
        return m.layer(x) * (1 + factor if ASKS[asks](x.shape[1]) else 1)

    def both(forward: Forward) -> nn.Module:
        torch.manual_seed(0)
        return Lambda(forward, layer=nn.Embedding(9, 4) if tokens else nn.Linear(4, 4)).eval()

    x = torch.randint(0, 9, (2, 8)) if tokens else torch.randn(2, 8, 4)
    verdict = reparam.verify(both(lambda m, x: m.layer(x)), both(asking), x, trials=2, adversarial=False)
    assert not verdict.equivalent and "differs by" in verdict.reason
