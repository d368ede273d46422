"""Arguments of an architecture that the shapes of a checkpoint tell: number of classes, channels of the input, heads.

A network that was trained for another task differs from its zoo's in the first or the last layer. Where these
differences alone remain, the arguments that make them are found, and the network with them fits key by key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .fit import Fit

ZOOS = ("torchvision/", "timm/")
CHANNELS = 3  # of the input of a zoo's network, unless it is told otherwise
NAMES = ("num_classes", "in_chans", "aux_logits")  # that are found here


def arguments_for(fit: Fit) -> dict[str, Any]:
    """Arguments with which an architecture may fit, from how it does not; none for other differences."""
    if not fit.spec.startswith(ZOOS):
        return _no_auxiliary(fit)
    found = {**_no_auxiliary(fit), **_other_channels(fit)}
    inputs = {key for key, want, have in fit.misshapen if _is_input(want, have)}
    classes = [(want, have) for key, want, have in fit.misshapen if key not in inputs]
    changes = {(want[0], have[0]) for want, have in classes if want and have and want[1:] == have[1:]}
    regular = all(want and have and want[1:] == have[1:] for want, have in classes)
    if classes and regular and len(changes) == 1:
        found["num_classes"] = changes.pop()[1]
    elif fit.missing and not classes and "aux_logits" not in found:
        found["num_classes"] = 0  # features alone, without the last layer
    return found if not fit.unexpected else {}


def _is_input(want: tuple[int, ...], have: tuple[int, ...]) -> bool:
    """Whether two shapes are those of one convolution of images with other channels."""
    same = len(want) == len(have) >= 4 and want[0] == have[0] and want[2:] == have[2:]
    return same and want[1] == CHANNELS and have[1] > 0


def _other_channels(fit: Fit) -> dict[str, Any]:
    changes = {have[1] for _, want, have in fit.misshapen if _is_input(want, have)}
    return {"in_chans": changes.pop()} if len(changes) == 1 else {}


def _no_auxiliary(fit: Fit) -> dict[str, Any]:
    auxiliary = bool(fit.missing) and all(k.lower().startswith("aux") for k in fit.missing)
    return {"aux_logits": False} if auxiliary and not fit.unexpected else {}


def told_arguments(arch_args: Mapping[str, Any]) -> str:
    """`num_classes 10 and in_chans 1`."""
    return " and ".join(f"{name} {json.dumps(value)}" for name, value in arch_args.items())


def replaced_head(fit: Fit) -> str:
    """The module whose place other layers have taken: all that is missing or unexpected lies in it."""
    wrong = [*fit.missing, *(key for key, _, _ in fit.misshapen)]
    heads = {key.rpartition(".")[0] for key in wrong}
    if len(heads) != 1 or not fit.unexpected:
        return ""
    (head,) = heads
    return head if head and all(key.startswith(f"{head}.") for key in fit.unexpected) else ""
