"""Networks of the library transformers, built from the config.json of a folder: its own classes, nothing fetched."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reparam.errors import InputError, MachineError
from reparam.utils import Shapes, describe_error, first_line, foreign_code
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

from .pretrained import hub_offline
from .zoo import Architecture, NoInit

TRANSFORMERS = "transformers/"
# What is said of the file and its history, of classes' names, and what would fetch code or weights.
_LEFT_OUT = re.compile(
    r"^_|implementation|kernel|^(architectures|auto_map|id2label|label2id|torch_dtype|dtype|transformers_version"
    r"|custom_pipelines|quantization_config|name_or_path|tokenizer_class|task_specific_params)$"
)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what is no property of the network; the labels as their number."""
    found = {k: _plain(v) for k, v in config.items() if not _LEFT_OUT.search(k)}
    labels = config.get("id2label")
    return {**found, "num_labels": len(labels)} if isinstance(labels, Mapping) else found


def _plain(value: Any) -> Any:
    return plain_config(value) if isinstance(value, Mapping) else value


def build_transformers(spec: str, given: Mapping[str, Any], path: Path) -> Architecture:
    """The network of a class of transformers, in evaluation mode; its parameters hold arbitrary memory.

    given: a config that `plain_config` made, with its model_type. path: of the config file, for messages.

    Raises InputError for a class that is none of the library's, or that cannot be built so.
    """
    library = _library()
    name = spec.removeprefix(TRANSFORMERS)
    args = {k: v for k, v in given.items() if k not in ("architectures", "model_type")}
    with foreign_code(f"building {spec}"), hub_offline(), torch.random.fork_rng(devices=[]):
        kind = getattr(library, name, None)
        ours = isinstance(kind, type) and kind.__module__.startswith("transformers.") and issubclass(kind, nn.Module)
        if not ours:
            raise InputError(f"{path} names {name}, which is no network of transformers {library.__version__}")
        try:
            config = library.AutoConfig.for_model(given["model_type"], **args)
            with NoInit():
                module = kind(config)  # type: ignore[misc]
        except Exception as error:
            raise InputError(f"{path} does not describe a network ({describe_error(error)})") from error
    return Architecture(spec, module.eval(), _shapes(config))


def _library() -> Any:
    """Imports transformers, or says how to install it."""
    register_missing_torchvision_ops()
    try:
        return importlib.import_module("transformers")
    except (ImportError, RuntimeError) as error:
        raise MachineError(
            f"transformers cannot be imported ({first_line(error)}); install it with: "
            "pip install 'reparam[transformers]'"
        ) from error


def _shapes(config: Any) -> Shapes | None:
    """Of an image, where the config tells its size."""
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(n, int) and 0 < n < 1 << 14 for n in (*sides, channels)):
        return None
    return ((channels, *sides),)
