"""Many products of magnitudes are added up in float32; what that loses is added."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.check import rounding_bound
from reparam.check.rounding_bound import MANY, _Magnitudes, magnitudes
from reparam.ir import arguments, evaluate_region, small_maps
from support.helpers import Lambda, doubles, program_of
from support.magnitudes import of

LAYERS = {
    "linear": (nn.Linear(12, 5), (7, 12)),
    "convolution": (nn.Conv2d(12, 6, 3, padding=1, groups=2), (2, 12, 5, 4)),
    "depthwise": (nn.Conv1d(12, 12, 3, groups=12, bias=False), (2, 12, 9)),
    "volumes": (nn.Conv3d(3, 4, 2, stride=2), (2, 3, 4, 5, 4)),
    "transposed": (nn.ConvTranspose2d(12, 4, 3, 2), (2, 12, 4, 4)),
}


def both(layer: nn.Module, x: Tensor, *, many: int = 0) -> tuple[Tensor, Tensor]:
    """The magnitudes of a layer's result in float64, and as they are found when so many products are many."""
    program = program_of(layer, x.to(next(layer.parameters()).dtype), dynamic=())
    with patch.object(rounding_bound, "MANY", 1 << 60):
        region, _, exact = of(program, 0, x)
    with patch.object(rounding_bound, "MANY", many):
        _, _, found = of(program, 0, x)
    return exact[region[-1]], found[region[-1]]


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("name", LAYERS)
def test_they_are_no_smaller_and_hardly_larger(name: str, single: bool) -> None:
    layer, shape = LAYERS[name]
    exact, found = both(layer.float() if single else layer.double(), doubles(*shape) * 100)
    assert found.dtype == torch.float64
    assert (found >= exact).all() and (found <= 1.02 * exact + 1e-30).all()


def test_groups_whose_number_is_a_size() -> None:
    """Kernels of their own for the samples, which are so many groups."""
    model = Lambda(
        lambda m, x: F.conv2d(x.reshape(1, -1, 5, 4), x[:, :, :3, :3].reshape(-1, 2, 3, 3), groups=x.shape[0])
    )
    x = doubles(3, 2, 5, 4)
    program = program_of(model, x, dynamic=("batch",))
    assert any(isinstance(arguments(n).get("groups"), fx.Node) for n in program.calls())
    with patch.object(rounding_bound, "MANY", 1 << 60):
        region, _, exact = of(program, 0, x)
    with patch.object(rounding_bound, "MANY", 0):
        _, _, found = of(program, 0, x)
    assert (found[region[-1]] >= exact[region[-1]]).all() and (found[region[-1]] <= 1.02 * exact[region[-1]]).all()


def test_few_products_are_added_up_in_float64() -> None:
    """128 channels by 128 for 15 and for 16 rows."""
    layer = nn.Linear(128, 128).double()
    assert MANY == 128 * 128 * 16
    assert torch.equal(*both(layer, doubles(15, 128), many=MANY))
    exact, found = both(layer, doubles(16, 128), many=MANY)
    assert not torch.equal(exact, found)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(8, 4, 3, bias=False), (2, 8, 5, 5)),  # 8*9 products for 2*4*9 results
        (nn.ConvTranspose2d(64, 2, 1, bias=False), (2, 64, 3, 6)),  # 64 for 2*2*18
    ],
)
def test_products_are_counted_for_each_result(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """As many as one result reads, in a transposed convolution of one tap as in any other."""
    x = doubles(*shape)
    count = layer.double()(x).numel() * (72 if isinstance(layer, nn.Conv2d) else 64)
    assert torch.equal(*both(layer, x, many=count + 1))
    exact, found = both(layer, x, many=count)
    assert not torch.equal(exact, found)


def test_what_is_added_for_the_loss() -> None:
    """(1 + 2**-6 + k 2**-23) times the sum, and k 2**-124 (1 + the largest of each factor)."""
    layer = nn.Linear(4, 2, bias=False).double()
    nn.init.constant_(layer.weight, -2.0)
    _, found = both(layer, torch.full((3, 4), 3.0, dtype=torch.float64))
    assert (found == 24.0 * (1 + 2**-6 + 4 * 2**-23)).all()
    _, found = both(layer, torch.zeros(3, 4, dtype=torch.float64))
    assert (found == 4 * 2**-124 * (1 + 2.0)).all()


def test_named_arguments_count_too() -> None:
    layer, x = nn.Conv2d(4, 4, 3, padding=1, groups=2).double(), doubles(1, 4, 5, 5)
    program = program_of(layer, x, dynamic=())
    [node] = program.calls()
    node.args, node.kwargs = node.args[:3], {"padding": [1, 1], "groups": 2}
    with patch.object(rounding_bound, "MANY", 0):
        _, _, found = of(program, 0, x)
    torch.testing.assert_close(found[node], both(layer, x)[1])


def test_weights_of_float32_are_not_widened_for_it_and_few_products_are_quick() -> None:
    layer, x = nn.Conv2d(32, 32, 3, groups=32), doubles(1, 32, 5, 5)
    program = program_of(layer, x.float(), dynamic=())
    [node], [given] = program.calls(), program.placeholders
    region = [n for n in program.graph.nodes if n.op in ("get_attr", "call_function")]
    values = evaluate_region(program, region, {given: x})
    with patch.object(rounding_bound, "MANY", 0), patch.object(_Magnitudes, "__missing__", side_effect=AssertionError):
        magnitudes(program, region, values)
    with torch.no_grad(), patch.object(small_maps, "_by_taps", side_effect=small_maps._by_taps) as used:
        assert node in magnitudes(program, region, values)
    assert used.call_count == 1


@pytest.mark.parametrize("weight, x", [(1e30, 1e30), (1e-300, 1e60), (1e60, 1.0), (1.0, 1e60)])
def test_what_is_too_large_for_float32_is_added_up_in_float64(weight: float, x: float) -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    nn.init.constant_(layer.weight, weight)
    exact, found = both(layer, torch.full((4, 3), x, dtype=torch.float64))
    assert torch.equal(exact, found) and torch.isfinite(found).all()


@pytest.mark.parametrize("weight, x", [(1e-30, 1e-30), (1e-60, 1.0), (1.0, 1e-60), (1e-44, 1e30), (1e-60, 1e30)])
def test_what_is_too_small_for_float32_is_no_reason_to_be_smaller(weight: float, x: float) -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    nn.init.constant_(layer.weight, weight)
    exact, found = both(layer, torch.full((4, 3), x, dtype=torch.float64))
    assert (found >= exact).all() and float(found.max()) <= 1.02 * float(exact.max()) + 1e-36 * (1 + x)


def test_products_in_bfloat16_are_not_smaller_either() -> None:
    """As torch may be told to compute them, with both factors cut down to 8 bits."""
    narrow = _Magnitudes.narrow

    def cut(env: _Magnitudes, node: fx.Node) -> Tensor:
        return (narrow(env, node).view(torch.int32) & ~0xFFFF).view(torch.float32)

    with patch.object(_Magnitudes, "narrow", cut):
        exact, found = both(nn.Linear(64, 32).double(), doubles(8, 64))
    assert (found >= exact).all() and not torch.equal(found, exact)


def test_complex_weights_are_added_up_by_their_sizes() -> None:
    layer = nn.Linear(4, 3, dtype=torch.complex128)
    x = torch.complex(doubles(5, 4), doubles(5, 4, seed=1))
    exact, found = both(layer, x)
    assert (found >= exact).all() and (found <= 1.02 * exact).all()


def test_the_values_of_a_region_are_left_as_they_are() -> None:
    layer, x = nn.Linear(12, 5), doubles(7, 12)
    program = program_of(layer, x, dynamic=())
    before = [c.value.detach().clone() for c in program.constants.values()]
    region = [n for n in program.graph.nodes if n.op in ("get_attr", "call_function")]
    values = evaluate_region(program, region, {program.placeholders[0]: x})
    with patch.object(rounding_bound, "MANY", 0):
        magnitudes(program, region, values)
    assert all(torch.equal(a, c.value) for a, c in zip(before, program.constants.values(), strict=True))
