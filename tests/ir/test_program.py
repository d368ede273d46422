"""`Program`: one graph that owns its weights; new nodes have shapes, names and an undo."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam.errors import RuleError
from reparam.ir import (
    CONVS,
    Program,
    aten,
    census,
    evaluate,
    fixed_size,
    is_call,
    is_float,
    is_tensor,
    shape_of,
    size_hint,
    static_shape,
)
from support.helpers import (
    Lambda,
    conv_bn,
    doubles,
    fingerprint,
    fuse,
    graph_text,
    healthy,
    max_rel,
    program_of,
    vector,
)


def small(**options: tuple[str, ...]) -> Program:
    model = healthy(nn.Sequential(conv_bn(padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 5 * 6, 3)))
    return program_of(model, doubles(2, 4, 5, 6), **options)


def node_of(program: Program, target: object) -> torch.fx.Node:
    return next(n for n in program.calls() if n.target is target)


def test_a_copy_shares_the_weights_and_not_the_graph() -> None:
    program = small()
    before = fingerprint(program)
    copy = program.copy()
    assert fingerprint(copy) == before
    for name, constant in copy.constants.items():
        assert constant.value.data_ptr() == program.constants[name].value.data_ptr()
    relu = node_of(copy, aten.relu.default)
    relu.replace_all_uses_with(relu.args[0])  # type: ignore[arg-type]
    copy.erase([relu])
    copy.weight(torch.ones(3), "extra", like=copy.output)
    assert fingerprint(program) == before and "relu" not in graph_text(copy)


def test_a_new_call_has_its_shape_and_the_module_of_what_it_stands_for() -> None:
    program = small()
    relu = node_of(program, aten.relu.default)
    new = program.call(aten.sigmoid.default, (relu.args[0],), like=relu)
    assert shape_of(new) == (2, 4, 5, 6) and new.meta["data"] and new.meta["module"] == relu.meta["module"]
    assert new.next is relu
    assert static_shape(new)[1:] == (4, 5, 6) and static_shape(new)[0] is None


def test_a_new_call_whose_operands_do_not_fit_is_a_bug_of_the_rule() -> None:
    program = small()
    relu = node_of(program, aten.relu.default)
    with pytest.raises(RuleError, match=r"does not fit its operands"):
        program.call(aten.matmul.default, (relu, relu), like=relu)
    assert "matmul" not in graph_text(program)


def test_a_new_call_leaves_the_free_sizes_free() -> None:
    """Only an even kernel pads one side more, where torch's own inference asks for the sizes as plain numbers."""
    even = nn.Conv2d(4, 4, (2, 1), padding="same")
    fused = fuse(healthy(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), even, nn.BatchNorm2d(4))), doubles(2, 3, 8, 9))
    assert graph_text(fused.program) == "conv2x1(pad(relu(conv1x1(x)), [0, 0, 0, 1]))"
    for program in (fused.original, fused.program):
        assert all(static_shape(n)[0] is None for n in program.calls())


def test_a_clone_swaps_operands_and_keeps_its_own_module() -> None:
    program = small()
    linear, relu = node_of(program, aten.linear.default), node_of(program, aten.relu.default)
    flat = linear.args[0]
    assert isinstance(flat, torch.fx.Node)
    new = program.clone(flat, {relu: relu.args[0]}, like=linear)  # type: ignore[dict-item]
    assert new.args[0] is relu.args[0] and new.meta["module"] == flat.meta["module"]


def test_new_weights_are_float64_under_the_name_they_want_or_the_next_free_one() -> None:
    program = small()
    relu = node_of(program, aten.relu.default)
    for expected in ("0.0.weight__1", "0.0.weight__2"):
        node = program.weight(torch.ones(4, dtype=torch.float32), "0.0.weight", dtype=torch.float16, like=relu)
        assert node.target == expected
        constant = program.constants[expected]
        assert constant.origin == "0.0.weight" and constant.folded and constant.trainable
        assert constant.value.dtype == torch.float64 and constant.dtype == torch.float16
        assert shape_of(node) == (4,) and not node.meta["data"]
    index = program.weight(torch.arange(3), "index", like=relu)
    assert program.constants["index"].dtype == torch.int64 and not program.constants["index"].trainable
    assert is_tensor(index) and not is_float(index)


def test_what_was_recorded_can_be_undone() -> None:
    program = small()
    before = fingerprint(program)
    relu = node_of(program, aten.relu.default)
    with program.recording() as created:
        weight = program.weight(torch.ones(4, 1, 1), "scale", like=relu)
        product = program.call(aten.mul.Tensor, (relu.args[0], weight), like=relu)
        program.clone(relu, {relu.args[0]: product})  # type: ignore[dict-item]
    assert len(created) == 3 and fingerprint(program) != before
    program.erase(reversed(created))
    assert fingerprint(program) == before


def test_recordings_do_not_nest_and_end_also_when_they_fail() -> None:
    program = small()
    with program.recording(), pytest.raises(RuleError, match="do not nest"), program.recording():
        pass
    with pytest.raises(KeyError), program.recording():
        raise KeyError
    with program.recording() as created:
        assert created == []


def test_weights_are_read_in_float64_and_nothing_else_is_a_weight() -> None:
    model = Lambda(lambda m, x: m.conv(x) + m.table[m.index], conv=nn.Conv2d(4, 4, 1), table=vector(7))
    model.register_buffer("index", torch.tensor([3]))
    program = program_of(model.half(), doubles(2, 4, 5, 6).half())
    conv = next(n for n in program.calls() if is_call(n, CONVS))
    weight = program.tensor(conv.args[1])
    assert weight is not None and weight.dtype == torch.float64 and not weight.requires_grad
    assert torch.equal(weight, model.conv.weight.double())
    assert program.tensor(conv) is None and program.tensor(3.0) is None and program.tensor(None) is None
    index = next(n for n in program.graph.nodes if n.op == "get_attr" and n.target == "index")
    assert program.tensor(index).dtype == torch.int64  # type: ignore[union-attr]
    assert program.dtype == torch.float16


def test_parameters_count_tied_weights_once_and_integers_never() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    model.register_buffer("unused", torch.zeros(100))
    assert program_of(model, doubles(2, 4).float()).parameters() == 16 + 4 + 4


def test_parameters_count_a_complex_number_once() -> None:
    weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))
    net = Lambda(lambda s, x: torch.fft.irfft(torch.fft.rfft(x) * s.weight), weight=weight)
    assert program_of(net, doubles(2, 4).float()).parameters() == 3


def test_sizes_by_symbol_and_by_trace() -> None:
    program = program_of(nn.Sequential(nn.MaxPool2d(2)), doubles(2, 4, 9, 6), dynamic=("batch", "height", "width"))
    batch, _, height, _ = program.inputs[0].shape
    pool = next(program.calls())
    assert shape_of(pool) == (2, 4, 4, 3)
    assert shape_of(pool, {str(batch): 5, str(height): 20}) == (5, 4, 10, 3)
    assert static_shape(pool) == (None, 4, None, None)
    assert size_hint(7) == 7 and fixed_size(7) == 7
    assert [fixed_size(s) for s in pool.meta["val"].shape] == [None, 4, None, None]


def test_a_size_that_the_trace_fixed_is_fixed_although_it_is_symbolic() -> None:
    def forward(m: object, x: torch.Tensor) -> torch.Tensor:
        return x[1] if x.shape[0] == 2 else x[0]

    program = program_of(Lambda(forward), doubles(2, 4))
    assert program.inputs[0].shape == (2, 4)


def test_evaluation_in_float64_and_in_the_programs_own_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    x = doubles(2, 4, 5, 6)
    program = program_of(model, x.float())
    [exact] = evaluate(program, [x])
    [own] = evaluate(program, [x.float()], None)
    assert exact.dtype == torch.float64 and own.dtype == torch.float32
    assert torch.equal(own, model(x.float()))
    assert torch.equal(exact, model.double()(x))


def test_evaluation_can_be_observed_and_differentiated() -> None:
    program = small()
    seen: list[str] = []
    x = doubles(2, 4, 5, 6).requires_grad_()
    [y] = evaluate(program, [x], observe=lambda node, value: seen.append(node.name), gradients=True)
    assert seen == [n.name for n in program.calls()]
    y.sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())


def test_the_remarks_add_up_to_the_census() -> None:
    """Multiply-accumulates and parameters that the remarks claim are those that are gone."""
    model = healthy(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 1, bias=False),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
    )
    fused = fuse(model, doubles(2, 3, 8, 9))
    before, after = census(fused.original), census(fused.program)
    assert sum(r.macs for r in fused.outcome.remarks) == after.macs - before.macs < 0
    assert sum(r.params for r in fused.outcome.remarks) == after.params - before.params


def test_the_remarks_add_up_where_weights_are_shared() -> None:
    """A convolution called twice: its old weight goes with the second fold, not with each."""
    model = healthy(
        Lambda(
            lambda m, x: m.b1(m.conv(F.relu(m.b0(m.conv(x))))),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            b0=nn.BatchNorm2d(4),
            b1=nn.BatchNorm2d(4),
        )
    )
    fused = fuse(model, doubles(2, 4, 5, 6))
    before, after = census(fused.original), census(fused.program)
    assert sum(r.params for r in fused.outcome.remarks) == after.params - before.params
    assert after.params - before.params == (2 * 148) - (148 + 2 * 16)
    assert max_rel(fused.original, fused.program, [doubles(2, 4, 5, 6)]) < 1e-12
