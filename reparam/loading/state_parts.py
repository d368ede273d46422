"""Which part of a state dict is the network: training frameworks save it beside losses, metrics and averages.

A network is under a prefix when all of its keys are there, with the right shapes. Keys beside it are left out, with a
note, where they are clearly not its own: those of a loss or a metric, by a word in their path that the network has no
module of (`criterion.weight`, `decode_head.loss_decode.weight`), and those of a second copy of the network
(`model_ema.conv1.weight` beside `model.conv1.weight`). The counters of an average of the weights are left out without
one. With any other key, it does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from reparam.errors import InputError

from .fit import ShapeMap
from .wanted import Want

CUSTOMARY = ("model", "net", "network", "module", "_orig_mod")  # what training modules call their network
_MEASURES = frozenset(
    [
        "criterion", "criteria", "loss", "losses", "metric", "metrics", "accuracy", "acc", "auroc", "auc", "f1",
        "precision", "recall", "iou", "miou", "psnr", "ssim", "lpips", "fid", "perplexity",
    ]
)  # fmt: skip
SHOWN = 3
_COUNTERS = frozenset(["n_averaged", "steps", "step", "initted", "num_updates", "updates"])  # of averages of weights


@dataclass(frozen=True)
class Part:
    """The network's part of a state dict, by the network's own keys. note: what was left out; "" for nothing."""

    state: Mapping[str, Tensor]
    note: str = ""


def network_part(state: Mapping[str, Tensor], expected: ShapeMap, path_name: str, want: Want | None = None) -> Part:
    """The part of `state` that is the network with these keys and shapes; all of it where no part is.

    want: which weights of the file these are, for what a message says to type.

    Raises InputError for several copies of the network of which none has a customary name, and for a network beside
    keys that may belong to it.
    """
    want = want or Want()
    complete = [p for p in _prefixes(state) if _is_complete(_under(state, p), expected)]
    if "" in complete:
        return _without(state, "", _strangers(state, expected))
    if not complete:
        return Part(_renamed({k: v for k, v in state.items() if k in expected or not _is_measure(k, ())}, expected))
    known = [p for name in CUSTOMARY for p in complete if p.split(".")[0] == name]
    if len(complete) > 1 and not known:
        raise InputError(
            f"{path_name} holds several networks with these keys, under {_listed(complete)}; choose one with "
            + want.prefixes([f"{p}." for p in complete])
        )
    prefix = known[0] if known else complete[0]
    copies = {p.split(".")[0] for p in complete} - {prefix.split(".")[0]}
    beside = [k for k in state if not k.startswith(f"{prefix}.") and not _counts(k, state[k])]
    own = [k for k in beside if not _is_measure(k, ()) and k.split(".")[0] not in copies]
    if own:
        raise InputError(
            f"{path_name} holds a whole network under '{prefix}', and beside it {_listed(own)}, which may be a part of "
            f"what it computes; save the weights under '{prefix}' alone"
        )
    inner = [f"{prefix}.{k}" for k in _strangers(_under(state, prefix), expected)]
    return _without(state, prefix, [*beside, *inner], want.prefixes([f"{p}." for p in complete if p != prefix]))


def likely_parts(state: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
    """Parts to infer an architecture from, the whole first."""
    plain = {k: v for k, v in state.items() if not _is_measure(k, ()) and not _counts(k, v)}
    customary = [_under(plain, p) for p in CUSTOMARY if any(k.startswith(f"{p}.") for k in plain)]
    return [part for part in (state, *([plain] if len(plain) < len(state) else []), *customary) if part]


def _prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """The empty prefix, and those of one and of two names that keys have."""
    parts = [k.split(".") for k in state]
    found = {".".join(p[:n]) for p in parts for n in (1, 2) if len(p) > n}
    return ["", *sorted(found, key=lambda p: (p.count("."), p))]


def _under(state: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    if not prefix:
        return state
    return {k.removeprefix(f"{prefix}."): v for k, v in state.items() if k.startswith(f"{prefix}.")}


def _is_complete(state: Mapping[str, Tensor], expected: ShapeMap) -> bool:
    """Whether all keys of the network are there, counters of batches excepted."""
    needed = (k for k in expected if not k.endswith("num_batches_tracked"))
    return bool(expected) and all(k in state and tuple(state[k].shape) == expected[k] for k in needed)


def _strangers(state: Mapping[str, Tensor], expected: ShapeMap) -> list[str]:
    """Keys of losses and metrics that the network does not have."""
    modules = _module_paths(expected)
    return [k for k in state if k not in expected and _is_measure(k, modules)]


def _module_paths(keys: Iterable[str]) -> frozenset[str]:
    return frozenset(".".join(k.split(".")[:i]) for k in keys for i in range(1, k.count(".") + 1))


def _is_measure(key: str, modules: Iterable[str]) -> bool:
    """Whether a name in the path of a key is that of a loss or a metric, and no module of the network is there."""
    names = key.split(".")
    return any(
        is_measure_name(name) and ".".join(names[: i + 1]) not in modules for i, name in enumerate(names[:-1] or names)
    )


def _counts(key: str, value: Tensor) -> bool:
    """Whether a tensor is a counter that averages of weights keep beside them: `n_averaged`, `steps`."""
    return key in _COUNTERS and value.numel() == 1 and not value.is_floating_point() and not value.is_complex()


def is_measure_name(name: str) -> bool:
    """Whether one name is that of a loss or a metric: `loss_decode`, `valIoU`."""
    words = re.findall(r"[a-z]+\d*", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return not _MEASURES.isdisjoint(words)


def _without(state: Mapping[str, Tensor], prefix: str, left_out: Sequence[str], copies: str = "") -> Part:
    kept = _under({k: v for k, v in state.items() if k not in set(left_out)}, prefix)
    if not left_out:
        return Part(kept)
    under = f"the weights under '{prefix}' are used" if prefix else "the network's own weights are used"
    instead = f"; {copies} takes another copy" if copies else ""
    return Part(kept, f"{under}; the file also holds {_listed(left_out)}, which is no part of it{instead}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _renamed(state: Mapping[str, Tensor], expected: Iterable[str]) -> Mapping[str, Tensor]:
    """Drops or adds a first name that all keys share (`model.conv.weight`), where the architecture's keys want that."""
    expected = list(expected)
    have, want = ({k.partition(".")[0] for k in keys} for keys in (state, expected))
    if len(have) == 1 and not have & want and all("." in key for key in state):
        return {key.partition(".")[2]: value for key, value in state.items()}
    if len(want) == 1 and not have & want and all("." in key for key in expected):
        return {f"{next(iter(want))}.{key}": value for key, value in state.items()}
    return state
