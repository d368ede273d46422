"""Branches whose paddings differ only in width: all of them read the widest one.

A pad of a spatial axis by reflection, by repetition, around the circle or with a constant acts on each axis alone, and
keeps what it pads in its middle. So a narrower pad of the same kind, or the value without a pad, is the widest pad cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from reparam.ir import PADS, arguments, is_call

from .branch_term import Branch, Link
from .window import pad_window, spatial_padding, zero_padding

Chains = dict[int, Branch]
Padding = tuple[tuple[int, int], ...]


def share_padding(found: Mapping[fx.Node, Chains]) -> list[tuple[fx.Node, Chains]]:
    """The pads that stand for others of their kind, each with the chains that can start at it.

    found: chains by their sources, and by numbers of their own. A pad of zeros is none of these: it is a part of the
    convolutions behind it.
    """
    groups: dict[tuple[Any, ...], dict[fx.Node, Padding]] = {}
    for source in found:
        padding = _widening(source)
        if padding is not None:
            args = arguments(source)
            groups.setdefault((args["self"], args.get("mode", "constant"), args.get("value")), {})[source] = padding
    shared = []
    for (x, _, _), members in groups.items():
        widest = tuple(
            (max(p[0] for p in ends), max(p[1] for p in ends)) for ends in zip(*members.values(), strict=True)
        )
        pad = next((p for p, padding in members.items() if padding == widest), None)
        if pad is None:
            continue
        chains: Chains = {}
        for member, padding in members.items():
            for i, chain in found[member].items():
                chains.setdefault(i, _behind_cut(chain, pad, member, widest, padding))
        for i, chain in found.get(x, {}).items():
            chains.setdefault(i, _behind_cut(chain, pad, pad, widest, tuple((0, 0) for _ in widest)))
        shared.append((pad, chains))
    return shared


def _widening(source: fx.Node) -> Padding | None:
    """The padding of a pad that widens with something else than zeros."""
    padding = spatial_padding(source) if is_call(source, PADS) and zero_padding(source) is None else None
    return padding if padding is not None and all(p >= 0 for ends in padding for p in ends) else None


def _behind_cut(chain: Branch, pad: fx.Node, node: fx.Node, wide: Padding, narrow: Padding) -> Branch:
    """The chain from `pad` on, whose padding is `wide`, where it was written for `narrow`."""
    cut = tuple((b[0] - a[0], b[1] - a[1]) for a, b in zip(wide, narrow, strict=True))
    links = chain.links if cut == tuple((0, 0) for _ in cut) else (Link(node, pool=pad_window(cut)), *chain.links)
    return Branch(pad, links)
