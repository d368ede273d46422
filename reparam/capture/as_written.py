"""What torch.export gets wrong while it traces: numbers of small constants, `.data`, calls that raise, and prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.export import _trace
from torch.fx import Tracer
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from reparam.utils import FAKE_TENSORS, SYMBOLIC_SHAPES, quiet

from .assigned_weights import SET_DATA
from .free_makers import maker_for_free_sizes


@contextmanager
def silent() -> Iterator[None]:
    """torch prints the graph of a model that it gives up, and logs what it raises."""
    _trace.print = lambda *words, **options: None  # type: ignore[attr-defined]
    try:
        with quiet(FAKE_TENSORS, SYMBOLIC_SHAPES):
            yield
    finally:
        del _trace.print  # type: ignore[attr-defined]


@contextmanager
def calls_may_raise() -> Iterator[None]:
    """A part of a model may raise what the model catches (`try: layer(x, lengths) except TypeError: layer(x)`).

    torch would go on as if that call had never ended.
    """
    call = Tracer.call_module

    def restored(tracer: Tracer, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        depth = len(tracer.module_stack)
        try:
            return call(tracer, m, forward, args, kwargs)
        except BaseException:
            while len(tracer.module_stack) > depth:
                tracer.module_stack.popitem(last=True)
            raise

    Tracer.call_module = restored  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Tracer.call_module = call  # type: ignore[method-assign]


# What is asked of a small constant tensor to get at its numbers.
_PICKS = frozenset(
    (
        "__getitem__",
        "select",
        "unbind",
        "item",
        "tolist",
        "__float__",
        "__int__",
        "__bool__",
        "__index__",
        "to",
        "float",
    )
)


class AsWritten(TorchFunctionMode):
    """Calls of torch inside are traced as the model wrote them.

    The numbers in a tensor that is a plain attribute (`float(self.stride[0])`) are read, not traced; `x.data` of a
    traced tensor is x.detach(), where torch.export would lose sight of it and take it for a constant, and `x.data = y`
    is x.set_(y). What it makes for sizes that are known alone is made otherwise (`free_makers`).
    """

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == _DATA:
            return args[0].detach()
        if func == SET_DATA:
            return args[0].set_(args[1].detach())
        if (maker := maker_for_free_sizes(func, args, kwargs or {})) is not None:
            return maker(*args, **(kwargs or {}))
        picks = bool(args) and type(args[0]) is Tensor and getattr(func, "__name__", "") in _PICKS
        if picks and not any(is_fake(v) for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)):
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
