"""hoist-affine: equal affines in front of a concatenation become one behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reparam.passes.hoist_affine import HoistAffine
from support.helpers import Lambda, apply_exactly, doubles, fuse_exactly, healthy, program_of, run_rules, vector


class Two(nn.Module):
    """Two images through one network, in one batch."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=padding), nn.BatchNorm2d(4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (2 * (x / 255) - 1 for x in (a, b))
        return torch.relu(self.norm(self.conv(torch.cat((a, b), 0))))


def test_equal_preprocessing_of_two_inputs_folds() -> None:
    done = fuse_exactly(healthy(Two()), doubles(2, 3, 7, 7), doubles(2, 3, 7, 7, seed=1), bound=1e-12)
    assert done.text == "relu(conv3x3(cat([x0, x1], 0)))"


def test_one_norm_for_both_parts_folds_into_the_layers_before_a_concatenation_of_samples() -> None:
    model = Lambda(
        lambda m, a, b: m.n(torch.cat((m.p(a), m.q(b)), 0)).sin(),
        p=nn.Conv2d(3, 4, 3, padding=1),
        q=nn.Conv2d(3, 4, 1),
        n=nn.BatchNorm2d(4),
    )
    done = fuse_exactly(healthy(model), doubles(2, 3, 5, 5), doubles(2, 3, 5, 5, seed=1), bound=1e-13)
    assert done.text == "sin(cat([conv3x3(x0), conv1x1(x1)]))"


def test_along_the_width_it_is_hoisted_and_along_its_own_axis_not() -> None:
    told = "2 equal affines became one behind the concatenation"
    for axis, width, messages in ((2, 3, [told]), (1, 3, []), (1, 2, [])):
        model = Lambda(lambda m, a, b, d=axis: torch.cat((a * m.s, b * m.s), d).sin(), s=vector(width, 1))
        inputs = (doubles(2, width, 4), doubles(2, width, 4, seed=1))
        done = apply_exactly(model, *inputs, rules=[HoistAffine()], bound=1e-14)
        assert [r.message for r in done.outcome.remarks] == messages


def test_unequal_or_shared_parts_stay() -> None:
    for forward in (
        lambda m, a, b: torch.cat((a * 2, b * 3), 0),
        lambda m, a, b: torch.cat((a * 3, b * 2, a.sin() * 2), 0),
        lambda m, a, b: torch.cat((2 - a, 3 - b), 0),
        lambda m, a, b: torch.cat((a * 2, b), 0),
        lambda m, a, b: torch.cat(((c := a * 2), b * 2), 0) + c.sum(),
    ):
        done = apply_exactly(
            Lambda(forward), doubles(2, 3, 4), doubles(2, 3, 4, seed=1), rules=[HoistAffine()], bound=1e-14
        )
        assert not done.outcome.remarks


def test_parts_of_two_precisions_stay_as_each_is_rounded_in_its_own() -> None:
    model = Lambda(lambda _, a, b: torch.cat((a / 3, b / 3), 0))
    done = run_rules(program_of(model, doubles(2, 3), doubles(2, 3, seed=1).float()), HoistAffine())
    assert done.text == "cat([div(x0, 3), div(x1, 3)])" and not done.outcome.remarks


def test_constants_with_equal_entries_along_the_axis_of_the_concatenation() -> None:
    """They have as many entries as a part has channels, and the whole has twice as many."""
    for axis, shape, name in ((1, (1, 2, 1, 1), "mul.scale"), (2, (2, 1), "mul.scale"), (3, (2, 1), "s")):
        model = Lambda(
            lambda m, x, axis=axis: torch.cat([m.s * x, m.s * x.sin()], axis).tanh(),
            s=nn.Parameter(torch.full(shape, 0.5)),
        )
        done = apply_exactly(model.double(), doubles(2, 2, 2, 5), rules=[HoistAffine()], bound=1e-14)
        assert done.passed("hoist-affine") == ["2 equal affines became one behind the concatenation"]
        assert name in [n.target for n in done.program.graph.nodes if n.op == "get_attr"]


def test_a_number_stays_a_number() -> None:
    model = Lambda(lambda m, x: torch.cat([x * 2.0, x.sin() * 2.0], 1).tanh())
    done = apply_exactly(model, doubles(2, 2, 2, 5), rules=[HoistAffine()], bound=1e-14)
    assert done.text == "tanh(mul(cat([x, sin(x)], 1), 2.0))"
