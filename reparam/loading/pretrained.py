"""Published weights by name: torchvision's (`IMAGENET1K_V2`) and timm's (the tag behind a name: `a1_in1k`).

They come from the cache of the library (`TORCH_HOME`, `HF_HOME`), and are fetched into it where they are not there. The
network is made by the library's own builder, which may set more than the weights (an epsilon, a scale of the input). A
file of torchvision's is compared with the hash in its name and read like any other checkpoint: it runs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from torch import Tensor

from reparam.errors import InputError
from reparam.utils import Shapes, describe_error, first_line, foreign_code, one_line

from .checkpoint import load_checkpoint
from .torchvision_zoo import IMAGE_CHANNELS, torchvision_shapes
from .zoo import Architecture, import_zoo, meta_state, timm_config, timm_shapes

DEFAULT = "default"
_HASH = re.compile(r"-([a-f0-9]{8,64})\.")
_PATCHING = threading.Lock()
_SHOWN = 8
SECONDS = 10  # for a connection


@dataclass(frozen=True)
class Pretrained:
    """A network with published weights. label: theirs, as the library names them."""

    built: Architecture
    label: str


def build_pretrained(spec: str, arch_args: Mapping[str, Any], name: str = DEFAULT) -> Pretrained:
    """The network `spec` with its published weights of this name, in evaluation mode.

    Raises InputError for a network without published weights, a name that none have (with those there are), arguments
    with which they do not fit, and weights that are neither in the cache nor can be fetched; MachineError where the
    library is not installed.
    """
    source, _, model = spec.partition("/")
    if source not in ("torchvision", "timm") or not model:
        raise InputError(f"--pretrained takes published weights of torchvision/NAME and timm/NAME, not of {spec}")
    with foreign_code(f"building {spec} with published weights", errors=True):
        return (_torchvision if source == "torchvision" else _timm)(spec, model, dict(arch_args), name)


def _unknown(spec: str, name: str, known: list[str]) -> InputError:
    if not known:
        return InputError(f"{spec} has no published weights; leave out --pretrained for random ones")
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return InputError(
        f"{spec} has no published weights '{one_line(name)[:60]}'; choose from {', '.join(known[:_SHOWN])}{more}"
    )


def _not_there(label: str, cache: str, error: BaseException) -> InputError:
    return InputError(
        f"the weights {label} are not in the cache ({cache}), and cannot be fetched: {describe_error(error)[:160]}; "
        "connect to the network, or give a file of them"
    )


# ---- torchvision -------------------------------------------------------------------------------------------------


def _torchvision(spec: str, model: str, arch_args: dict[str, Any], name: str) -> Pretrained:
    models = import_zoo("torchvision.models")
    meta_state(spec, arch_args)  # names and arguments are complained about as without weights
    builder = models.get_model_builder(model)
    published = models.get_model_weights(builder)
    known = list(published.__members__)
    wanted = name.removeprefix(f"{published.__name__}.") if name != DEFAULT else DEFAULT.upper()
    if wanted not in known:
        raise _unknown(spec, name, list(dict.fromkeys(w.name for w in published)))
    weights = published[wanted]
    if arch_args.get("in_chans", IMAGE_CHANNELS) != IMAGE_CHANNELS or arch_args.get("num_classes") == 0:
        raise InputError(f"the weights {weights} are for images of 3 channels and for classes; leave out --arch-args")
    arguments = {k: v for k, v in arch_args.items() if k != "in_chans"}
    with _read_by_us(weights):
        try:
            module = builder(weights=weights, progress=False, **arguments)
        except ValueError as error:
            raise InputError(f"the weights {weights} do not fit these arguments: {first_line(error)}") from error
    return Pretrained(Architecture(spec, module.eval(), _shapes(models, builder, weights)), str(weights))


def _shapes(models: Any, builder: Callable[..., Any], weights: Any) -> Shapes | None:
    return torchvision_shapes(models, builder, IMAGE_CHANNELS, weights)


@contextmanager
def _read_by_us(weights: Any) -> Iterator[None]:
    """Within the block, torchvision's builders get these weights as our own reader reads them."""
    kind: Any = type(weights).__mro__[1]
    with _PATCHING:
        before = kind.get_state_dict
        kind.get_state_dict = lambda self, *args, **kwargs: _state_of(self.url, str(self))
        try:
            yield
        finally:
            kind.get_state_dict = before


def _state_of(url: str, label: str) -> dict[str, Tensor]:
    """The tensors of a file in torch's cache, fetched into it where it is not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / os.path.basename(urlparse(url).path)
    expected = _HASH.search(file.name)
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), expected[1] if expected else None, progress=False)
        except (OSError, RuntimeError) as error:  # what urllib raises is an OSError, another hash a RuntimeError
            raise _not_there(label, str(file), error) from error
    if expected:
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if not found.startswith(expected[1]):
            raise InputError(f"{file} is not what was published: its sha256 begins with {found[:8]}; remove it")
    return dict(load_checkpoint(file).raw)


# ---- timm --------------------------------------------------------------------------------------------------------


def _timm(spec: str, model: str, arch_args: dict[str, Any], name: str) -> Pretrained:
    timm = import_zoo("timm")
    plain = model.partition(".")[0]
    meta_state(f"timm/{plain}", arch_args)  # as without weights
    full = model if name == DEFAULT else f"{plain}.{name.removeprefix(f'{plain}.')}"
    known = [m.partition(".")[2] for m in timm.list_pretrained(f"{plain}*") if m.partition(".")[0] == plain]
    tag = full.partition(".")[2]
    if not known or (tag and tag not in known):
        raise _unknown(f"timm/{plain}", tag or name, known)
    config = timm_config(full)
    classes = arch_args.get("num_classes")
    if classes not in (None, 0, config.get("num_classes")):
        raise InputError(
            f"the weights {full} are for {config.get('num_classes')} classes; leave out num_classes, or 0 for none"
        )
    module = _made(timm, full, arch_args, config)
    shown = getattr(module, "pretrained_cfg", None) or {}
    label = ".".join(str(v) for v in (f"timm/{plain}", shown.get("tag")) if v)
    return Pretrained(Architecture(spec, module.eval(), timm_shapes(module, arch_args)), label)


def _made(timm: Any, name: str, arch_args: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The network with its weights out of the cache, or, where they are not there, out of the hub."""
    with contextlib.suppress(Exception), hub_offline():
        return timm.create_model(name, pretrained=True, **arch_args)
    cache = f"{config.get('hf_hub_id') or config.get('url') or name} in the cache of its hub"
    try:
        _check_connection()
        return timm.create_model(name, pretrained=True, **arch_args)
    except Exception as error:  # of many kinds, of whatever library connects
        raise _not_there(f"timm/{name}", cache, error) from error


def _check_connection() -> None:
    """Raises OSError where the hub cannot be reached, since asking it would be tried for a minute."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    host = urlparse(constants.ENDPOINT)
    if host.hostname and not getproxies():
        with socket.create_connection((host.hostname, host.port or 443), timeout=SECONDS):
            pass


@contextmanager
def hub_offline() -> Iterator[None]:
    """Within the block, nothing asks a hub."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
