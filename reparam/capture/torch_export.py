"""Captures an nn.Module as a functional ATen `Program`."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

from reparam.errors import CaptureError, EndedError, MachineError
from reparam.ir import as_traced, device_of
from reparam.utils import (
    DEFAULT_AXES,
    as_the_user_set,
    axis_words,
    batch_is_unasked,
    foreign_code,
    memory_told,
)

from .as_written import AsWritten, calls_may_raise, silent
from .assigned_weights import AssignsWeights, NoneAssigned, WeightsStay, with_weights_assigned
from .explain import explain
from .fast_path import fast_path_notes
from .free_axes import (
    Group,
    bound_axes,
    dynamic_shapes,
    equal_sizes,
    free_sizes,
    frees_batch,
    keep_equal,
    read_axes,
    wanted_axes,
    widened,
    without_batch,
)
from .fresh import Outside, fresh_copy
from .guards import mode_of, probes_at
from .known_weights import WeightsAreKnown
from .model_check import check_model, refuse_misfit
from .names import name_of
from .next_run import refuse_other_results
from .open_ones import without_ones
from .places import frames_made_once
from .plain_numbers import with_numbers_left_open
from .recurrent import RecurrentLayers, recurrent_layers
from .sizes import plain_sizes
from .statefulness import refuse_state, watched
from .steps import Captured, from_exported
from .texts import MOST, texts_of_sizes

_log = logging.getLogger(__name__)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[bool]:
    """Puts the module into evaluation mode and restores every submodule's own mode. Yields whether it changed."""
    modes = [(m, m.training) for m in module.modules()]
    with suppress(NotImplementedError):  # what torch says of a module of an exported program, which has one mode alone
        module.eval()
    try:
        yield any(mode for _, mode in modes)
    finally:
        for m, mode in modes:
            m.training = mode


def capture(module: nn.Module, example_inputs: Sequence[Any], *, dynamic: Sequence[str] = DEFAULT_AXES) -> Captured:
    """Captures `module` as one functional graph of ATen calls.

    example_inputs: the positional arguments; tensors are (N, ...) when "batch" is dynamic.
    dynamic: axes whose size stays free: "batch" (axis 0), "height" and "width" (the last two of tensors with four or
    more axes), or any other by its input, its number and a name of its own: "x:1=sequence". When it is left out, a
    batch that the model does not leave free is fixed at that of the examples, with a note.

    Raises CaptureError when the model cannot become one graph, or does not leave an axis free that was asked for, with
    the line that asks for its size; InputError for an unknown axis name.
    """
    axes = read_axes(dynamic)
    # A model that draws random numbers would move torch's generator, which is the caller's.
    with foreign_code(f"capturing {name_of(module)}"), torch.random.fork_rng(devices=[]):
        check_model(module, example_inputs)
        example_inputs = _beside_the_weights(module, example_inputs)
        outside = Outside(module)
        try:
            with outside.kept():
                return _capture(_without_empty_buffers(fresh_copy(module)), example_inputs, axes, outside)
        except EndedError:
            raise
        except CaptureError:
            with evaluation_mode(module), outside.kept():
                refuse_misfit(module, example_inputs, lambda: _run(fresh_copy(module, to_write=True), example_inputs))
            raise


def _capture(module: nn.Module, example_inputs: Sequence[Any], dynamic: tuple[str, ...], outside: Outside) -> Captured:
    notes = list(_hook_notes(module))
    with evaluation_mode(module) as switched, _use_lazy_graph_module(True):  # no code is written of graphs unused
        if switched:
            notes.append("the model was in training mode; it was captured in evaluation mode")
        with outside.kept():
            notes.extend(fast_path_notes(module, lambda: _run(fresh_copy(module), example_inputs)))
        with watched(module) as wrote, texts_of_sizes() as named:
            exported, samples = _export(module, _distinct(example_inputs), dynamic, notes, outside)
        refuse_state(exported, wrote.tensors)
        free = free_sizes(exported)
        with as_traced(mode_of(exported)):
            captured = from_exported(exported)
        if sum(isinstance(s, str) for spec in captured.program.inputs for s in spec.shape) < free:
            if without_batch(dynamic) or not batch_is_unasked(dynamic):
                raise CaptureError(f"the {', '.join(dynamic)} cannot stay free: {_LOST}; leave it out of the free axes")
            fixed = _capture(module, example_inputs, without_batch(dynamic), outside)
            told = f"the batch is fixed at {batch_of(example_inputs)}, that of the example: {_LOST}"
            return replace(fixed, notes=(*fixed.notes, told))
        refuse_other_results(module, wrote, outside, example_inputs, _run)
    program = replace(captured.program, probes=(*captured.program.probes, *probes_at(exported, sorted(named)[:MOST])))
    program = replace(program, samples=samples) if samples > 1 else program
    calls = sum(1 for _ in program.calls())
    _log.info("captured %s: %d calls, %d weights", name_of(module), calls, len(program.constants))
    return Captured(program, (*notes, *captured.notes))


_LOST = "torch fixes it when it resolves what the model writes in place to values that may share memory"


def _hook_notes(module: nn.Module) -> Iterator[str]:
    for name, m in module.named_modules():
        hooks = [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]
        if any(getattr(hook, "__func__", None) is not LazyModuleMixin._infer_parameters for hook in hooks):
            yield f"module '{name or 'root'}' has hooks: what they compute is captured, their side effects are not"


def _beside_the_weights(module: nn.Module, args: Sequence[Any]) -> tuple[Any, ...]:
    """The example inputs on the device of the model's weights, where it has some."""
    weights = [*module.parameters(), *module.buffers()]
    home = device_of(weights)
    if not weights:
        return tuple(args)

    def beside(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.device.type in (home.type, "meta"):
            return value
        return value.to(home)

    return tuple(pytree.tree_map(beside, tuple(args)))


def _distinct(args: Sequence[Any]) -> tuple[Any, ...]:
    """The same tensor given twice becomes two: torch.export would take both inputs for one."""
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        again = id(value) in seen
        seen.add(id(value))
        return value.clone() if again else value

    return tuple(pytree.tree_map(own, tuple(args)))


def _by_parameter(module: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """One entry for each parameter of forward, as torch.export wants it: a `*args` takes the rest as a tuple."""
    kinds = [p.kind for p in inspect.signature(module.forward).parameters.values()]
    rest = kinds.index(inspect.Parameter.VAR_POSITIONAL) if inspect.Parameter.VAR_POSITIONAL in kinds else len(shapes)
    return (*shapes[:rest], shapes[rest:]) if rest < len(shapes) else shapes


def _export(
    module: nn.Module, args: tuple[Any, ...], dynamic: tuple[str, ...], notes: list[str], outside: Outside
) -> tuple[torch.export.ExportedProgram, int]:
    """The exported program with the axes free that the model leaves free, and the samples of a batch that it fixes.

    A batch that nobody asked for is fixed with a note where the model does not leave it free. Raises CaptureError for
    another axis.
    """
    if not dynamic:
        return _export_once(module, args, None, outside), 1
    wide = widened(module, args, dynamic)
    wanted = wanted_axes(module, wide, dynamic)
    equal = equal_sizes(module, wide, dynamic)

    def traced() -> tuple[torch.export.ExportedProgram, dict[str, str]]:
        with recurrent_layers(module) as recurrent:
            shapes = _by_parameter(module, dynamic_shapes(wide, wanted))
            found = _export_once(module, wide, shapes, outside, equal, recurrent)
        return found, bound_axes(found, wanted, recurrent)

    try:
        exported, bound = with_numbers_left_open(module, lambda: without_ones(traced))
    except CaptureError as error:
        if without_batch(dynamic) or not batch_is_unasked(dynamic):
            _export_once(module, args, None, outside)  # what no choice of axes helps is told as it is
            stuck = [d for d in dynamic if len(dynamic) > 1 and not _can_be_free(module, args, d, outside)]
            raise CaptureError(f"{error}; leave out what need not be free of {', '.join(stuck or dynamic)}") from error
        fixed = _export_once(module, args, None, outside)
        notes.append(f"captured with fixed sizes, because free {', '.join(dynamic)} failed: {error}")
        return fixed, batch_of(args) if frees_batch(dynamic) else 1
    asked = {name: why for name, why in bound.items() if name != "batch" or not batch_is_unasked(dynamic)}
    if asked:
        name, why = next(iter(asked.items()))
        raise CaptureError(f"{axis_words(name)} cannot stay free: {why}; leave it out of the free axes")
    if not bound:
        return exported, 1
    size = batch_of(args)
    notes.append(f"the batch is fixed at {size}, that of the example: {bound['batch']}")
    return _export(module, args, without_batch(dynamic), notes, outside)[0], size


def _can_be_free(module: nn.Module, args: tuple[Any, ...], axis: str, outside: Outside) -> bool:
    """Whether the model can be captured with this axis alone free."""
    wide = widened(module, args, (axis,))
    try:
        _export_once(
            module, wide, _by_parameter(module, dynamic_shapes(wide, wanted_axes(module, wide, (axis,)))), outside
        )
    except CaptureError:
        return False
    return True


def batch_of(args: Sequence[Any]) -> int:
    """The samples of example inputs: the first size of the first tensor, or 1 where none has a size."""
    return next((int(v.shape[0]) for v in pytree.tree_leaves(tuple(args)) if isinstance(v, Tensor) and v.dim()), 1)


def _without_empty_buffers(module: nn.Module) -> nn.Module:
    """The module with plain attributes in place of buffers that are None.

    torch.export takes a tensor that is assigned to such a buffer (a grid that is made on the first run) for a write to
    another one.
    """
    for part in module.modules():
        for name in [n for n, value in part._buffers.items() if value is None]:
            del part._buffers[name]
            vars(part)[name] = None
    return module


def _export_once(
    module: nn.Module,
    args: tuple[Any, ...],
    shapes: Any,
    outside: Outside,
    equal: Sequence[Group] = (),
    recurrent: RecurrentLayers | None = None,
) -> torch.export.ExportedProgram:
    """One try after the other, each with what the model keeps, in itself or outside, as it was before the first.

    equal: the free axes that are of one size. recurrent: takes note of the sizes of the inputs.
    """
    doing, known, source = f"capturing {name_of(module)}", False, module
    weights: AbstractContextManager[Any] = NoneAssigned()
    for _ in range(8):
        fresh = fresh_copy(source)
        keep_equal(fresh, equal)
        (recurrent or RecurrentLayers()).watch(fresh)
        values: AbstractContextManager[Any] = WeightsAreKnown(fresh) if known else nullcontext()
        try:
            with outside.kept(), silent(), warnings.catch_warnings(), torch.no_grad(), memory_told(doing):
                warnings.simplefilter("ignore")
                with (
                    as_the_user_set(),
                    AsWritten(),
                    values,
                    plain_sizes(),
                    frames_made_once(),
                    calls_may_raise(),
                    weights,
                ):
                    return torch.export.export(fresh, _unmarked(args), dynamic_shapes=shapes, strict=False)
        except MachineError:
            raise
        except Exception as error:
            with outside.kept():
                if not known and _asks_for_values(error):
                    known = True
                elif isinstance(error, AssignsWeights):
                    source, weights = _with_weights_assigned(module, args)
                elif not _register_output_type(module, args, error):
                    told = explain(module, error, lambda: _run(fresh_copy(module, to_write=True), args))
                    raise CaptureError(told) from error
    raise CaptureError("the model's outputs nest more unregistered dataclasses than can be captured")


def _with_weights_assigned(module: nn.Module, args: tuple[Any, ...]) -> tuple[nn.Module, AbstractContextManager[Any]]:
    """A copy whose weights are what it assigns to them, which stay so; the module itself where these values differ."""
    settled = with_weights_assigned(fresh_copy(module, to_write=True), args, _run)
    return (module, nullcontext()) if settled is None else (settled, WeightsStay())


def _asks_for_values(error: Exception) -> bool:
    """Whether tracing ended because a tensor was to become a number."""
    text = str(error)
    return "data-dependent" in text or "numpy" in text.lower()


def _unmarked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in new tensors: torch.export marks free sizes on its arguments, and obeys the marks."""
    return tuple(pytree.tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, args))


def runs_on(module: nn.Module, example_inputs: Sequence[Any]) -> bool:
    """Whether the module runs on these inputs in evaluation mode. It is left as it was, and so is torch's generator.

    Raises EndedError where its code would end the process, and MachineError where the memory does not suffice.
    """
    try:
        with (
            evaluation_mode(module),
            foreign_code(f"running {name_of(module)}"),
            torch.random.fork_rng(devices=[]),
            Outside(module).kept(),
            torch.no_grad(),
        ):
            _run(fresh_copy(module, to_write=True), example_inputs)
    except (EndedError, MachineError):
        raise
    except Exception:
        return False
    return True


def _run(module: nn.Module, args: Sequence[Any]) -> Any:
    with as_the_user_set():
        return module(*_copies(tuple(args)))


def _copies(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same values in memory of their own."""
    return tuple(pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, args))


def _register_output_type(module: nn.Module, args: tuple[Any, ...], error: Exception) -> bool:
    """Registers an output dataclass that torch.export does not know; True when it is worth another try."""
    text = str(error)
    if "dataclass" not in text and "pytree" not in text and "unsupported output" not in text.lower():
        return False
    try:
        with torch.no_grad():
            result = module(*args)
    except Exception:  # the error that there is tells more
        return False
    found = False
    for leaf in pytree.tree_leaves(result):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(
                type(leaf), serialized_type_name=f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            )
            found = True
    return found
