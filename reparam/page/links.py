"""Which calls of one graph became which of the other: what a page shows when a region is pointed at.

A conversion knows it: each rewrite names the calls that it replaced and those that it made. Rewrites that touch the
same calls, one after the other, are one region. Two graphs of unknown kin are aligned as `diff` aligns them. What is in
no region is linked to the call of the same name; what has no such, the page links by its module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reparam.compare import ProgramDiff
from reparam.report import Remark

from .graph import Graph, listed_name


@dataclass(frozen=True)
class Links:
    """A number for each call of both graphs, by name; calls of one number belong together.

    regions: how many numbers, from 0 on, are regions that were rewritten (or differ); higher ones are calls that are
    the same in both. remarks: for each remark the region that it is about, None where there is none. status: of calls:
    same, weights, changed, gone (only before) or new (only after).
    """

    before: dict[str, int]
    after: dict[str, int]
    regions: int
    remarks: tuple[int | None, ...]
    status_before: dict[str, str]
    status_after: dict[str, str]


class _Sets:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def unite(self, names: Sequence[str]) -> None:
        for name in names[1:]:
            self.parent[self.root(name)] = self.root(names[0])


def links_of_remarks(before: Graph, after: Graph, remarks: Sequence[Remark]) -> Links:
    """From what the rewrites of a conversion say. Names are of one numbering, in which none is used again."""
    sets = _Sets()
    for remark in remarks:
        for old, new in remark.links:
            sets.unite((*old, *new))
    left, right = ({c.name for c in g.calls} for g in (before, after))
    numbers: dict[str, int] = {}
    for call in (*before.calls, *after.calls):
        if call.name in sets.parent:
            numbers.setdefault(sets.root(call.name), len(numbers))
    found = {n: numbers[sets.root(n)] for n in (left | right) & sets.parent.keys()}
    own: list[int | None] = []
    for remark in remarks:
        names = [n for old, new in remark.links for n in (*old, *new)]
        own.append(next((numbers.get(sets.root(n)) for n in names), None) if len(remark.links) < 2 else None)
    status_before = {n: "same" if n in right else "gone" for n in left}
    status_after = {n: "same" if n in left else "new" for n in right}
    regions = len(numbers)
    paired = {c.name: regions + i for i, c in enumerate(before.calls) if c.name in right and c.name not in found}
    link = paired | found
    return Links(
        {n: link[n] for n in left if n in link},
        {n: link[n] for n in right if n in link},
        regions,
        tuple(own),
        status_before,
        status_after,
    )


def links_of_diff(diff: ProgramDiff, left: Sequence[str], right: Sequence[str]) -> Links:
    """From the rows of a diff. left, right: the names of the calls, in the order of the rows.

    A run of rows that are only in one of the graphs is one region.
    """
    names = iter(left), iter(right)
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    statuses: tuple[dict[str, str], dict[str, str]] = ({}, {})
    groups: list[tuple[bool, list[str], list[str]]] = []
    running = False
    for row in diff.rows:
        one_sided = row.left is None or row.right is None
        if not (one_sided and running):
            groups.append((row.status != "same", [], []))
        running = one_sided
        _, lefts, rights = groups[-1]
        for call, source, into, status, alone in zip(
            (row.left, row.right), names, (lefts, rights), statuses, ("gone", "new"), strict=True
        ):
            if call is not None:
                name = next(source)
                into.append(name)
                status[name] = alone if one_sided else row.status
    ordered = [g for g in groups if g[0]] + [g for g in groups if not g[0]]
    for number, (_, lefts, rights) in enumerate(ordered):
        before.update(dict.fromkeys(lefts, number))
        after.update(dict.fromkeys(rights, number))
    return Links(before, after, sum(g[0] for g in groups), (), *statuses)


def listed_names(count: int) -> list[str]:
    """The names of the calls of an engine's list, as `read_listed` gives them."""
    return [listed_name(i) for i in range(count)]
