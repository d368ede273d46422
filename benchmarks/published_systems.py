"""Converts the published configurations of the reference architectures (docs/systems.md) to both targets.

Weights are random, no weight is left at zero, and statistics of norms are those of a random batch, disturbed. One row
each: convolutions, norms, sums and gates before and after, multiply-accumulates, the largest error in float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch

from reparam.conversion import convert
from reparam.ir import Census, draw_examples
from reparam.loading import Architecture, build_architecture, randomize_statistics
from reparam.models.registry import SMALL, entries

ARGUMENTS: Mapping[str, Mapping[str, Any]] = {"mocapsnet": {"std": 0.5}}  # its own, 0.01, gives capsules of 1e-11
SHAPES: Mapping[str, tuple[int, ...]] = {"nfnet": (3, 64, 64)}  # its own images, 320 x 320, take too long


def healthy(name: str, shapes: tuple[tuple[int, ...], ...]) -> Architecture:
    """The architecture as if it were trained: initial zeros would hide what is multiplied by them."""
    built = build_architecture(f"reparam/{name}", ARGUMENTS.get(name))
    torch.manual_seed(0)
    with torch.no_grad():
        for p in built.module.parameters():
            if p.dim() > 1 and bool((p == 0).any()):
                p.add_(torch.randn_like(p) / p[0].numel() ** 0.5)
    randomize_statistics(built.module, draw_examples(built.module, shapes, batch=8))
    return built


def counts(census: Census) -> str:
    return f"{census.convs} / {census.norms} / {census.merges} / {census.gates}"


def row(name: str, dtype: torch.dtype) -> str:
    shapes = (SHAPES[name],) if name in SHAPES else entries()[name].inputs
    module = healthy(name, shapes).module.to(dtype)
    x = draw_examples(module, shapes, batch=2, seed=1)
    fused, plain = (convert(module, *x, to=to).report for to in ("fused", "plain"))
    assert fused.evidence is not None and plain.evidence is not None
    cells = (
        f"`{name}`",
        *(counts(census) for census in (fused.before, fused.after, plain.after)),
        f"{plain.after.macs / plain.before.macs:.2f}",
        f"{fused.evidence.float64_max_rel:.1e} / {plain.evidence.float64_max_rel:.1e}",
        f"{sum(fused.seconds.values()) + sum(plain.seconds.values()):.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="published architectures; default: all, which takes long")
    parser.add_argument("--float64", action="store_true", help="weights of float64")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| architecture | before | fused | plain | MACs, plain | float64 error, fused / plain | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in args.names or [n for n in entries() if not n.endswith(SMALL)]:
        print(row(name, torch.float64 if args.float64 else torch.float32), flush=True)


if __name__ == "__main__":
    main()
