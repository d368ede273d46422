"""The acceptance list: unmodified networks of timm and torchvision, and what fusing one of them measures."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, fx, nn

from reparam import conversion
from reparam.capture import capture
from reparam.conversion import Conversion, convert
from reparam.ir import ADDS, BATCH_NORMS, DIVS, MULS, SUBS, Census, Program, census, is_call, op_name
from reparam.loading import build_architecture, randomize_statistics
from reparam.report import Remark
from reparam.rewrite import Driver, Outcome, Phase
from support.helpers import max_rel


@dataclass(frozen=True)
class Case:
    """One network.

    size: side of the image, smaller than usual where the network allows it. batch, seed: of the images that its random
    statistics are estimated from, chosen so that float32 arithmetic loses little. deploy: whether timm has a deploy
    form to compare with. norms: batch norms left in the fused form. fast: part of the default test suite.
    """

    spec: str
    size: int = 224
    batch: int = 16
    seed: int = 0
    deploy: bool = False
    norms: int = 0
    fast: bool = False

    @property
    def name(self) -> str:
        return self.spec.split("/")[1]


CASES = (
    Case("timm/repvgg_a0", 64, deploy=True),
    Case("timm/repvgg_b1g4", 64, deploy=True),
    Case("timm/mobileone_s0", 64, deploy=True),
    Case("timm/mobileone_s1", 64, deploy=True),
    Case("timm/mobileone_s4", 128, deploy=True),
    Case("timm/fastvit_t8", 128, deploy=True),
    Case("timm/fastvit_sa12", 128, deploy=True),
    Case("timm/repvit_m1", 96, deploy=True),
    Case("timm/repvit_m1_1", 96, deploy=True),
    Case("timm/repghostnet_100", 96, deploy=True),
    Case("timm/ghostnetv3_100", 96, deploy=True),
    Case("timm/levit_128", seed=7, deploy=True),
    Case("timm/nextvit_small", 96, deploy=True),
    Case("timm/efficientformerv2_s0", deploy=True),
    Case("timm/tiny_vit_5m_224", batch=8, deploy=True),
    Case("timm/shvit_s1", 224, deploy=True),
    Case("timm/dm_nfnet_f0", 96),
    Case("timm/nf_resnet50", 96),
    Case("timm/convmixer_768_32", 112, batch=8, norms=32),
    Case("timm/starnet_s1", 96),
    Case("timm/hgnetv2_b0", 96),
    Case("timm/resnetv2_50", 96, norms=17),
    Case("timm/densenet121", 96, norms=62),
    Case("timm/mobilenetv3_large_100", 96, fast=True),
    Case("timm/efficientnet_b0", 96),
    Case("timm/inception_v3", 139),
    Case("timm/convnext_atto", 96),
    Case("timm/swin_tiny_patch4_window7_224", batch=8),
    Case("timm/vit_small_patch16_224", batch=8),
    Case("timm/regnetx_002", 96),
    Case("timm/ghostnet_100", 96),
    Case("timm/xception41", 139),
    Case("timm/res2net50_26w_4s", 96),
    Case("torchvision/vgg11_bn", 64),
    Case("torchvision/resnet50", 96),
)


@dataclass(frozen=True)
class Deploy:
    """timm's own deploy form: its counts, its batch norms, and its float64 distance from the original."""

    census: Census
    norms: int
    difference: float


@dataclass(frozen=True)
class Fused:
    """What fusing one case gave. loss: the original's own float32 error, relative to its outputs' RMS."""

    conversion: Conversion
    outcome: Outcome
    output: Tensor
    deploy: Deploy | None

    @property
    def before(self) -> Census:
        return self.conversion.report.before

    @property
    def after(self) -> Census:
        return self.conversion.report.after

    @property
    def norms(self) -> list[str]:
        return batch_norms(self.conversion.program)

    @property
    def loss(self) -> float:
        evidence = self.conversion.report.evidence
        assert evidence is not None
        return evidence.original_error / float(self.output.double().square().mean().sqrt())

    def missed(self, node: str) -> list[Remark]:
        return [r for r in self.conversion.report.remarks if r.kind == "missed" and r.node == node]


def batch_norms(program: Program) -> list[str]:
    """The names of the batch norms of a program."""
    return [n.name for n in program.calls() if is_call(n, BATCH_NORMS)]


def constant_arithmetic(program: Program) -> list[str]:
    """The calls that multiply, divide, add or subtract a number or a weight, as "mul by 0.2"."""
    found = []
    for node in program.calls():
        if node.meta["data"] and is_call(node, ADDS | SUBS | MULS | DIVS):
            constants = [a for a in node.args[:2] if not isinstance(a, fx.Node) or a.op == "get_attr"]
            found += [f"{op_name(node)} by {c} at {node.meta['module']}" for c in constants]
    return found


def healthy_network(case: Case) -> nn.Module:
    """The network with random weights and the statistics of a trained one; outputs lie within 1e-3 and 1e3."""
    module = build_architecture(case.spec).module
    return randomize_statistics(module, [torch.zeros(case.batch, 3, case.size, case.size)], seed=case.seed)


@contextmanager
def recorded() -> Iterator[list[Outcome]]:
    """Collects the outcome of every driver that runs inside the block."""
    outcomes: list[Outcome] = []

    class Recorder(Driver):
        def run(self, phases: tuple[Phase, ...]) -> Outcome:  # type: ignore[override]
            outcomes.append(super().run(phases))
            return outcomes[-1]

    with mock.patch.object(conversion, "Driver", Recorder):
        yield outcomes


def fuse_case(case: Case) -> Fused:
    """Builds, fuses and (if timm has one) compares with the deploy form."""
    module = healthy_network(case)
    x = torch.randn(2, 3, case.size, case.size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        output = module(x)
    with recorded() as outcomes:
        result = convert(module, x)
    deploy = _deploy(module, x, result.original) if case.deploy else None
    return Fused(result, outcomes[0], output, deploy)


def _deploy(module: nn.Module, x: Tensor, original: Program) -> Deploy:
    """The deploy form of a float64 copy, so that its own folding loses nothing."""
    from timm.utils import reparameterize_model

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # timm's folding makes new layers of the default dtype
    try:
        twin = reparameterize_model(copy.deepcopy(module).double().eval())
    finally:
        torch.set_default_dtype(default)
    program = capture(twin, [x.double()]).program
    return Deploy(census(program), len(batch_norms(program)), max_rel(original, program, [x.double()]))
