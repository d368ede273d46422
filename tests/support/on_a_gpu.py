"""Run as a script: what users do with networks that lie on a GPU, on one that is only pretended; prints JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from support import pretended_gpu
from support.helpers import healthy

GPU = pretended_gpu.NAME


class Net(nn.Module):
    """Branches, a residual sum, a buffer, and tensors that its forward makes on a device that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.act, self.head = nn.PReLU(8), nn.Linear(8, 4)
        self.register_buffer("offset", torch.arange(8.0).reshape(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        y = self.left(x) + self.right(x) + self.offset.to(x) + torch.ones((), device=self.offset.device)
        return self.head((torch.relu(x + y) * torch.full((), 0.5, device=x.device)).mean((2, 3)))


def net() -> nn.Module:
    return healthy(Net()).float().to(GPU)


def draw(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(GPU)


def lies(module: nn.Module) -> list[str]:
    return sorted({v.device.type for v in (*module.parameters(), *module.buffers())})


def difference(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        return float((a(draw(5)).cpu() - b(draw(5)).cpu()).abs().max())


def converted(to: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    model = net().to(dtype)
    made = reparam.convert(model, draw().to(dtype), to=to)
    return {"device": lies(made.module), "difference": difference(model.float(), made.module.float())}


def examples_elsewhere() -> dict[str, Any]:
    return {"device": lies(reparam.convert(net(), draw().cpu()).module)}


def on_the_cpu_by_example_of_the_gpu() -> dict[str, Any]:
    return {"device": lies(reparam.convert(net().cpu(), draw()).module)}


def saved() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model, path = net(), Path(folder) / "net.pt2"
        reparam.convert(model, draw(), to="plain").save(path)
        loaded = torch.export.load(path).module()
        with torch.no_grad():
            apart = float((loaded(draw(5).cpu()) - model(draw(5)).cpu()).abs().max())
        return {"device": lies(loaded), "difference": apart}


def exported_program() -> dict[str, Any]:
    program = torch.export.export(net(), (draw(),), strict=False)
    made = reparam.convert(program)
    return {"device": lies(made.module), "own": sorted({v.device.type for v in program.state_dict.values()})}


def explained() -> dict[str, Any]:
    return {"merges": reparam.explain(net(), draw()).after.merges}


def initialised(method: str, **options: Any) -> dict[str, Any]:
    return {"device": lies(reparam.init(net(), draw(), method=method, **options).module)}


def analysed() -> dict[str, Any]:
    found = reparam.analyze(net(), draw(), what=("moments", "gradients", "erf", "dead"), data=draw(16))
    return {"tables": len(found.tables)}


def recalibrated() -> dict[str, Any]:
    return {"device": lies(reparam.recalibrate(net(), draw(), data=draw(32)).module)}


def pruned() -> dict[str, Any]:
    made = reparam.prune(net(), draw(), draw(64), macs=0.7, form="residual")
    return {"device": lies(made.module)}


class Unplaced(nn.Module):
    """Its forward makes tensors where the default is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return torch.relu(y + torch.arange(8.0).reshape(1, 8, 1, 1)) + y * torch.ones(())


def by_default() -> dict[str, Any]:
    torch.set_default_device(GPU)
    try:
        model = healthy(Unplaced()).float()
        made = reparam.convert(model, draw(), to="plain")
        prepared = reparam.init(model, draw(), method="he")
        found = len(reparam.analyze(model, draw()).tables)
        return {"device": lies(made.module) + lies(prepared.module), "difference": difference(model, made.module)} | {
            "tables": found,
            "default": torch.get_default_device().type,
        }
    finally:
        torch.set_default_device(None)


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "fused": lambda: converted("fused"),
    "plain": lambda: converted("plain"),
    "half": lambda: converted("plain", torch.bfloat16),
    "examples elsewhere": examples_elsewhere,
    "on the CPU": on_the_cpu_by_example_of_the_gpu,
    "saved": saved,
    "by default": by_default,
    "exported program": exported_program,
    "explain": explained,
    "init he": lambda: initialised("he"),
    "init lsuv": lambda: initialised("lsuv", data=draw(16)),
    "init normalised-act": lambda: initialised("normalised-act"),
    "analyze": analysed,
    "recalibrate": recalibrated,
    "prune": pruned,
}


def main() -> None:
    pretended_gpu.install()
    found: dict[str, Any] = {}
    for name in sys.argv[1:] or CASES:
        try:
            found[name] = CASES[name]()
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"}
    try:
        with torch.no_grad():
            net()(draw().cpu())
        found["mixed"] = {}
    except RuntimeError as error:
        found["mixed"] = {"error": str(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
