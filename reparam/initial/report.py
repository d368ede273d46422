"""What an initialisation did: what was set, to which scale, what was left and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import fx, nn

from reparam.emit import save_checkpoint, save_pt2
from reparam.errors import InputError
from reparam.ir import Program
from reparam.utils import Facts, Shown, as_path, checked_call


@dataclass(frozen=True)
class SetWeight:
    """A weight that was set. name: in the model. deviation, before: the root of the mean square of its entries, after
    and before. what: what it was set to, in words."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    before: float
    what: str


@dataclass(frozen=True)
class LeftWeight:
    """A weight that was left as it is, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Outcome:
    """What a method has to say beside the weights that it set; see `Initialised`.

    seen: what layers give, where it was measured; the measure in words.
    """

    inserted: tuple[str, ...] = ()
    groups: tuple[Mapping[str, Any], ...] = ()
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    seen: Mapping[fx.Node, float] = field(default_factory=dict)
    measure: str = ""


@dataclass(frozen=True, repr=False)
class Initialised(Shown):
    """A model with new weights.

    module: a copy of the model, in its mode; where the method puts in parts that the model does not have, a module of
    the captured graph, whose weights keep their names. program: what it computes. rewritten: whether it is such a
    module. weights, left: what was set and what was not. inserted: in words, what was put in and where.
    groups: of parameters, by name, with the factors of an optimiser's learning rate and weight decay; empty where all
    are treated alike. frozen: parameters that are not to be trained. figures: what was measured on the way.
    """

    method: str
    module: nn.Module
    program: Program
    rewritten: bool
    weights: tuple[SetWeight, ...]
    left: tuple[LeftWeight, ...]
    inserted: tuple[str, ...] = ()
    groups: tuple[Mapping[str, Any], ...] = ()
    frozen: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @checked_call
    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes the weights as a checkpoint, `.pt` or `.safetensors`, which the model's own class or architecture
        loads; where parts were put in, a `.pt2`. Whole or not at all.

        Raises InputError for another suffix and when `path` exists and `force` is false, MachineError when it cannot be
        written.
        """
        target = as_path(path, "the output")
        if not self.rewritten:
            save_checkpoint(self.module, target, force=force)
            return
        if target.suffix != ".pt2":
            what = f"{self.method} puts parts in that the architecture does not have"
            raise InputError(f"{what}; name the output {target.stem or 'model'}.pt2")
        save_pt2(self.program, target, force=force)

    @checked_call
    def save_source(self, folder: str | Path, *, force: bool = False) -> None:
        """Writes a readable `model.py` and its weights, `model.safetensors`, into `folder`, where parts were put in.

        Raises like `save`; InputError also where no parts were put in, and for a program that cannot be written as
        ordinary layers.
        """
        from reparam.emit.source import write_source

        if not self.rewritten:
            raise InputError(f"{self.method} puts no parts in: save() writes the weights")
        write_source(self.program, as_path(folder, "the folder"), force=force)

    def parameter_groups(self, rate: float, decay: float) -> list[dict[str, Any]]:
        """Groups for an optimiser of torch with the learning rate `rate` and the weight decay `decay`.

        Raises InputError where these are no numbers from zero on.
        """
        for name, value in (("rate", rate), ("decay", decay)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"{name} is {str(value)[:40]!r}; give a number of zero or more")
        held = dict(self.module.named_parameters())
        plain: tuple[Mapping[str, Any], ...] = ({"params": list(held), "rate": 1.0, "decay": 1.0},)
        made = []
        for group in self.groups or plain:
            parameters = [held[n] for n in group["params"] if n in held and held[n].requires_grad]
            made.append({"params": parameters, "lr": rate * group["rate"], "weight_decay": decay * group["decay"]})
        return made

    def as_dict(self) -> dict[str, Any]:
        """The report, as the command line writes it."""
        return {
            "method": self.method,
            "rewritten": self.rewritten,
            "weights": [asdict(w) | {"shape": list(w.shape)} for w in self.weights],
            "left": [asdict(w) for w in self.left],
            "inserted": list(self.inserted),
            "groups": [dict(group) for group in self.groups],
            "frozen": list(self.frozen),
            "notes": list(self.notes),
            "figures": dict(self.figures),
        }

    def summary(self) -> tuple[str, Facts]:
        """The method; how many weights it set and left, and what it put in."""
        facts = [("weights set", str(len(self.weights))), ("left", str(len(self.left)))]
        more = (("put in", len(self.inserted)), ("frozen", len(self.frozen)))
        return self.method, [*facts, *((name, str(count)) for name, count in more if count)]
