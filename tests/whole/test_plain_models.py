"""The acceptance list of the target `plain`: unmodified networks of torchvision and timm become chains, at a price.

By default one of them, on small images; `make sweep` runs all of them at their own size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import fx

from reparam.conversion import Conversion, convert
from reparam.ir import Program
from reparam.loading import build_architecture, randomize_statistics

FLOAT64 = 1e-10


@dataclass(frozen=True)
class Plain:
    """One network. price: multiply-accumulates against the original, to two decimals. gates: squeeze-excite gates
    that stay. small: side of the image in the default suite, 0 when it runs in the sweep only."""

    spec: str
    price: float
    gates: int = 0
    small: int = 0
    size: int = 224
    norms: int = 0  # left where a batch norm stands between a max-pool and a ReLU
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join((self.spec.split("/")[1], *self.options.values()))


CASES = (
    Plain("torchvision/resnet18", 1.77, small=64),
    Plain("torchvision/resnet18", 1.18, options={"carry": "split=8"}),
    Plain("torchvision/resnet34", 1.89),
    Plain("torchvision/resnet50", 3.92),
    Plain("torchvision/resnet50", 1.69, options={"carry": "split=8"}),
    Plain("torchvision/resnet50", 1.38, options={"carry": "split=16"}),
    Plain("torchvision/resnet101", 4.43),
    Plain("torchvision/resnet152", 4.61),
    Plain("torchvision/wide_resnet50_2", 2.63),
    Plain("torchvision/resnext50_32x4d", 2.41),
    Plain("torchvision/mobilenet_v2", 1.09),
    Plain("torchvision/regnet_x_400mf", 1.85),
    Plain("timm/resnet50d", 3.75),
    Plain("timm/resnet26t", 2.93),
    Plain("timm/resnetv2_50", 4.67, norms=1),
    Plain("timm/nf_resnet50", 4.67),
    Plain("timm/darknet53", 3.16),
    Plain("timm/cspdarknet53", 2.81),
    Plain("timm/vovnet39a", 3.34),
    Plain("timm/densenet121", 11.99),
    Plain("timm/repvgg_a0", 0.90),
    Plain("timm/dla34", 4.89, options={"max_pool": "relu"}),
    Plain("torchvision/inception_v3", 4.92, size=299, options={"max_pool": "relu"}),
    Plain("timm/efficientnet_b0", 1.09, gates=16),
    Plain("timm/mobilenetv3_large_100", 1.16, gates=8),
    Plain("timm/regnety_002", 1.77, gates=13),
    Plain("timm/seresnet50", 5.02, gates=16),
    Plain("timm/repvit_m1", 1.40, gates=10),
)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if c.small])
def test_a_network_becomes_plain(case: Plain) -> None:
    assert_plain(case, case.small)


@pytest.mark.sweep
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES])
def test_every_network_becomes_plain_at_its_price(case: Plain) -> None:
    conversion = assert_plain(case, case.size)
    report = conversion.report
    assert round(report.after.macs / report.before.macs, 2) <= case.price


def assert_plain(case: Plain, size: int) -> Conversion:
    torch.manual_seed(0)
    module = build_architecture(case.spec).module
    randomize_statistics(module, [torch.randn(8, 3, size, size)])
    conversion = convert(module, torch.randn(2, 3, size, size), to="plain", **case.options)
    report = conversion.report
    assert report.evidence is not None
    assert report.evidence.float64_max_rel <= FLOAT64
    assert (report.after.merges, report.after.norms) == (0, case.norms)
    assert report.after.gates == case.gates
    assert report.plain == (case.gates == 0)
    assert not [r for r in report.remarks if "rejected by its own check" in r.message]
    if not case.gates:
        assert walks_as_a_chain(conversion.program)
    else:
        named = [r for r in report.remarks if r.rule == "carry-residual" and r.kind == "missed"]
        assert len(named) == case.gates
        assert all("gate" in r.message for r in named)
    return conversion


def walks_as_a_chain(program: Program) -> bool:
    """Independently of the report: from the input each value is read once, by a call that reads nothing else."""
    (node,) = program.placeholders
    steps = 0
    while node.op != "output":
        readers = list(node.users)
        if len(readers) != 1 or [i for i in readers[0].all_input_nodes if _from_input(i)] != [node]:
            return False
        node, steps = readers[0], steps + 1
    return steps == sum(1 for n in program.graph.nodes if n.op in ("call_function", "output") and _from_input(n))


def _from_input(node: fx.Node) -> bool:
    """Whether a value depends on the input, found by walking back."""
    stack, seen = [node], set()
    while stack:
        n = stack.pop()
        if n.op == "placeholder":
            return True
        if n not in seen:
            seen.add(n)
            stack.extend(n.all_input_nodes)
    return False
