"""Layouts: every call below what it reads, nothing on top of anything, long paths straight, the same each time."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reparam.page.layout import HEIGHT, ROW_GAP, WAYPOINTS, WIDTH, Layout, lay_out

Edges = list[tuple[int, int]]
STEP = HEIGHT + ROW_GAP


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, Edges]:
    count = draw(st.integers(1, 24))
    pairs = [(u, v) for u, v in combinations(range(count), 2)]
    return count, draw(st.lists(st.sampled_from(pairs), max_size=60)) if pairs else []


def check(count: int, edges: Edges, found: Layout) -> None:
    boxes = list(zip(found.x, found.y, strict=True))
    assert len(boxes) == count
    for u, v in edges:
        assert boxes[u][1] < boxes[v][1]
    for (x1, y1), (x2, y2) in combinations(boxes, 2):
        assert y1 != y2 or abs(x1 - x2) >= WIDTH
    assert all(0 <= x <= found.width - WIDTH and 0 <= y <= found.height - HEIGHT for x, y in boxes)


def reached(found: Layout, edges: Edges) -> None:
    """From the foot of what is read, the segments lead to the head of each reader, without a break."""
    for u, v in edges:
        own = [s for s in found.segments if s[0] == u and s[1] in (-1, v)]
        ways = {(s[2], s[3]): [] for s in own}
        for s in own:
            ways[s[2], s[3]].append((s[4], s[5]))
        points = {(found.x[u] + WIDTH // 2, found.y[u] + HEIGHT)}
        seen = set(points)
        while points:
            points = {end for p in points for end in ways.get(p, ())} - seen
            seen |= points
        starts = {(s[2], s[3]) for s in own if s[1] == v}
        on_the_way = {p for p in starts if any(_on(p, s) for s in own) or p in seen}
        assert starts and starts == on_the_way
        assert (found.x[v] + WIDTH // 2, found.y[v]) in {(s[4], s[5]) for s in own if s[1] == v}


def _on(point: tuple[int, int], s: tuple[int, ...]) -> bool:
    """Whether a point lies on a piece that leads straight down."""
    return s[2] == s[4] == point[0] and s[3] <= point[1] <= s[5]


@given(graph=graphs())
def test_any_graph_is_laid_out(graph: tuple[int, Edges]) -> None:
    count, edges = graph
    found = lay_out(count, edges)
    check(count, edges, found)
    reached(found, edges)
    assert lay_out(count, edges[::-1]) == found


def test_a_chain_with_skips_is_straight() -> None:
    edges = [(i, i + 1) for i in range(59)] + [(i, i + 6) for i in range(0, 54, 6)]
    found = lay_out(60, edges)
    assert len(set(found.x)) == 1 and found.layers == 60
    check(60, edges, found)


def test_branches_stand_side_by_side() -> None:
    found = lay_out(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert found.y == (0, STEP, STEP, 2 * STEP) and abs(found.x[1] - found.x[2]) >= WIDTH


def test_a_long_edge_bends_no_more_than_it_must() -> None:
    """A skip over a branch: one way out, one line, one way in."""
    edges = [(i, i + 1) for i in range(11)] + [(0, 11)]
    found = lay_out(12, edges)
    own = [s for s in found.segments if s[0] == 0 and s[1] != 1]
    assert len(own) == 3 and own[1][2] == own[1][4]


def test_what_depends_on_no_input_lies_by_its_reader() -> None:
    chain = [(i, i + 1) for i in range(9)]
    edges = [*chain, (10, 11), (11, 12), (12, 13), (8, 13)]
    found = lay_out(14, edges, inputs=[0])
    assert [y // STEP for y in found.y[10:]] == [6, 7, 8, 9]
    assert found.y[0] == 0


def test_edges_that_lead_back_or_nowhere_are_left_out() -> None:
    assert lay_out(3, [(0, 1), (2, 1), (1, 1), (0, 7), (-1, 2)]) == lay_out(3, [(0, 1)])
    assert lay_out(0, []) == Layout((), (), (), 0, 0, 0)


@pytest.mark.parametrize("shape", ["far", "dense", "random"])
def test_the_work_stays_within_bounds(shape: str) -> None:
    count = 600
    draw = random.Random(0)
    edges = {
        "far": [(0, i) for i in range(1, count)] + [(i, count - 1) for i in range(count - 1)],
        "dense": [(u, v) for b in range(0, count, 50) for u, v in combinations(range(b, b + 50), 2) if (v - u) % 3 < 2],
        "random": [(draw.randrange(i), i) for i in range(1, count) for _ in range(3)],
    }[shape]
    found = lay_out(count, edges)
    assert len(found.segments) <= len(set(edges)) + 2 * WAYPOINTS * count
    assert all(found.y[u] < found.y[v] for u, v in edges)
