"""Infers the architecture of a checkpoint: what it says and its file's name propose, every key and shape must agree.

Keys and shapes do not prove an architecture. Several share them and differ in function (a stride moved, another
epsilon, padding on one side), so every candidate that fits is reported, and `same_function` tells on an input which of
them are only another name for the same network.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import InputError, ReparamError
from reparam.ir import draw_examples
from reparam.utils import Shapes

from .adapting import ZOOS, arguments_for
from .fit import Fit, ShapeMap, compare, shapes_of
from .zoo import SOURCES, available, meta_state, missing_zoos

NAMED = 12  # candidates that the file's name proposes
RELATED = 12  # candidates looked at for twins of the one that fits
GUESSED = 40  # candidates looked at when no name fits

_GENERIC = frozenset(
    [
        "model",
        "pytorch_model",
        "checkpoint",
        "ckpt",
        "best",
        "last",
        "model_best",
        "best_model",
        "weights",
        "state_dict",
    ]
)
_SUFFIXES = re.compile(r"\.(pt|pth|bin|safetensors|tar|ckpt|pkl)$")
_NOT_CLASSIFIERS = re.compile(r"/(quantized_|.*(rcnn|fcos|retinanet|ssd|deeplab|lraspp|raft|fcn_))")

# A part of a key that gives a family away, and how the names of its members begin, for files whose name says nothing.
_FAMILIES = (
    ("layer1.0.conv1.weight", r"(wide_)?resne[xs]?t\d+(_\w+)?$"),
    ("blocks.0.attn.qkv.weight", r"(vit_(tiny|small|base|large)_patch(16|32|14)_\d+$|deit)"),
    ("encoder.layers.encoder_layer_0.ln_1.weight", r"vit_[bhl]_\d+$"),
    ("features.denseblock1.denselayer1.norm1.weight", r"densenet\d+$"),
    ("features.0.0.weight", r"(mobilenet|efficientnet|convnext|swin)_"),
    ("features.0.weight", r"(vgg\d+(_bn)?|alexnet|squeezenet)"),
    ("stages.0.blocks.0", r"(convnext|regnet)"),
    ("blocks.0.0.conv_dw.weight", r"(efficientnet|mobilenet|mnasnet)"),
    ("conv_stem.weight", r"(efficientnet|mobilenet|mnasnet)"),
    ("stages.0.0", r"(repvgg|mobileone|repvit|levit)"),
    ("trunk_output.block1", r"regnet_"),
    ("layers.0.blocks.0.attn", r"swin"),
)

# What names of the same keys differ in: another framework's padding, anti-aliasing, an activation, an image size.
_VARIANT = re.compile(
    r"tf_|^de(?=it_)|^v(?=it_)|_?aa(?=_|\d)|_?blur|_quickgelu|_jx|_pruned|_enc$|par_|_\d{3}$|window\d+(to\d+)?(_\d+to\d+|_\d+)?"
)


@dataclass(frozen=True)
class Inference:
    """The architecture of a state dict.

    spec: the best fit, to be built with `arch_args`. also: every other candidate whose keys and shapes fit as well.
    told: whether the file names it.
    """

    spec: str
    also: tuple[str, ...] = ()
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    told: bool = False


def check_architecture(spec: str, found: ShapeMap, arch_args: Mapping[str, Any] | None = None) -> Fit:
    """Compares `found` with the architecture, built without its weights.

    A zoo network whose first or last layer alone differs is tried again with the file's channels and number of classes,
    one that lacks its auxiliary classifiers without them; the arguments that fit are in the result.

    Raises what `meta_state` raises.
    """
    given = dict(arch_args or {})
    fit = compare(spec, given, meta_state(spec, given), found)
    extra = {} if fit.fits else arguments_for(fit)
    if not extra or any(name in given for name in extra):
        return fit
    try:
        again = compare(spec, {**given, **extra}, meta_state(spec, {**given, **extra}), found)
    except InputError:
        return fit
    return again if again.fits else fit


def adapted(arch: str, arch_args: Mapping[str, Any], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """What has to be added to the arguments for one of the parts of a checkpoint to fit; nothing where none is known.

    Arguments that are given are not changed.
    """
    if not arch.startswith(ZOOS):
        return {}
    for part in parts:
        fit = check_architecture(arch, without_common_prefix(shapes_of(part)), arch_args)
        if fit.fits:
            return {k: v for k, v in fit.arch_args.items() if k not in arch_args}
    return {}


def infer_architecture(state: Mapping[str, Tensor], file_name: str, told: Sequence[str] = ()) -> Inference:
    """Finds the architecture whose state dict has exactly the keys and shapes of `state`.

    file_name: proposes candidates (`resnet50-0676ba61.pth`); where it says nothing, the folder's name and the keys do.
    told: what the file calls its architecture; architectures of these names are tried first.

    Raises InputError when nothing fits, listing the nearest three and the first keys of each that do not fit.
    """
    found = without_common_prefix(shapes_of(state))
    if not found:
        raise InputError(f"{file_name} holds no tensors; give a checkpoint with weights, or --arch alone")
    names = _names(found)
    stems = _stems(file_name)
    tried: dict[str, Fit] = {}
    named = _ranked(names, stems)
    by_itself = _first_fit(_called(names, told), found, tried)
    chosen = by_itself or _first_fit([n for n, score in named if score >= 1][:NAMED], found, tried)
    if chosen is None:
        guesses = _interleave(_by_family(names, found), [n for n, _ in named])
        chosen = _first_fit(guesses[:GUESSED], found, tried)
    if chosen is None:
        raise InputError(_nothing_fits(file_name, tried, len(found)))
    _fit_all(_relatives(chosen.spec, names)[:RELATED], found, tried)
    also = tuple(spec for spec, fit in tried.items() if fit.fits and spec != chosen.spec)
    return Inference(chosen.spec, also, chosen.arch_args, by_itself is not None)


def _names(found: ShapeMap) -> list[str]:
    """All specs of the installed zoos; detectors and the like only for a file with their keys."""
    listed = []
    for source in SOURCES:
        try:
            listed += [f"{source}/{name}" for name in available(source)]
        except ReparamError:
            continue
    backbone = any(key.startswith(("backbone.", "feature_encoder.")) for key in found)
    return [n for n in listed if backbone or not _NOT_CLASSIFIERS.search(n)]


def _called(names: Sequence[str], told: Sequence[str]) -> list[str]:
    """The specs that a file means: `resnet50`, `timm/resnet50.a1_in1k`; of the library that it says, if any, first."""
    found: list[str] = []
    for name in told:
        *before, last = name.split("/")
        alike = [n for n in names if _squash(n.partition("/")[2]) == _squash(last.partition(".")[0])]
        found += sorted(alike, key=lambda n: n.partition("/")[0] not in before)
    return list(dict.fromkeys(found))[:NAMED]


def without_common_prefix(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """`model.conv1.weight`, … as training frameworks save it: drops a first name that all keys share."""
    first = {key.partition(".")[0] for key in shapes}
    if len(first) != 1 or any("." not in key for key in shapes):
        return shapes
    return {key.partition(".")[2]: shape for key, shape in shapes.items()}


def _stems(file_name: str) -> list[str]:
    """The file's name without suffixes, and the folder's where the file's is generic (`model.safetensors`)."""
    path = PurePath(file_name)
    stem = path.name.lower()
    while _SUFFIXES.search(stem):
        stem = _SUFFIXES.sub("", stem)
    return [path.parent.name.lower(), stem] if stem in _GENERIC and path.parent.name else [stem]


def _squash(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _tokens(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))


def _ranked(names: Iterable[str], stems: Sequence[str]) -> list[tuple[str, float]]:
    """Every name with its score against the best of `stems`, highest first, zoos in the order of SOURCES."""
    scored = [(n, max(_score(n.partition("/")[2], stem) for stem in stems)) for n in names]
    return sorted(scored, key=lambda pair: -pair[1])


def _score(name: str, stem: str) -> float:
    """3 for equal, from 2 for the beginning of the other, from 1 for a part of it, below 1 for merely alike."""
    a, b = _squash(name), _squash(stem)
    if not a or not b:
        return 0.0
    if a == b:
        return 3.0
    if b.startswith(a) and len(a) >= 4:
        return 2 + len(a) / len(b)
    if a in b and len(a) >= 4:
        return 1 + len(a) / len(b)
    if b in a and len(b) >= 4:
        return 1 + 0.5 * len(b) / len(a)
    shared = len(_tokens(name) & _tokens(stem)) / max(1, len(_tokens(name) | _tokens(stem)))
    return 0.5 * shared + 0.49 * difflib.SequenceMatcher(None, a, b, autojunk=False).quick_ratio()


def _by_family(names: Sequence[str], found: ShapeMap) -> list[str]:
    patterns = [p for key, p in _FAMILIES if any(key in k for k in found)]
    members = [n for n in names if any(re.match(p, n.partition("/")[2]) for p in patterns)]
    return sorted(members, key=lambda n: (SOURCES.index(n.partition("/")[0]), len(n)))


def _interleave(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Two of the first for each of the second, without repetition."""
    rows = itertools.zip_longest(first[0::2], first[1::2], second)
    return list(dict.fromkeys(name for row in rows for name in row if name is not None))


def _relatives(spec: str, names: Sequence[str]) -> list[str]:
    """Names that may belong to a twin of `spec`: variants of its name, then names with letters put in, then alike.

    Over all pairs of twins in torchvision 0.28 and timm 1.0.31 (254), the twin is among the first 12.
    """
    name = spec.partition("/")[2]

    def closeness(other: str) -> tuple[bool, bool, float]:
        a, b = _squash(name), _squash(other)
        inserted = _is_subsequence(a, b) or _is_subsequence(b, a)
        alike = difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
        return _VARIANT.sub("", name) == _VARIANT.sub("", other), inserted, alike

    return sorted((n for n in names if n != spec), key=lambda n: closeness(n.partition("/")[2]), reverse=True)


def _is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(character in rest for character in short)


def _fit_all(specs: Iterable[str], found: ShapeMap, tried: dict[str, Fit]) -> None:
    for spec in specs:
        if spec in tried:
            continue
        try:
            tried[spec] = check_architecture(spec, found)
        except ReparamError:  # a network that needs arguments, or a package that is not installed, is no candidate
            continue


def _first_fit(specs: Iterable[str], found: ShapeMap, tried: dict[str, Fit]) -> Fit | None:
    for spec in specs:
        _fit_all([spec], found, tried)
        if spec in tried and tried[spec].fits:
            return tried[spec]
    return None


def _nothing_fits(file_name: str, tried: Mapping[str, Fit], keys: int) -> str:
    """keys: how many the file has. An architecture that lacks more than half of them is not worth showing."""
    name, missing = PurePath(file_name).name, missing_zoos()
    install = "install reparam[zoo] (pip install 'reparam[zoo]')"
    if len(missing) == len(ZOOS):
        return (
            f"the architecture of {name} cannot be found: {' and '.join(missing)} are missing, whose architectures it "
            f"would be compared with; {install}, or name a function that builds it with --arch package.module:function"
        )
    near = [fit for fit in tried.values() if 2 * len(fit.unexpected) <= keys]
    nearest = sorted(near, key=lambda fit: fit.distance)[:3]
    listed = " | ".join(f"{fit.spec}: {fit.describe(2)}" for fit in nearest)
    told = f"The nearest: {listed}" if listed else "None of them has half of its keys"
    left = f"; those of {missing[0]} were not, since it is missing: {install}" if missing else ""
    return (
        f"the architecture of {name} is not among the {len(tried)} candidates that were compared{left}; "
        f"give it with --arch, a network of your own as --arch module:name. {told}"
    )


def same_function(a: nn.Module, b: nn.Module, input_shapes: Shapes | None) -> bool:
    """Whether two networks with the same weights agree on a random input, and their layers in every epsilon.

    input_shapes: without the batch. False when a network does not run on them: then nothing is known. The epsilons are
    compared because two that differ by 1e-5 agree to single precision on an input of unit scale, not on a small one.
    """
    epsilons = [{n: m.eps for n, m in x.named_modules() if isinstance(getattr(m, "eps", None), float)} for x in (a, b)]
    if input_shapes is None or epsilons[0] != epsilons[1]:
        return False
    inputs = draw_examples(a, input_shapes, batch=1)
    try:
        with torch.no_grad():
            ours, theirs = a(*inputs), b(*inputs)
    except Exception:
        return False
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return False
    if not ours.is_floating_point():
        return False
    tolerance = 64 * torch.finfo(ours.dtype).eps * float(ours.float().square().mean().sqrt())
    return bool((ours - theirs).abs().max() <= tolerance)
