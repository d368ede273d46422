"""`verify`: equal models pass, and every way in which two models can differ is found and located."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.compare import Verdict, verify, verify_programs
from reparam.compare import adversarial as adversary
from reparam.compare import program_of as captured
from reparam.conversion import convert
from reparam.errors import InputError
from reparam.ir import InputSpec, Program
from reparam.loading import LoadedModel, build_architecture, load, randomize_statistics
from support.helpers import Lambda, healthy, perturb, program_of


def network(activation: Callable[[], nn.Module] = nn.ReLU, seed: int = 0) -> nn.Module:
    """float32: four convolutions with batch norms, a residual sum, a linear head."""
    torch.manual_seed(seed)

    def block(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), activation())

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x)
        h = h + m.second(m.first(h))
        return m.head(m.last(h).mean((2, 3)))

    parts = {"stem": block(3, 8), "first": block(8, 8), "second": block(8, 8), "last": block(8, 16)}
    return healthy(Lambda(forward, **parts, head=nn.Linear(16, 10))).float()


def image(size: int = 20) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def pair(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Program, Program]:
    result = convert(model, *inputs, **options)
    return result.original, result.program


# ---- equal pairs -------------------------------------------------------------------------------------------------


@pytest.mark.sweep
def test_resnet18_and_its_saved_fused_form_are_equal(tmp_path: Path) -> None:
    model = randomize_statistics(build_architecture("torchvision/resnet18").module, [torch.zeros(8, 3, 48, 48)])
    result = convert(model, torch.randn(2, 3, 48, 48))
    result.save(tmp_path / "fused.pt2")
    shapes = ((3, 48, 48),)
    verdict = verify(LoadedModel(model, input_shapes=shapes), load(tmp_path / "fused.pt2"))
    assert verdict.equivalent and not verdict.reason and verdict.first_divergence is None
    assert verdict.shapes == ((1, 3, 48, 48), (7, 3, 37, 37)) and verdict.trials == 8
    (output,) = verdict.outputs
    assert output.ok and 0.0 < output.difference <= output.error_a <= output.bar < 1e-4 * output.size
    assert output.peak <= output.peak_bar
    assert 0.0 < verdict.adversarial["worst"] < 0.5 and verdict.adversarial["inputs"] >= 12
    back = verify(load(tmp_path / "fused.pt2"), LoadedModel(model, input_shapes=shapes))
    assert back.equivalent


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_held_to_what_they_can_do(dtype: torch.dtype) -> None:
    original, emitted = pair(network(), image(), dtype=dtype)
    verdict = verify_programs(original, emitted)
    assert verdict.equivalent, verdict.reason
    by = 1e-2 if dtype == torch.float64 else 1.0
    assert not verify_programs(original, perturb(emitted, "head.weight", by=by)).equivalent


def test_two_float64_models_are_held_to_float64() -> None:
    original, emitted = pair(network().double(), image().double())
    verdict = verify_programs(original, emitted)
    assert verdict.equivalent and verdict.adversarial["worst"] < 0.5
    assert not verify_programs(original, perturb(emitted, by=1e-7)).equivalent


def test_a_model_is_equal_to_itself_and_the_result_is_the_same_every_time() -> None:
    program = program_of(network(), image())
    first, again = (verify_programs(program, program.copy(), seed=5) for _ in range(2))
    assert first == again
    assert first.equivalent and first.seed == 5 and first.adversarial["worst"] == 0.0
    assert first.outputs[0].difference == 0.0


def test_equal_embeddings_several_inputs_and_nested_outputs() -> None:
    def forward(m: Any, tokens: Tensor, scale: Tensor) -> dict[str, Any]:
        h = m.embed(tokens) * scale[:, None, None]
        return {"logits": m.fc(h), "best": m.fc(h).argmax(-1), "layers": [h, 2]}

    torch.manual_seed(0)
    model = Lambda(forward, embed=nn.Embedding(30, 6), fc=nn.Linear(6, 5))
    program = program_of(model, torch.arange(12).reshape(2, 6), torch.rand(2))
    assert verify_programs(program, program.copy()).equivalent
    verdict = verify_programs(program, perturb(program, "embed.weight", by=0.5, row=29))
    assert not verdict.equivalent, "every row of the table has to be looked up"


# ---- negative controls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["stem.0", "first.0", "second.0", "last.0", "head"])
def test_one_weight_that_is_off_by_a_thousandth_is_found_and_located(module: str) -> None:
    original, emitted = pair(network(), image())
    verdict = verify_programs(original, perturb(emitted, f"{module}.weight", by=1e-3))
    assert not verdict.equivalent and verdict.reason
    assert verdict.first_divergence is not None
    assert verdict.first_divergence.startswith(f"'{module}' (")


def test_a_wrong_layer_of_a_fused_network_is_located_behind_the_last_right_one() -> None:
    """Inside a fused layer the original has values that the other never has: they are passed over when it is right."""
    original, emitted = pair(network(), image())
    verdict = verify_programs(original, perturb(emitted, "second.0.weight", by=0.5))
    assert verdict.first_divergence == "'second.0' (conv2d, shape [2, 8, 20, 20]), after 'first.2'"


class Unclipped(nn.Module):
    """A ReLU where the original clips at six: they differ on large activations alone."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def clip_pair(wrap: Callable[[nn.Module], nn.Module]) -> tuple[Program, Program]:
    """Equal weights, one with ReLU6 after the stem and one with ReLU; activations are about 0.3 on ordinary inputs."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.act(m.norm(m.conv(x))).mean((2, 3)))

    programs = []
    for act in (nn.ReLU6(), Unclipped()):
        torch.manual_seed(3)
        model = Lambda(forward, conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), act=act, head=nn.Linear(8, 5)).eval()
        programs.append(program_of(wrap(model), image()))
    return programs[0], programs[1]


def test_a_clip_that_was_dropped_is_found_by_the_search_alone() -> None:
    a, b = clip_pair(lambda m: m)
    assert verify_programs(a, b, adversarial=False).equivalent, "random inputs of scale one must not show it"
    verdict = verify_programs(a, b)
    assert not verdict.equivalent
    assert "an input was found on which they differ" in verdict.reason
    assert verdict.adversarial["worst"] > 100
    assert verdict.first_divergence is not None and verdict.first_divergence.startswith("'act' (hardtanh")


def test_a_clip_behind_a_normalised_input_is_found_by_climbing_the_activations() -> None:
    """The size of the input does not reach the clip, only its direction does."""

    class Normalised(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(1.2 * F.layer_norm(x, x.shape[1:]))

    a, b = clip_pair(Normalised)
    assert verify_programs(a, b, adversarial=False).equivalent
    assert not verify_programs(a, b).equivalent


def test_a_clip_beyond_the_declared_range_of_the_input_makes_no_difference() -> None:
    a, b = clip_pair(lambda m: m)
    limited = [dataclasses.replace(s, low=-1.0, high=1.0) for s in a.inputs]
    a, b = (dataclasses.replace(p, inputs=tuple(limited)) for p in (a, b))
    assert verify_programs(a, b).equivalent


def test_a_difference_inside_a_small_corner_of_a_bounded_input_is_found() -> None:
    """Random points of [0, 1]^48 all have a mean near a half; only the corner of ones reaches the clip at 0.9."""

    def build(limit: float) -> Program:
        model = Lambda(
            lambda m, x: m.fc(x.mean((1, 2, 3), keepdim=True).flatten(1).clamp(max=limit)), fc=nn.Linear(1, 3)
        )
        torch.manual_seed(0)
        model.fc.reset_parameters()
        program = program_of(model, torch.rand(2, 3, 4, 4))
        spec = dataclasses.replace(program.inputs[0], low=0.0, high=1.0)
        return dataclasses.replace(program, inputs=(spec,))

    assert verify_programs(build(0.9), build(2.0), adversarial=False).equivalent
    assert not verify_programs(build(0.9), build(2.0)).equivalent
    assert not verify_programs(build(2.0), build(0.9)).equivalent


def test_equal_but_chaotic_networks_are_not_called_different() -> None:
    """Large inputs make its attention a hard choice, where float32 itself says little: the twins say as much."""

    def forward(m: Any, x: Tensor) -> Tensor:
        for i in range(4):
            q, k, v = m.qkv[i](x).chunk(3, -1)
            x = x + (q @ k.transpose(1, 2)).softmax(-1) @ v
        return m.norm(x)

    torch.manual_seed(0)
    model = Lambda(forward, qkv=nn.ModuleList(nn.Linear(8, 24) for _ in range(4)), norm=nn.LayerNorm(8))
    original, emitted = pair(model, torch.randn(2, 6, 8))
    verdict = verify_programs(original, emitted)
    assert verdict.equivalent, verdict.reason


# ---- what cannot be compared, and what differs in kind -----------------------------------------------------------


def verdict_of(a: Callable[..., Any], b: Callable[..., Any], *inputs: Tensor) -> Verdict:
    return verify_programs(*(program_of(Lambda(lambda m, *x, f=f: f(*x)), *inputs) for f in (a, b)))


X = torch.randn(2, 4)


@pytest.mark.parametrize(
    "a, b, reason",
    [
        (lambda x: x.relu(), lambda x: x.relu()[:, :3], r"shape \[1, 4\] in one and \[1, 3\] in the other"),
        (lambda x: x.relu(), lambda x: (x.relu(), x), "return 1 and 2 values"),
        (lambda x: x.argmax(-1), lambda x: x.argmin(-1), "an integer output differs"),
        (
            lambda x: (x * 2).relu(),
            lambda x: x.argmax(1)[:, None].expand(-1, 4),
            "torch.float64 in one and of torch.int",
        ),
        (lambda x: (x * 2, 3), lambda x: (x * 2, 4), "an output is 3 in one and 4 in the other"),
        (lambda x: (x * 2, x), lambda x: (x * 2, None), "a tensor of shape .* in one and None in the other"),
        (lambda x: x * 2, lambda x: x / (x - x), "second model's outputs are not finite"),
        (lambda x: x / (x - x), lambda x: x * 2, "first model's outputs are not finite on random inputs of shape 1x"),
    ],
)
def test_outputs_that_differ_in_kind(a: Callable[..., Any], b: Callable[..., Any], reason: str) -> None:
    verdict = verdict_of(a, b, X)
    assert not verdict.equivalent
    assert re.search(reason, verdict.reason), verdict.reason
    assert verdict.outputs == ()
    assert json.dumps(verdict.as_dict())


def test_two_models_without_a_finite_output_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="the outputs of neither model are finite on random inputs of shape 1x"):
        verdict_of(lambda x: x / (x - x), lambda x: x / (x - x), X)


def test_equal_integers_constants_and_parameter_free_functions_pass() -> None:
    assert verdict_of(lambda x: (x.argmax(-1), 3, None), lambda x: ((2 * x).argmax(-1), 3, None), X).equivalent
    assert verdict_of(lambda x: x.relu(), lambda x: x.clamp(min=0), X).equivalent
    assert verdict_of(lambda x: x * x, lambda x: x.square(), X).equivalent


def test_outputs_whose_difference_shows_in_one_element_alone() -> None:
    """A thousandth in one of 4096 outputs drowns in the RMS, but not in the largest element."""

    def tweaked(x: Tensor) -> Tensor:
        return x * torch.where(torch.arange(4096) == 7, 1.00002, 1.0)

    verdict = verdict_of(lambda x: x * torch.ones(4096), tweaked, torch.randn(2, 4096))
    assert not verdict.equivalent
    assert "an element of output 0 differs by" in verdict.reason


@pytest.mark.parametrize(
    "left, right, message",
    [
        ((X,), (X, X), "take 1 and 2 tensor inputs"),
        (
            (X,),
            (torch.randn(2, 5),),
            r"is \['batch', 4\] \(float32\) in one and \['batch', 5\] \(float32\) in the other",
        ),
        ((X,), (torch.randn(2, 4, 1),), "in one and"),
        ((X,), (torch.ones(2, 4, dtype=torch.long),), r"\(float32\) in one and .* \(int64\) in the other"),
    ],
)
def test_inputs_that_do_not_fit_are_an_error(left: Any, right: Any, message: str) -> None:
    a, b = (program_of(Lambda(lambda m, *x: sum(v.sum() for v in x)), *inputs) for inputs in (left, right))
    with pytest.raises(InputError, match=message):
        verify_programs(a, b)


def test_fewer_than_one_input_is_an_error() -> None:
    program = program_of(nn.ReLU(), X)
    with pytest.raises(InputError, match="0 random inputs prove nothing"):
        verify_programs(program, program, trials=0)
    assert verify_programs(program, program, trials=1).shapes == ((1, 4),)


def test_fixed_and_free_sizes_meet_at_the_fixed_ones() -> None:
    model = network()
    free = program_of(model, image())
    fixed = program_of(model, image(), dynamic=())
    wide = program_of(model, image(), dynamic=("batch", "height", "width"))
    for a, b in ((free, fixed), (fixed, free), (wide, fixed), (fixed, wide)):
        verdict = verify_programs(a, b, trials=3)
        assert verdict.equivalent
        assert verdict.shapes == ((2, 3, 20, 20),) * 3
    assert verify_programs(free, wide, trials=3).shapes == ((1, 3, 20, 20), (2, 3, 15, 15))


def test_a_model_that_runs_at_one_size_only_is_compared_there() -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(3 * 20 * 20, 4))
    verdict = verify_programs(*pair(model, image()))
    assert verdict.equivalent
    assert verdict.shapes == ((1, 3, 20, 20), (7, 3, 20, 20))


# ---- loaded models, the verdict ----------------------------------------------------------------------------------


def test_loaded_models_need_a_shape_that_fits() -> None:
    model = network()
    with pytest.raises(InputError, match="the input's shape is not known; pass it with --input-shape"):
        captured(LoadedModel(model), None)
    with pytest.raises(InputError, match=r"input shapes \[\(4, 20, 20\)\]"):
        captured(LoadedModel(model, input_shapes=((4, 20, 20),)), None)
    known = LoadedModel(model, input_shapes=((3, 20, 20),))
    assert verify(known, LoadedModel(model)).equivalent, "one of the two telling its shape is enough"
    assert reparam.verify is verify


def test_the_verdict_in_words_and_as_json() -> None:
    original, emitted = pair(network(), image())
    told: list[tuple[str, int, int]] = []
    verdict = verify_programs(original, emitted, progress=lambda *step: told.append(step))
    assert told[0] == ("verify", 0, 3) and told[-1] == ("verify", 3, 3)
    lines = verdict.sentences()
    assert lines[0] == "equivalent"
    assert lines[1].startswith("output 0: float64 difference ") and "bar" in lines[1]
    assert lines[-1] == "8 random inputs, shapes [1, 3, 20, 20], [7, 3, 15, 15], seed 0"
    row = json.loads(json.dumps(verdict.as_dict()))
    assert row["equivalent"] is True and row["outputs"][0]["ok"] is True
    assert row["shapes"] == [[1, 3, 20, 20], [7, 3, 15, 15]]
    bad = verify_programs(original, perturb(emitted, by=0.1)).sentences()
    assert bad[0].startswith("NOT equivalent: output 0 differs by") and any("they part at" in line for line in bad)


# ---- the parts of the search -------------------------------------------------------------------------------------


def test_the_twin_moves_every_weight_by_a_rounding_and_leaves_the_original() -> None:
    program = program_of(network(), image())
    before = {n: c.value.clone() for n, c in program.constants.items()}
    moved = adversary.twin(program, 1e-3)
    assert all(torch.equal(c.value, before[n]) for n, c in program.constants.items())
    for name, constant in moved.constants.items():
        ratio = (constant.value / before[name].double())[before[name] != 0] - 1.0
        assert float(ratio.abs().max()) <= 1e-3 * (1 + 1e-9)
        assert constant.value.numel() < 50 or float(ratio.abs().max()) > 0.5e-3
    assert adversary.rounding(torch.float32) == torch.finfo(torch.float32).eps / 2
    assert adversary.rounding(torch.float64) == 1e-12


def test_points_on_which_nothing_finite_can_be_said_count_as_no_difference() -> None:
    a, b = (
        program_of(Lambda(lambda m, x: (x * 30).exp().exp() + 0 * m.w, w=nn.Parameter(torch.ones(1))), X) for _ in "ab"
    )
    assert math.isnan(adversary.gap(a, b, [torch.full((1, 4), 100.0, dtype=torch.float64)]))
    assert adversary._share(math.nan, 1.0, 0.0) == 0.0
    assert adversary._share(1.0, math.nan, 0.0) == 0.0
    assert adversary._share(math.inf, 1.0, 1e-6) == math.inf


def test_climbing_stays_inside_the_bounds() -> None:
    a, b = clip_pair(lambda m: m)
    spec: InputSpec = dataclasses.replace(a.inputs[0], low=-0.5, high=0.25)
    a = dataclasses.replace(a, inputs=(spec,))
    start = torch.zeros(1, 3, 20, 20, dtype=torch.float64)
    for scale in adversary.SCALES:
        point = adversary._scaled(a, [start + 0.1], scale)
        assert float(point[0].min()) >= -0.5 and float(point[0].max()) <= 0.25
    leaves = [start.clone().requires_grad_(True)]
    terms, _ = adversary._raised(1.0, a, b, leaves)
    moved = adversary._uphill(a, leaves, 1e6 * torch.stack(terms).sum())[0]
    assert float(moved.min()) >= -0.5 and float(moved.max()) <= 0.25
    assert float(moved.abs().max()) > 0.0
