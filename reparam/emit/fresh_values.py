"""The fake values of a program with sizes of which nothing is known but the program itself.

What torch notes of sizes while a network is captured and rewritten, a bound of one kernel among it (a batch below 16),
would be asked of every input of a file, and compilers would rely on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    PendingUnbackedSymbolNotFound,
    ShapeEnv,
    compute_unbacked_bindings,
    free_unbacked_symbols,
)
from torch.utils import _pytree as pytree

from reparam.ir import Program

_Symbolic = SymInt | SymFloat | SymBool


class FreshValues:
    """Copies of a program's values, whose free sizes are symbols of their own.

    traced: what some of these are said to have been traced with, by their names in the program.
    """

    def __init__(self, program: Program, traced: Mapping[str, int]) -> None:
        self._traced = traced
        self._known: Any = program.fake_mode.shape_env
        self._sizes = ShapeEnv()
        self._mode = FakeTensorMode(shape_env=self._sizes, allow_non_fake_inputs=True)
        self._symbols: dict[Any, Any] = {}  # of the program, and those here
        self._expressions: dict[Any, Any] = {}  # the same; they can be long, and many values have them in common

    def of(self, value: Any) -> Any:
        """A copy of a value: tensors (and lists of them) of the same shape, strides and dtype, symbols, and numbers."""
        return pytree.tree_map(self._leaf, value)

    def meta(self, value: Any) -> dict[str, Any]:
        """What torch notes at a call that gives `value`: a copy, and which sizes are known from then on, and where."""
        copy = self.of(value)
        try:
            bindings = compute_unbacked_bindings(self._sizes, copy)
        except PendingUnbackedSymbolNotFound:  # the size is there within another, such as its double
            bindings = None
        return {"val": copy} | ({"unbacked_bindings": bindings} if bindings else {})

    def ranges(self) -> dict[Any, Any]:
        """What each symbol of the copies can be."""
        return {new: self._sizes.bound_sympy(new) for new in self._symbols.values()}

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, _Symbolic):
            return self._number(value)
        if not isinstance(value, Tensor):
            return value
        shape, strides = ([self._number(n) for n in sizes] for sizes in (value.shape, value.stride()))
        with self._mode, self._sizes.suppress_guards():
            return torch.empty_strided(shape, strides, dtype=value.dtype, device=value.device)

    def _number(self, value: Any) -> Any:
        if not isinstance(value, _Symbolic):
            return value
        theirs = value.node.expr
        if theirs not in self._expressions:
            self._expressions[theirs] = theirs.xreplace({s: self._symbol(s) for s in theirs.free_symbols})
        expr = self._expressions[theirs]
        if isinstance(value, SymBool):
            return self._sizes.create_symboolnode(expr)
        create = self._sizes.create_symintnode if isinstance(value, SymInt) else self._sizes.create_symfloatnode
        return create(expr, hint=None if self._traced else value.node.hint)

    def _symbol(self, symbol: Any) -> Any:
        if symbol not in self._symbols:
            self._symbols[symbol] = self._of_values(symbol) if free_unbacked_symbols(symbol) else self._size(symbol)
        return self._symbols[symbol]

    def _size(self, symbol: Any) -> Any:
        """A free size, with the size that it was traced with."""
        own = self._known.create_symintnode(symbol, hint=None).node.hint
        traced = self._traced.get(str(symbol), own)
        return self._sizes.create_symbol(traced, ConstantSource(str(symbol)), DimDynamic.DYNAMIC)

    def _of_values(self, symbol: Any) -> Any:
        """A number that depends on the values of the inputs, within the bounds that it has."""
        made = self._sizes.create_unbacked_symfloat() if not symbol.is_integer else self._sizes.create_unbacked_symint()
        new = made.node.expr
        self._sizes.var_to_range[new] = self._known.bound_sympy(symbol)
        return new
