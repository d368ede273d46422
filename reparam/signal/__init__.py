"""What signals do on their way through a network: their moments, predicted and measured, and what becomes of gradients.
Nothing here changes a network.
"""

from .branches import Block, blocks
from .functions import Function, activations, function_behind, function_read, gain_of
from .gaussian import points_of, power_of
from .moments import Predicted, predict
from .power import Power, measured
from .walk import Policy, Scale, Weighed, as_it_is

__all__ = [
    "Block",
    "Function",
    "Policy",
    "Power",
    "Predicted",
    "Scale",
    "Weighed",
    "activations",
    "as_it_is",
    "blocks",
    "function_behind",
    "function_read",
    "gain_of",
    "measured",
    "points_of",
    "power_of",
    "predict",
]
