"""`prune`: cuts channels and refits weights in turns, down to a budget, and writes the smaller network."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reparam.conversion import Conversion, convert, convert_program
from reparam.data import Deck, Preprocessing, Spooled, open_samples, spool
from reparam.errors import InputError, ReparamError
from reparam.ir import Program, census
from reparam.loading import FileOrModel
from reparam.measure import check_runtimes
from reparam.rewrite import Progress
from reparam.utils import DEFAULT_AXES, Reported, as_path, check_callable, checked_call, describe_type, first_line

from .choosing import Candidate, at_floor, candidates, cheapest, cut, give_back, too_small
from .gated import with_gates
from .gates import Gate
from .idle import first, idle, told
from .joint import Joint, affordable, refit_on
from .mixing import copies_for, with_mixes
from .options import PruneOptions
from .price import cost
from .quality import Judge, Quality, check_drop, check_sides, parted
from .refitting import Fitted, refit_layers
from .report import Form, PruneReport, Step, widths_of
from .resuming import State
from .running import batch_within
from .score import scores
from .timing import ROUNDS, Time, times

_log = logging.getLogger(__name__)
STEP = 0.72  # of the cost is left by one round, about; 0.85 was measured to be no better, and takes twice as long
MEMORY = 512 << 20  # bytes of the values of one batch
BATCH = 64
SCORED = 128  # samples for scores, at least; more while all of them cost less than ...
SCORED_MACS = 5e11
CLOSE = 0.03  # a latency budget is met within this share of it
TRIES = 6
CONFIRMING = 3 * ROUNDS  # of timing, where the result is settled


@dataclass(frozen=True, repr=False)
class Pruned(Reported):
    """A pruned network.

    module: runs like the original, with fewer channels. program: what it computes, as it is emitted. masked: the
    original's graph with refitted weights and channels switched off, which the program was verified to be the same
    function as. conversion: from the one to the other, with its evidence.
    """

    module: nn.Module
    program: Program
    masked: Program
    report: PruneReport
    conversion: Conversion

    @checked_call
    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes a `.pt2` archive, as `Conversion.save` does, and raises the same."""
        self.conversion.save(path, force=force)

    @checked_call
    def save_source(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes readable source and its weights, as `Conversion.save_source` does, and raises the same."""
        self.conversion.save_source(as_path(folder, "the folder"), force=force)


@checked_call
def prune(
    model: FileOrModel,
    example_inputs: Tensor | Sequence[Any],
    calibration: Any,
    *,
    labels: Any = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    dynamic: Sequence[str] = DEFAULT_AXES,
    resume: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Pruned:
    """Makes `model` cheaper: channels that it would miss least go, and the weights of the others are refitted.

    model: a module, left untouched, an exported program, a file, or what `reparam.load` gave. example_inputs: a tensor
        (N, ...), or the positional arguments of the module; none, (), for an exported program or a file that tells its
        inputs.
    calibration: what `data.open_samples` takes: files, or an iterable of batches. No labels are needed; `labels` are
        for the accuracy in the report. About a fifth of the samples, by a hash of each, is held out, and all figures
        are measured on those.
    preprocessing: of images. dynamic: the axes that stay free, as for `convert`. resume: a folder that keeps the state
        after every round; a run that finds one goes on from there. progress: called with a stage, the steps done and
        their number.
    **options: those of `PruneOptions`: a budget (macs=, params= or latency=), form, score, ....

    The choice is not exact, and is measured: what the result agrees with the original in. That the smaller network is
    the same function as the original with those channels switched off is verified like every conversion.

    Raises InputError or CaptureError for what cannot be taken in, and for a budget that cannot be met;
    NotEquivalentError when `max_drop` is missed; MachineError for an engine that is not installed.

    >>> import torch, reparam
    >>> conv = torch.nn.Conv2d
    >>> net = torch.nn.Sequential(conv(3, 8, 3), torch.nn.ReLU(), conv(8, 8, 3), torch.nn.ReLU(), conv(8, 4, 3))
    >>> result = reparam.prune(net, torch.rand(2, 3, 9, 9), torch.rand(64, 3, 9, 9), macs=0.5, form="residual")
    >>> result.report.after.macs <= 0.5 * result.report.before.macs, result.report.conversion.equivalent
    (True, True)
    """
    check_callable(progress, "progress")
    wanted = PruneOptions.of(options)
    if wanted.timed:
        check_runtimes([wanted.engine])
    tell = progress or (lambda stage, done, total: None)
    start = time.perf_counter()
    if not isinstance(example_inputs, Tensor | tuple | list):
        raise InputError(f"example_inputs is {describe_type(example_inputs)}; give a tensor or a tuple of arguments")
    given = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    with torch.inference_mode(False):  # scores and refits are of gradients
        base = convert(model, *given, to="fused", dynamic=dynamic, seed=wanted.seed, progress=progress)
        samples = open_samples(calibration, base.program, preprocessing=preprocessing, labels=labels)
        with spool(samples, limit=wanted.samples) as decks:
            folder = as_path(resume, "the folder to resume from") if resume else None
            state = State(folder, base.program, wanted, decks) if folder is not None else None
            size = batch_within(MEMORY, base.program, BATCH)
            steps = _joint_steps(wanted, census(base.program).macs, len(decks.fit))
            choosing, figures = parted(decks.held, steps)
            with Judge(base.program, figures, size) as judge:
                run = _Run(base, decks, judge, wanted, tell, state)
                if labels is not None and run.original.agreement is None:
                    raise InputError("labels are of classes, and the outputs of this network are no scores of classes")
                run.cut_and_refit()
                if steps:
                    run.refit_all(choosing, steps)
                return run.finish(start)


def _joint_steps(options: PruneOptions, macs: int, samples: int) -> int:
    if not options.refit:
        return 0
    return affordable(macs, samples) if options.joint is None else options.joint


class _Run:
    """One pruning under way."""

    def __init__(
        self,
        base: Conversion,
        decks: Spooled,
        judge: Judge,
        options: PruneOptions,
        tell: Progress,
        state: State | None,
    ) -> None:
        self.base, self.decks, self.judge = base, decks, judge
        self.options, self.tell, self.state = options, tell, state
        self.gated = with_gates(base.program, coupled=options.streams == "coupled", keep=options.keep)
        if not self.gated.gates:
            kept = "" if options.keep is None else f", and is not kept by '{options.keep}'"
            raise InputError(f"there is nothing to prune: no layer reads channels that another one makes{kept}")
        check_sides(decks)
        self.full = cost(self.gated.plan(), options.currency)
        name, share = options.budget
        least, dearest = cheapest(self.gated, options.floor, options.currency)
        if least >= self.full and cheapest(self.gated, 0.0, options.currency)[0] >= self.full:
            raise InputError("there is nothing to prune: what reads the channels of the layers needs all of them")
        if name != "latency" and share < least / self.full:
            raise too_small(share, name, least / self.full, dearest, self.full)
        self.left, self.took, self.multiple = 1.0, 0.0, options.multiple  # took: of the time, where it was measured
        self.macs = max(1, census(base.program).macs)
        self.steps: list[Step] = []
        self.fitted: list[Fitted] = []
        self.joint: Joint | None = None
        self.residual: Conversion | None = None  # the result in this form, once it is known
        self.original = self._first_look()
        self.idle = idle(self.gated, self._inputs(), constant=options.refit)

    def _first_look(self) -> Quality:
        """The original on the held-out samples. Raises InputError where nothing can be compared on them."""
        try:
            found = self.judge.quality(self.base.program)
        except (ReparamError, MemoryError):
            raise
        except Exception as error:  # of any kind: operators may be those of others
            raise InputError(f"the network does not run on these samples: {first_line(error)}") from error
        if not math.isfinite(found.error):
            raise InputError("the outputs of the network are not finite on these samples")
        check_drop(found, found, self.options.max_drop)  # whether there are classes
        return found

    # ---- cutting -------------------------------------------------------------------------------------------

    def cut_and_refit(self) -> None:
        """The rounds, down to the budget."""
        name, share = self.options.budget
        if name == "latency":
            self._down_to_latency(share)
            return
        rounds = max(1, round(math.log(share) / math.log(STEP)))
        for i in range(self._resumed(), rounds):
            self.tell("prune", i, rounds)
            self._cut(share ** ((i + 1) / rounds))
            self._refit()
        self._settle_cost(name, share)
        self.tell("prune", rounds, rounds)

    def _settle_cost(self, name: str, share: float) -> None:
        """Cuts further where the network that is made costs more than its plan said."""
        before = census(self.base.program).as_dict()[name]
        for _ in range(TRIES):
            self.residual = convert_program(self.gated.masked(), seed=self.options.seed, progress=self.tell)
            made = self.residual.report.after.as_dict()[name]
            if made <= share * before:
                return
            self._cut(self.left * min(0.99, share * before / made))
            self._refit()
        raise InputError(f"{100 * share:.3g} % of the {name} was not reached; raise the budget")

    def _resumed(self) -> int:
        """The rounds that an earlier run has done."""
        if self.state is not None:
            self.steps, self.fitted = self.state.read(self.gated)
            self.left = cost(self.gated.plan(), self.options.currency) / self.full
        return len(self.steps)

    def _cut(self, share: float) -> None:
        """Switches channels off until the cost is this share of the original's."""
        self._cut_along(self._order(), share)

    def _order(self) -> list[Candidate]:
        found = scores(self.options.score, self.gated, self._scored(), self.options.seed)
        priced = self.options.score != "random"  # every gate loses the same share then
        found = first(found, self.idle) if priced else found
        return candidates(self.gated, found, self.options.currency, self.options.floor, priced=priced)

    def _cut_along(self, order: Sequence[Candidate], share: float) -> None:
        o, before = self.options, self.gated.masks()
        left = cut(self.gated, order, share * self.full, o.currency, round_to=self.multiple)
        if left > share * self.full and o.round_to is None and self.multiple > 1:
            self.multiple = 1
            self.gated.put_back(before)
            left = cut(self.gated, order, share * self.full, o.currency)
        if left > share * self.full:
            name, wanted = o.budget
            at = f"; {100 * left / self.full:.3g} % of the {o.currency} are left then" if name == "latency" else ""
            at += f", and the last measurement gave {100 * self.took:.3g} % of the time" if self.took else ""
            raise InputError(
                f"{100 * wanted:.3g} % of the {name} cannot be reached: no layer can lose more{at}; raise the budget, "
                "lower the floor, keep fewer layers, or round to smaller multiples"
            )
        give_back(self.gated, share * self.full, o.currency)
        self.left = cost(self.gated.plan(), o.currency) / self.full

    def _inputs(self) -> Iterator[tuple[Tensor, ...]]:
        return (inputs for inputs, _ in self.decks.fit.batches(self.judge.size))

    def _scored(self) -> Iterator[tuple[Tensor, ...]]:
        """The samples that scores are measured on: fewer for large networks, spread over all that there are."""
        most = max(SCORED, int(SCORED_MACS / self.macs))
        every = max(1, math.ceil(len(self.decks.fit) / most))
        return (inputs for i, inputs in enumerate(self._inputs()) if i % every == 0)

    def _refit(self) -> None:
        before = self.judge.quality(self.gated.program)
        if self.options.refit:
            copies = copies_for(self.macs, len(self.decks.fit))
            self.fitted = refit_layers(
                self.gated,
                lambda: with_mixes(self._inputs(), copies, self.options.seed),
                tell=lambda i, n: self.tell("refit", i, n),
            )
        after = self.judge.quality(self.gated.program) if self.options.refit else before
        self.steps.append(Step(self.left, before, after))
        told = (len(self.steps), 100 * self.left, self.options.currency, before.error, after.error)
        _log.info("prune step %d: %.3g %% of the %s left, error %.3g, refitted %.3g", *told)
        if self.state is not None:
            self.state.write(self.gated, self.steps, self.fitted)

    def refit_all(self, choosing: Deck | None, steps: int) -> None:
        """Steps over all layers at once, once the channels are settled."""
        fit, tell = self.decks.fit, functools.partial(self.tell, "joint refit")
        self.joint = refit_on(self.gated, fit, choosing, self.judge, steps=steps, seed=self.options.seed, tell=tell)
        self.residual = self.residual if not self.joint.taken else None

    def _down_to_latency(self, share: float) -> None:
        """Rounds of cuts by multiply-accumulates; the last one is adjusted until the measured time is right."""
        if self._resumed() and self._latency(CONFIRMING) <= share * (1 + CLOSE):
            return
        while True:
            self.tell("prune", len(self.steps), len(self.steps) + 1)
            order, masks, before = self._order(), self.gated.masks(), self.left
            self._cut_along(order, before * STEP)
            took = self._latency()
            if took <= share * (1 + CLOSE):
                self._settle(order, masks, before, took, share)
            self._refit()
            if took <= share * (1 + CLOSE) and self._latency(CONFIRMING) <= share * (1 + CLOSE):
                return

    def _settle(
        self, order: Sequence[Candidate], masks: Mapping[Gate, Tensor], before: float, took: float, share: float
    ) -> None:
        """Looks between two shares of the cost for the one that takes `share` of the time; keeps what is in time."""
        low, high = self.left, before
        for _ in range(TRIES):
            if took >= share * (1 - CLOSE):
                break
            self.gated.put_back(masks)
            self._cut_along(order, (low + high) / 2)
            now = self._latency()
            if now > share * (1 + CLOSE):
                high = (low + high) / 2
            else:
                low, took = (low + high) / 2, now
        self.gated.put_back(masks)
        self._cut_along(order, low)

    def _latency(self, rounds: int = ROUNDS) -> float:
        """The share of the original's time that the network takes as it is, in the form that is asked for."""
        to = "plain" if self.options.form == "plain" else "fused"
        made = convert_program(self.gated.masked(), to, seed=self.options.seed)
        found = times({"original": self.base.program, "pruned": made.program}, self.options.engine, rounds=rounds)
        self.took = found["pruned"].share
        return self.took

    # ---- the result ----------------------------------------------------------------------------------------

    def finish(self, begun: float) -> Pruned:
        """Makes the smaller network in the form that is asked for, and looks at what became of its outputs."""
        masked = self.gated.masked()
        made, forms = self._forms(masked)
        form = self._choice(made, forms)
        conversion = made[form]
        final, held, figures = self.judge.quality(conversion.program), self.decks.held.rows, self.judge.deck.rows
        check_drop(final, self.original, self.options.max_drop)
        plan = self.gated.plan()
        report = PruneReport(
            budget=dict([self.options.budget]),
            form=form,
            forms=forms,
            before=census(self.base.program),
            after=conversion.report.after,
            original=self.original,
            final=final,
            steps=tuple(self.steps),
            joint=self.joint,
            widths=widths_of(plan),
            near_floor=tuple(at_floor(self.gated, self.options.floor)),
            scarce=tuple(f.name for f in self.fitted if f.rows < f.columns),
            idle=told(self.idle),
            samples={"fit": self.decks.fit.rows, "choosing": held - figures, "held_out": figures},
            base=self.base.report,
            conversion=conversion.report,
            options=self.options,
            seconds=time.perf_counter() - begun,
        )
        return Pruned(conversion.module, conversion.program, masked, report, conversion)

    def _forms(self, masked: Program) -> tuple[dict[str, Conversion], dict[str, Form]]:
        """The network in each form that is asked for; times are measured where there is a choice, or a budget."""
        wanted = {"residual": "fused", "plain": "plain"}
        if self.options.form != "auto":
            wanted = {self.options.form: wanted[self.options.form]}
        made: dict[str, Conversion] = {}
        refused: dict[str, str] = {}
        for form, to in wanted.items():
            try:
                known = self.residual if form == "residual" else None
                conversion = known or convert_program(masked, to, seed=self.options.seed, progress=self.tell)
            except ReparamError as error:
                if form in (self.options.form, "residual"):
                    raise
                refused[form] = str(error)
                continue
            if form == "plain" and not conversion.report.plain and self.options.form == "auto":
                refused[form] = "the network does not become a chain"
                continue
            made[form] = conversion
        took: Mapping[str, Time] = {}
        if len(made) > 1 or self.options.latency is not None:
            programs = {"original": self.base.program, **{f: c.program for f, c in made.items()}}
            took = times(programs, self.options.engine, rounds=CONFIRMING)
        forms = {f: Form(c.report.after, took.get(f)) for f, c in made.items()}
        return made, forms | {f: Form(None, None, reason) for f, reason in refused.items()}

    def _choice(self, made: Mapping[str, Conversion], forms: Mapping[str, Form]) -> str:
        def milliseconds(form: str) -> float:
            time = forms[form].time
            return 0.0 if time is None else time.ms

        return min(made, key=milliseconds)
