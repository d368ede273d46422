"""A program as an ExportedProgram: what torch is told of its sizes, its layers and its arguments."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reparam.capture import capture, from_exported
from reparam.conversion import convert
from reparam.emit import export_program, finalize, save_pt2
from reparam.errors import InputError
from reparam.ir import Program, aten
from support.by_hand import ByHand
from support.helpers import Lambda, conv_bn


def convolution() -> ByHand:
    """A convolution of a free batch, whose kernel on a CPU asks whether the batch is below 16."""
    g = ByHand(torch.float32)
    x = g.input(2, 3, 8, 8, free=(0,))
    y = g.call(aten.conv2d.default, x, g.weight(torch.ones(4, 3, 3, 3, dtype=torch.float32)), module="stem.conv")
    g.returns(y)
    return g


def stored(program: Program) -> torch.export.ExportedProgram:
    file = io.BytesIO()
    torch.export.save(export_program(program), file)
    file.seek(0)
    return torch.export.load(file)


def test_what_a_kernel_asks_of_a_size_is_not_asked_of_inputs() -> None:
    program = convolution().program
    assert not program.fake_mode.shape_env.guards
    exported = stored(finalize(program))
    assert [(r.lower, str(r.upper)) for r in exported.range_constraints.values()] == [(2, "int_oo")]
    for batch in (1, 2, 40):
        assert exported.module()(torch.ones(batch, 3, 8, 8))[0].shape == (batch, 4, 6, 6)


def test_what_the_capture_noted_of_a_size_is_not_asked_either() -> None:
    program = convolution().program
    (batch, *_) = program.placeholders[0].meta["val"].shape
    assert batch < 16
    assert [str(g.expr.rhs) for g in program.fake_mode.shape_env.guards] == ["16"]
    exported = stored(finalize(program))
    assert [(r.lower, str(r.upper)) for r in exported.range_constraints.values()] == [(2, "int_oo")]
    assert exported.module()(torch.ones(40, 3, 8, 8))[0].shape == (40, 4, 6, 6)


def test_calls_know_their_layers_and_values_of_their_own_sizes() -> None:
    program = convolution().program
    exported = export_program(finalize(program))
    (conv,) = (n for n in exported.graph.nodes if n.op == "call_function")
    assert conv.meta["nn_module_stack"] == {"stem.conv": ("stem.conv", "Layer")}
    mode = conv.meta["val"].fake_mode
    assert mode is not program.fake_mode
    assert all(n.meta["val"].fake_mode is mode for n in exported.graph.nodes if n.op == "placeholder")
    (original,) = (n for n in program.calls())
    assert conv.meta["val"].stride() == original.meta["val"].stride() == (144, 36, 6, 1)


def test_layers_survive_a_file() -> None:
    torch.manual_seed(0)
    program = convert(nn.Sequential(conv_bn(), nn.ReLU()).eval(), torch.randn(2, 4, 6, 6)).program
    again = from_exported(stored(program)).program
    assert [n.meta["module"] for n in again.calls()] == [n.meta["module"] for n in program.calls()] == ["0.0", "1"]


def test_sizes_that_are_values_and_results_that_are_none() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.layer(x)
        return y[y > 0], y.shape[0], None, 2.5, m.layer.bias, y, y

    model = Lambda(forward, layer=nn.Linear(4, 2)).eval()
    program = capture(model, (torch.randn(3, 4),)).program
    exported = stored(program)
    x = torch.randn(7, 4)
    for got, expected in zip(exported.module()(x), model(x), strict=True):
        assert torch.equal(got, expected) if isinstance(expected, Tensor) else got == expected
    assert sorted(str(s)[0] for s in exported.range_constraints) == ["s", "u"]


def test_an_input_keeps_a_name_that_python_has() -> None:
    class Model(nn.Module):
        def forward(self, input: Tensor, p_weight: Tensor) -> Tensor:
            return input * p_weight

    program = capture(Model(), (torch.randn(3, 4), torch.randn(3, 4))).program
    assert export_program(program).graph_signature.user_inputs == ("input", "p_weight")
    x = torch.randn(5, 4)
    assert torch.equal(stored(program).module()(x, x), x * x)


def test_weights_are_shared_once_each_and_examples_are_zeros_of_the_traced_size() -> None:
    g = ByHand(torch.float32)
    x = g.input(2, 4, free=(0,))
    weight = g.weight(torch.ones(4, 4), "twice")
    y = g.call(aten.linear.default, g.call(aten.linear.default, x, weight), weight)
    program = finalize(g.returns(y))
    exported = export_program(program)
    assert list(exported.state_dict) == ["twice"]
    assert exported.state_dict["twice"].data_ptr() == program.constants["twice"].value.data_ptr()
    assert isinstance(exported.state_dict["twice"], nn.Parameter)
    assert exported.example_inputs is not None
    (example,), keywords = exported.example_inputs
    assert torch.equal(example, torch.zeros(2, 4))
    assert keywords == {}


def test_a_program_may_be_said_to_be_traced_with_another_batch() -> None:
    g = ByHand(torch.float32)
    x = g.input(2, 4, free=(0,))
    program = finalize(g.returns(g.call(aten.linear.default, x, g.weight(torch.ones(4, 4), "w"))))
    [batch] = [str(s) for s in program.inputs[0].shape if isinstance(s, str)]
    exported = export_program(program, {batch: 16})
    sizes = [n.meta["val"].shape[0].node.hint for n in exported.graph.nodes if n.op == "call_function"]
    assert sizes == [16] and program.traced_sizes == {batch: 2}
    assert exported.example_inputs is not None and exported.example_inputs[0][0].shape == (16, 4)
    assert exported.module()(torch.ones(3, 4))[0].shape == (3, 4)


def test_values_follow_another_dtype() -> None:
    program = finalize(convolution().program, torch.float16)
    assert {n.meta["val"].dtype for n in program.graph.nodes if n.op != "output"} == {torch.float16}
    program.verify()


def test_torch_takes_the_program_apart_again_where_sizes_are_values() -> None:
    def forward(m: Any, x: Tensor, count: Tensor) -> Any:
        n = count.item()
        torch._check(n <= 4)  # type: ignore[operator]
        torch._check(n >= 0)  # type: ignore[operator]
        y = m.layer(x)
        return y[:, :n], torch.unique(y, return_counts=True), torch.zeros(2 * n)  # type: ignore[operator,misc]

    model = Lambda(forward, layer=nn.Linear(4, 4)).eval()
    program = capture(model, (torch.randn(3, 4), torch.tensor(2))).program
    exported = export_program(program)
    item = next(n for n in exported.graph.nodes if n.target is aten.item.default)
    assert list(item.meta["unbacked_bindings"].values()) == [()]
    x = torch.randn(5, 4)
    got = exported.run_decompositions({}).module()(x, torch.tensor(1))
    torch.testing.assert_close(got, model(x, torch.tensor(1)))


def _text(m: Any, x: Tensor) -> Any:
    return {"logits": m.layer(x), "made": ("by hand", x.shape[0])}


def _comparison(m: Any, x: Tensor) -> Any:
    return {"logits": m.layer(x), "made": (x.shape[0] > 3, 1)}


@pytest.mark.parametrize(("forward", "what"), [(_text, "the text 'by hand'"), (_comparison, "a comparison of sizes")])
def test_a_result_that_no_file_can_hold_is_refused_by_its_name(forward: Any, what: str, tmp_path: Path) -> None:
    program = capture(Lambda(forward, layer=nn.Linear(4, 2)).eval(), (torch.randn(2, 4),)).program
    with pytest.raises(InputError, match=rf"the result 'made\.0' is {what}, which a \.pt2 cannot hold"):
        save_pt2(program, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())
