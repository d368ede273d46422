"""The networks of torchvision and timm at a size that can be tried: all kinds of their blocks, and few of each kind.

A large network is built with fewer blocks and smaller images where its library has arguments for that. Then two of
every run of equal blocks stay: equal in the kinds of their layers, and in the names and shapes of their weights. So
every kind of block and every change of width and of size is still there. Where the network does not run so, it is left
longer or larger.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from common import say
from torch import Tensor, nn

from reparam.loading import build_architecture, randomize_statistics
from reparam.loading.zoo import Architecture
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

IMAGE = 128  # larger images shrink to this where the network takes other sizes
LARGE = 5_000_000  # parameters, above which runs of equal blocks are cut
HUGE = 20_000_000  # parameters, above which it is built with fewer blocks
KEPT = 2  # blocks of a run
BATCH = 2
FEWER: tuple[Mapping[str, Any], ...] = (
    {"depth": 4},
    {"depth": 4, "num_kv_heads": (32, 16, 16, 32)},  # of a network that shares keys in the blocks between
    {"depths": (2, 2, 2, 2)},
    {"layers": (2, 2, 2, 2)},
)
CUTS = ((nn.Module,), (nn.Sequential, nn.ModuleList), ())  # where runs are cut, until the network runs
OWN_SHAPES = {"optical_flow": ((3, 128, 128), (3, 128, 128)), "video": ((3, 8, 112, 112),)}

Made = tuple[nn.Module, tuple[Tensor, ...], str]


def shortened(arch: str, family: str = "") -> Made:
    """The network, a batch of inputs for it, and what was changed of its blocks ("" for nothing).

    arch: as `--arch` takes it. family: the module that the network comes from. Raises what the network raises where it
    runs at no size.
    """
    parameters = _size(arch)
    fewer, made = _fewer(arch, parameters) if parameters > HUGE else ({}, build_architecture(arch))
    try:
        return _running(arch, family, fewer, made, CUTS if parameters > LARGE else ((),))
    except Exception:  # of a network that has more stages than the arguments tell
        if not fewer:
            raise
    return _running(arch, family, {}, build_architecture(arch), CUTS)


def _running(
    arch: str, family: str, fewer: Mapping[str, Any], made: Architecture, cuts: Sequence[tuple[type[nn.Module], ...]]
) -> Made:
    """The shortest form that runs. fewer: the arguments that the network was built with."""
    errors = []
    for cut in cuts:
        for built, shapes in _images(arch, fewer, made, OWN_SHAPES.get(family)):
            module = copy.deepcopy(built.module)
            how = [f"{k}={v}" for k, v in fewer.items()]
            if dropped := cut_runs(module, cut):
                how.append(f"{dropped} blocks less")
            inputs = tuple(torch.rand(BATCH, *shape) for shape in shapes)
            try:
                module = randomize_statistics(module, list(inputs), 0)
                with torch.no_grad():
                    module(*inputs)
            except Exception as error:  # of the network's own code, which does not take such a size
                errors.append(error)
                continue
            return module, inputs, ", ".join(how)
    raise errors[-1]


def _fewer(arch: str, parameters: int) -> tuple[Mapping[str, Any], Architecture]:
    """The first arguments that make a network smaller, and the network."""
    for arguments in FEWER:
        try:
            made = build_architecture(arch, arguments)
        except Exception:  # of the network's own code, which does not take such a depth
            continue
        if sum(p.numel() for p in made.module.parameters()) < parameters:  # some take any argument, and ignore it
            return arguments, made
    return {}, build_architecture(arch)


def _images(
    arch: str, arguments: Mapping[str, Any], made: Architecture, own: Sequence[tuple[int, ...]] | None
) -> Iterator[tuple[Architecture, Sequence[tuple[int, ...]]]]:
    """The network with small images, built for small images, and with those that it is made for."""
    shapes = own or made.input_shapes or ((3, IMAGE, IMAGE),)
    small = [(s[0], IMAGE, IMAGE) if len(s) == 3 and min(s[1:]) > IMAGE else s for s in shapes]
    if small != list(shapes):
        yield made, small
        with contextlib.suppress(Exception):  # of the network's own code, which does not take such a size
            yield build_architecture(arch, {**arguments, "img_size": IMAGE}), small
    yield made, shapes
    if own is not None and made.input_shapes not in (None, own):
        yield made, made.input_shapes


def cut_runs(module: nn.Module, kinds: tuple[type[nn.Module], ...], kept: int = KEPT) -> int:
    """Leaves `kept` of every run of equal blocks that follow one another in modules of `kinds`; how many went."""
    dropped = 0
    for layers in [m for m in module.modules() if isinstance(m, kinds) and None not in m._modules.values()]:
        stay: list[nn.Module] = []
        for _, run in itertools.groupby(layers._modules.values(), key=_kind):
            blocks = [block for block in run if block is not None]
            stay += blocks[:kept] if len(list(blocks[0].children())) > 1 else blocks  # one layer is no block
        if short := len(layers._modules) - len(stay):
            layers._modules = dict(zip(layers._modules, stay, strict=False))
            dropped += short
    return dropped


def _kind(block: nn.Module | None) -> tuple[object, ...]:
    assert block is not None
    layers = tuple((name, type(m)) for name, m in block.named_modules())
    return layers, tuple((name, v.shape) for name, v in block.state_dict().items())


def _size(arch: str) -> int:
    """How many parameters a network has; it is built without their values where its code allows that."""
    try:
        with torch.device("meta"):
            made = build_architecture(arch)
    except Exception:  # of the network's own code, which reads a value
        made = build_architecture(arch)
    return sum(p.numel() for p in made.module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arch", help="a network, as --arch takes it")
    arch = parser.parse_args().arch
    register_missing_torchvision_ops()
    module, inputs, how = shortened(arch)
    parameters = sum(p.numel() for p in module.parameters())
    say(f"{arch}: {parameters:,} parameters, inputs {[tuple(x.shape) for x in inputs]}, changed: {how or 'nothing'}")


if __name__ == "__main__":
    main()
