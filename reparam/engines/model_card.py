"""What an architecture tells of its inputs and outputs: preprocessing and class labels, to travel with exported files.

Both belong to the weights that the zoo publishes for the architecture. They are what a checkpoint was most likely
trained with, and no more: a checkpoint does not say. Labels are given only where their number is that of the outputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .format import Runnable
from .manifest import read_manifest

if TYPE_CHECKING:
    from reparam.data import Preprocessing
    from reparam.ir import Program
    from reparam.loading import LoadedModel


def card_of(model: LoadedModel) -> dict[str, Any]:
    """`preprocessing` (mean, std, size, resize, interpolation, and whose they are) and `labels`, where they are known.

    size: (height, width) in pixels of what the network takes. resize: the shorter side before the centre is cropped.
    Values are those of RGB images in [0, 1].
    """
    card = _of_the_zoo(model)
    if model.preprocessing is not None:
        card["preprocessing"] = _card_fields(model.preprocessing, "config.json")
    return card | _labels(list(model.labels), model)


def _card_fields(how: Preprocessing, of: str) -> dict[str, Any]:
    """What a config file says, in the form of a card."""
    told = asdict(how) | {"resize": how.resize or min(how.size), "of": of}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in told.items()}


def _of_the_zoo(model: LoadedModel) -> dict[str, Any]:
    if model.spec is None:
        return {}
    source, _, name = model.spec.partition("/")
    try:
        if source == "torchvision":
            return _torchvision(name, model)
        if source == "timm":
            return _timm(model)
    except (ImportError, ValueError):  # a name that the zoo of this machine does not know
        return {}
    return {}


def known_preprocessing(model: LoadedModel | Runnable, path: Path | None) -> Mapping[str, Any] | None:
    """How images go into a model: as its card says, or the manifest beside the file `path`; None where neither does.

    Raises InputError for a damaged manifest.
    """
    if not isinstance(model, Runnable):
        return card_of(model).get("preprocessing")
    manifest = None if path is None else read_manifest(path)
    found = (manifest or {}).get("preprocessing")
    return found if isinstance(found, Mapping) else None


def fitted(card: Mapping[str, Any], program: Program) -> dict[str, Any]:
    """The card for the size that `program` takes: `size` is that of its images, and `resize` in proportion."""
    how = card.get("preprocessing")
    shape = program.inputs[0].shape if program.inputs else ()
    if how is None or len(shape) != 4 or isinstance(shape[2], str) or isinstance(shape[3], str):
        return dict(card)
    size = [int(shape[2]), int(shape[3])]
    resize = round(how["resize"] * min(size) / min(how["size"]))
    return dict(card) | {"preprocessing": dict(how) | {"size": size, "resize": resize}}


def _torchvision(name: str, model: LoadedModel) -> dict[str, Any]:
    models = importlib.import_module("torchvision.models")
    weights = next(iter(models.get_model_weights(name)), None)
    if weights is None:
        return {}
    preset = weights.transforms()
    if not hasattr(preset, "crop_size") or not hasattr(preset, "mean"):
        return {}
    crop, resize = list(preset.crop_size), list(preset.resize_size)
    preprocessing = {
        "mean": [float(v) for v in preset.mean],
        "std": [float(v) for v in preset.std],
        "size": [crop[0], crop[-1]],
        "resize": resize[0],
        "interpolation": preset.interpolation.value,
        "of": str(weights),
    }
    labels = weights.meta.get("categories") or []
    return {"preprocessing": preprocessing} | _labels([str(v) for v in labels], model)


def _timm(model: LoadedModel) -> dict[str, Any]:
    data = importlib.import_module("timm.data")
    config = getattr(model.module, "pretrained_cfg", None) or {}
    if not config.get("mean") or not config.get("input_size") or model.input_shapes is None:
        return {}
    height, width = model.input_shapes[0][-2:]
    preprocessing = {
        "mean": [float(v) for v in config["mean"]],
        "std": [float(v) for v in config["std"]],
        "size": [height, width],
        "resize": round(min(height, width) / float(config.get("crop_pct") or 1.0)),
        "interpolation": str(config.get("interpolation") or "bilinear"),
        "of": ".".join(str(v) for v in (config.get("architecture"), config.get("tag")) if v),
    }
    labels: list[str] = []
    subset = data.infer_imagenet_subset(model.module)
    if subset:
        labels = [str(v) for v in data.ImageNetInfo(subset).label_descriptions()]
    return {"preprocessing": preprocessing} | _labels(labels, model)


def _labels(labels: list[str], model: LoadedModel) -> dict[str, Any]:
    """The labels, when the network's last layer has as many outputs."""
    sizes = [len(p) for n, p in model.module.state_dict().items() if n.endswith("bias") and p.dim() == 1]
    return {"labels": labels} if labels and len(labels) in sizes[-2:] else {}
