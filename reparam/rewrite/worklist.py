"""The nodes that the driver has yet to look at, each of them once, in the order in which they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from torch import fx

MANY = 32  # readers of a value; of more than these, only those that were looked at are told


class Worklist:
    """A queue without repetitions. It knows which readers of a value it has given out already.

    A value can have thousands of readers, each of which is rewritten: to go through all of them each time would take
    the square of that.
    """

    def __init__(self, nodes: Iterable[fx.Node]) -> None:
        self._queue = deque(dict.fromkeys(nodes))
        self._queued = set(self._queue)
        self._given: dict[fx.Node, dict[fx.Node, None]] = {}  # by what they read

    def __len__(self) -> int:
        return len(self._queue)

    def pop(self) -> fx.Node:
        """The next node, which may be added again from now on."""
        node = self._queue.popleft()
        self._queued.discard(node)
        for operand in node.all_input_nodes:
            self._given.setdefault(operand, {})[node] = None
        return node

    def add(self, nodes: Iterable[fx.Node]) -> None:
        """Puts those that are not in it at the end."""
        for node in nodes:
            if node not in self._queued:
                self._queue.append(node)
                self._queued.add(node)

    def readers(self, value: fx.Node) -> Iterable[fx.Node]:
        """The calls that read `value`; of many, only those given out since the last time, as the others are here still.

        Who asks has to add them. Calls that begin to read `value`, which were made or read another value before, are
        not told of: those have to be added by themselves.
        """
        given = self._given.pop(value, {})
        return given if len(value.users) > MANY else value.users
