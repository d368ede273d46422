"""`refit`: fits the weights of a network that somebody pruned to the original, on samples without labels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from reparam.conversion import Conversion, convert_program
from reparam.data import Preprocessing, open_samples, spool
from reparam.emit import finalize
from reparam.errors import InputError
from reparam.ir import Program, census, place_of, shape_of
from reparam.loading import FileOrModel, take_given
from reparam.passes import phases_of
from reparam.rewrite import Driver, Progress
from reparam.utils import DEFAULT_AXES, check_callable, check_seed, checked_call

from .equations import as_rows
from .gated import Gated, is_mask
from .joint import affordable, refit_on
from .loop import BATCH, MEMORY, Pruned
from .mixing import copies_for, with_mixes
from .options import SAMPLES
from .quality import Judge, check_sides, parted
from .refitting import alive_in, layers_to_fit, refit_layers
from .running import batch_within

SPARSE = 0.05  # of the weights of the channels that are left


@checked_call
def refit(
    pruned: FileOrModel | Pruned,
    reference: FileOrModel,
    data: Any,
    *,
    example_inputs: Tensor | Sequence[Any] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Conversion:
    """Refits the weights of `pruned`, layer by layer, to what the layers of `reference` give, then all of them to what
    it gives in the end, and makes it small.

    pruned: what `prune` gave, or a module of the same architecture as `reference` in which another tool set channels to
        zero; they stay zero, and are removed in the result. Single weights at zero do not stay so, as a remark tells.
    reference: the original. Both may be files, or what `reparam.load` gave. data: as for `prune`.
    example_inputs: (N, ...), not needed for what `prune` gave. preprocessing: of images. samples: that are used.
    seed: of the mixes of samples, and of the inputs of the checks.

    Returns the conversion of the refitted network to its fused form, in which the channels at zero are gone.

    Raises InputError for modules that are no two versions of one architecture, and what `convert` raises.

    >>> import copy, torch, reparam
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> masked = copy.deepcopy(net)
    >>> for value in (masked[0].weight, masked[0].bias):
    ...     value.data[:4] = 0.0
    >>> result = reparam.refit(masked, net, torch.rand(64, 3, 9, 9), example_inputs=torch.rand(2, 3, 9, 9))
    >>> result.program.constants["0.weight"].value.shape
    torch.Size([4, 3, 3, 3])
    """
    check_callable(progress, "progress")
    check_seed(seed)
    tell = progress or (lambda stage, done, total: None)
    with torch.inference_mode(False):  # the last refit is of gradients
        if isinstance(pruned, Pruned):
            given: tuple[Any, ...] = tuple(_argument(n) for n in pruned.masked.placeholders)
            program = pruned.masked.copy()
        elif example_inputs is None:
            raise InputError("give example_inputs, on which both modules run")
        else:
            given = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
            program = _folded(pruned, given, seed)
        original = _folded(reference, given, seed)
        gated = _aligned(program, original)
        note = _zeros_told(gated)
        with spool(open_samples(data, program, preprocessing=preprocessing), limit=samples) as decks:
            check_sides(decks)
            size, count, macs = batch_within(MEMORY, program, BATCH), len(decks.fit), census(original).macs

            def inputs() -> Iterator[tuple[Tensor, ...]]:
                return (inputs for inputs, _ in decks.fit.batches(size))

            copies = copies_for(macs, count)
            refit_layers(gated, lambda: with_mixes(inputs(), copies, seed), tell=lambda i, n: tell("refit", i, n))
            steps = affordable(macs, count)
            if steps:
                choosing, figures = parted(decks.held, steps)
                with Judge(gated.reference, figures, size) as judge:
                    tell_steps = functools.partial(tell, "joint refit")
                    refit_on(gated, decks.fit, choosing, judge, steps=steps, seed=seed, tell=tell_steps)
        return convert_program(gated.program, seed=seed, progress=progress, notes=note)


def _zeros_told(gated: Gated) -> list[str]:
    """A note on zeros beside those of whole channels, which do not last."""
    plan, found = gated.plan(), []
    for layer in layers_to_fit(gated.program):
        alive = alive_in(plan, layer)
        weight = as_rows(layer, gated.program.constants[str(layer.weight.target)].value.detach())
        part = weight[alive.rows][:, alive.columns]
        part = part[(part != 0).flatten(1).any(1)]
        if part.numel() and float((part == 0).double().mean()) > SPARSE:
            found.append(place_of(layer.node))
    if not found:
        return []
    others = f" and {len(found) - 1} others" if len(found) > 1 else ""
    return [
        f"zeros of single weights are fitted like all others, those of '{found[0]}'{others} too: only channels stay off"
    ]


def _argument(placeholder: fx.Node) -> Any:
    """Zeros of the traced shape; what is no tensor as it was given."""
    value = placeholder.meta["val"]
    return torch.zeros(shape_of(placeholder), dtype=value.dtype) if isinstance(value, Tensor) else value


def _folded(model: FileOrModel, inputs: Sequence[Any], seed: int) -> Program:
    """The program with norms folded and nothing removed, so that two versions of a network stay alike."""
    program = take_given(model, inputs, dynamic=DEFAULT_AXES, seed=seed).capture().program.copy()
    phases = [p for p in phases_of("fused") if p.name in ("clean", "fold")]
    Driver(program, allow_cost=False, seed=seed).run(phases)
    return finalize(program)


def _aligned(program: Program, original: Program) -> Gated:
    """`program` with the weights of `original` beside it: call by call, but for products with masks."""
    mine = [n for n in program.calls() if not is_mask(program, n)]
    theirs = list(original.calls())
    weights = {n: c.value for n, c in program.constants.items()}
    same = len(mine) == len(theirs) and all(a.target is b.target for a, b in zip(mine, theirs, strict=True))
    for a, b in zip(mine, theirs, strict=True) if same else ():
        for x, y in zip(_weights(a), _weights(b), strict=False):
            own, other = weights[str(x.target)], original.constants[str(y.target)].value
            same = same and own.shape == other.shape
            weights[str(x.target)] = other.to(own.dtype)
    if not same:
        raise InputError("the pruned network and the reference are no two versions of one architecture")
    for node in set(program.calls()) - set(mine):
        mask = node.args[1]
        assert isinstance(mask, fx.Node)
        weights[str(mask.target)] = torch.ones_like(weights[str(mask.target)])
    return Gated(program, weights, (), {})


def _weights(node: fx.Node) -> list[fx.Node]:
    return [x for x in node.all_input_nodes if x.op == "get_attr"]
