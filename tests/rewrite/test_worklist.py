"""What the driver has yet to look at: each node once, in order, and the readers of a value without repeating all."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from reparam.rewrite.worklist import MANY, Worklist


def star(readers: int) -> tuple[fx.Node, list[fx.Node]]:
    """A value and the calls that read it."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    return x, [graph.call_function(torch.relu, (x,)) for _ in range(readers)]


def drained(work: Worklist) -> list[fx.Node]:
    return [work.pop() for _ in range(len(work))]


def test_nodes_come_once_in_the_order_in_which_they_were_added() -> None:
    _, (a, b, c) = star(3)
    work = Worklist([b, a, b])
    assert len(work) == 2 and work.pop() is b
    work.add([a, c, b, c])
    assert drained(work) == [a, c, b] and not work


def test_few_readers_are_told_all() -> None:
    x, readers = star(MANY)
    work = Worklist(readers)
    work.pop()
    assert list(work.readers(x)) == readers == list(work.readers(x))


def test_of_many_readers_those_that_were_given_out_since_the_last_time() -> None:
    x, readers = star(MANY + 1)
    work = Worklist(readers)
    first, second = work.pop(), work.pop()
    assert list(work.readers(x)) == [first, second]
    assert list(work.readers(x)) == []
    work.add([second])
    third = work.pop()
    assert list(work.readers(x)) == [third]


@pytest.mark.parametrize("count", [MANY - 1, 4 * MANY])
def test_every_reader_is_in_it_again_after_its_value_changed(count: int) -> None:
    """However the steps are mixed, who adds what it is told misses no reader."""
    x, readers = star(count)
    work = Worklist(readers)
    for step in range(1, 3 * count):
        work.pop()
        if step % 5 == 0 or len(work) < 5:
            work.add(work.readers(x))
            assert len(work) == count
    work.add(work.readers(x))
    assert set(drained(work)) == set(readers)


def test_the_work_for_many_readers_does_not_grow_with_their_square() -> None:
    x, readers = star(1000)
    work = Worklist(readers)
    told = 0
    for _ in range(1000):
        work.pop()
        near = list(work.readers(x))
        told += len(near)
        work.add(near)
    assert told == 1000
