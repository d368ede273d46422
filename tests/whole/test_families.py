"""A network of each family of timm, in its smallest form that takes small images.

By default those that take the least time; `make sweep` runs all of them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from reparam.conversion import convert
from reparam.loading import randomize_statistics

sys.path.append(str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))
from shortened import CUTS, cut_runs  # of a folder that is no package

FLOAT64 = 1e-10


@dataclass(frozen=True)
class Family:
    """A name of timm. size: of its images. arguments: that make it small. quick: part of the default suite."""

    name: str
    size: int = 32
    quick: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> nn.Module:
        """With random weights and statistics of its norms, and one block of each run of equal ones."""
        images = torch.randn(8, 3, self.size, self.size)
        for kinds in CUTS:
            network = timm.create_model(self.name, num_classes=10, **self.arguments)
            cut_runs(network, kinds, kept=1)
            with contextlib.suppress(Exception):  # of the network's own code, which needs more of its blocks
                return randomize_statistics(network, (images,))
        raise AssertionError("there is no such network")


FAMILIES = (
    Family("beit_large_patch16_224", quick=True, arguments={"depth": 1, "embed_dim": 64, "img_size": 32}),
    Family("caformer_s18", quick=True),
    Family("cait_xxs24_224", quick=True, arguments={"depth": 1, "embed_dim": 64, "img_size": 32}),
    Family("coat_tiny", arguments={"img_size": 32}),
    Family("convit_tiny", quick=True, arguments={"depth": 1, "img_size": 32}),
    Family("convmixer_768_32", quick=True),
    Family("cpubone_nano", quick=True),
    Family("crossvit_tiny_240", quick=True),
    Family("csatv2", size=64),
    Family("cspnext_tiny", quick=True),
    Family("darknet17", quick=True),
    Family("davit_base", arguments={"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64)}),
    Family("deepseek_vit_412m", size=546, quick=True, arguments={"depth": 1, "embed_dim": 64}),
    Family("deit_tiny_patch16_224", quick=True, arguments={"depth": 2, "embed_dim": 96, "img_size": 32}),
    Family("densenet121"),
    Family("dla34", quick=True),
    Family("dpn48b"),
    Family("edgenext_xx_small", quick=True, arguments={"depths": (1, 1, 1, 1)}),
    Family(
        "efficientformer_l1", size=224, quick=True, arguments={"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64)}
    ),
    Family("efficientvim_m1", arguments={"depths": (1, 1, 1)}),
    Family("efficientvit_b0", quick=True, arguments={"depths": (2, 2)}),
    Family("efficientvit_m0", arguments={"depth": (1, 1, 1)}),
    Family("fasternet_t0", quick=True, arguments={"depths": (2, 2)}),
    Family("fastvit_t8", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("focalnet_tiny_srf"),
    Family("gcvit_xxtiny", arguments={"img_size": 32}),
    Family("gemma4_vit_167m_enc", size=96, quick=True, arguments={"depth": 1, "embed_dim": 64}),
    Family("ghostnet_050"),
    Family("gmlp_ti16_224", quick=True, arguments={"img_size": 32}),
    Family("hardcorenas_b", quick=True),
    Family("hgnetv2_b0", quick=True),
    Family("hiera_tiny_224", arguments={"img_size": 32}),
    Family("hrnet_w18_small"),
    Family("iformer_t"),
    Family("inception_next_atto", quick=True, arguments={"depths": (2, 2)}),
    Family("inception_resnet_v2", size=96),
    Family("inception_v3", size=96),
    Family("inception_v4", size=96),
    Family("lcnet_035", quick=True),
    Family("lcnetv2_small", quick=True, arguments={"depths": (1, 1, 1, 1)}),
    Family("legacy_seresnet18", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("legacy_xception"),
    Family("levit_128", arguments={"depth": (1, 1, 1), "img_size": 32}),
    Family("lowformer_b0", quick=True),
    Family("mobilenetv5_base"),
    Family("mobilevit_xxs"),
    Family("mvitv2_tiny"),
    Family("naflexvit_base_patch16_gap", quick=True, arguments={"depth": 2, "embed_dim": 96}),
    Family("nasnetalarge"),
    Family("nest_tiny", quick=True, arguments={"img_size": 32}),
    Family("nextvit_small"),
    Family("pit_xs_224", quick=True, arguments={"depth": (1, 1, 1), "img_size": 32}),
    Family("pnasnet5large"),
    Family("pvt_v2_b0", quick=True, arguments={"depths": (1, 1, 1, 1)}),
    Family("qwen3_vit_416m", quick=True, arguments={"depth": 1, "embed_dim": 64}),
    Family("rdnet_tiny"),
    Family("regnetx_002", quick=True),
    Family("repghostnet_050"),
    Family("repvit_m1"),
    Family("res2next50", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("resnest14d", quick=True),
    Family("resnetv2_18", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("rexnet_100"),
    Family("sam2_hiera_tiny"),
    Family("samvit_base_patch16_224", quick=True, arguments={"depth": 2, "embed_dim": 96}),
    Family("selecsls42"),
    Family("sequencer2d_s", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("shvit_s1", quick=True, arguments={"depth": (1, 1, 1)}),
    Family("skresnet18", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("starnet_s050", quick=True, arguments={"depths": (2, 2)}),
    Family("swiftformer_xs", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("swin_tiny_patch4_window7_224", quick=True, arguments={"depths": (2, 2), "img_size": 32}),
    Family("swinv2_cr_tiny_224", quick=True, arguments={"depths": (2, 2), "img_size": 32}),
    Family("swinv2_tiny_window8_256", quick=True, arguments={"depths": (2, 2), "img_size": 32}),
    Family("test_byobnet", quick=True),
    Family("test_coatnet", quick=True, arguments={"depths": (1, 1, 1, 1), "img_size": 32}),
    Family("test_convnext", quick=True, arguments={"depths": (1, 1, 1, 1)}),
    Family("test_efficientnet", quick=True),
    Family("test_mambaout", quick=True, arguments={"depths": (2, 2)}),
    Family("test_nfnet", quick=True, arguments={"depths": (2, 2)}),
    Family("test_resnet", quick=True),
    Family("test_vit", quick=True, arguments={"depth": 1}),
    Family("test_vit_relpos", quick=True, arguments={"depth": 1, "img_size": 32}),
    Family("tresnet_m", quick=True, arguments={"layers": (1, 1, 1, 1)}),
    Family("twins_svt_small", quick=True, arguments={"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 48, 64)}),
    Family("vgg11"),
    Family("visformer_tiny", quick=True, arguments={"depth": 1, "embed_dim": 64, "img_size": 32}),
    Family("vit_small_patch16_dinov3", quick=True, arguments={"depth": 2, "embed_dim": 96}),
    Family("vit_tiny_r_s16_p8_224", quick=True, arguments={"depth": 2, "embed_dim": 96, "img_size": 32}),
    Family("vitamin_small_224", quick=True, arguments={"depth": 1, "img_size": 32}),
    Family("volo_d1_224", arguments={"img_size": 32}),
    Family("vovnet39a"),
    Family("xception41p"),
    Family("xcit_nano_12_p8_224", quick=True, arguments={"depth": 1, "embed_dim": 64}),
)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=() if f.quick else pytest.mark.sweep) for f in FAMILIES],
)
def test_a_small_network_of_each_family(family: Family) -> None:
    network, x = family.network(), torch.randn(2, 3, family.size, family.size)
    found = convert(network, x)
    evidence, before, after = found.report.evidence, found.report.before, found.report.after
    assert evidence is not None and evidence.float64_max_rel <= FLOAT64 and evidence.trials >= 3
    assert after.norms <= before.norms and after.convs <= before.convs and after.macs <= before.macs
    assert not [r for r in found.report.remarks if "rejected by its own check" in r.message]
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(found.module(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
