"""`init`: a model with new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture import capture, own_copy
from reparam.check import refuse_broken_weights
from reparam.data import Preprocessing, open_samples
from reparam.emit import finalize, to_module
from reparam.errors import InputError
from reparam.ir import CPU, Program, device_of, own_generator, refuse_odd_tensors
from reparam.loading import FileOrModel, take_given
from reparam.onnx_input import ImportedModel
from reparam.rewrite import Progress
from reparam.signal import predict, random_batches, refuse_empty_layers, run, spell_sums
from reparam.training import open_batches
from reparam.utils import DEFAULT_AXES, check_callable, checked_call, describe_type, foreign_code, models_too

from . import activations, autoinit, drawn, driven, gradinit, norms, residual
from .options import REWRITING, WITH_DATA, InitOptions, read_options
from .report import Initialised, Outcome
from .shared import ON_RANDOM_INPUTS, PREDICTED, shared_weights, told
from .weights import COMPLEX, Weights, refuse_unset

SAMPLES = 256  # random inputs on which calls that share a weight are measured
PLAIN: Mapping[str, Callable[[Weights, InitOptions], Outcome]] = {
    "he": drawn.he,
    "autoinit": autoinit.autoinit,
    "zero": drawn.zero,
    "residual-scale": residual.residual_scale,
    "depth-scale": residual.depth_scale,
    "bn-scale": norms.bn_scale,
    "normalised-act": activations.normalised_act,
    "gaussian": activations.gaussian,
}
UNSCALED = ("bn-scale", "gradinit")  # methods that give layers no scale
DRIVEN = {"lsuv": driven.lsuv, "point-variance": driven.point_variance}


@checked_call
@torch.inference_mode(False)  # a caller who wants no derivatives gets the same weights
@torch.enable_grad()
def init(  # noqa: PLR0913  # the keywords are the options
    model: FileOrModel,
    *example_inputs: Any,
    method: str,
    data: Any = None,
    labels: Any = None,
    share: tuple[int, int] = (0, 1),
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    dynamic: Sequence[str] = DEFAULT_AXES,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Initialised:
    """Initial weights for `model` by a published method, found on its captured graph and set in a copy of it.

    model: a module, left untouched, a file, or what `reparam.load` gave. example_inputs: its positional arguments;
        tensors are (N, ...). A file may tell them.
    method: he, autoinit, zero, residual-scale, depth-scale, bn-scale, normalised-act, gaussian, point-variance, lsuv or
        gradinit. The last three need samples.
    data: what `reparam.data.open_samples` takes, such as a file or an iterable of batches (inputs, labels). labels: of
        gradinit, where they do not come with the data: whole numbers. loss: of gradinit: takes the result of the model
        and the labels (N,); cross entropy unless told. share: of gradinit, in a process group of torch.distributed:
        (k, n) takes every n-th sample from the k-th on, for processes that read the same data.
    dynamic: axes whose size stays free, as for `convert`. preprocessing: of images.
    **options: those of `InitOptions` that the method reads, and seed=.

    The module is in the mode that the model is in, each submodule in its own. Tied weights stay tied, and what is not
    set is named with the reason. residual-scale, normalised-act and gaussian put in parts that the model does not have:
    their module is the captured graph, in evaluation mode, with the model's names for its weights.

    Raises InputError or CaptureError for a model that cannot be taken in, for options that the method does not read,
    and for a network in which it finds nothing to set.

    >>> import torch, reparam
    >>> net = torch.nn.Sequential(torch.nn.Linear(100, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    >>> made = reparam.init(net, torch.randn(2, 100), method="he")
    >>> [(w.name, round(w.deviation, 2)) for w in made.weights if w.name.endswith("weight")]
    [('0.weight', 0.1), ('2.weight', 0.06)]
    >>> made.module[0].weight.shape
    torch.Size([512, 100])
    """
    check_callable(progress, "progress")
    check_callable(loss, "loss")
    wanted = read_options(method, options)
    given = take_given(model, example_inputs, dynamic=dynamic, seed=wanted.seed)
    model, example_inputs = given.model, given.inputs
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {describe_type(model)}; weights are those of an nn.Module")
    if isinstance(model, ImportedModel):
        raise InputError("an ONNX file is a graph for engines; weights are set in a model: give its checkpoint")
    refuse_odd_tensors((*model.named_parameters(), *model.named_buffers()), type(model).__name__)
    if method in WITH_DATA and data is None:
        raise InputError(f"the method {method} looks at samples; give some with --calibrate")
    if method not in WITH_DATA and data is not None:
        raise InputError(f"the method {method} looks at no samples; leave out --calibrate")
    _check_share(share)
    if method != "gradinit" and (labels is not None or loss is not None):
        raise InputError(f"the method {method} looks at no labels and takes no loss; leave them out")
    with foreign_code("copying the model", errors=True):
        module = own_copy(model)
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    home = device_of([*module.parameters(), *module.buffers()])
    with models_too():
        with _dropouts_seen(module):
            captured = capture(module.to(CPU), example_inputs, dynamic=given.dynamic)
        program = captured.program
        refuse_broken_weights(program)
        refuse_empty_layers(program)
        spell_sums(program)
        weights = Weights(program, module, torch.Generator().manual_seed(wanted.seed))
        if method in PLAIN:
            outcome = PLAIN[method](weights, wanted)
        elif method in DRIVEN:
            found = open_batches(data, program, wanted.batch, preprocessing)
            batches = [inputs for inputs, _ in zip(found, range(wanted.batches), strict=False)]
            outcome = DRIVEN[method](weights, wanted, batches)
        else:
            source = _Labelled(program, data, labels, preprocessing, wanted.batch, tuple(example_inputs), share)
            outcome = _learn(weights, wanted, source, loss or _cross_entropy, progress)
        refuse_unset(weights, method)
        if method not in UNSCALED:
            notes = told(weights, outcome.seen, outcome.measure, *_powers(weights, wanted.seed))
            outcome = replace(outcome, notes=(*outcome.notes, *notes))
    made = _result(method, weights, outcome, (*given.notes, *captured.notes), home)
    for part, mode in modes:
        part.training = mode
    return made


def _check_share(share: Any) -> None:
    whole = isinstance(share, tuple) and len(share) == 2 and all(type(n) is int for n in share)
    if not whole or not 0 <= share[0] < share[1]:
        raise InputError(f"share is {str(share)[:40]}; give (k, n): process k of n, from 0 to n - 1")


def _powers(weights: Weights, seed: int) -> tuple[str, dict[fx.Node, float]]:
    """What the calls that share a weight give, and how that is known: by moments, or on random inputs where values
    depend on one another in a way that these leave out; nothing where none is shared."""
    shared = shared_weights(weights)
    nodes = {n for s in shared.values() for n in (s.part.node, *s.others)}
    found = predict(weights.program, training=True) if nodes else None
    if found is None:
        return PREDICTED, {}
    if found.dependent and (seen := _on_random_inputs(weights.program, nodes, seed)):
        return ON_RANDOM_INPUTS, seen
    return PREDICTED, {n: p.second for n in nodes if (p := found.power(n)) is not None}


def _on_random_inputs(program: Program, nodes: set[fx.Node], seed: int) -> dict[fx.Node, float]:
    """E y^2 of some calls; nothing for a network that does not run on random inputs."""
    seen: dict[fx.Node, float] = {}

    def observe(node: fx.Node, value: Any) -> None:
        if node in nodes and isinstance(value, Tensor) and value.is_floating_point():
            seen[node] = float(value.detach().square().mean())

    try:
        for inputs in random_batches(program, SAMPLES, 1, own_generator("shared weights", seed)):
            run(program, inputs, observe=observe, training=True)
    except Exception:  # of any kind: it is the model's own
        return {}
    return seen


@contextmanager
def _dropouts_seen(module: nn.Module) -> Iterator[None]:
    """Dropouts that write in place leave no call in the graph of evaluation mode; here they do not write in place."""
    found = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.inplace]
    for dropout in found:
        dropout.inplace = False
    try:
        yield
    finally:
        for dropout in found:
            dropout.inplace = True


def _result(method: str, weights: Weights, outcome: Outcome, notes: tuple[str, ...], home: torch.device) -> Initialised:
    rewritten = method in REWRITING
    program, module = weights.program, weights.module
    said = weights.set_weights(), weights.left_weights()
    if rewritten:
        program.verify()
        program = finalize(program.copy())
        module = to_module(program)
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in weights.module.modules()):
            notes = (*notes, "batch norms and dropouts of the written graph are as in evaluation mode")
    return Initialised(
        method,
        module.to(home),
        program,
        rewritten,
        *said,
        outcome.inserted,
        outcome.groups,
        outcome.frozen,
        (*notes, *outcome.notes),
        outcome.figures,
    )


def _cross_entropy(y: Any, labels: Tensor) -> Tensor:
    """Raises InputError for labels of classes that the network does not have."""
    if isinstance(y, Tensor) and y.dim() > 1 and labels.numel() and int(labels.max()) >= y.shape[1]:
        most, classes = int(labels.max()), y.shape[1]
        told = f"a label is {most}, and the network has {classes} classes, counted from 0 to {classes - 1}"
        raise InputError(f"{told}; where labels are no classes, pass another loss" if classes == 1 else told)
    return nn.functional.cross_entropy(y, labels)


# ---- gradinit ----------------------------------------------------------------------------------------------------


class _Labelled:
    """Batches of samples with their labels, from the start each time."""

    def __init__(
        self,
        program: Program,
        data: Any,
        labels: Any,
        preprocessing: Any,
        size: int,
        examples: tuple[Any, ...],
        share: tuple[int, int],
    ) -> None:
        self.first, self.step = share
        self.samples = open_samples(data, program, preprocessing=preprocessing, labels=labels)
        self.dtypes, self.size, self.examples = [s.dtype for s in program.inputs], size, examples

    def __call__(self) -> Iterator[gradinit.Batch]:
        held: list[Any] = []
        own = False  # whether any sample is this process's
        for index, sample in enumerate(self.samples):
            if index % self.step != self.first:
                continue
            own = True
            if sample.label is None:
                raise InputError("the method gradinit needs labels; give them in the data, or apart as labels")
            held.append(sample)
            if len(held) == self.size:
                yield self._joined(held)
                held = []
        if held:
            yield self._joined(held)
        if not own:
            raise InputError(f"there are fewer samples than the {self.step} processes that share them")

    def _joined(self, held: Sequence[Any]) -> gradinit.Batch:
        columns = zip(*(s.inputs for s in held), strict=True)
        inputs = iter([torch.cat(c).to(CPU, d) for c, d in zip(columns, self.dtypes, strict=True)])
        leaves, spec = torch.utils._pytree.tree_flatten(self.examples)
        filled = [next(inputs) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        labels = torch.cat([torch.as_tensor(s.label).reshape(-1) for s in held]).to(CPU)
        return torch.utils._pytree.tree_unflatten(filled, spec), labels


def _learn(
    weights: Weights, options: InitOptions, source: _Labelled, loss: gradinit.Loss, progress: Progress | None
) -> Outcome:
    by_origin = {c.origin: n for n, c in weights.program.constants.items() if c.trainable}
    module = weights.module
    learned = [(n, p) for n, p in module.named_parameters() if n in by_origin and p.requires_grad]
    names = [n for n, p in learned if not p.is_complex()]
    for name, parameter in learned:
        if parameter.is_complex():
            weights.leave(by_origin[name], COMPLEX)
    if not names:
        raise InputError("the network has no parameter that takes a gradient, so that gradinit has nothing to multiply")
    how = gradinit.Learning(options.optimizer, options.rate, options.bound, options.steps, options.step_size)
    module.train()
    try:
        with torch.random.fork_rng(devices=[]):  # dropouts draw from torch's own generator
            torch.default_generator.manual_seed((options.seed + source.first) % (1 << 63))
            made = gradinit.learn(module, names, source, how, loss, progress)
    finally:
        module.eval()
    for name in names:
        constant, alpha = by_origin[name], float(made.alpha[name])
        weights.put(constant, weights.value(constant) * alpha, f"times {alpha:.4g}")
    multipliers = {name: float(made.alpha[name]) for name in names}
    return Outcome(
        figures={
            "multipliers": multipliers,
            "kinds": made.kinds,
            "norms": made.norms,
            "objectives": made.objectives,
        }
    )
