"""y = W x keeps the rows that are read and the columns that vary: channels that are zero, constant, equal or unread go.

Turns channels that are zero, constant, equal to others or read by nobody (masked, or trained to be sparse) into
narrower layers.

Fires once for the whole network, where a layer loses rows or columns: in networks that were masked or made sparse
channel by channel. A zero row gives its bias; what maps constants to constants keeps them; a constant that a layer
reads becomes its bias, W x + b = W_v x_v + (W_k k + b), and before a border of zeros all constants become one channel;
equal channels become one, W_c x + W_d x = (W_c + W_d) x. Then every value keeps the channels that its readers need.
Where a sum meets unequal sets, and that is cheaper, it adds what both sides have and passes on the rest. Values keep
sets of their own at every depth of a residual network, ordered such that picking from them is a slice where it can be.
Convolutions (grouped, depthwise, transposed), linear layers, concatenations, splits, gates and the heads of attention
are narrowed; groups keep the same number of channels each, and so do heads.

Refuses where all channels are read together (a layer norm, an operator without facts, an output), at the layer whose
constant channels have to stay. Says nothing where every layer needs all that it has.

Source: dead code elimination and value numbering, for each channel by itself; the order of channels by their life is
that of Shah et al., UPSCALE: Unconstrained Channel Pruning, 2023.

    relu(conv[64](x)), 40 rows of zeros -> conv[64 -> 8]      becomes      relu(conv[24](x)) -> conv[24 -> 8]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from reparam.channels import PAYS, ChannelPlan, plan_channels, rebuild
from reparam.ir import WEIGHTED, Program, Refusal, is_call, op_name, place_of
from reparam.rewrite import ANY, Match, Pattern, Rewrite

_TOGETHER = frozenset({"layer_norm", "group_norm"})


@dataclass(frozen=True)
class _Looked:
    """A network in which nothing was found to remove, by its nodes, and what there was to say."""

    nodes: tuple[fx.Node, ...]
    found: Refusal | None


@dataclass(frozen=True)
class Shrink:
    """Removes the channels that the function does not need.

    pays: multiply-accumulates that have to be spared for each element of a sum, so that it is made in parts.
    """

    pays: float = PAYS
    name: ClassVar[str] = "shrink"
    pattern: ClassVar[Pattern] = ANY

    def check(self, program: Program, match: Match) -> ChannelPlan | Refusal | None:
        """What every value keeps, asked once, at the first call; a plan only if a layer gets smaller."""
        if match.root is not next(program.calls()):
            return None
        nodes = tuple(program.graph.nodes)
        before = program.notes.find(_Looked)
        if before is not None and before.nodes == nodes:
            return before.found
        plan = plan_channels(program, self.pays)
        if any(is_call(n, WEIGHTED) for n in plan.narrowed):
            return plan
        found = next((Refusal(reason, node) for node, reason in _stays(plan).items()), None)
        program.notes.put(_Looked(nodes, found))
        return found

    def rewrite(self, program: Program, plan: ChannelPlan) -> Rewrite:
        """The network on the channels that are kept."""
        layers = {n: counts for n, counts in plan.narrowed.items() if is_call(n, WEIGHTED)}
        told = _stays(plan) | {n: _removed_text(plan, n, *counts) for n, counts in layers.items()}
        replaced, claims = rebuild(plan)
        before, after = (sum(c[i] for c in layers.values()) for i in (0, 1))
        message = f"removed {before - after} of {before} channels of {len(layers)} layers"
        return Rewrite(replaced, message, layers=told, claims=claims)


def _removed_text(plan: ChannelPlan, node: fx.Node, before: int, after: int) -> str:
    """What became of one layer's channels, and why they could go."""
    facts = plan.known.facts[node]
    constant, varying = int(facts.known.sum()), int((~facts.known).sum())
    same = varying - len(facts.first[~facts.known].unique())
    why = [f"{n} {what}" for n, what in ((constant, "constant"), (same, "the same as others")) if n]
    rest = before - after - constant - same
    why += [f"{rest} read by nobody"] if rest > 0 else []
    return f"{before} channels became {after} ({', '.join(why)})"


def _stays(plan: ChannelPlan) -> dict[fx.Node, str]:
    """The layers that keep more than one constant channel, and what reads all of them together."""
    found = {}
    for node, kept in plan.kept.items():
        count = int(plan.known.facts[node].known[kept].sum())
        reader = _reads_all(plan, node) if count > 1 and is_call(node, WEIGHTED) else None
        if reader is not None:
            what = "an output" if reader.op == "output" else f"'{place_of(reader)}' ({op_name(reader)})"
            found[node] = f"{count} of its channels are constant, and stay: {what} reads all of them together"
    return found


def _reads_all(plan: ChannelPlan, node: fx.Node) -> fx.Node | None:
    """The first reader behind a layer, through calls that treat each channel by itself, that needs all channels."""
    stack, seen = [node], {node}
    while stack:
        for user in stack.pop().users:
            facts = plan.known.of(user)
            several = isinstance(user.meta.get("val"), (list, tuple))  # what picks from it has facts of its own
            if (facts is None and not several) or user in plan.rigid or op_name(user) in _TOGETHER:
                return user
            if not is_call(user, WEIGHTED) and user not in seen:
                seen.add(user)
                stack.append(user)
    return None


PASS = Shrink
PHASE = "shrink"
