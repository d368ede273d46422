"""Architectures by name: `torchvision/resnet50`, `timm/repvgg_a0`, `reparam/NAME`, `package.module:factory`.

Nothing here downloads weights. On a CPU-only torch the two operators that torchvision looks up at its import are
declared first (`register_missing_torchvision_ops`), without which its classification models cannot be imported.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reparam.errors import InputError, MachineError
from reparam.ir import is_uninitialised
from reparam.utils import Shapes, describe_error, first_line, foreign_code
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

from .torchvision_zoo import IMAGE_CHANNELS, adaptable, torchvision_shapes
from .working_directory import working_directory_on_path

if TYPE_CHECKING:
    from reparam.models.registry import Entry

__all__ = [
    "Architecture",
    "available",
    "build_architecture",
    "build_without_init",
    "find_function",
    "meta_state",
    "shapes_of_network",
]

SOURCES = ("torchvision", "timm", "reparam")

_DOWNLOADS = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg")
_KEEP = frozenset({"requires_grad_", "share_memory_", "rename_", "retain_grad_"})


@dataclass(frozen=True)
class Architecture:
    """A network built from its name.

    module: in evaluation mode. input_shapes: one shape for each input, without the batch, or None when unknown.
    """

    spec: str
    module: nn.Module
    input_shapes: Shapes | None


@dataclass(frozen=True)
class _Factory:
    """A callable that builds a network, the arguments it always gets, and the shapes of its inputs (if known)."""

    spec: str
    build: Callable[..., Any]
    fixed: Mapping[str, Any]
    shapes: Callable[[nn.Module, Mapping[str, Any]], Shapes | None]


def build_architecture(spec: str, arch_args: Mapping[str, Any] | None = None, *, seed: int = 0) -> Architecture:
    """Builds the network `spec` with random weights drawn from `seed`, in evaluation mode.

    Raises InputError for an unknown name (with the nearest three) or arguments that it does not take (with its
    signature), MachineError when torchvision or timm is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(spec, arch_args or {})


def build_without_init(spec: str, arch_args: Mapping[str, Any] | None = None) -> Architecture:
    """Like `build_architecture`, but parameters of zoo networks hold arbitrary memory: every one must be loaded."""
    if _is_zoo(spec):
        with torch.random.fork_rng(devices=[]), NoInit():
            return _build(spec, arch_args or {})
    return build_architecture(spec, arch_args)


def meta_state(spec: str, arch_args: Mapping[str, Any] | None = None) -> dict[str, tuple[int, ...]]:
    """Every key of the state dict of `spec` with its shape; a zoo network is built without allocating its weights.

    What torchvision and timm build by name alone is built once in a process. Raises what `build_architecture` raises.
    """
    if arch_args or not _is_zoo(spec):
        return shapes_of_network(meta_module(spec, arch_args))
    _resolve(spec)
    return dict(_zoo_state(spec, _registered_builder(spec)))


@functools.lru_cache(maxsize=128)
def _zoo_state(spec: str, builder: Callable[..., Any]) -> dict[str, tuple[int, ...]]:
    """builder: what is registered under the name now; another one may take its place."""
    return shapes_of_network(meta_module(spec))


def _registered_builder(spec: str) -> Callable[..., Any]:
    source, _, name = spec.partition("/")
    if source == "timm":
        return import_zoo("timm").model_entrypoint(name)  # type: ignore[no-any-return]
    return import_zoo("torchvision.models").get_model_builder(name)  # type: ignore[no-any-return]


def meta_module(spec: str, arch_args: Mapping[str, Any] | None = None) -> nn.Module:
    """The network `spec`, of a zoo without its weights where that can be. Raises what `build_architecture` raises."""
    try:
        with torch.device("meta"), NoInit():
            return _build(spec, arch_args or {}).module
    except InputError:  # what computes with values while it is built cannot be built on the meta device
        return build_without_init(spec, arch_args).module


def shapes_of_network(
    module: nn.Module, found: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a module's state; one that is unknown before the module runs is that in `found`."""
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return {k: (found or {}).get(k, ()) if is_uninitialised(v) else tuple(v.shape) for k, v in tensors.items()}


def available(source: str) -> tuple[str, ...]:
    """The names behind `torchvision/`, `timm/` or `reparam/`. Raises MachineError when the package is not installed."""
    if source == "torchvision":
        return tuple(import_zoo("torchvision.models").list_models())
    if source == "timm":
        return tuple(import_zoo("timm").list_models())
    return tuple(_registered())


def _is_zoo(spec: str) -> bool:
    return spec.startswith(("torchvision/", "timm/"))


def _build(spec: str, arch_args: Mapping[str, Any]) -> Architecture:
    refused = [a for a in _DOWNLOADS if arch_args.get(a)]
    if refused and _is_zoo(spec):
        raise InputError(
            f"'{refused[0]}' in the architecture's arguments would fetch weights; give a checkpoint, or --pretrained"
        )
    with contextlib.ExitStack() as stack:
        if _is_user_factory(spec):
            stack.enter_context(working_directory_on_path())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        with foreign_code(f"building {spec}"):
            factory = _resolve(spec)
            try:
                module = factory.build(**{**factory.fixed, **arch_args})
            except Exception as error:
                raise InputError(_build_error(factory, arch_args, error)) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{spec} built a {type(module).__name__}; it must return a torch.nn.Module")
    with foreign_code(f"asking {spec} for its shapes", errors=True):
        return Architecture(spec, module.eval(), factory.shapes(module, arch_args))


def _build_error(factory: _Factory, arch_args: Mapping[str, Any], error: Exception) -> str:
    reason = describe_error(error)
    if not arch_args:
        return f"{factory.spec} could not be built ({reason})"
    given = ", ".join(f"{k}={v!r}" for k, v in arch_args.items())
    return f"{factory.spec} could not be built with {given} ({reason}); it takes {_signature(factory)}"


def _signature(factory: _Factory) -> str:
    """The factory's parameters; for one that passes them all on, those of the class that it builds."""
    parameters = inspect.signature(factory.build)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.parameters.values()):
        try:
            with torch.device("meta"):
                parameters = inspect.signature(type(factory.build(**factory.fixed)))
        except Exception:
            parameters = inspect.signature(factory.build)
    plain = [p.replace(annotation=p.empty) for p in parameters.parameters.values()]
    return str(parameters.replace(parameters=plain, return_annotation=parameters.empty))


def _is_user_factory(spec: str) -> bool:
    """`package.module:factory`, the one form whose module may lie in the current folder."""
    return ":" in spec and "/" not in spec


def _resolve(spec: str) -> _Factory:
    source, slash, name = spec.partition("/")
    if slash and source == "torchvision":
        return _torchvision_factory(spec, name)
    if slash and source == "timm":
        return _timm_factory(spec, name)
    if slash and source == "reparam":
        return _own_factory(spec, name)
    if _is_user_factory(spec):
        return _user_factory(spec)
    near = [f"{s}/{spec}" for s in SOURCES if _is_installed(s) and spec in available(s)]
    hint = f"did you mean {' or '.join(near)}?" if near else _FORMS
    raise InputError(f"'{spec}' is not an architecture; {hint}")


_FORMS = "write torchvision/NAME, timm/NAME, reparam/NAME or package.module:factory"


def _is_installed(source: str) -> bool:
    return source == "reparam" or importlib.util.find_spec(source) is not None


def missing_zoos() -> list[str]:
    """Those of torchvision and timm that cannot be imported here."""
    missing = []
    for name in ("torchvision", "timm"):
        try:
            import_zoo(name)
        except MachineError:
            missing.append(name)
    return missing


def import_zoo(name: str) -> Any:
    """Imports torchvision or timm, or says how to install them."""
    register_missing_torchvision_ops()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        top = name.partition(".")[0]
        raise MachineError(
            f"{top} cannot be imported ({first_line(error)}); install it with: pip install 'reparam[zoo]'"
        ) from error


def _unknown(spec: str, source: str, name: str) -> InputError:
    names = available(source)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    elsewhere = [f"{s}/{name}" for s in SOURCES if s != source and _is_installed(s) and name in available(s)]
    listed = ", ".join([*elsewhere, *(f"{source}/{n}" for n in near)][:3])
    return InputError(f"'{spec}' is not an architecture of {source}; the nearest are {listed or 'none'}")


def _torchvision_factory(spec: str, name: str) -> _Factory:
    models = import_zoo("torchvision.models")
    if name not in available("torchvision"):
        raise _unknown(spec, "torchvision", name)
    builder = models.get_model_builder(name)
    fixed: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        fixed["weights_backbone"] = None
    if "googlenet" in name or "inception_v3" in name:
        fixed["init_weights"] = False  # a truncated normal by rejection takes half a minute
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    return _Factory(
        spec,
        adaptable(builder, kind),
        fixed,
        lambda module, args: torchvision_shapes(
            models, builder, int(args.get("in_chans", IMAGE_CHANNELS)), module=module
        ),
    )


def _timm_factory(spec: str, name: str) -> _Factory:
    timm = import_zoo("timm")
    if not timm.is_model(name) or ":" in name:
        raise _unknown(spec, "timm", name.partition(".")[0])

    def create(**kwargs: Any) -> Any:
        return timm.create_model(name, pretrained=False, **kwargs)

    return _Factory(spec, create, {}, timm_shapes)


def timm_config(name: str) -> dict[str, Any]:
    """What timm says of an architecture: the size of its images, its classes. Raises InputError for an unknown name."""
    _timm_factory(f"timm/{name}", name)
    config = import_zoo("timm.models").get_pretrained_cfg(name)
    return {} if config is None else dict(config.to_dict())


def timm_shapes(module: nn.Module, arch_args: Mapping[str, Any]) -> Shapes | None:
    """The shapes of the inputs of a network of timm."""
    config = getattr(module, "pretrained_cfg", None) or {}
    size = config.get("input_size")
    if size is None:
        return None
    image = arch_args.get("img_size", size[-2:])
    height, width = (image, image) if isinstance(image, int) else image
    return ((arch_args.get("in_chans", size[0]), height, width),)


def _declared_shapes(module: nn.Module, arch_args: Mapping[str, Any]) -> Shapes | None:
    """What the network says itself, in an attribute `input_shapes` such as ((3, 32, 32),)."""
    declared = getattr(module, "input_shapes", None)
    return tuple(tuple(int(n) for n in shape) for shape in declared) if isinstance(declared, Sequence) else None


def _registered() -> Mapping[str, Entry]:
    register_missing_torchvision_ops()  # architectures of other packages may import torchvision
    registry = importlib.import_module("reparam.models.registry")  # only now: architectures import torch, and more
    entries: Mapping[str, Entry] = registry.entries()
    return entries


def _own_factory(spec: str, name: str) -> _Factory:
    entry = _registered().get(name)
    if entry is None:
        raise _unknown(spec, "reparam", name)
    return _Factory(
        spec, entry.build, entry.arguments, lambda module, args: _declared_shapes(module, args) or entry.inputs
    )


def _user_factory(spec: str) -> _Factory:
    return _Factory(
        spec, _user_callable(spec, "factory", f"'{spec}' is not an architecture; {_FORMS}"), {}, _declared_shapes
    )


def find_function(spec: str, what: str) -> Callable[..., Any]:
    """The function or class `package.module:name` of the user's, looked for like an architecture's factory.

    what: it is, for messages, such as "metric". Raises InputError for what is not there or cannot be imported.
    """
    with working_directory_on_path(), foreign_code(f"importing {spec}"):
        return _user_callable(spec, what, f"'{spec}' is not a {what}; write package.module:name")


def _user_callable(spec: str, what: str, complaint: str) -> Callable[..., Any]:
    module_name, colon, name = spec.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module_name.split(".")):
        raise InputError(complaint)
    module = _user_module(spec, module_name)
    found = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    near = ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))
    raise InputError(f"module '{module_name}' has no {what} '{name}'; the nearest are {near or 'none'}")


def _user_module(spec: str, name: str) -> ModuleType:
    register_missing_torchvision_ops()  # the user's module may import torchvision
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                f"there is no module '{error.name}' for '{spec}' in {os.getcwd()} or installed; "
                "run from the folder that holds it, or install it"
            ) from error
        raise InputError(f"importing '{name}' for '{spec}' failed: {first_line(error)}") from error
    except Exception as error:
        raise InputError(f"importing '{name}' for '{spec}' failed ({describe_error(error)})") from error


class NoInit(TorchFunctionMode):
    """Skips whatever fills a parameter in place (`normal_`, `nn.init.zeros_`, …): loading overwrites it anyway."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        target = args[0] if args else (kwargs or {}).get("tensor")
        fills = name.endswith("_") and not name.endswith("__") and name not in _KEEP
        if fills and isinstance(target, nn.Parameter):
            return target
        return func(*args, **(kwargs or {}))
