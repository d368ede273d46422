"""A model that cannot be captured is told the class and the line, and what to do there; not torch's own insides."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam import CaptureError, convert
from reparam.capture import from_exported

IMAGE = torch.randn(2, 4, 6, 6)
OF_TORCH = ("fake tensor", "FakeTensor", "github", "http", "lifted_tensor", "storage_offset", "pytree", "tlparse")


class FreesCopy(torch.autograd.Function):
    """A reversible block frees what it can compute again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        copy = x.contiguous().clone()
        y = copy + 1
        copy.set_()
        return y


class FreesInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x + 1
        x.data.set_()
        return y


class InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() + 1)


class InKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + x.data_ptr()


class Branches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x + 1
        return x


class Sound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0)


class Net(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(4, 4, 1), function

    def forward(self, x: Tensor) -> Any:
        return self.function.apply(self.conv(x))


CASES = {
    FreesCopy: ("copy.set_()", "a tensor's memory is freed or replaced while it runs; keep the tensor"),
    FreesInput: ("x.data.set_()", "a tensor's memory is freed or replaced while it runs; keep the tensor"),
    InNumpy: ("return torch.from_numpy(x.numpy() + 1)", "a tensor leaves torch for NumPy; compute it with torch's own"),
    InKernel: ("return x + x.data_ptr()", "the memory of a tensor is handed to code outside of torch; compute it"),
    Branches: ("if x.sum() > 0:", "its control flow depends on the data"),
}


@pytest.mark.parametrize("function", CASES, ids=lambda f: f.__name__)
def test_the_class_and_the_line_are_named(function: type[Any]) -> None:
    code, reason = CASES[function]
    with pytest.raises(CaptureError) as raised:
        convert(Net(function), IMAGE)
    message = str(raised.value)
    assert message.startswith("Net cannot be captured as one graph at ")
    assert "test_explain.py:" in message and f"`{code}` in {function.__name__}.forward: {reason}" in message
    assert "; " in message and not any(word in message for word in OF_TORCH)
    assert len(message.splitlines()) == 1


class Energy(nn.Module):
    """A field that is the derivative of an energy, as molecular networks have."""

    def __init__(self, spelled: str) -> None:
        super().__init__()
        self.energy, self.spelled = nn.Conv2d(4, 1, 1), spelled

    def forward(self, x: Tensor) -> Any:
        if self.spelled == "jvp":
            return torch.func.jvp(lambda v: self.energy(v).tanh(), (x,), (torch.ones_like(x),))[1]
        if self.spelled == "func":
            return torch.func.grad(lambda v: self.energy(v).tanh().sum())(x)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x).tanh().sum()
            if self.spelled == "backward":
                energy.backward()
                return x.grad
            return torch.autograd.grad(energy, x)[0]


@pytest.mark.parametrize(
    ("spelled", "code"),
    (
        ("grad", "return torch.autograd.grad(energy, x)[0]"),
        ("backward", "energy.backward()"),
        ("jvp", "return torch.func.jvp(lambda v: self.energy(v).tanh(), (x,), (torch.ones_like(x),))[1]"),
        ("func", "return torch.func.grad(lambda v: self.energy(v).tanh().sum())(x)"),
    ),
)
def test_a_derivative_that_is_taken_is_named(spelled: str, code: str) -> None:
    with pytest.raises(CaptureError) as raised:
        convert(Energy(spelled), IMAGE)
    message = str(raised.value)
    assert f"`{code}` in Energy.forward: it takes a derivative while it runs" in message
    assert sys.getprofile() is None and not any(word in message for word in OF_TORCH)


def test_an_autograd_function_of_torch_operators_is_captured() -> None:
    assert convert(Net(Sound), IMAGE).report.equivalent


def test_memory_that_the_model_itself_frees() -> None:
    class Frees(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            y = h.relu()
            h.data.set_()
            return y

    x = IMAGE.clone()
    with pytest.raises(CaptureError, match=r"`h\.data\.set_\(\)` in Frees\.forward: a tensor's memory"):
        convert(Frees(), x)
    assert torch.equal(x, IMAGE)


def test_an_output_that_torch_cannot_take_apart_is_named() -> None:
    class Box:
        def __init__(self, value: Tensor) -> None:
            self.value = value

    class Boxes(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Box(x)

    expected = "an output is of the class Box, which torch cannot take apart; return tensors, tuples, lists or dicts"
    with pytest.raises(CaptureError, match=expected):
        convert(Boxes(), IMAGE)


def test_a_model_that_fails_is_quoted() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("of the author")

    with pytest.raises(CaptureError, match=r"Fails does not run on .* `raise KeyError.*` in Fails\.forward: 'of the"):
        convert(Fails(), IMAGE)


def test_a_program_whose_writes_cannot_be_resolved_is_told_the_line() -> None:
    free = {0: torch.export.Dim.AUTO}
    program = torch.export.export(Net(FreesCopy).eval(), (IMAGE,), dynamic_shapes=(free,))
    with pytest.raises(CaptureError, match=r"Net cannot be captured .* `copy\.set_\(\)` in FreesCopy\.forward: "):
        from_exported(program)
