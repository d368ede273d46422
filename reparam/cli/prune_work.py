"""What the verb `prune` does, once its options are read, and how it shows what became of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from reparam.data import Preprocessing
from reparam.pruning import Pruned, PruneOptions, prune
from reparam.rewrite import verifying
from reparam.training import save_training_source
from reparam.utils import counted, together

from .examples import on_examples
from .outputs import Outputs
from .render import FEW, Row, line, table
from .session import Session
from .work import ConvertOptions, Loaded

if TYPE_CHECKING:
    from torch import Tensor

BAR = 24  # characters of the widest layer in the picture of the widths


@dataclass(frozen=True)
class Data:
    """The samples, where their labels are, and how images become inputs."""

    source: Path
    labels: str | None
    preprocessing: Preprocessing | None


def check_options(wanted: Mapping[str, Any]) -> None:
    """Raises InputError for options that do not go together, before anything is loaded."""
    PruneOptions(**wanted)


def prune_loaded(
    session: Session,
    loaded: Loaded,
    options: ConvertOptions,
    data: Data,
    wanted: Mapping[str, Any],
    resume: Path | None,
) -> Pruned:
    """Prunes; nothing is written yet, as engines that are timed lie in files of their own."""
    model = loaded.model

    def work(inputs: tuple[Tensor, ...]) -> Pruned:
        with session.working() as tell, verifying(session.debug):
            return prune(
                model.exported or model.module,
                inputs,
                data.source,
                labels=data.labels,
                preprocessing=data.preprocessing,
                dynamic=options.dynamic,
                resume=resume,
                progress=tell,
                **wanted,
            )

    return on_examples(session, model, options.drawing, work)


def save_pruned(
    session: Session, pruned: Pruned, loaded: Loaded, outputs: Outputs, *, norms: Data | None, force: bool
) -> dict[str, Any]:
    """Stages or writes the outputs; returns the whole report. norms: samples for the batch norms of the source."""
    with session.working() as tell, together():
        tell("emit", 0, 1)
        pruned.save(outputs.model, force=force)
        if outputs.source is not None and norms is not None:
            batches, how = norms.source, norms.preprocessing
            save_training_source(pruned.program, outputs.source, batches, preprocessing=how, force=force)
        elif outputs.source is not None:
            pruned.save_source(outputs.source, force=force)
        tell("emit", 1, 1)
    model = loaded.model
    facts = {"input": loaded.name, "outputs": outputs.names, "arch": model.spec, "arch_inferred": model.arch_inferred}
    return pruned.report.as_dict() | facts


def write_pruning(path: Path, report: Row, pruned: Pruned, arch: str, *, force: bool) -> None:
    """The page of a pruning. report: as its JSON has it."""
    from reparam.page import prune_page, write_page

    write_page(prune_page(report, pruned.conversion, arch=arch), path, force=force)


# ---- for people --------------------------------------------------------------------------------------------------


def render_pruning(report: Row, arch: str) -> list[RenderableType]:
    """What `prune` prints: what it cost and costs, how close it is, the rounds, the widths."""
    name = f"{report['input']} ({arch})" if arch else str(report["input"])
    parts: list[RenderableType] = [line(f"{name} -> {', '.join(report['outputs'])}", "bold")]
    parts += [line(text) for text in _sentences(report)]
    parts += [_forms(report), _rounds(report), _widths(report)]
    for key, what in (("near_floor", "at their floor"), ("scarce", "refitted on fewer rows than unknowns")):
        if report[key]:
            parts.append(line(f"{what}: {', '.join(report[key])}"))
    if report["idle"]:
        where = ", ".join(f"{name} {count}" for name, count in report["idle"].items())
        parts.append(line(f"never fire or are constant on the samples, so that they go first: {where}"))
    parts.append(line(f"{report['seconds']['total']:.1f} s"))
    return parts


def _sentences(report: Row) -> list[str]:
    quality, samples, rel = report["quality"], report["samples"], report["evidence"]["float64_max_rel"]
    pruned, original, held = quality["pruned"], quality["original"], samples["held_out"]
    found = [
        f"another function than the original; on {counted(held, 'held-out sample')} its outputs differ by "
        f"{100 * pruned['error']:.2f} % (RMS)"
    ]
    if pruned["agreement"] is not None:
        found.append(f"it gives {100 * pruned['agreement']:.2f} % of them the original's class (KL {pruned['kl']:.4f})")
    if pruned["accuracy"] is not None:
        found.append(f"accuracy: {100 * original['accuracy']:.2f} % before, {100 * pruned['accuracy']:.2f} % after")
    found.append(
        f"the file is the same function as the network with these channels switched off (float64 error {rel:.1e})"
    )
    if held < FEW:
        found.append(f"note: figures of {counted(held, 'held-out sample')} say little; give more")
    time, engine = report["forms"][report["target"]].get("time"), report["options"]["engine"]
    if time is not None and time["share"] >= 1:
        found.append(
            f"note: it is no faster than the original in {engine}: {time['share']:.2f} times its time; widths that are "
            "multiples of 8 can help (--round 8), and --latency cuts until it is"
        )
    return found


def _forms(report: Row) -> Table:
    """The original and both forms: what they cost."""
    made = table("", "multiply-accumulates", "parameters", "time", right=("multiply-accumulates", "parameters", "time"))
    before = report["before"]
    made.add_row("original, fused", f"{before['macs']:,}", f"{before['params']:,}", "")
    for name, form in report["forms"].items():
        chosen = f"{name} (written)" if name == report["target"] else name
        if "refused" in form:
            made.add_row(chosen, "refused", "", form["refused"])
            continue
        macs, params = form["macs"], form["params"]
        time = "" if form["time"] is None else f"{form['time']['ms']:.3g} ms ({form['time']['share']:.2f}x)"
        made.add_row(chosen, f"{macs:,} ({_share(macs, before['macs'])})", f"{params:,}", time)
    return made


def _rounds(report: Row) -> Table:
    """The curve: the cost against the agreement, or the error, after the cut and after the refit."""
    classes = report["quality"]["pruned"]["agreement"] is not None
    what = "agreement" if classes else "error"
    made = table("round", "cost left", f"{what} after the cut", "after the refit", right=("cost left",))
    for i, step in enumerate(report["curve"]):
        cut, refitted = (f"{100 * step[k][what]:.2f} %" for k in ("cut", "refitted"))
        made.add_row(str(i + 1), f"{100 * step['cost']:.1f} %", cut, refitted)
    joint = report["joint"]
    if joint is not None:
        before, after = (f"{100 * joint[k][what]:.2f} %" for k in ("before", "after"))
        made.add_row("all at once", f"{100 * report['curve'][-1]['cost']:.1f} %", before, joint["refused"] or after)
    return made


def _widths(report: Row) -> Table:
    """The output channels of each layer before and after, and a picture of them."""
    made = table("layer", "channels", "")
    widest = max((w["before"][1] for w in report["widths"]), default=1)
    for w in report["widths"]:
        before, after = w["before"][1], w["after"][1]
        full, left = (max(1, round(BAR * n / widest)) if n else 0 for n in (before, after))
        made.add_row(w["name"], f"{before} -> {after}", "█" * left + "░" * (full - left))
    return made


def _share(after: int, before: int) -> str:
    return f"{after / before:.2f}x" if before else "-"
