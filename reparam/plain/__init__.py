"""The target `plain`: a span of the graph between two points where one tensor is alive, written as one chain of layers
that carry what is still needed. The span is read as linear forms, scheduled, packed into groups and lowered.
"""

from .block_report import facts_of, price
from .lowering import PlainChain, lower
from .plan import plan_chain, plan_layer
from .read_span import read_span
from .register_value import why_not
from .span import Span, alive_beside, around, carries_data, outermost, position_of
from .squeeze_excite import read_gate

__all__ = [
    "PlainChain",
    "Span",
    "alive_beside",
    "around",
    "carries_data",
    "facts_of",
    "lower",
    "outermost",
    "plan_chain",
    "plan_layer",
    "position_of",
    "price",
    "read_gate",
    "read_span",
    "why_not",
]
