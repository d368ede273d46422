"""Networks of the library transformers, made from the config.json of a folder: its own classes, and nothing fetched.

The library renames keys between its versions, so that its own loader puts the weights in. It gets the tensors that our
reader has read, and opens no file itself.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError, MachineError
from reparam.utils import Shapes, describe_error, first_line, foreign_code, one_line
from reparam.utils.torchvision_ops import register_missing_torchvision_ops

from .fit import Fit
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


def meta_transformers(spec: str, given: Mapping[str, Any], path: Path) -> nn.Module:
    """The network of a class of transformers without its weights.

    given: a config that `plain_config` made, with its model_type. path: of the config file, for messages.

    Raises InputError for a class that is none of the library's, or that cannot be built so; MachineError where the
    library is not installed.
    """
    with _building(spec, path), torch.device("meta"), NoInit():
        kind, config = _parts(spec, given, path)
        module = kind(config)
    assert isinstance(module, nn.Module)
    return module


def load_transformers(spec: str, given: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> Architecture:
    """The network with these weights, in evaluation mode, in the dtype that holds them all.

    Raises what `meta_transformers` raises, and InputError where the weights do not fit.
    """
    dtypes = {v.dtype for v in state.values() if v.is_floating_point()}
    dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32
    with _building(spec, path):
        kind, config = _parts(spec, given, path)
        module, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), output_loading_info=True, dtype=dtype, local_files_only=True
        )
    wrong = [(str(k[0]), tuple(k[2]), tuple(k[1])) for k in info["mismatched_keys"]]
    fit = Fit(spec, {}, _sorted(info["missing_keys"]), _sorted(info["unexpected_keys"]), tuple(sorted(wrong)))
    if not fit.fits or info.get("error_msgs"):
        raise InputError(f"the weights in {path.parent} do not fit {spec}: {one_line(fit.describe())}")
    return Architecture(spec, module.eval(), _shapes(config))


def _sorted(keys: Iterable[Any]) -> tuple[str, ...]:
    return tuple(sorted(map(str, keys)))


@contextmanager
def _building(spec: str, path: Path) -> Iterator[None]:
    """Within the block nothing asks a hub, the library is silent, and its errors are ours."""
    logging = importlib.import_module(f"{_library().__name__}.utils.logging")
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with foreign_code(f"building {spec}"), hub_offline(), torch.random.fork_rng(devices=[]):
            yield
    except (InputError, MachineError):
        raise
    except Exception as error:
        raise InputError(f"{path} does not describe a network ({describe_error(error)[:200]})") from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _parts(spec: str, given: Mapping[str, Any], path: Path) -> tuple[Any, Any]:
    """The class and its config."""
    library = _library()
    name = spec.removeprefix(TRANSFORMERS)
    kind = getattr(library, name, None)
    own = isinstance(kind, type) and kind.__module__.startswith(f"{library.__name__}.")
    if not (own and issubclass(kind, library.PreTrainedModel)):  # type: ignore[arg-type]
        raise InputError(f"{path} names {name}, which is no network of transformers {library.__version__}")
    args = {k: v for k, v in given.items() if k not in ("architectures", "model_type")}
    return kind, library.AutoConfig.for_model(given["model_type"], **args)


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
