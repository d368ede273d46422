"""The weights of all layers at once: Gauss-Newton steps towards the outputs of the original.

With w the weights, z(w) the outputs on all samples, t those of the original, both divided by the RMS of t, and
J = dz/dw: a step is the d of a few iterations of conjugate gradients, from d = 0, on the normal equations of
min_d |z + J d - t|^2, which are J'J d = J'(t - z). J and J' are applied by automatic differentiation, batch by batch,
and never formed. The iterations are preconditioned by one block for each layer, A (x) G (Martens and Grosse,
Optimizing neural networks with Kronecker-factored approximate curvature, 2015): A = E[x x'] of the columns that the
layer reads, as in `equations`, and G = diag E[(dz/dy)^2] of what it gives. Few iterations stay near the old weights by
the same measure, so that layers change what they give no more than the outputs ask for.

Each step is on other mixes of the samples, and goes on in the direction of the one before it:

    v <- d + MOMENTUM v,  w <- w + v

Since mixes differ, so do the steps, and a moving average of the weights lies closer to the original than the weights of
any step. Of those averages that with the least error on some of the held-out samples is kept, and the old weights where
none is better there by more than chance. Figures are taken from the other held-out
samples, as what is best on some is not as good on others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from reparam.algebra import Layer
from reparam.channels import plan_channels
from reparam.data import Deck
from reparam.ir import Program, call_node, evaluate, is_floating, last_uses, weight_value
from reparam.utils import first_line, is_out_of_memory

from .equations import Equations, as_rows, columns_of, from_rows
from .gated import Gated
from .mixing import only_mixes
from .narrow import Narrow, narrowed
from .quality import Judge, Quality, surely_less
from .refitting import Alive, alive_in, layers_to_fit
from .running import DTYPE, feed_of, set_weight

_log = logging.getLogger(__name__)
STEPS = 32
ITERATIONS = 4  # of conjugate gradients in a step
MOMENTUM = 0.75
AVERAGED = 4  # of this many steps one is what the average looks back
PASSES = 7 + 5 * ITERATIONS  # what a step costs on each sample, in evaluations of the network, about
MACS = 5e12  # that all steps take at most, unless told: large networks get fewer steps, or none
ROWS = 6  # of a layer for each of its columns, for A
DAMPING = 1e-2  # of the mean of the diagonal of A
EVEN = 0.1  # of the mean of G is added to G

Batches = Callable[[int], Iterable[Sequence[Tensor]]]
Vector = dict[str, Tensor]


@dataclass(frozen=True)
class Joint:
    """Steps over all layers at once. before, after: on the samples that were held out, on which nothing was chosen.

    taken: the step whose average was kept, 0 for none. refused: why there were none, where they were asked for.
    """

    steps: int
    taken: int
    before: Quality
    after: Quality
    refused: str = ""


def affordable(macs: int, samples: int) -> int:
    """How many steps on so many samples are worth their time, in a network of so many multiply-accumulates."""
    return min(STEPS, int(MACS / max(1, PASSES * macs * samples)))


def refit_on(
    gated: Gated,
    deck: Deck,
    choosing: Deck | None,
    judge: Judge,
    *,
    steps: int,
    seed: int,
    tell: Callable[[int, int], None],
) -> Joint:
    """`refit_jointly` on mixes of the samples of a deck. choosing: the samples that the average is chosen on."""
    before = judge.quality(gated.program)
    if choosing is None:
        few = "too few samples were held out to choose on"
        _log.info("joint refit: none, %s", few)
        return Joint(0, 0, before, before, few)
    with Judge(gated.reference, choosing, judge.size) as chooser:
        small = narrowed(gated) or Narrow(gated.program, ())
        found = refit_jointly(
            small,
            gated.reference,
            lambda step: only_mixes((inputs for inputs, _ in deck.batches(judge.size)), seed + step + 1),
            chooser,
            judge,
            steps=steps,
            tell=tell,
        )
    if not found.taken:
        return replace(found, before=before, after=before)
    small.hand_back(gated)
    return replace(found, before=before, after=judge.quality(gated.program))


def refit_jointly(
    network: Narrow,
    reference: Program,
    batches: Batches,
    chooser: Judge,
    judge: Judge,
    *,
    steps: int = STEPS,
    iterations: int = ITERATIONS,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Joint:
    """Takes steps over all weights of `network`, in place; weights that calls share stay as they are.

    reference: the original, which takes the same inputs. batches: those of a step, by its number; the same ones each
    time it is called with that. chooser: compares with the original on samples that nothing was fitted to. judge: on
    those that figures are taken from.
    """
    program = network.program
    held = judge.quality(program)
    first, missed = chooser.look(program)
    best = first
    system = _System(network, reference)
    now = mean = kept = system.weights()
    taken, done, speed = 0, 0, {n: torch.zeros_like(v) for n, v in now.items()}
    for step in range(steps):
        tell(step, steps)
        try:
            change = system.step(lambda: batches(step), iterations)  # noqa: B023  # it is done before the next one
        except RuntimeError as error:  # an operator that has no such derivative
            system.put(kept)
            if is_out_of_memory(error):
                raise
            return Joint(done, taken, held, judge.quality(program), f"no derivatives: {first_line(error)}")
        done = step + 1
        speed = {n: change[n].to(v.dtype) + MOMENTUM * v for n, v in speed.items()}
        now = {n: v + speed[n] for n, v in now.items()}
        share = 1 / min(done, max(1, steps // AVERAGED))
        mean = {n: v + share * (now[n] - v) for n, v in mean.items()}
        system.put(mean)
        found, left = chooser.look(program)
        if not math.isfinite(found.error):
            break
        closer = found.kl is None or first.kl is None or found.kl < first.kl
        if closer and found.error < best.error and surely_less(left, missed):
            kept, taken, best = mean, done, found
        system.put(now)
    tell(steps, steps)
    system.put(kept)
    after = judge.quality(program)
    _log.info("joint refit: step %d of %d kept, error %.3g, was %.3g", taken, steps, after.error, held.error)
    return Joint(done, taken, held, after)


@dataclass(frozen=True)
class _Part:
    """One layer: what is alive of it, which unknowns are free (groups, columns, C_out/groups), and its equations."""

    layer: Layer
    alive: Alive
    free: Tensor
    equations: Equations

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(str(n.target) for n in (self.layer.weight, self.layer.bias) if n is not None)

    def pack(self, vector: Mapping[str, Tensor]) -> Tensor:
        """The unknowns of the layer out of its weights."""
        rows, shift = self._alive(vector)
        return self.equations.pack(rows, shift)

    def unpack(self, packed: Tensor, like: Mapping[str, Tensor]) -> Vector:
        """Weights out of the unknowns, zero elsewhere."""
        rows, shift = self.equations.unpack(packed, *self._alive(like))
        weight = torch.zeros_like(as_rows(self.layer, like[self.names[0]]))
        weight[self.alive.rows[:, None], self.alive.columns] = rows
        found = {self.names[0]: from_rows(self.layer, weight)}
        if shift is not None:
            found[self.names[1]] = torch.zeros_like(like[self.names[1]])
            found[self.names[1]][self.alive.rows] = shift
        return found

    def _alive(self, vector: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        rows = as_rows(self.layer, vector[self.names[0]])[self.alive.rows][:, self.alive.columns]
        return rows, vector[self.names[1]][self.alive.rows] if len(self.names) > 1 else None


class _System:
    """The normal equations of the whole network at its weights."""

    def __init__(self, network: Narrow, reference: Program) -> None:
        self.program, self.fixed, self.reference = network.program, network.fixed, reference
        self.scales: list[float] = []
        plan = plan_channels(self.program)
        self.parts = []
        for layer in layers_to_fit(self.program):
            part = self._part(layer, alive_in(plan, layer))
            if part.free.numel():
                self.parts.append(part)
        self.frees = last_uses(self.program.graph.nodes)

    def _part(self, layer: Layer, alive: Alive) -> _Part:
        groups, kernel = layer.geometry.groups, math.prod(layer.kernel)
        columns, rows = len(alive.columns) * kernel, len(alive.rows) // groups
        equations = Equations(groups, columns, rows, kernel=kernel, bias=layer.bias is not None)
        part = _Part(layer, alive, torch.empty(0), equations)
        if not columns or not rows:
            return part
        values = {n: self.program.constants[n].value.detach() for n in part.names}
        free = equations.free(part.pack(values))
        if (fixed := self.fixed.get(str(layer.weight.target))) is not None:
            free[:, :columns] &= ~fixed[alive.columns].repeat_interleave(kernel)[:, None]
        return _Part(layer, alive, free, equations)

    def weights(self) -> Vector:
        """The weights as they are, in the dtypes that they are kept in."""
        constants = self.program.constants
        return {n: constants[n].value.detach() for p in self.parts for n in p.names}

    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the weights."""
        for name, value in weights.items():
            set_weight(self.program, name, value)

    # ---- one step ------------------------------------------------------------------------------------------

    def step(self, batches: Callable[[], Iterable[Sequence[Tensor]]], iterations: int) -> Vector:
        """The change of all weights."""
        weights = {n: v.to(DTYPE) for n, v in self.weights().items()}
        self.scales = scales = self.scales or self._scales(batches())
        blocks, gradient = self._look(weights, batches, scales)
        change = {n: torch.zeros_like(v) for n, v in weights.items()}
        left = gradient
        towards = direction = self._precondition(left, blocks)
        size = _dot(left, towards)
        for _ in range(iterations):
            if not size > 0:
                break
            curved = self._curve(weights, direction, batches(), scales)
            bend = _dot(direction, curved)
            if not bend > 0:
                break
            far = size / bend
            change = {n: v + far * direction[n] for n, v in change.items()}
            left = {n: v - far * curved[n] for n, v in left.items()}
            towards = self._precondition(left, blocks)
            before, size = size, _dot(left, towards)
            direction = {n: v + size / before * direction[n] for n, v in towards.items()}
        return change

    def _scales(self, batches: Iterable[Sequence[Tensor]]) -> list[float]:
        """For each output of floating numbers, one divided by its mean square and by how many numbers there are."""
        squares: list[float] = []
        for inputs in batches:
            found = [float(v.double().square().sum()) for v in _floating(self._wanted(inputs))]
            squares = [a + b for a, b in zip(squares or [0.0] * len(found), found, strict=True)]
        return [1 / s if s > 0 else 0.0 for s in squares]

    def _wanted(self, inputs: Sequence[Tensor]) -> list[Any]:
        return evaluate(self.reference, feed_of(self.reference, inputs), DTYPE)

    def _look(
        self, weights: Vector, batches: Callable[[], Iterable[Sequence[Tensor]]], scales: Sequence[float]
    ) -> tuple[list[tuple[Tensor, Tensor]], Vector]:
        """The blocks of the preconditioner, for each layer a factor of A and G, and J'(t - z)."""
        samples = sum(len(inputs[0]) for inputs in batches())
        gradient = {n: torch.zeros_like(v) for n, v in weights.items()}
        squares = [torch.zeros(len(p.alive.rows), dtype=torch.float64) for p in self.parts]
        for part in self.parts:
            part.equations.clear()
        generator = torch.Generator().manual_seed(0)
        for inputs in batches():
            leaves = {n: v.clone().requires_grad_() for n, v in weights.items()}
            with torch.enable_grad():
                seen: dict[fx.Node, Tensor] = {}
                made = self._outputs(leaves, inputs, seen)
                pairs = [(o, s) for o, s in zip(made, scales, strict=True) if o.requires_grad]
                signs = [(torch.randint(0, 2, o.shape, generator=generator) * 2 - 1) * s**0.5 for o, s in pairs]
                ends = [seen[p.layer.node] for p in self.parts]
                backs = torch.autograd.grad([o for o, _ in pairs], ends, signs, retain_graph=True, allow_unused=True)
                wanted = _floating(self._wanted(inputs))
                wrong = [(t - o.detach()) * s for o, t, s in zip(made, wanted, scales, strict=True) if o.requires_grad]
                self._pull([o for o, _ in pairs], leaves, wrong, gradient)
            for i, (part, back) in enumerate(zip(self.parts, backs, strict=True)):
                self._see(part, seen, samples, generator)
                if back is not None:
                    rows = back.movedim(part.layer.axis, 0).flatten(1)[part.alive.rows]
                    squares[i] += rows.double().square().sum(1)
        return [_block(p, s) for p, s in zip(self.parts, squares, strict=True)], gradient

    def _see(self, part: _Part, seen: Mapping[fx.Node, Tensor], samples: int, generator: torch.Generator) -> None:
        """Adds columns of a layer to A, at random places."""
        layer, alive = part.layer, part.alive
        x, y = seen[layer.x].detach(), seen[layer.node]
        count, share = y.numel() // layer.out_channels, -(-ROWS * part.equations.columns // samples)
        count, share = (count, share * len(x)) if layer.kind == "linear" else (count // len(y), share)
        fewer = len(alive.columns) * layer.geometry.groups < layer.in_channels
        places = torch.randperm(count, generator=generator)[:share]
        part.equations.see(columns_of(layer, x, places, alive.columns if fewer else None))

    def _curve(
        self, weights: Vector, direction: Vector, batches: Iterable[Sequence[Tensor]], scales: Sequence[float]
    ) -> Vector:
        """J'J times a direction."""
        total = {n: torch.zeros_like(v) for n, v in weights.items()}
        for inputs in batches:
            with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
                duals = {n: forward_ad.make_dual(v, direction[n]) for n, v in weights.items()}
                tangents = [forward_ad.unpack_dual(o).tangent for o in self._outputs(duals, inputs)]
            leaves = {n: v.clone().requires_grad_() for n, v in weights.items()}
            with torch.enable_grad():
                made = self._outputs(leaves, inputs)
                moved = [
                    (o, u * s)
                    for o, u, s in zip(made, tangents, scales, strict=True)
                    if o.requires_grad and u is not None
                ]
                self._pull([o for o, _ in moved], leaves, [u for _, u in moved], total)
        return total

    @staticmethod
    def _pull(outputs: Sequence[Tensor], leaves: Vector, wrong: Sequence[Tensor], total: Vector) -> None:
        """Adds J' times something at the outputs."""
        if not outputs:
            return
        backs = torch.autograd.grad(outputs, list(leaves.values()), wrong, allow_unused=True)
        for name, back in zip(leaves, backs, strict=True):
            if back is not None:
                total[name] += back

    def _outputs(
        self, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], seen: dict[fx.Node, Tensor] | None = None
    ) -> list[Tensor]:
        """The outputs of floating numbers. seen: gets what the layers read and give."""
        env: dict[fx.Node, Any] = {}
        feed = iter(feed_of(self.program, inputs))
        kept = {n for p in self.parts for n in (p.layer.x, p.layer.node)} if seen is not None else set()
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "get_attr":
                name = str(node.target)
                env[node] = weights[name] if name in weights else weight_value(self.program, node, DTYPE)
            elif node.op == "call_function":
                env[node] = call_node(node, env, DTYPE)
            else:
                return _floating(fx.node.map_arg(node.args[0], lambda n: env[n]))
            if seen is not None and node in kept:
                seen[node] = env[node]
            for dead in self.frees.get(node, ()):
                if dead.op != "output":
                    env.pop(dead, None)
        return []

    def _precondition(self, vector: Vector, blocks: Sequence[tuple[Tensor, Tensor]]) -> Vector:
        """A^-1 v G^-1 for each layer, of what is free."""
        found: Vector = {}
        for part, (factor, scale) in zip(self.parts, blocks, strict=True):
            packed = part.pack(vector) * part.free
            found |= part.unpack(torch.cholesky_solve(packed, factor) / scale * part.free, vector)
        return found


def _block(part: _Part, squares: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of A, (groups, columns, columns), and G, (groups, 1, C_out/groups)."""
    gram = part.equations.gram / max(1, part.equations.count)
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    damping = DAMPING * torch.where(mean > 0, mean, 1.0)
    gram = gram + damping[:, None, None] * torch.eye(gram.shape[1], dtype=gram.dtype)
    scale = squares + EVEN * squares.mean()
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.linalg.cholesky(gram), scale.reshape(len(gram), 1, -1)


def _floating(outputs: Any) -> list[Tensor]:
    flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [o for o in flat if is_floating(o)]


def _dot(a: Vector, b: Vector) -> float:
    return sum(float((v * b[n]).sum(dtype=torch.float64)) for n, v in a.items())
