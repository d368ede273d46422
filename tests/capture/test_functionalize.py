"""What a module writes in place is a new value in the captured graph; views see the writes that they should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture import capture
from reparam.errors import CaptureError
from reparam.ir import evaluate, may_alias, op_name
from reparam.ir.aten import FRESH_PREFIXES
from support.choice import crossed
from support.helpers import Lambda, doubles, healthy, module_rel, program_of


def _relu_(m: Any, x: Tensor) -> Tensor:
    return m.conv(F.relu_(m.conv(x)))


def _read_after(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.mul_(2).add_(1)
    return y + x


def _view_then_write(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    flat = y.view(y.shape[0], -1)
    y.mul_(3)
    return flat + 1


def _write_through_view(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.view(y.shape[0], -1).add_(1)
    return y * 2


def _write_through_slice(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, 1:3] = 0.5
    y[:, :, 0] *= 2
    return y


def _expanded_then_write(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x).mean((2, 3), keepdim=True)
    wide = y.expand(-1, -1, 3, 3)
    y.mul_(2)
    return wide + 1


def _write_of_what_is_as_wide_as_a_part(m: Any, x: Tensor) -> Tensor:
    """A buffer is read, and not written to: expand_as asks for the shape of its second operand alone."""
    y = x + 1
    y[:, :, :1].copy_(m.conv.bias.view(1, -1, 1, 1).expand_as(y[:, :, :1]))
    return y


def _expanded_as_then_write(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x).mean((2, 3), keepdim=True)
    wide = y.expand_as(x)
    y.exp_()
    return wide * 2


def _dropout_aliases(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    same = F.dropout(y, 0.5, False)
    y.add_(1)
    return same


def _contiguous_aliases(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    same = y.contiguous()
    same.add_(1)
    return y


def _clone_does_not(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    other = y.clone()
    other.add_(1)
    return y - other * 3


def _split_then_write(m: Any, x: Tensor) -> Tensor:
    left, right = m.conv(x).chunk(2, 1)
    left.mul_(3)
    return torch.cat([right, left], 1)


def _write_the_input(m: Any, x: Tensor) -> Tensor:
    x = x.mul_(2)
    return m.conv(x) + x


def _write_a_view_of_the_input(m: Any, x: Tensor) -> Tensor:
    x[:, 0].add_(1)
    return m.conv(x) + x


def _assign_to_the_input(m: Any, x: Tensor) -> Tensor:
    x[:, 1:3, 0] = m.conv(x)[:, 1:3, 0]
    x.view(x.shape[0], -1)[:, ::2] *= 0.5
    return m.conv(x)


def _write_the_input_and_return_it(m: Any, x: Tensor) -> Tensor:
    x.transpose(1, 2)[:, 0] = 0
    return x


def _residual_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y += x
    return F.relu(y, inplace=True)


def _index_put(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, torch.tensor([0, 2])] = x[:, torch.tensor([1, 1])]
    return y


def _masked(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.masked_fill_(x > 0, 0.25)
    return y


def _filled_buffer(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 8, 5, 6, dtype=x.dtype)
    out[:, :4] = x
    out[:, 4:] = m.conv(x)
    return out


def _turned_in_place(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = m.conv(x[..., :5])
    row = y[:, :, 0]
    y.swapaxes_(2, 3)
    row.add_(1)
    return y + 1, row * 2


def _given_other_data(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.data = y.data * 2
    return y + 1


WRITING = (
    _turned_in_place,
    _given_other_data,
    _relu_,
    _read_after,
    _view_then_write,
    _write_through_view,
    _write_through_slice,
    _expanded_then_write,
    _expanded_as_then_write,
    _write_of_what_is_as_wide_as_a_part,
    _dropout_aliases,
    _contiguous_aliases,
    _clone_does_not,
    _split_then_write,
    _write_the_input,
    _write_a_view_of_the_input,
    _assign_to_the_input,
    _write_the_input_and_return_it,
    _residual_in_place,
    _index_put,
    _masked,
    _filled_buffer,
)


@pytest.mark.parametrize("forward, dynamic", crossed(WRITING, [(), ("batch",)]))
def test_writes_in_place_become_values(forward: Callable[..., Tensor], dynamic: tuple[str, ...]) -> None:
    model = healthy(Lambda(forward, conv=nn.Conv2d(4, 4, 3, padding=1)))
    x = doubles(2, 4, 5, 6)
    program = program_of(model, x.clone(), dynamic=dynamic)
    assert not any(n.target._schema.is_mutable for n in program.calls() if hasattr(n.target, "_schema"))
    assert module_rel(model, program, [x.clone()]) <= 1e-15
    if dynamic:
        assert isinstance(program.inputs[0].shape[0], str)
        assert module_rel(model, program, [doubles(3, 4, 5, 6, seed=1)]) <= 1e-15


def _unfolded_then_write(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.unfold(2, 2, 2)[..., 0] = 0
    return y


def test_a_batch_that_torch_fixes_is_told() -> None:
    """torch's functionalisation of such a view makes free sizes numbers."""
    model, x = Lambda(_unfolded_then_write, conv=nn.Conv2d(4, 4, 3, padding=1)), doubles(1, 4, 6, 6)
    captured = capture(healthy(model), (x,))
    assert [spec.shape for spec in captured.program.inputs] == [(1, 4, 6, 6)]
    assert any(
        note.startswith("the batch is fixed at 1, that of the example: torch fixes it") for note in captured.notes
    )
    assert module_rel(model, captured.program, [x]) <= 1e-15


@pytest.mark.parametrize("axes", [("batch",), ("height",), ("batch", "width")])
def test_axes_that_were_asked_for_are_not_fixed_in_silence(axes: tuple[str, ...]) -> None:
    model = healthy(Lambda(_unfolded_then_write, conv=nn.Conv2d(4, 4, 3, padding=1)))
    with pytest.raises(CaptureError, match=f"the {', '.join(axes)} cannot stay free: torch fixes it"):
        capture(model, (doubles(2, 4, 6, 6),), dynamic=axes)


def test_the_dtype_of_products_that_are_added_needs_no_sizes() -> None:
    """torch's own inference fails for these dtypes at free sizes."""
    model, x = Lambda(lambda m, x: x.half().addcmul_(x, x)), doubles(2, 6)
    program = program_of(model, x)
    assert isinstance(program.inputs[0].shape[0], str)
    (found,) = evaluate(program, [x], None)
    assert found.dtype == torch.float16 and torch.equal(found, model(x))


def test_what_is_there_for_autograd_alone_is_no_call() -> None:
    model, x = Lambda(lambda m, x: (x.detach() * 2).tanh().detach_() + 1), doubles(2, 3)
    program = program_of(model, x)
    assert [op_name(n) for n in program.calls()] == ["mul", "tanh", "add"]
    assert module_rel(model, program, [x]) == 0


FRESH = {
    "rows that are repeated": lambda t: t.repeat_interleave(2, 0),
    "repeat": lambda t: t.repeat(2, 1),
    "tile": lambda t: torch.tile(t, (2, 1)),
    "pad": lambda t: nn.functional.pad(t, (0, 0, 2, 2)),
    "outer": lambda t: torch.outer(t.flatten()[:8], t[0]),
    "cosine": lambda t: torch.cat([t, t]).cos(),
}
SHARED = {
    "dropout that is off": lambda t: nn.functional.dropout(t, 0.5, False),
    "einsum": lambda t: torch.einsum("ij->ji", t),
    "type_as": lambda t: t.type_as(t),
    "chunk": lambda t: t.chunk(2)[0],
    "expand": lambda t: t.expand(4, 4),
}


def _adding_to(made: Callable[[Tensor], Tensor]) -> nn.Module:
    """A linear layer in front of which something made of a table gets one added in place."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.linear(x + made(m.table).add_(1.0).sum(0)[:4])

    return Lambda(forward, linear=nn.Linear(4, 4), table=nn.Parameter(doubles(4, 4)))


@pytest.mark.parametrize("name", FRESH)
def test_what_is_made_of_a_weight_may_be_written_to(name: str) -> None:
    model = healthy(_adding_to(FRESH[name]))
    x = doubles(3, 4, seed=1)
    assert module_rel(model, program_of(model, x), [x]) <= 1e-15


@pytest.mark.parametrize("name", SHARED)
def test_what_shares_the_storage_of_a_weight_may_not(name: str) -> None:
    model = healthy(_adding_to(SHARED[name]))
    with pytest.raises(CaptureError, match=r"its own tensor 'table' \(add_\)"):
        program_of(model, doubles(3, 4, seed=1))


def test_every_operator_that_torch_declares_a_view_may_alias() -> None:
    """The prefixes of operators with fresh results must cover no view: `exp` once covered `expand`."""
    graph = torch.fx.Graph()
    declared = 0
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            target = getattr(packet, overload)
            if target._schema.is_mutable or not any(r.alias_info is not None for r in target._schema.returns):
                continue
            declared += 1
            assert may_alias(graph.call_function(target)), target
    assert declared > 50 and FRESH_PREFIXES
