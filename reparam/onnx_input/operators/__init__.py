"""The operators that are read: one file for each family, found by being here.

A family's OPERATORS say what its operators compute of tensors. Its KNOWN, where it has one, say what they compute of
numbers that are known beforehand (constants, and sizes), which then stays arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import torch

from reparam.errors import UnknownSizeError
from reparam.ir import size_hint
from reparam.onnx_input.call import Call, Node
from reparam.onnx_input.known import MOST_NUMBERS, Known, Results

_WHY = {
    "QuantizeLinear": "quantised networks are left alone; convert the network in floats, and quantise what comes out",
    "Loop": "a network with loops is no single function of tensors",
    "Scan": "a network with loops is no single function of tensors",
    "NonMaxSuppression": "how many boxes stay depends on the values; export the network up to the boxes before it",
    "NonZero": "the size of its result depends on the values",
    "RandomNormal": "it draws random numbers",
}
_WHY |= dict.fromkeys(
    ("DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"), _WHY["QuantizeLinear"]
)
_WHY |= dict.fromkeys(("ConvInteger", "MatMulInteger"), _WHY["QuantizeLinear"])
_WHY |= dict.fromkeys(("Compress", "Unique"), _WHY["NonZero"])
_WHY |= dict.fromkeys(("RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"), _WHY["RandomNormal"])

LIMIT = 1 << 63
Compute = Callable[[Call], Results]


@dataclass(frozen=True)
class Operator:
    """What an operator computes. known: of numbers that are known beforehand, where it can."""

    compute: Compute
    known: Compute | None = None

    def __call__(self, call: Call) -> Results:
        """The results of a call."""
        if self.known is not None and all(v is None or isinstance(v, Known) for v in call.inputs):
            found = self.known(call)
            _refuse_long(call, found)
            return found
        return self.compute(call)


def _refuse_long(call: Call, found: Results) -> None:
    """Raises InputError for numbers that 64 bits do not hold, and for too many: Python computes on, without an end."""
    for value in found if isinstance(found, tuple) else (found,):
        if not isinstance(value, Known):
            continue
        if value.values.size > MOST_NUMBERS:
            raise call.node.refused(f"it computes {value.values.size} numbers of sizes")
        for number in value.values.flat:
            with contextlib.suppress(UnknownSizeError):
                if isinstance(number, int | torch.SymInt) and not -LIMIT <= size_hint(number) < LIMIT:
                    raise call.node.refused("a size that it computes is no number of 64 bits")


@functools.cache
def all_operators() -> dict[str, Operator]:
    """Every operator that is read, by its name."""
    families = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    known = {name: f for family in families for name, f in getattr(family, "KNOWN", {}).items()}
    computed = {name: f for family in families for name, f in getattr(family, "OPERATORS", {}).items()}
    return {name: Operator(compute, known.get(name)) for name, compute in computed.items()}


def find_operator(node: Node) -> Operator:
    """The operator of a node. Raises InputError that names the node and the operator when it is not read."""
    found = all_operators().get(node.op)
    if found is None:
        raise node.refused(_WHY.get(node.op, "this operator is not among those that are read"))
    return found
