"""Makes a network cheaper: chooses channels to switch off, refits the weights of the others on the user's samples, and
measures what became of the outputs. That the smaller network equals the one with channels switched off is verified.
"""

from .again import refit
from .loop import Pruned, prune
from .options import ENGINES, FORMS, STREAMS, PruneOptions
from .report import PruneReport
from .score import SCORES

__all__ = ["ENGINES", "FORMS", "SCORES", "STREAMS", "PruneOptions", "PruneReport", "Pruned", "prune", "refit"]
