"""Capture: one functional graph for what a module computes in evaluation mode, or a message that says why not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from reparam.capture import capture
from reparam.emit import to_module
from reparam.errors import CaptureError, InputError
from reparam.ir import evaluate
from support.helpers import EXACT, Lambda, conv_bn, doubles, graph_text, healthy, module_rel, program_of, vector

# ---- state -----------------------------------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


class Replaced(Counter):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + x.mean()
        return x * self.seen


class Remembers(nn.Module):
    """Adds to a tensor that it keeps, as what `kind` says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, start = kind, torch.ones(1)
        if kind == "buffer":
            self.register_buffer("kept", start)
        else:
            self.kept = nn.Parameter(start) if kind == "parameter" else start

    def forward(self, x: Tensor) -> Tensor:
        total = self.kept + x.mean()
        self.kept = nn.Parameter(total) if self.kind == "parameter" else total
        return x * total


class OfItsChild(nn.Module):
    """The parent assigns the child's buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.child.seen = self.child.seen + x.mean()
        return x * self.child.seen


class Tied(nn.Module):
    """One tensor under two names: the second is assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Counter(), Replaced()
        self.b.seen = self.a.seen

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) + self.a.seen


class Memo(nn.Module):
    """Keeps what it computed, for others to look at, and never reads what it kept before."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(1)
        self.register_buffer("twice", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.mean()
        self.twice = 2 * self.mean
        return x * self.mean + self.twice


@pytest.mark.parametrize("inner", [False, True], ids=["the module's own", "in a submodule"])
@pytest.mark.parametrize(
    "make, name",
    [
        (Counter, "seen"),
        (Replaced, "seen"),
        (OfItsChild, "child.seen"),
        (Tied, "b.seen"),
        *((partial(Remembers, kind), "kept") for kind in ("buffer", "parameter", "attribute")),
    ],
)
def test_a_tensor_that_is_written_is_refused_by_name(make: Callable[[], nn.Module], name: str, inner: bool) -> None:
    model = nn.Sequential(make()) if inner else make()
    with pytest.raises(CaptureError, match=rf"writes to its own tensor '{'0.' if inner else ''}{name}' \(\w"):
        capture(model, (torch.ones(2, 3),))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_tensor_that_is_kept_and_not_read_again_is_no_state() -> None:
    model = nn.Sequential(Memo())
    program = program_of(model, doubles(2, 3))
    assert not program.constants
    assert module_rel(model, program, [doubles(4, 3)]) <= EXACT


def test_weights_that_hooks_make_before_each_run_are_no_state() -> None:
    utils = torch.nn.utils
    model = healthy(nn.Sequential(utils.weight_norm(nn.Linear(3, 4)), utils.spectral_norm(nn.Linear(4, 2))))
    assert module_rel(model, program_of(model, doubles(2, 3)), [doubles(4, 3)]) <= EXACT


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 4, 5, 6), (2, 4, 5, 6)])
def test_a_free_batch_stays_free_also_when_the_example_has_one_sample(size: tuple[int, ...]) -> None:
    model = healthy(nn.Sequential(conv_bn(padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    program = program_of(model, doubles(*size))
    assert [isinstance(s, int) for s in program.inputs[0].shape] == [False, True, True, True]
    for batch in (1, 2, 7):
        assert module_rel(model, program, [doubles(batch, 4, 5, 6)]) <= EXACT


def test_free_height_and_width() -> None:
    model = healthy(nn.Sequential(conv_bn(padding=1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    captured = capture(model, (doubles(2, 4, 8, 8),), dynamic=("batch", "height", "width"))
    spec = captured.program.inputs[0]
    assert spec.shape[1] == 4 and not any(isinstance(spec.shape[i], int) for i in (0, 2, 3))
    assert not captured.notes
    for shape in ((1, 4, 9, 7), (3, 4, 16, 5)):
        assert module_rel(model, captured.program, [doubles(*shape)]) <= EXACT


def test_an_axis_that_the_model_fixes_is_refused_as_free() -> None:
    model = healthy(Lambda(lambda m, x: m.conv(x) + m.position, conv=conv_bn(padding=1), position=vector(4, 5, 6)))
    with pytest.raises(CaptureError, match="the height cannot stay free: the model works with one size of it alone"):
        program_of(model, doubles(2, 4, 5, 6), dynamic=("batch", "height", "width"))
    program = program_of(model, doubles(2, 4, 5, 6))
    assert not isinstance(program.inputs[0].shape[0], int) and program.inputs[0].shape[1:] == (4, 5, 6)
    assert module_rel(model, program, [doubles(3, 4, 5, 6)]) <= EXACT


def test_a_size_that_cannot_be_free_is_captured_fixed_and_the_reason_noted() -> None:
    """The example's own tensors must not remember that the first attempt asked for free sizes."""

    class OnlyFixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if isinstance(x.shape[0], torch.SymInt):
                raise TypeError("this model needs a number of samples")
            return x * 2

    x = doubles(2, 4)
    captured = capture(OnlyFixed(), (x,))
    assert captured.program.inputs[0].shape == (2, 4)
    assert any("captured with fixed sizes" in n and "needs a number of samples" in n for n in captured.notes)
    assert not [name for name in vars(x) if "dynamo" in name]


def test_a_model_that_fixes_its_batch_is_captured_so() -> None:
    model = healthy(Lambda(lambda m, x: m.conv(x).view(2, -1) if x.shape[0] == 2 else x[3], conv=nn.Conv2d(4, 4, 1)))
    captured = capture(model, (doubles(2, 4, 5, 6),))
    assert captured.program.inputs[0].shape == (2, 4, 5, 6)
    assert module_rel(model, captured.program, [doubles(2, 4, 5, 6)]) <= EXACT


def test_fixed_sizes_on_request() -> None:
    program = program_of(healthy(conv_bn(padding=1)), doubles(1, 4, 5, 6), dynamic=())
    assert program.inputs[0].shape == (1, 4, 5, 6)


def test_unbatched_inputs() -> None:
    model = healthy(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()))
    program = program_of(model, doubles(4, 5, 6), dynamic=())
    assert module_rel(model, program, [doubles(4, 5, 6)]) <= EXACT
    vector_model = healthy(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    assert module_rel(vector_model, program_of(vector_model, doubles(4), dynamic=()), [doubles(4)]) <= EXACT


def test_an_unknown_axis_is_a_usage_error() -> None:
    with pytest.raises(InputError, match="unknown dynamic axis 'depth'; choose from batch, height, width"):
        capture(nn.ReLU(), (torch.ones(2, 3),), dynamic=("depth",))


def test_the_arguments_of_a_variadic_forward_are_free_too() -> None:
    class Variadic(nn.Module):
        def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
            return first + sum(rest)

    program = program_of(Variadic(), *(doubles(2, 3, seed=i) for i in range(3)))
    assert all(not isinstance(s.shape[0], int) for s in program.inputs) and len(program.inputs) == 3
    inputs = [doubles(5, 3, seed=i) for i in range(3)]
    assert module_rel(Variadic(), program, inputs) <= EXACT
    assert module_rel(Variadic(), program_of(Variadic(), doubles(2, 3)), [doubles(4, 3)]) <= EXACT


# ---- inputs and outputs ------------------------------------------------------------------------------------------


class Point(NamedTuple):
    left: Tensor
    right: Any


@dataclasses.dataclass
class Nested:
    logits: Tensor
    extra: Any = None


def test_nested_outputs_come_back_in_their_own_form() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.conv(x)
        return {"a": [y, (x, 3, None)], "b": Point(y * 2, {"c": F.relu(y)}), "d": Nested(y, [x])}

    model = healthy(Lambda(forward, conv=conv_bn(padding=1)))
    x = doubles(2, 4, 5, 6)
    program = program_of(model, x)
    result, truth = to_module(program)(x), model(x)
    assert list(result) == ["a", "b", "d"]
    assert isinstance(result["b"], Point) and isinstance(result["d"], Nested)
    assert result["a"][1][1:] == (3, None)
    for one, two in zip(pytree.tree_leaves(result), pytree.tree_leaves(truth), strict=True):
        assert torch.equal(one, two) if isinstance(one, Tensor) else one == two


def test_nested_inputs() -> None:
    model = healthy(
        Lambda(lambda m, pair, named: m.conv(pair[0]) * pair[1] + named["bias"], conv=nn.Conv2d(4, 4, 3, padding=1))
    )
    inputs = ((doubles(2, 4, 5, 6), doubles(2, 4, 5, 6, seed=1)), {"bias": doubles(2, 4, 5, 6, seed=2)})
    program = program_of(model, *inputs)
    assert len(program.placeholders) == 3
    assert module_rel(model, program, inputs) <= EXACT


def test_integer_boolean_and_scalar_inputs() -> None:
    def forward(m: Any, index: Tensor, mask: Tensor, scale: Tensor) -> Tensor:
        return torch.where(mask[..., None], m.table(index), scale) * scale

    model = healthy(Lambda(forward, table=nn.Embedding(9, 4)))
    inputs = (torch.randint(0, 9, (2, 5)), torch.rand(2, 5) > 0.5, torch.tensor(2.5).double())
    program = program_of(model, *inputs)
    assert [s.dtype for s in program.inputs] == [torch.int64, torch.bool, torch.float64]
    assert module_rel(model, program, inputs) <= EXACT


def test_a_model_without_weights() -> None:
    program = program_of(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), doubles(2, 4, 6, 6))
    assert not program.constants and graph_text(program) == "max_pool2d(relu(x), [2, 2], [2, 2])"


def test_a_model_of_its_weights_alone_has_no_data() -> None:
    program = program_of(Lambda(lambda m, x: m.w.exp() * 2, w=vector(3)), doubles(2, 3))
    assert not any(n.meta["data"] for n in program.calls())
    [value] = evaluate(program, [doubles(2, 3)])
    assert value.shape == (3,)


# ---- weights -----------------------------------------------------------------------------------------------------


def test_tied_weights_are_one_and_untouched_ones_are_not_copied() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, nn.ReLU(), second)
    program = program_of(model, doubles(2, 4).float())
    assert sorted(program.constants) == ["0.bias", "0.weight"]
    assert program.constants["0.weight"].value.data_ptr() == first.weight.data_ptr()
    assert program.constants["0.weight"].trainable and program.parameters() == 20


def test_what_evaluation_does_not_use_is_no_weight() -> None:
    model = healthy(Lambda(lambda m, x: m.conv(x), conv=conv_bn(padding=1), aux=nn.Linear(4, 4)))
    names = list(program_of(model, doubles(2, 4, 5, 6)).constants)
    assert not any("aux" in n or "num_batches_tracked" in n for n in names)


def test_dead_code_with_a_dropout_in_it_is_dead() -> None:
    """An auxiliary head that evaluation computes and throws away."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        m.aux(F.dropout(F.relu(y), 0.5, m.training))
        return y

    program = program_of(healthy(Lambda(forward, conv=conv_bn(padding=1), aux=conv_bn())), doubles(2, 4, 5, 6))
    assert graph_text(program) == "batch_norm(conv3x3(x))"
    assert all(n.users for n in program.graph.nodes if n.op != "output")


def test_the_module_path_of_every_call() -> None:
    model = healthy(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.BatchNorm2d(4)))
    program = program_of(model, doubles(2, 4, 5, 6))
    assert [n.meta["module"] for n in program.calls()] == ["0.0", "0.1", "1"]


# ---- what cannot be captured -------------------------------------------------------------------------------------


class Helper(nn.Module):
    def _route(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1:  # the line that the message names
            return x / 2
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self._route(x * 2)


def test_the_message_names_the_innermost_line_of_the_model() -> None:
    with pytest.raises(CaptureError) as error:
        capture(nn.Sequential(nn.ReLU(), Helper()), (doubles(2, 4),))
    text = str(error.value)
    assert "`if x.abs().max() > 1: # the line that the message names`" in text and "test_torch_export.py:" in text
    assert "depends on the data" in text and "\n" not in text


def test_a_shape_that_does_not_fit_is_reported_as_such() -> None:
    with pytest.raises(CaptureError, match=r"does not run on its example inputs \(float32 2x4\): .*2x4 and 5x3"):
        capture(nn.Sequential(nn.Linear(5, 3)), (doubles(2, 4).float(),))


def test_modes_are_restored_when_the_capture_fails() -> None:
    model = nn.Sequential(Helper(), nn.Dropout())
    model[1].eval()
    with pytest.raises(CaptureError):
        capture(model, (doubles(2, 4),))
    assert [m.training for m in model.modules()] == [True, True, False]


# ---- fills -----------------------------------------------------------------------------------------------------------

FILLS: dict[str, Callable[[Tensor], Tensor]] = {
    "new_zeros": lambda x: x.new_zeros(3, 4),
    "new_ones": lambda x: x.new_ones(4),
    "new_full": lambda x: x.new_full((1, 4), 2.5),
    "zeros_like": lambda x: torch.zeros_like(x[0]),
    "ones_like": lambda x: torch.ones_like(x[0, 0], dtype=torch.int64),
    "full_like": lambda x: torch.full_like(x[0], -1.5),
}


@pytest.mark.parametrize("name", FILLS)
def test_a_fill_of_fixed_shape_does_not_depend_on_the_input(name: str) -> None:
    program = program_of(Lambda(lambda m, x: x * 2 + FILLS[name](x)), doubles(2, 3, 4))
    (fill,) = (n for n in program.calls() if n.target is torch.ops.aten.full.default)
    assert not fill.meta["data"]
    x = doubles(5, 3, 4)
    torch.testing.assert_close(evaluate(program, [x])[0], x * 2 + FILLS[name](x), rtol=0, atol=0)
    assert fill.meta["val"].dtype == FILLS[name](x).dtype


def test_a_fill_of_free_shape_stays_what_it_is() -> None:
    program = program_of(Lambda(lambda m, x: x * 2 + torch.ones_like(x)), doubles(2, 3, 4))
    assert [n.target for n in program.calls() if "like" in n.name] == [torch.ops.aten.ones_like.default]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: torch.cat([m.conv(x).data, x], 1),
        lambda m, x: m.conv(x) * m.conv.weight.data.sum() + m.conv.bias.data[0],
        lambda m, x: m.conv(x).data.relu_() + x.detach().data,
    ],
    ids=["of a value", "of weights", "written to"],
)
def test_the_data_of_a_tensor_is_the_tensor(forward: Callable[[Any, Tensor], Tensor]) -> None:
    module = Lambda(forward, conv=nn.Conv2d(4, 4, 3, padding=1)).eval()
    program = program_of(module, torch.randn(2, 4, 5, 5))
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(to_module(program)(x), module(x))


def test_a_constant_is_indexed_by_what_was_computed() -> None:
    """Of a plain attribute, a table of anchors that the model made when it ran before."""
    module = Lambda(lambda m, x: m.anchors[:, torch.topk(x, 2).indices] + m.anchors[0, 1])
    module.anchors = torch.arange(6.0)[None]
    x = torch.randn(3, 6)
    torch.testing.assert_close(to_module(program_of(module, torch.randn(2, 6)))(x), module(x))
