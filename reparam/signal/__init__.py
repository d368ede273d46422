"""What signals do on their way through a network: their moments, predicted and measured, and what becomes of gradients.
Nothing here changes a network.
"""

from .analysis import KINDS, analyze
from .branches import Block, blocks
from .factors import Factors, Sums, factors_of, leading_factor
from .fields import different_units
from .functions import PASSIVE, POOLS, Function, activations, function_behind, function_read, gain_of
from .gaussian import points_of, power_of
from .layer_inputs import Read, read_of, refuse_empty_layers
from .moments import Predicted, predict
from .packed import moved_alone, packed_parts
from .pictures import draw_pictures, line_picture
from .power import Power, measured
from .running import in_training, norm_of_batch, random_batches, run
from .spelled import spell_sums
from .table import Analysis, Table
from .walk import Policy, Scale, Weighed, as_it_is

__all__ = [
    "KINDS",
    "PASSIVE",
    "POOLS",
    "Analysis",
    "Block",
    "Factors",
    "Function",
    "Policy",
    "Power",
    "Predicted",
    "Read",
    "Scale",
    "Sums",
    "Table",
    "Weighed",
    "activations",
    "analyze",
    "as_it_is",
    "blocks",
    "different_units",
    "draw_pictures",
    "factors_of",
    "function_behind",
    "function_read",
    "gain_of",
    "in_training",
    "leading_factor",
    "line_picture",
    "measured",
    "moved_alone",
    "norm_of_batch",
    "packed_parts",
    "points_of",
    "power_of",
    "predict",
    "random_batches",
    "read_of",
    "refuse_empty_layers",
    "run",
    "spell_sums",
]
