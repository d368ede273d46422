"""y = gamma * (y - mu) / sqrt(var + eps) + beta with gamma = sqrt(var + eps), beta = mu: a norm that does nothing.

In evaluation mode it is the identity, whatever its statistics are. In training mode it normalises by the batch, as the
norm did that was folded, and it starts where that one would: with mu and var as they are on the user's own samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from reparam.algebra import Layer, read_layer
from reparam.check import NetworkEvidence, Round, check_float64
from reparam.data import Preprocessing
from reparam.errors import InputError
from reparam.ir import AVG_POOLS, CATS, DROPOUTS, IDENTITIES, MOVEMENTS, NORMS, Program, aten, evaluate, filled, is_call
from reparam.utils import prefixes

from .batches import open_batches
from .moments import Moments

EPS, MOMENTUM = 1e-5, 0.1  # as in torch's own norms
SAMPLES = 16  # that are run at a time, in float64
_SCORED = frozenset({aten.softmax.int, aten.log_softmax.int, aten.sigmoid.default, aten.tanh.default})
_RESIZED = frozenset(
    {
        aten.mean.dim,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.adaptive_avg_pool3d.default,
        aten.upsample_linear1d.vec,
        aten.upsample_bilinear2d.vec,
        aten.upsample_bicubic2d.vec,
    }
)
_PASSED = MOVEMENTS | IDENTITIES | DROPOUTS | CATS | AVG_POOLS | _RESIZED | _SCORED  # between a head and an output


@dataclass(frozen=True)
class Inserted:
    """A program with its batch norms. names: of the norms. evidence, rounds: of the check in float64."""

    program: Program
    names: tuple[str, ...]
    evidence: NetworkEvidence
    rounds: Sequence[Round]


def with_batch_norms(
    program: Program,
    batches: Any,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Program:
    """A copy of `program` with a batch norm behind each layer, which in evaluation mode is the same function.

    A layer is a convolution, transposed convolution or linear layer whose result (N, C, *places) holds its channels in
    axis 1. None is put behind a layer that gives an output of the network (perhaps pooled, resized, as probabilities),
    before another norm, or behind a linear layer on sequences, which layer norms go with. The norm of `conv` is called
    `conv_bn`. Its running statistics are the mean and the variance of the layer's result over all samples and places;
    its weight is sqrt(variance + eps) and its bias the mean, so that channels that never vary are left as they are too.

    batches: samples to measure on: a `Deck`, or what `reparam.data.open_samples` takes, read once and never all in
    memory. preprocessing: of images. seed: of the check's random inputs.

    Raises InputError for a program without such a layer and for samples that do not fit it, NotEquivalentError when the
    result is not the same function in float64.
    """
    return insert(program, batches, preprocessing, seed).program


def insert(
    program: Program, batches: Any, preprocessing: Preprocessing | Mapping[str, Any] | None, seed: int
) -> Inserted:
    """`with_batch_norms`, with what was found on the way."""
    made = program.copy()
    layers = list(normalised_layers(made))
    if not layers:
        raise InputError("the network has no layer that a batch norm could stand behind; its norms are all there")
    moments = _measure(made, [layer.node for layer in layers], batches, preprocessing)
    names = tuple(_put_behind(made, layer, moments[layer.node]) for layer in layers)
    made.verify()
    evidence, rounds = check_float64(program, made, seed)
    return Inserted(made, names, evidence, rounds)


def normalised_layers(program: Program) -> Iterator[Layer]:
    """The layers of the program that get a norm, in execution order."""
    for node in program.calls():
        layer = read_layer(program, node)
        if layer is None or not node.meta["data"] or layer.axis != 1 or not node.meta["val"].dtype.is_floating_point:
            continue
        if _gives_output(node) or all(is_call(user, NORMS) for user in node.users):
            continue
        yield layer


def _gives_output(node: fx.Node) -> bool:
    """Whether a value is an output, but for movement, averages over places and what makes probabilities of scores."""
    return any(user.op == "output" or (is_call(user, _PASSED) and _gives_output(user)) for user in node.users)


def _measure(
    program: Program,
    nodes: Sequence[fx.Node],
    batches: Any,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
) -> dict[fx.Node, Moments]:
    """All at once: since every norm is the identity, none changes what the next one sees."""
    moments = {node: Moments() for node in nodes}

    def observe(node: fx.Node, value: Any) -> None:
        if node in moments:
            moments[node].add(value)

    for inputs in open_batches(batches, program, SAMPLES, preprocessing):
        evaluate(program, filled(program, inputs), observe=observe)
    for node, found in moments.items():
        if not bool(torch.isfinite(found.mean).all() and torch.isfinite(found.variance).all()):
            raise InputError(f"the layer '{_stem(program, node)}' gives NaN or infinite values on the samples")
    return moments


def _put_behind(program: Program, layer: Layer, found: Moments) -> str:
    """Adds the norm behind the layer; returns its name."""
    after, name = layer.node.next, _free_name(program, _stem(program, layer.node))
    variance, dtype = found.variance, program.constants[str(layer.weight.target)].dtype
    values = {
        "weight": (variance + EPS).sqrt(),
        "bias": found.mean.clone(),  # which trains, apart from the statistic
        "running_mean": found.mean,
        "running_var": variance,
    }
    weights = [
        program.weight(value, f"{name}.{slot}", dtype=dtype, trainable=not slot.startswith("running_"), like=after)
        for slot, value in values.items()
    ]
    args = (layer.node, *weights, False, MOMENTUM, EPS, torch.backends.cudnn.enabled)
    norm = program.call(aten.batch_norm.default, args, like=after)
    norm.meta["module"] = name
    for node in weights:
        node.meta["module"] = name
    layer.node.replace_all_uses_with(norm, delete_user_cb=lambda user: user is not norm)
    return name


def _stem(program: Program, node: fx.Node) -> str:
    """What a layer is called: its weight's name, without the last part."""
    layer = read_layer(program, node)
    assert layer is not None
    return program.constants[str(layer.weight.target)].origin.removesuffix(".weight")


def _free_name(program: Program, stem: str) -> str:
    """`conv_bn` for `conv`, `layer1.bn0` for `layer1.0`; with a number behind it where that is taken."""
    parent, _, leaf = stem.rpartition(".")
    wanted = f"bn{leaf}" if leaf.isdecimal() else f"{leaf}_bn"
    origins = [constant.origin for constant in program.constants.values()]
    taken = {*program.constants, *origins, *(p for origin in origins for p in prefixes(origin))}
    path = f"{parent}.{wanted}" if parent else wanted
    name, serial = path, 0
    while name in taken:
        serial += 1
        name = f"{path}_{serial}"
    return name
