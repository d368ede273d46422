"""`init --method autoinit` and every analysis on networks of timm and torchvision, one of a family.

The power of the output is measured on random images that the weights were not scaled on; batch norms take the
statistics of the batch and dropouts drop, while no block is skipped (stochastic depth). Analyses run in evaluation mode
on two images. Each network has its time.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from reparam.errors import ReparamError
from reparam.loading import build_architecture
from reparam.signal import KINDS
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

LIMIT = 900  # seconds for a network
SAMPLES = 64  # random images that layers are scaled on
IMAGES = 64  # others, that the output is measured on
SKIPPING = ("DropPath", "StochasticDepth")  # modules that leave whole blocks out while they train
OWN = {"torchvision/r3d_18": (3, 8, 64, 64)}
NETWORKS = """
timm/repvgg_a0 64
timm/convmixer_768_32 56
timm/convnext_atto 64
timm/cspresnet50 64
timm/davit_tiny 96
timm/densenet121 64
timm/dla34 64
timm/dpn48b 64
timm/edgenext_xx_small 64
timm/efficientnet_b0 64
timm/efficientvit_b0 64
timm/fasternet_t0 64
timm/fastvit_t8 96
timm/focalnet_tiny_srf 64
timm/ghostnet_100 64
timm/hardcorenas_a 64
timm/hgnetv2_b0 64
timm/hrnet_w18_small 64
timm/inception_next_atto 64
timm/lcnet_050 64
timm/mambaout_femto 64
timm/poolformer_s12 64
timm/mobilenetv3_large_100 64
timm/mobileone_s0 64
timm/mobilevit_xxs 64
timm/nextvit_small 96
timm/dm_nfnet_f0 64
timm/nf_resnet50 64
timm/pvt_v2_b0 64
timm/rdnet_tiny 64
timm/regnetx_002 64
timm/repghostnet_050 64
timm/repvit_m0_9 64
timm/res2net50_14w_8s 64
timm/resnest14d 64
timm/resnet18 64
timm/resnetv2_50 64
timm/rexnet_100 64
timm/selecsls42b 64
timm/legacy_seresnet18 64
timm/skresnet18 64
timm/starnet_s1 64
timm/ese_vovnet19b_dw 64
timm/xception41 64
torchvision/alexnet 96
torchvision/fcn_resnet50 64
torchvision/googlenet 64
torchvision/mnasnet0_5 64
torchvision/mobilenet_v2 64
torchvision/r3d_18 64
torchvision/resnet50 64
torchvision/shufflenet_v2_x0_5 64
torchvision/squeezenet1_1 64
torchvision/swin_t 64
torchvision/vgg11_bn 64
timm/beit_base_patch16_224 224 depth=2
timm/cait_xxs24_224 224 depth=4
timm/convit_tiny 224 depth=4
timm/deit_tiny_patch16_224 224 depth=4
timm/eva02_tiny_patch14_224 224 depth=4
timm/coatnet_pico_rw_224 224 depths=1,1,1,1
timm/mixer_s32_224 224
timm/swin_tiny_patch4_window7_224 224 depths=1,1,2,1
timm/vit_tiny_patch16_224 224 depth=4
timm/crossvit_tiny_240 240
timm/efficientformer_l1 224
timm/efficientformerv2_s0 224
timm/efficientvit_m0 224
timm/gcvit_xxtiny 224
timm/hiera_tiny_224 224
timm/inception_v3 139
timm/levit_128s 224
"""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises TimeoutError once the time is over."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told(words: list[str]) -> dict[str, Any]:
    """Arguments of an architecture, `depth=4` or `depths=1,1,2,1`."""
    pairs = [w.split("=") for w in words]
    return {k: int(v) if v.isdigit() else tuple(map(int, v.split(","))) for k, v in pairs}


def output_power(model: nn.Module, shape: tuple[int, ...]) -> float:
    """E y^2 of the first output in training mode; where that has other outputs, with norms and dropouts alone in it."""
    x = torch.randn(IMAGES, *shape)
    model.train()
    for module in model.modules():
        if type(module).__name__ in SKIPPING:
            module.eval()
    with torch.no_grad():
        y = model(x)
        if not isinstance(y, Tensor):
            model.eval()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                    module.train()
            y = model(x)
    y = next(iter(y.values())) if isinstance(y, dict) else y
    y = y[0] if isinstance(y, list | tuple) else y
    assert isinstance(y, Tensor)
    return float(y.square().mean())


def tried(line: str, seed: int) -> dict[str, Any]:
    """What becomes of one network."""
    name, side, *words = line.split()
    shape, started = OWN.get(name, (3, int(side), int(side))), time.perf_counter()
    row: dict[str, Any] = {"network": name, "side": int(side), "arguments": " ".join(words), "kinds": {}}
    torch.manual_seed(seed)
    try:
        model = build_architecture(name, told(words)).module.eval()
        made = reparam.init(model, torch.randn(2, *shape), method="autoinit", seed=seed, samples=SAMPLES)
        row |= {"predicted": made.figures["predicted_output_power"], "notes": list(made.notes)}
        row["scaled"] = made.figures.get("measured_output_power")
        row["power"] = output_power(made.module, shape)
        row["init seconds"] = round(time.perf_counter() - started, 1)
        model = build_architecture(name, told(words)).module.eval()
        found = reparam.analyze(model, torch.randn(2, *shape), what=tuple(KINDS), batch=2)
        row["kinds"] = dict(found.refused)
    except (ReparamError, TimeoutError) as error:
        row["error"] = f"{type(error).__name__}: {error}"
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a line of JSON for each network, which is added")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    register_missing_torchvision_ops()
    print("| network | image | predicted | measured | analyses that do not fit | seconds |\n|---|---|---|---|---|---|")
    for line in NETWORKS.strip().splitlines():
        if arguments.only not in line:
            continue
        with within(LIMIT):
            row = tried(line, arguments.seed)
        name = " ".join(filter(None, (row["network"], row["arguments"])))
        figures = " | ".join(f"{row[k]:.3g}" if row.get(k) is not None else "-" for k in ("predicted", "power"))
        refused = ", ".join(row["kinds"]) or row.get("error", "")
        print(f"| {name} | {row['side']} | {figures} | {refused} | {row['seconds']:.0f} |", flush=True)
        if arguments.json:
            with arguments.json.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
