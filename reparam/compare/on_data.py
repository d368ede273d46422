"""Two models on the user's own samples, beside what `verify` finds on random inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reparam.data import Preprocessing, open_samples
from reparam.engines import Runnable, Task, input_specs, judge_on_samples, known_preprocessing
from reparam.loading import LoadedModel
from reparam.rewrite import Progress
from reparam.scoring import Agreement

from .adversarial import SLACK
from .verdict import Verdict

How = Preprocessing | Mapping[str, Any] | None


def agree_on(
    models: Sequence[LoadedModel | Runnable],
    data: Any,
    *,
    preprocessing: How = None,
    paths: Sequence[Path | None] = (None, None),
    input_shapes: Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Agreement:
    """How the second model agrees with the first on samples.

    data: what `reparam.data.open_samples` takes. preprocessing: of images; where it is not given, that of a model's
    card, or of the manifest beside its file in `paths`. Raises InputError for samples that a model does not take.
    """
    told = (known_preprocessing(m, p) for m, p in zip(models, paths, strict=True))
    how = preprocessing or next((known for known in told if known is not None), None)
    samples = open_samples(data, input_specs(models, input_shapes), preprocessing=how, maps=True)
    named, task = dict(zip("AB", models, strict=True)), Task(scored=False)
    found = judge_on_samples(named, samples, task, total=samples.count(), tell=progress)
    return found.models["B"].agreement


def with_data(verdict: Verdict, found: Agreement) -> Verdict:
    """The verdict with what was found on samples; different where their error is far above what is allowed.

    What is allowed, relative to the size of an output, is that of the random inputs, and `SLACK` times as much.
    """
    bars = [o.bar / o.size for o in verdict.outputs if o.size > 0.0]
    allowed = SLACK * max(bars, default=0.0)
    if verdict.reason or not bars or found.error <= allowed:
        return replace(verdict, data=found)
    worst = "" if found.worst is None else f", most on {found.worst.input}"
    reason = f"on the samples they differ by {found.error:.3g} of the size of the outputs (RMS){worst}; at most "
    return replace(verdict, data=found, equivalent=False, reason=f"{reason}{allowed:.3g} is allowed")
