"""What is measured on an engine, and `verify` with engines: equal ones pass, one wrong weight does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from reparam.compare import verify
from reparam.conversion import convert
from reparam.engines import EngineCheck, Port, Runnable, check_engine
from reparam.engines.engine_check import declared_sizes
from reparam.engines.onnx import OnnxRunnable, model_of, write_model
from reparam.engines.precision import with_wide_ports
from reparam.errors import InputError, NotEquivalentError
from reparam.loading import LoadedModel
from support.engine_nets import SHAPE, every, small
from support.helpers import program_of

LOADED = LoadedModel(small(), input_shapes=((3, 16, 16),))


class Fake(Runnable):
    """An engine that is a torch module with something added."""

    runtime, precision = "a fake", "float32"

    def __init__(self, net: nn.Module, add: float = 0.0, outputs: int = 1) -> None:
        self.net, self.add, self.count = net, add, outputs
        self.inputs = (Port("x", ("batch", 3, 16, 16), "float32"),)
        self.outputs = tuple(Port(f"y{i}", ("batch", 5), "float32") for i in range(outputs))

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [self.net(values[0]) + self.add] * self.count


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("engines") / "net.onnx"
    write_model(model_of(convert(small(), torch.randn(SHAPE)).program), path)
    return path


def tampered(path: Path, target: Path, name: str = "3.weight", by: float = 0.01) -> OnnxRunnable:
    """The file with one entry of one weight changed."""
    model = onnx.load(str(path))
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.flat[1] += by
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    target.write_bytes(model.SerializeToString())
    return OnnxRunnable(target)


# ---- the check of an export --------------------------------------------------------------------------------------


def test_a_right_engine_is_measured() -> None:
    made = convert(small(), torch.randn(SHAPE))
    check = check_engine(made.original, made.program, Fake(small()))
    assert check.ran and check.error is not None and check.own_error is not None and check.sqnr is not None
    assert 0.0 < check.error < 1e-6
    assert check.sqnr > 100.0
    assert (check.top1, check.samples, check.data) == (1.0, 8, "random")
    assert check.shapes == ((1, 3, 16, 16), (2, 3, 16, 16), (5, 3, 16, 16))


def test_a_wrong_engine_is_refused_with_the_name_of_its_output() -> None:
    made = convert(small(), torch.randn(SHAPE))
    with pytest.raises(NotEquivalentError, match=r"the engine is not the network: output 0 differs .*\(output 'y0'\)"):
        check_engine(made.original, made.program, Fake(small(), add=1e-4))
    with pytest.raises(NotEquivalentError, match="the engine gives other outputs"):
        check_engine(made.original, made.program, Fake(small(), outputs=2))
    with pytest.raises(NotEquivalentError, match="not finite"):
        check_engine(made.original, made.program, Fake(small(), add=math.inf))


class Amplifying(nn.Module):
    """Values, and one that is the difference of two weights of that size: exact, unless they are rounded."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.full((1,), size)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        values = 10 * x.flatten(1)
        return torch.cat([values, 0 * values[:, :1] + (self.a - self.b)], 1)


class OneOff(Fake):
    """`add` goes to one element of each sample."""

    def run(self, values: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            found = self.net(values[0])
            found[:, -1] += self.add
            return [found]


def test_one_element_may_be_off_by_what_roundings_do_to_it_and_no_more() -> None:
    for size, add, fine in ((1e3, 5e-5, True), (1e3, 5e-3, False), (1e-3, 5e-5, False)):
        program = program_of(Amplifying(size), torch.randn(SHAPE))
        engine = OneOff(Amplifying(size), add)
        if fine:
            assert check_engine(program, program, engine).ran
            continue
        with pytest.raises(NotEquivalentError, match="the engine is not the network"):
            check_engine(program, program, engine)


def test_a_quantised_engine_is_measured_and_not_judged() -> None:
    made = convert(small(), torch.randn(SHAPE))
    check = check_engine(made.original, made.program, Fake(small(), add=0.1), quantised=True)
    assert check.own_error is None
    assert check.error == pytest.approx(0.1, rel=1e-3)
    assert check.samples == 16
    data = [(torch.zeros(3, 3, 16, 16),)]
    again = check_engine(made.original, made.program, Fake(small()), quantised=True, data=data)
    assert (again.samples, again.data, again.shapes) == (3, "held-out", ((3, 3, 16, 16),))


def test_signal_to_noise_is_what_its_formula_says() -> None:
    made = convert(small(), torch.randn(SHAPE))
    data = [(torch.randn(4, 3, 16, 16),)]
    check = check_engine(made.original, made.program, Fake(small(), add=0.25), quantised=True, data=data)
    truth = small().double()(data[0][0].double()).detach()
    wanted = 20 * math.log10(float(truth.square().mean().sqrt()) / 0.25)
    assert check.sqnr == pytest.approx(wanted, abs=1e-3)


def test_an_error_of_zero_is_null_in_json() -> None:
    assert EngineCheck(True, sqnr=math.inf).as_dict()["sqnr"] is None


def test_declared_sizes_cover_batches_and_other_sizes() -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(SHAPE)
    assert [len(declared_sizes(convert(net, x, dynamic=d).original)) for d in ((), ("batch",))] == [8, 3]
    wide = declared_sizes(convert(net, x, dynamic=("batch", "height", "width")).original)
    assert len(wide) == 5
    assert len({tuple(sorted(w.values())) for w in wide}) == 5


# ---- verify ------------------------------------------------------------------------------------------------------


def test_an_engine_and_its_network_are_equal_both_ways(fused: Path) -> None:
    for a, b in ((LOADED, OnnxRunnable(fused)), (OnnxRunnable(fused), LOADED)):
        verdict = verify(a, b)
        assert verdict.equivalent, verdict.reason
        assert verdict.shapes == ((1, 3, 16, 16), (7, 3, 16, 16))
        assert any("onnxruntime" in r for r in verdict.runtimes)
        assert "run by" in verdict.sentences()[-1]
        assert verdict.adversarial["worst"] < 1.0


@pytest.mark.parametrize("name", ["0.weight", "3.weight", "3.bias", "8.weight"])
def test_one_tampered_weight_is_found_at_its_layer(fused: Path, tmp_path: Path, name: str) -> None:
    engine = tampered(fused, tmp_path / "bad.onnx", name)
    verdict = verify(LOADED, engine)
    assert not verdict.equivalent
    assert "output 0 ('output') differs by" in verdict.reason
    assert verdict.first_divergence is not None
    layer = name.partition(".")[0]
    after = {"0": ("0", "1"), "3": ("3", "4"), "8": ("8",)}[layer]  # a norm that was folded is the layer's value
    assert verdict.first_divergence.startswith(tuple(f"'{n}'" for n in after)), verdict.first_divergence


def test_between_two_engines_a_twin_is_the_yardstick(fused: Path, tmp_path: Path) -> None:
    as_is = tmp_path / "as_is.onnx"
    write_model(model_of(convert(small(), torch.randn(SHAPE), to="as-is").program), as_is)
    assert verify(OnnxRunnable(as_is), OnnxRunnable(fused)).equivalent
    bad = tampered(fused, tmp_path / "bad.onnx", by=1e-3)
    verdict = verify(OnnxRunnable(as_is), bad)
    assert not verdict.equivalent
    assert "output 0 ('output') differs by" in verdict.reason


def test_sealed_engines_are_compared_by_moved_inputs() -> None:
    assert verify(Fake(small()), Fake(small())).equivalent
    assert not verify(Fake(small()), Fake(small(), add=1e-3)).equivalent


def test_low_precision_is_held_to_its_own_losses(tmp_path: Path) -> None:
    program = with_wide_ports(convert(small(), torch.randn(SHAPE), dtype=torch.float16).program)
    write_model(model_of(program), tmp_path / "h.onnx")
    assert verify(LOADED, OnnxRunnable(tmp_path / "h.onnx")).equivalent
    bad = tampered(tmp_path / "h.onnx", tmp_path / "bad.onnx", by=0.2)
    assert not verify(LOADED, bad).equivalent


def test_a_clip_that_only_large_inputs_reach_is_found(fused: Path, tmp_path: Path) -> None:
    model = onnx.load(str(fused))
    (clip,) = (n for n in model.graph.node if n.op_type == "Clip")
    (high,) = (t for t in model.graph.initializer if t.name == clip.input[2])
    moved = onnx.numpy_helper.to_array(high) + 1.0
    high.CopyFrom(onnx.numpy_helper.from_array(moved.astype("float32"), high.name))
    (tmp_path / "clip.onnx").write_bytes(model.SerializeToString())
    engine = OnnxRunnable(tmp_path / "clip.onnx")
    assert verify(LOADED, engine, adversarial=False).equivalent
    verdict = verify(LOADED, engine)
    assert not verdict.equivalent
    assert "an input was found on which they differ" in verdict.reason


def test_several_outputs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    write_model(model_of(convert(every(), torch.randn(SHAPE)).program), path)
    loaded = LoadedModel(every(), input_shapes=((3, 16, 16),))
    assert verify(loaded, OnnxRunnable(path)).equivalent
    bad = tampered(path, tmp_path / "bad.onnx", name="head.bias")
    assert "output 0 ('logits') differs by" in verify(loaded, bad).reason


def test_models_that_cannot_be_compared(fused: Path, tmp_path: Path) -> None:
    engine = OnnxRunnable(fused)
    two = LoadedModel(nn.Bilinear(3, 3, 2).eval(), input_shapes=((3,), (3,)))
    with pytest.raises(InputError, match="the models take 2 and 1 tensor inputs"):
        verify(two, engine, input_shapes=((3,), (3,)))
    verdict = verify(LoadedModel(small(7), input_shapes=((3, 16, 16),)), engine)
    assert verdict.reason == "one gives outputs of shape 1x7, the other 1x5"
    with pytest.raises(InputError, match="prove nothing"):
        verify(LOADED, engine, trials=0)
    free = tmp_path / "free.onnx"
    write_model(model_of(convert(small(), torch.randn(SHAPE), dynamic=("batch", "height", "width")).program), free)
    with pytest.raises(InputError, match=r"the size 'height' of the input 'input' is free; pass it with input_shapes"):
        verify(OnnxRunnable(free), OnnxRunnable(free))
    assert verify(OnnxRunnable(free), OnnxRunnable(free), input_shapes=((3, 20, 24),)).equivalent


class Mean(nn.Module):
    """The mean of all steps, which a sequence of one step does not have: it is multiplied there."""

    def __init__(self, at_one: float, most: int = 1000) -> None:
        super().__init__()
        self.layer, self.at_one, self.most = nn.Linear(4, 3), at_one, most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x[:, : self.most]).mean(1)
        return y * (1.0 + (self.at_one - 1.0) * (torch.ones_like(x[0, :, 0]).sum() < 2))


def test_other_sizes_of_free_axes_are_compared(tmp_path: Path) -> None:
    paths = []
    for i, (at_one, most) in enumerate(((1.0, 1000), (1.0, 1000), (1.5, 1000), (1.0, 20))):
        torch.manual_seed(0)
        made = convert(Mean(at_one, most).eval(), torch.randn(2, 9, 4), dynamic=("batch", "x:1=length"))
        paths.append(tmp_path / f"{i}.onnx")
        write_model(model_of(made.program), paths[-1])
    one, same, other_at_one, other_above = map(OnnxRunnable, paths)
    found = verify(one, same, input_shapes=((9, 4),))
    assert found.equivalent and found.shapes[-3:] == ((2, 1, 4), (2, 30, 4), (2, 53, 4))
    for other in (other_at_one, other_above):
        assert not verify(one, other, input_shapes=((9, 4),)).equivalent
