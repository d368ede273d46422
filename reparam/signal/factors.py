"""Constant factors that a network has at its own residual sums: a*(s*skip + b*branch)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from reparam.ir import DIVS, MULS, Program, arguments, evaluate_region, is_call, upstream

from .branches import Block, blocks
from .functions import PASSIVE, Function, depending, gain_of


@dataclass(frozen=True)
class Factors:
    """Of one block; 1 where there is none, the root of the mean square where channels differ. A factor that is a
    parameter counts as it is now. fixed: of the branch, without those that are parameters. learned: whether one behind
    the sum is a parameter."""

    skip: float = 1.0
    branch: float = 1.0
    behind: float = 1.0
    fixed: float = 1.0
    learned: bool = False

    @property
    def power(self) -> float:
        """What a block multiplies power by, whose skip and branch have the same."""
        return self.behind * self.behind * (self.skip * self.skip + self.branch * self.branch)

    def described(self) -> str:
        """In words; "" where there is none."""
        parts = (("on the branch", self.branch), ("on the skip", self.skip), ("behind the sum", self.behind))
        return ", ".join(f"{value:.4g} {where}" for where, value in parts if value != 1)


def factors_of(program: Program, block: Block) -> Factors:
    """The factors that stand between the last layer of a branch and the sum, on the skip, and behind the sum."""
    branch, skip = (
        math.prod(factor for n in _way(program, block, side) if (factor := factor_at(program, n)) is not None)
        for side in (block.branch, block.skip)
    )
    own = [n for n in _way(program, block, block.branch) if not _is_learned(program, n)]
    fixed = math.prod(factor for n in own if (factor := factor_at(program, n)) is not None)
    args = arguments(block.add)
    alpha = float(args.get("alpha", 1))
    if args.get("other") is block.branch:
        branch, fixed = branch * alpha, fixed * alpha
    elif args.get("other") is block.skip:
        skip *= alpha
    behind, learned, node = 1.0, False, block.add
    while len(node.users) == 1:
        (user,) = node.users
        factor = factor_at(program, user)
        if factor is None and not is_call(user, PASSIVE):
            break
        if factor is not None:
            behind *= factor
            learned = learned or _is_learned(program, user)
        node = user
    return Factors(skip, branch, behind, fixed, learned)


def _is_learned(program: Program, node: fx.Node) -> bool:
    """Whether a call reads a parameter."""
    own = upstream([n for n in node.all_input_nodes if not n.meta.get("data")])
    return any(n.op == "get_attr" and program.constants[str(n.target)].trainable for n in own)


def factor_at(program: Program, node: fx.Node) -> float | None:
    """What a call multiplies its one value by; None for another call."""
    held = depending(node)
    if not is_call(node, MULS | DIVS) or len(held) != 1:
        return None
    args = arguments(node)
    first, second = args.get("self", args.get("input")), args["other"]
    other = second if first is held[0] else first
    if is_call(node, DIVS) and other is first:
        return None
    if isinstance(other, fx.Node):
        inner = upstream([other])
        if any(n.op == "placeholder" for n in inner):
            return None
        other = evaluate_region(program, inner, {})[other]
    value = other if isinstance(other, Tensor) else torch.tensor(other, dtype=torch.float64)
    value = 1 / value if is_call(node, DIVS) else value
    wide = value.detach().to(torch.float64)
    size = float(wide) if wide.numel() == 1 else float(wide.square().mean().sqrt())
    return size if math.isfinite(size) else None


def leading_factor(program: Program, function: Function) -> tuple[float, fx.Node]:
    """The factor with which a function takes its root, c of relu(c*x), and the value c*x; 1 and x without one."""
    product, node = 1.0, function.root
    while True:
        users = [c for c in function.calls if node in c.all_input_nodes]
        factor = factor_at(program, users[0]) if len(users) == 1 else None
        if factor is None:
            return product, node
        product, node = product * factor, users[0]


def factors_behind(program: Program, function: Function) -> tuple[float, fx.Node]:
    """The constant numbers that stand behind a function and nothing else, c of c*f(x), and the value c*f(x); 1 and f(x)
    without one. What differs between channels or places, such as a mask, is no such number."""
    product, node = 1.0, function.result
    while len(node.users) == 1:
        (user,) = node.users
        factor = factor_at(program, user)
        one = all(n.meta["val"].numel() == 1 for n in user.all_input_nodes if n is not node)
        if not factor or not one or _is_learned(program, user):
            break
        product, node = product * factor, user
    return product, node


class Sums:
    """The residual sums of a program. blocks: by their sums. ends: the values of which nothing but factors and movement
    leads to such a sum."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.blocks = {block.add: block for block in blocks(program)}
        self.ends: set[fx.Node] = set()
        for block in self.blocks.values():
            self.ends |= {*_way(program, block, block.branch), *_way(program, block, block.skip)}

    def gain_in_front(self, function: Function | None) -> float:
        """1/E f(X)^2 of what a layer reads, X ~ N(0, 1). Where f takes c times a residual sum, c belongs to the sum: cX
        is taken as normal, not X."""
        if function is None or function.root not in self.blocks:
            return gain_of(function)
        factor, _ = leading_factor(self.program, function)
        return gain_of(function, of=1 / factor**2) if factor else 1.0

    def slope_in_front(self, function: Function) -> float:
        """1/E f'(X)^2 in the same way, as a function of cX."""
        factor, _ = leading_factor(self.program, function) if function.root in self.blocks else (1.0, function.root)
        return gain_of(function, backward=True) * factor**2 if factor else 1.0

    def factors_behind(self, function: Function) -> tuple[float, fx.Node]:
        """`factors_behind`, but for factors in front of a residual sum, which belong to that."""
        return (1.0, function.result) if function.result in self.ends else factors_behind(self.program, function)

    def gain_behind(self, function: Function | None) -> float:
        """1/E f'(X)^2 of what reads a layer; a factor in front of a residual sum is no such function."""
        if function is not None and function.result in self.ends and function.linear:
            return 1.0
        return gain_of(function, backward=True)


def _way(program: Program, block: Block, node: fx.Node) -> Iterator[fx.Node]:
    """A side of a sum, and those in front of it that only factors and movement make it of, down to where both sides
    come from: what stands in front of that belongs to the block before."""
    while node is not block.source and (block.source is not None or len(node.users) == 1):
        yield node
        held = depending(node)
        if len(held) != 1 or (factor_at(program, node) is None and not is_call(node, PASSIVE)):
            return
        node = held[0]
