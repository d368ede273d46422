"""A model as it is before it runs: copies that share its weights, and what it keeps outside of itself put back.

A cache that was filled while a model was traced, or run in float64, holds tensors that are of no use to its next run.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import operator
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import _disable_current_modes

from reparam.ir import is_uninitialised

from .assemble import refuse_repeated

SMALL = 1 << 22  # bytes of one weight that may be copied
_CONTAINERS = (dict, list, set, OrderedDict, defaultdict, deque)
_VALUES = (type(None), bool, int, float, complex, str, tuple, Tensor)
_ATOMS = frozenset({type(None), bool, int, float, complex, str, FunctionType, torch.dtype, torch.device})
_NOT_OF_MODELS = frozenset({"torch", "reparam", "builtins"})
_DEEPEST = 3  # containers within containers
_HOLDING = frozenset({*_CONTAINERS, FunctionType, MethodType, functools.partial, functools._lru_cache_wrapper})


def fresh_copy(module: nn.Module, *, to_write: bool = False, to_assign: bool = False) -> nn.Module:
    """A copy of the module's structure and of all that it remembers, which shares its weights.

    to_write: for a module that may write to its weights: small ones are copied. to_assign: for one that may give its
    parameters other data (`conv.weight.data = w`), which is seen by the copy alone then.

    What cannot be copied (a lock, an open file, a tensor with a history) is shared as well. Weights that were made in
    inference mode are copied.
    """
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # a copy is no call of the model
        weights = [t for t in (*module.parameters(), *module.buffers()) if not (to_write and _is_small(t))]
        as_they_are = _apart if to_write or to_assign else _ordinary
        return _copied(module, {id(t): as_they_are(t) for t in weights})


def _copied(module: nn.Module, shared: Mapping[int, Any]) -> nn.Module:
    """A copy that has the values of `shared` in place of what they are by id, and what cannot be copied as it is."""
    try:
        copied: nn.Module = _copied_part(module, dict(shared))
        return copied
    except Exception:
        held = [v for part in module.modules() for v in (*vars(part).values(), *(v for _, v in in_slots(part)))]
        again: nn.Module = _copied_part(module, {**shared, **{id(v): v for v in held if not _can_be_copied(v, shared)}})
        return again


def _copied_part(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy(value, memo)`, in a fraction of its time for what parts of models mostly hold."""
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    known = memo.get(id(value), memo)
    if known is not memo:
        return known
    if kind is set and not value:
        empty: Any = kind()
        memo[id(value)] = empty
        return empty
    if kind is dict or kind is OrderedDict:
        held: Any = kind()
        memo[id(value)] = held
        _copy_contents(value, held, memo)
        return held
    if not (isinstance(value, nn.Module) and _copies_plainly(kind)):
        return copy.deepcopy(value, memo)
    part = memo[id(value)] = kind.__new__(kind)
    _copy_contents(vars(value), vars(part), memo)
    for slot, content in in_slots(value):
        slot.__set__(part, _copied_part(content, memo))
    return part


def in_slots(part: Any) -> list[tuple[MemberDescriptorType, Any]]:
    """What the slots of an object hold, those of all of its classes; empty ones are left out."""
    found: list[tuple[MemberDescriptorType, Any]] = []
    kind: Any = type(part)
    for slot in _slots(kind):
        with suppress(AttributeError):
            found.append((slot, slot.__get__(part)))
    return found


@functools.cache
def _slots(kind: type) -> tuple[MemberDescriptorType, ...]:
    own = [vars(c).values() for c in kind.__mro__ if "__slots__" in vars(c)]
    return tuple(v for values in own for v in values if isinstance(v, MemberDescriptorType))


def _copy_contents(values: Mapping[Any, Any], made: dict[Any, Any], memo: dict[int, Any]) -> None:
    """Fills a dictionary with copies. A module has ten empty ones, of hooks, which are copied right here."""
    for name, value in values.items():
        kind = type(value)
        if kind in _ATOMS:
            copied = value
        elif kind is OrderedDict and not value:
            copied = memo.get(id(value))
            if copied is None:
                memo[id(value)] = copied = OrderedDict()
        else:
            copied = _copied_part(value, memo)
        made[name if type(name) in _ATOMS else copy.deepcopy(name, memo)] = copied


@functools.cache
def _copies_plainly(kind: type) -> bool:
    """Whether a class of modules leaves its copies to Python and to nn.Module: a new object with copied attributes."""
    ways = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__new__", "__getnewargs__")
    like = nn.Conv2d if issubclass(kind, _ConvNd) else nn.Module  # which fill in what old pickles of them lack
    plain = all(getattr(kind, way, None) is getattr(like, way, None) for way in (*ways, "__getnewargs_ex__"))
    return plain and kind not in copyreg.dispatch_table


def own_copy(module: nn.Module) -> nn.Module:
    """A copy of the module with weights of its own, whole ones where they were stored once and repeated.

    What cannot be copied (a lock, an open file, a tensor with a history) is shared.

    Raises CaptureError for a weight that the memory would not hold once it is written out, by its name.
    """
    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        if not is_uninitialised(weight) and weight.layout is torch.strided:
            refuse_repeated(name, weight)
    try:
        copied: nn.Module = _copied_part(module, {})
        return copied
    except Exception:
        weights = (*module.parameters(), *module.buffers())
        return _copied(module, {id(t): copy.deepcopy(t) if t.is_leaf else t.detach().clone() for t in weights})


def _is_small(weight: Tensor) -> bool:
    return not is_uninitialised(weight) and weight.numel() * weight.element_size() <= SMALL


def _ordinary(weight: Tensor) -> Tensor:
    """The weight; a copy of one that was made in inference mode, which torch lets nobody trace."""
    if not weight.is_inference():
        return weight
    copied = weight.clone()
    return nn.Parameter(copied, weight.requires_grad) if isinstance(weight, nn.Parameter) else copied


def _apart(weight: Tensor) -> Tensor:
    """The weight; of a parameter, another one on the same memory."""
    ordinary = _ordinary(weight)
    if type(ordinary) is not nn.Parameter or ordinary is not weight:
        return ordinary
    other = nn.Parameter(weight.detach(), weight.requires_grad)
    vars(other).update(vars(weight))
    return other


def _can_be_copied(value: Any, shared: Mapping[int, Any]) -> bool:
    if isinstance(value, dict) and any(isinstance(v, nn.Module) for v in value.values()):
        return True  # the parts of a module, which are looked at themselves
    try:
        copy.deepcopy(value, dict(shared))
    except Exception:
        return False
    return True


class Outside:
    """What the code of a model keeps outside of it.

    These are caches of functions, containers, numbers and tensors, as names of the modules (and packages) that its
    classes come from, or as attributes of classes there; and what functions that it holds keep (hooks, closures,
    partial and cached functions, defaults), which a copy of the model has in common with it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._roots = {type(m).__module__.partition(".")[0] for m in module.modules()} - _NOT_OF_MODELS
        self._loaded: dict[str, Any] | None = None
        self._undo: list[Callable[[], bool]] = []
        self.changed = False  # whether there was something to put back, other than the cache of a function

    @contextmanager
    def kept(self) -> Iterator[None]:
        """It is after the block what it was before the first such block."""
        loaded = _loaded(self._roots)
        if loaded != self._loaded:
            self._loaded = loaded
            seen: set[int] = set()
            steps = [step for space in loaded.values() for step in _steps(vars(space), space, self._roots, seen)]
            steps += _held(self._module, self._roots, seen)
            empty = [step.container for step in steps if isinstance(step, _Emptied)]
            self._undo = [s for s in steps if not isinstance(s, _Emptied)] + [functools.partial(_empty_all, empty)]
        try:
            yield
        finally:
            if _loaded(self._roots) == loaded:  # what an import has registered is there to stay
                self.changed |= any([step() for step in self._undo])


def _loaded(roots: set[str]) -> dict[str, Any]:
    """The modules of some packages that are loaded."""
    by_root = _by_root(tuple(sys.modules))
    found = {n: sys.modules.get(n) for root in roots for n in by_root.get(root, ())}
    return {n: m for n, m in found.items() if m is not None}


@functools.lru_cache(maxsize=1)
def _by_root(names: tuple[str, ...]) -> dict[str, list[str]]:
    """The names of modules, by that of the package they are in: sorted once, as thousands may be loaded."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        found[name.partition(".")[0]].append(name)
    return dict(found)


def _steps(names: Mapping[str, Any], owner: Any, roots: set[str], seen: set[int]) -> Iterator[Callable[[], bool]]:
    """What puts back each of the values that some names have now, and tells whether it was another one.

    seen: the functions, containers and classes that other names stand for; each is looked at once. What an object
    raises when it is asked for something, as what stands for a missing package does, is passed over.
    """
    for name, value in list(names.items()):
        if name.startswith("__"):
            continue
        if type(value) in _VALUES or issubclass(type(value), Tensor):
            yield functools.partial(_bind, owner, name, value)
        elif id(value) in seen:
            continue
        elif issubclass(type(value), type):
            if not isinstance(owner, type) and value.__module__.partition(".")[0] in roots:
                seen.add(id(value))
                yield from _steps(vars(value), value, roots, seen)
        elif type(value) in _CONTAINERS:
            seen.add(id(value))
            yield from _contents(value, _DEEPEST)
        elif callable(value):
            seen.add(id(value))
            yield from _of_function(value, _DEEPEST)


def _held(module: nn.Module, roots: set[str], seen: set[int]) -> Iterator[Callable[[], bool]]:
    """What puts back the parts of a model itself, the functions that these hold, and their classes, wherever made."""
    for part in module.modules():
        yield from _contents(vars(part), 2 * _DEEPEST)
    classes = {c: None for part in module.modules() for c in type(part).__mro__}
    for c in classes:
        if c.__module__.partition(".")[0] in roots and id(c) not in seen:
            yield from _steps(vars(c), c, roots, seen)


def _of_function(value: Any, depth: int) -> Iterator[Callable[[], bool]]:
    """What puts back what a function keeps: its cache, its defaults, what it closes over, what it is a part of."""
    if depth == 0 or (type(value) is FunctionType and _keeps_nothing(value)):
        return
    if issubclass(type(value), functools._lru_cache_wrapper):
        yield _Cleared(value)
    if issubclass(type(value), functools.partial):
        inner: list[Any] = [value.func]
        kept = [*value.args, *value.keywords.values()]
    else:
        inner = [_named(value, "__wrapped__"), _named(value, "__func__")]
        defaults, by_name = _named(value, "__defaults__"), _named(value, "__kwdefaults__")
        kept = [
            *(defaults if isinstance(defaults, tuple) else ()),
            *(by_name.values() if isinstance(by_name, dict) else ()),
        ]
    for function in filter(callable, inner):
        yield from _of_function(function, depth - 1)
    closure = _named(value, "__closure__")
    for cell in closure if isinstance(closure, tuple) else ():
        with suppress(ValueError):  # of an empty one
            kept.append(cell.cell_contents)
            if type(cell.cell_contents) in _VALUES:
                yield functools.partial(_fill, cell, cell.cell_contents)
    for held in kept:
        yield from _of_held(held, depth)


def _named(value: Any, name: str) -> Any:
    """An attribute; None where there is none, or asking for it fails, as of what stands for a missing package."""
    try:
        return getattr(value, name, None)
    except Exception:  # of any kind: it is the object's own
        return None


def _keeps_nothing(function: FunctionType) -> bool:
    """As most do: no defaults, nothing that it closes over, no attributes."""
    return not (function.__defaults__ or function.__kwdefaults__ or function.__closure__ or function.__dict__)


def _of_held(value: Any, depth: int) -> Iterator[Callable[[], bool]]:
    if type(value) in _CONTAINERS:
        yield from _contents(value, depth)
    elif type(value) in _HOLDING:
        yield from _of_function(value, depth - 1)


class _Cleared:
    """Empties the cache of a function that has computed something since the last look at it."""

    def __init__(self, cached: Any) -> None:
        self._cached, self._misses = cached, cached.cache_info().misses

    def __call__(self) -> bool:
        if self._cached.cache_info().misses != self._misses:
            self._cached.cache_clear()
            self._misses = 0
        return False


def _bind(owner: Any, name: str, value: Any) -> bool:
    if vars(owner).get(name) is value:
        return False
    setattr(owner, name, value)
    return True


def _fill(cell: Any, value: Any) -> bool:
    if cell.cell_contents is value:
        return False
    cell.cell_contents = value
    return True


def _contents(container: Any, depth: int) -> Iterator[Callable[[], bool]]:
    """What puts back a container's own contents, and those of the containers in it."""
    if depth == 0:
        return
    if not container:
        yield _Emptied(container)
        return
    kept = container.copy()
    for value in kept.values() if isinstance(kept, dict) else kept:
        if type(value) in _HOLDING:
            yield from _of_held(value, depth - 1)
    yield functools.partial(_refill, container, kept)


@dataclass(frozen=True)
class _Emptied:
    """Empties a container."""

    container: Any

    def __call__(self) -> bool:
        return _empty_all([self.container])


def _empty_all(containers: Sequence[Any]) -> bool:
    """Most of what a module holds: one look at all of them tells whether any is not empty."""
    if not any(containers):
        return False
    for container in containers:
        container.clear()
    return True


def _refill(container: Any, kept: Any) -> bool:
    same = len(container) == len(kept)
    if isinstance(container, set):
        same = same and container == kept
    else:
        same = same and all(map(operator.is_, container, kept))
        if isinstance(container, dict):
            same = same and all(map(operator.is_, container.values(), kept.values()))
    if same:
        return False
    container.clear()
    (container.extend if isinstance(container, list | deque) else container.update)(kept)
    return True
