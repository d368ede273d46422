"""Numbers that a model reads of its weights alone: they are known, so that what depends on them is no question.

`if self.scale > 0`, `int(self.groups)` and `float(self.weight.sum())` are the same at every call. torch.export, which
traces without values, takes them for questions that only data answers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

# What turns a tensor into numbers of Python or NumPy.
READS = frozenset(
    ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__")
)

# What writes to its first argument, beside functions whose names end with one underscore.
_WRITES = frozenset(
    f"__{name}__"
    for name in (
        *("setitem", "set", "iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow"),
        *("iand", "ior", "ixor", "ilshift", "irshift"),
    )
)

# What takes numbers after its first argument, and gets them out of tensors by itself, unseen.
_SIZED = frozenset(("pad", "reshape", "view", "expand", "repeat", "narrow", "new_zeros", "new_ones", "new_full"))

_MAKERS = frozenset(("zeros", "ones", "full", "arange", "linspace", "eye", "tensor"))  # of the same tensor each time


class WeightsAreKnown(TorchFunctionMode):
    """Remembers, while a model is traced, how each value comes from weights alone; computes it where it is read.

    module: whose weights have their values now; while it is traced, others stand in their places. Once such a value is
    written to, no other one is known.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self._real: dict[str, Tensor] = dict(_weights(module))
        self._values: dict[int, Callable[[], Any]] = {}
        self._alive: list[Any] = []  # so that no other value gets the identity of one that is followed
        self._written = False

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(getattr(func, "__name__", ""))
        if name in _SIZED or name == "__getitem__":
            args = (*args[:1], *self._numbers(args[1:], slices_alone=name == "__getitem__"))
        keywords = dict(kwargs or {})
        tensors = [v for v in pytree.tree_leaves((args, keywords)) if isinstance(v, Tensor)]
        if self._written or not (tensors or name in _MAKERS):
            return func(*args, **keywords)
        known = all(self._follows(t) for t in tensors)
        if name in READS and known:
            return self._computed(func, args, keywords)
        result = func(*args, **keywords)
        if name in _WRITES or "out" in keywords or (name.endswith("_") and not name.endswith("__")):
            self._written = any(id(v) in self._values for v in (*args[:1], keywords.get("out")))
        elif known:
            self._follow(result, lambda: self._computed(func, args, keywords))
        return result

    def _numbers(self, args: tuple[Any, ...], slices_alone: bool) -> tuple[Any, ...]:
        """The arguments with known integers in place of tensors that hold one; or of the slices among them alone."""

        def number(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.dim() == 0 and not value.is_floating_point()
            return int(self._values[id(value)]()) if whole and not self._written and self._follows(value) else value

        def read(value: Any) -> Any:
            if isinstance(value, slice):
                return slice(number(value.start), number(value.stop), number(value.step))
            return value if slices_alone else number(value)

        return tuple(pytree.tree_map(read, args))

    def _follows(self, value: Tensor) -> bool:
        if type(value) is Tensor and not is_fake(value):  # a constant of the model
            self._follow(value, lambda: value)
        elif id(value) not in self._values:
            for name, held in _weights(self._module):
                if held is value and name in self._real:
                    self._follow(value, functools.partial(self._real.__getitem__, name))
        return id(value) in self._values

    def _follow(self, result: Any, value: Callable[[], Any]) -> None:
        """The tensors of a result are followed: how each is computed is written down."""
        made: list[Any] = []

        def whole() -> list[Any]:
            if not made:
                made.extend(pytree.tree_leaves(value()))
            return made

        for i, leaf in enumerate(pytree.tree_leaves(result)):
            if isinstance(leaf, Tensor):
                self._alive.append(leaf)
                self._values[id(leaf)] = lambda i=i: whole()[i]  # type: ignore[misc]

    def _computed(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        def real(value: Any) -> Any:
            return self._values[id(value)]() if isinstance(value, Tensor) else value

        given, named = pytree.tree_map(real, (args, keywords))
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            return func(*given, **named)


def _weights(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
