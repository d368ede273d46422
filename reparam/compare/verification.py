"""`verify`: are two models the same function, as far as finite arithmetic can tell?"""

from __future__ import annotations

from collections.abc import Sequence

from reparam.engines import Runnable
from reparam.load import LoadedModel
from reparam.rewrite import Progress

from .programs import program_of, verify_programs
from .verdict import Verdict


def verify(
    a: LoadedModel | Runnable,
    b: LoadedModel | Runnable,
    *,
    input_shapes: Sequence[Sequence[int]] | None = None,
    trials: int = 8,
    seed: int = 0,
    adversarial: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Compares two loaded models or engines. Raises InputError when they do not take the same inputs."""
    if isinstance(a, Runnable) or isinstance(b, Runnable):
        from .engines import verify_engines

        return verify_engines(
            a, b, input_shapes=input_shapes, trials=trials, seed=seed, adversarial=adversarial, progress=progress
        )
    first = program_of(a, input_shapes or b.input_shapes)
    second = program_of(b, input_shapes or a.input_shapes)
    return verify_programs(first, second, trials=trials, seed=seed, adversarial=adversarial, progress=progress)
