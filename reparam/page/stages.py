"""The modules of both graphs as one tree: calls, merges, gates and costs of each, before and after."""

from __future__ import annotations

from dataclasses import dataclass, field

from .graph import Call, Graph, by_module

DEEPEST = 4  # levels of blocks in the table; the tree beside the graphs has all of them
MOST = 240  # rows of the table


@dataclass(frozen=True)
class Figures:
    """Of one module in one graph."""

    calls: int = 0
    merges: int = 0
    gates: int = 0
    macs: int = 0
    params: int = 0


@dataclass
class Module:
    """A module path with its figures before and after; `path` is "" for the whole network."""

    path: str
    before: Figures
    after: Figures
    children: list[Module] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rpartition(".")[2]

    @property
    def depth(self) -> int:
        """1 for a module of the network itself."""
        return self.path.count(".") + 1 if self.path else 0


def tree_of(before: Graph, after: Graph) -> Module:
    """All modules, children in the order in which they are first called."""
    left, right = by_module(before), by_module(after)
    root = Module("", figures(left[""]), figures(right[""]))
    nodes = {"": root}
    for path in dict.fromkeys([*left, *right]):
        if path:
            nodes[path] = Module(path, figures(left.get(path, [])), figures(right.get(path, [])))
    for path, module in nodes.items():
        if path:
            nodes[path.rpartition(".")[0]].children.append(module)
    return root


def figures(calls: list[Call]) -> Figures:
    """The sums over calls; inputs and outputs are no calls."""
    real = [c for c in calls if c.kind not in ("input", "output")]
    kinds = [c.kind for c in real]
    return Figures(
        len(real), kinds.count("merge"), kinds.count("gate"), sum(c.macs for c in real), sum(c.params for c in real)
    )


def stages_of(root: Module) -> list[Module]:
    """The rows of the table of stages and blocks: modules that hold something that merges, and those at the top.

    A module that has all that its only child has is left out for it, where the child has a row.
    """
    found: list[Module] = []
    stack = list(reversed(root.children))
    while stack and len(found) < MOST:
        module = stack.pop()
        only = module.children[0] if len(module.children) == 1 else None
        same = only is not None and (only.before, only.after) == (module.before, module.after)
        if not (same and _joins(module) and module.depth < DEEPEST) and (module.depth <= 1 or _joins(module)):
            found.append(module)
        if module.depth < DEEPEST:
            stack.extend(reversed(module.children))
    return found


def _joins(module: Module) -> bool:
    return any(f.merges or f.gates for f in (module.before, module.after))
